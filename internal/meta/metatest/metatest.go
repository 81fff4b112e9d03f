// Package metatest is what a tree must do, as tests. Every engine of package
// meta, and every client of one, passes them.
package metatest

import (
	"context"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// suite is every test by name. Each gets a tree of its own, formatted with a
// retention of 0.
var suite = []struct {
	name string
	test func(x *tree)
}{
	{"Format", testFormat},
	{"UnknownCommand", testUnknown},
	{"Create", testCreate},
	{"CreateRefused", testCreateRefused},
	{"CreateOrOpen", testCreateOrOpen},
	{"CreateWithBody", testCreateWithBody},
	{"CreateTypes", testCreateTypes},
	{"Names", testNames},
	{"SetgidDirectory", testSetgidDirectory},
	{"DirectoryTimes", testDirectoryTimes},
	{"Symlink", testSymlink},
	{"Link", testLink},
	{"Unlink", testUnlink},
	{"Rmdir", testRmdir},
	{"RemovedDirectory", testRemovedDirectory},
	{"Sticky", testSticky},
	{"HiddenInodes", testHidden},
	{"RenameMatrix", testRenameMatrix},
	{"RenameKeeps", testRenameKeeps},
	{"RenameDirectory", testRenameDirectory},
	{"RenameLoop", testRenameLoop},
	{"RenameExchange", testRenameExchange},
	{"RenamePermission", testRenamePermission},
	{"RenameSticky", testRenameSticky},
	{"RenameHardLinks", testRenameHardLinks},
	{"Access", testAccess},
	{"Search", testSearch},
	{"Chmod", testChmod},
	{"Chown", testChown},
	{"Times", testTimes},
	{"TruncatePermission", testTruncatePermission},
	{"WriteClearsSetuid", testWriteClearsSetuid},
	{"Inline", testInline},
	{"CommitSlices", testCommitSlices},
	{"CommitRefused", testCommitRefused},
	{"CommitCovers", testCommitCovers},
	{"LargeFile", testLargeFile},
	{"Truncate", testTruncate},
	{"Fallocate", testFallocate},
	{"Stored", testStored},
	{"Content", testContent},
	{"Merge", testMerge},
	{"MergeStale", testMergeStale},
	{"AllocSlices", testAllocSlices},
	{"AllocInos", testAllocInos},
	{"EndSession", testEndSession},
	{"GiveUp", testGiveUp},
	{"Freed", testFreed},
	{"Xattr", testXattr},
	{"XattrNamespaces", testXattrNamespaces},
	{"XattrLimits", testXattrLimits},
	{"ReadDir", testReadDir},
	{"ReadDirChanging", testReadDirChanging},
	{"ReadDirRename", testReadDirRename},
	{"OpenUnlinked", testOpenUnlinked},
	{"QuarantineOrder", testQuarantineOrder},
	{"KeepOpen", testKeepOpen},
	{"PurgeBounded", testPurgeBounded},
	{"Retention", testRetention},
	{"Restore", testRestore},
	{"ScanInodes", testScanInodes},
	{"StatFS", testStatFS},
	{"Model", testModel},
}

// Option changes how the suite runs.
type Option func(*tree)

// Far says that every look at a row is a question to a server: what is tried at
// random is tried less often.
func Far(x *tree) { x.far = true }

// Run tests a tree through its client. open returns a tree that has not been
// formatted, and cleans up after itself by t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) meta.Client, opts ...Option) {
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) {
			x := &tree{tb: t, c: open(t)}
			for _, opt := range opts {
				opt(x)
			}
			if c.name != "Format" && c.name != "Retention" {
				x.format(0)
			}
			c.test(x)
			x.check()
		})
	}
	t.Run("Dump", func(t *testing.T) { testDump(t, open, opts) })
}

// RunTx tests an engine: all that Run does, and that a refused command has
// written nothing. open returns empty rows.
func RunTx(t *testing.T, open func(t *testing.T) meta.Tx, opts ...Option) {
	Run(t, func(t *testing.T) meta.Client { return &local{tb: t, tx: open(t)} }, opts...)
	t.Run("Check", func(t *testing.T) { testCheck(t, open) })
	t.Run("Touched", func(t *testing.T) { testTouched(t, open) })
}

// tb is what the tests need of *testing.T and *rapid.T.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// tree is a client as the tests use it: on behalf of somebody, with a failed
// expectation ending the test.
type tree struct {
	tb   tb
	c    meta.Client
	cred *metapb.Cred
	far  bool
}

// as returns the tree on behalf of another user.
func (x *tree) as(uid, gid uint32, groups ...uint32) *tree {
	return &tree{tb: x.tb, c: x.c, cred: &metapb.Cred{Uid: uid, Gid: gid, Groups: groups}}
}

func (x *tree) format(retention time.Duration) {
	x.tb.Helper()
	x.must(x.format1(retention))
}

func (x *tree) format1(retention time.Duration) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{RetentionNs: retention.Nanoseconds()}}})
}

// check fails the test when the tree is not sound.
func (x *tree) check() {
	x.tb.Helper()
	rep, err := meta.Check(context.Background(), x.c, meta.CheckOptions{Thorough: true})
	if err != nil {
		x.tb.Fatalf("check: %v", err)
	}
	for _, p := range rep.Problems {
		x.tb.Errorf("check: %v", p)
	}
}

func (x *tree) do(cmd *metapb.Command) (*metapb.Result, error) {
	cmd.Cred = x.cred
	return x.c.Do(context.Background(), cmd)
}

func (x *tree) query(q *metapb.Query) (*metapb.Answer, error) {
	q.Cred = x.cred
	return x.c.Query(context.Background(), q)
}

// must ends the test on an error, and returns the inode concerned.
func (x *tree) must(res *metapb.Result, err error) *metapb.Attr {
	x.tb.Helper()
	if err != nil {
		x.tb.Fatalf("expected success, found %v", err)
	}
	return res.GetAttr()
}

// refused ends the test unless the error is of a kind.
func (x *tree) refused(want sys.Kind, err error) {
	x.tb.Helper()
	if err == nil {
		x.tb.Fatalf("expected %q, found success", want)
	}
	if sys.KindOf(err) != want {
		x.tb.Fatalf("expected %q, found %v", want, err)
	}
}

func (x *tree) mknod(c *metapb.Mknod) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: c}})
}

func (x *tree) make(typ sys.FileType, dir *metapb.Attr, name string, mode uint32) (*metapb.Result, error) {
	c := &metapb.Mknod{Parent: dir.Ino, Name: []byte(name), Type: uint32(typ), Mode: mode}
	if typ == sys.TypeSymlink {
		c.Target = []byte("target")
	}
	return x.mknod(c)
}

func (x *tree) mkdir(dir *metapb.Attr, name string, mode uint32) *metapb.Attr {
	x.tb.Helper()
	return x.must(x.make(sys.TypeDir, dir, name, mode))
}

func (x *tree) create(dir *metapb.Attr, name string, mode uint32) *metapb.Attr {
	x.tb.Helper()
	return x.must(x.make(sys.TypeRegular, dir, name, mode))
}

func (x *tree) unlink(dir *metapb.Attr, name string) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Unlink{
		Unlink: &metapb.Unlink{Parent: dir.Ino, Name: []byte(name)},
	}})
}

func (x *tree) rmdir(dir *metapb.Attr, name string) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Rmdir{
		Rmdir: &metapb.Rmdir{Parent: dir.Ino, Name: []byte(name)},
	}})
}

func (x *tree) link(a, dir *metapb.Attr, name string) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Link{
		Link: &metapb.Link{Ino: a.Ino, Parent: dir.Ino, Name: []byte(name)},
	}})
}

// flags of rename.
type renameFlags int

const (
	plain renameFlags = iota
	noReplace
	exchange
)

func (x *tree) rename(d1 *metapb.Attr, n1 string, d2 *metapb.Attr, n2 string, f renameFlags) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Rename{Rename: &metapb.Rename{
		Parent: d1.Ino, Name: []byte(n1), NewParent: d2.Ino, NewName: []byte(n2),
		NoReplace: f == noReplace, Exchange: f == exchange,
	}}})
}

func (x *tree) setAttr(c *metapb.SetAttr) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_SetAttr{SetAttr: c}})
}

func (x *tree) chmod(a *metapb.Attr, mode uint32) (*metapb.Result, error) {
	return x.setAttr(&metapb.SetAttr{Ino: a.Ino, Mode: &mode})
}

func (x *tree) truncate(a *metapb.Attr, size uint64) (*metapb.Result, error) {
	return x.setAttr(&metapb.SetAttr{Ino: a.Ino, Size: &size})
}

// chown leaves an id of -1 as it is.
func (x *tree) chown(a *metapb.Attr, uid, gid int) (*metapb.Result, error) {
	c := &metapb.SetAttr{Ino: a.Ino}
	if uid >= 0 {
		u := uint32(uid)
		c.Uid = &u
	}
	if gid >= 0 {
		g := uint32(gid)
		c.Gid = &g
	}
	return x.setAttr(c)
}

func (x *tree) lookup1(dir *metapb.Attr, name string) (*metapb.Attr, error) {
	ans, err := x.query(&metapb.Query{Op: &metapb.Query_Lookup{
		Lookup: &metapb.Lookup{Parent: dir.Ino, Name: []byte(name)},
	}})
	return ans.GetAttr(), err
}

func (x *tree) lookup(dir *metapb.Attr, name string) *metapb.Attr {
	x.tb.Helper()
	a, err := x.lookup1(dir, name)
	if err != nil {
		x.tb.Fatalf("lookup of %q: %v", name, err)
	}
	return a
}

// absent ends the test when a name exists.
func (x *tree) absent(dir *metapb.Attr, name string) {
	x.tb.Helper()
	_, err := x.lookup1(dir, name)
	x.refused(sys.NotExist, err)
}

func (x *tree) getAttr1(ino uint64) (*metapb.Attr, error) {
	ans, err := x.query(&metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: ino}}})
	return ans.GetAttr(), err
}

// get returns an inode's attributes as they are now.
func (x *tree) get(a *metapb.Attr) *metapb.Attr {
	x.tb.Helper()
	now, err := x.getAttr1(a.Ino)
	if err != nil {
		x.tb.Fatalf("attributes of inode %d: %v", a.Ino, err)
	}
	return now
}

func (x *tree) root() *metapb.Attr {
	x.tb.Helper()
	return x.get(&metapb.Attr{Ino: uint64(sys.RootIno)})
}

func (x *tree) open(a *metapb.Attr, want uint32) (*metapb.Answer, error) {
	return x.query(&metapb.Query{Op: &metapb.Query_Open{Open: &metapb.Open{Ino: a.Ino, Want: want}}})
}

func (x *tree) access(a *metapb.Attr, want uint32) error {
	_, err := x.query(&metapb.Query{Op: &metapb.Query_Access{Access: &metapb.Access{Ino: a.Ino, Want: want}}})
	return err
}

func (x *tree) readDir(dir *metapb.Attr, after uint64, limit uint32) (*metapb.Answer, error) {
	return x.query(&metapb.Query{Op: &metapb.Query_ReadDir{
		ReadDir: &metapb.ReadDir{Ino: dir.Ino, After: after, Limit: limit, Attrs: true},
	}})
}

// list returns all names of a directory, in cookie order.
func (x *tree) list(dir *metapb.Attr) []string {
	x.tb.Helper()
	var names []string
	for after, end := uint64(0), false; !end; {
		ans, err := x.readDir(dir, after, 7)
		if err != nil {
			x.tb.Fatalf("listing of inode %d: %v", dir.Ino, err)
		}
		for _, e := range ans.Entries {
			if e.Cookie <= after {
				x.tb.Fatalf("cookie of %q: expected one above %d, found %d", e.Name, after, e.Cookie)
			}
			after = e.Cookie
			names = append(names, string(e.Name))
		}
		end = ans.End
	}
	return names
}

// equal fails the test when two values differ.
func equal[T comparable](x *tree, what string, found, expected T) {
	x.tb.Helper()
	if found != expected {
		x.tb.Fatalf("%s: expected %v, found %v", what, expected, found)
	}
}
