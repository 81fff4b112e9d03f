package vfs

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// anyVacant is for a tree that one FS alone uses, with names that it never
// makes twice.
func anyVacant(*metapb.Cred, sys.Ino, []byte) bool { return true }

// awaitNumbers waits until there are inode numbers at hand.
func awaitNumbers(fs *FS) {
	for fs.inos.take() == 0 {
		time.Sleep(time.Millisecond)
	}
}

// recorder notes the commands that reach a tree.
type recorder struct {
	*faultyTree
	mu   sync.Mutex
	cmds []*metapb.Command
	fail error // of Mknod
}

func (r *recorder) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	r.mu.Lock()
	switch cmd.Op.(type) {
	case *metapb.Command_AllocInos, *metapb.Command_AllocSlices:
	default:
		r.cmds = append(r.cmds, cmd)
	}
	fail := r.fail
	r.mu.Unlock()
	if fail != nil && cmd.GetMknod() != nil {
		return nil, fail
	}
	return r.faultyTree.Do(ctx, cmd)
}

// taken returns the commands since the last call.
func (r *recorder) taken() []*metapb.Command {
	r.mu.Lock()
	defer r.mu.Unlock()
	cmds := r.cmds
	r.cmds = nil
	return cmds
}

// refuse has Mknod answer err from now on.
func (r *recorder) refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// newPromising returns an FS that has the tree to itself.
func newPromising(t *testing.T, opts Options) (*FS, *recorder) {
	t.Helper()
	return newPromisingOn(t, block.NewMemory(), opts)
}

func newPromisingOn(t *testing.T, store block.Store, opts Options) (*FS, *recorder) {
	t.Helper()
	tree := &recorder{faultyTree: &faultyTree{Client: meta.NewMemory()}}
	opts.Vacant = func(cred *metapb.Cred, dir sys.Ino, name []byte) bool {
		_, err := tree.Query(t.Context(), &metapb.Query{Cred: cred, Op: &metapb.Query_Lookup{
			Lookup: &metapb.Lookup{Parent: uint64(dir), Name: name}}})
		return sys.Is(err, sys.NotExist)
	}
	fs := New(tree, store, opts)
	t.Cleanup(func() {
		if err := fs.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	awaitNumbers(fs)
	return fs, tree
}

// TestASmallFileIsOneCommand: from open to close, with any bytes.
func TestASmallFileIsOneCommand(t *testing.T) {
	fs, tree := newPromising(t, Options{})
	for _, size := range []int{0, 1, 16 << 10, 300_000} {
		f := create(t, fs, "f"+itoa(uint64(size)), os.O_EXCL)
		if size > 0 {
			write(t, f, noise(size, 3), 0)
		}
		if n := len(tree.taken()); n != 0 {
			t.Errorf("%d commands before the file is closed", n)
		}
		if a, err := fs.GetAttr(t.Context(), Root(), f.Ino()); err != nil || a.GetSize() != uint64(size) || a.GetMode() != 0o644 {
			t.Errorf("attributes before the file is closed: %v, %v", a, err)
		}
		must(t, f.Flush(t.Context()))
		cmds := tree.taken()
		if len(cmds) != 1 || cmds[0].GetMknod() == nil {
			t.Fatalf("%d bytes: %d commands, the first %v", size, len(cmds), cmds)
		}
		wantBytes(t, f, noise(size, 3)[:size])
		f.Release()
		again, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_RDONLY)
		must(t, err)
		wantBytes(t, again, noise(size, 3)[:size])
		again.Release()
	}
	if n := len(tree.taken()); n != 0 {
		t.Errorf("%d more commands", n)
	}
	if len(fs.promises.named)+len(fs.promises.dirs) != 0 {
		t.Errorf("promises are left: %v", fs.promises.named)
	}
}

// TestWhatShowsAFileMakesItFirst: whatever else the tree is asked, the file is
// in it by then.
func TestWhatShowsAFileMakesItFirst(t *testing.T) {
	fs, tree := newPromising(t, Options{})
	root := sys.RootIno
	for name, do := range map[string]func(f *File) error{
		"fsync":      func(f *File) error { return f.Fsync(t.Context()) },
		"fsync dir":  func(*File) error { return fs.FsyncDir(t.Context(), root) },
		"asked back": func(*File) error { fs.Keep(t.Context(), []sys.Ino{root}); return nil },
		"truncate":   func(f *File) error { return f.Truncate(t.Context(), 10) },
		"list": func(f *File) error {
			entries, _, err := fs.ReadDir(t.Context(), Root(), root, 0, 1000, false)
			if !slices.ContainsFunc(entries, func(e *metapb.Entry) bool { return e.GetIno() == uint64(f.Ino()) }) {
				t.Error("not listed")
			}
			return err
		},
		"open": func(f *File) error {
			o, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_RDONLY)
			if err == nil {
				o.Release()
			}
			return err
		},
		"chmod": func(f *File) error {
			mode := uint32(0o600)
			_, err := fs.SetAttr(t.Context(), Root(), &metapb.SetAttr{Ino: uint64(f.Ino()), Mode: &mode})
			return err
		},
		"chmod of the directory": func(f *File) error {
			mode := uint32(0o755)
			_, err := fs.SetAttr(t.Context(), Root(), &metapb.SetAttr{Ino: uint64(root), Mode: &mode})
			return err
		},
		"utimes": func(f *File) error {
			_, err := fs.SetAttr(t.Context(), Root(), &metapb.SetAttr{Ino: uint64(f.Ino()), MtimeNow: true})
			return err
		},
		"link": func(f *File) error {
			_, err := fs.Link(t.Context(), Root(), f.Ino(), root, []byte("other"))
			return err
		},
		"setxattr": func(f *File) error {
			return fs.SetXattr(t.Context(), Root(), &metapb.SetXattr{Ino: uint64(f.Ino()), Name: []byte("user.a")})
		},
		"access": func(f *File) error { return fs.Access(t.Context(), Root(), f.Ino(), 4) },
		"punch": func(f *File) error {
			return fs.Fallocate(t.Context(), Root(), &metapb.Fallocate{Ino: uint64(f.Ino()), Len: 5, Zero: true, KeepSize: true})
		},
		"rename over another": func(f *File) error {
			return fs.Rename(t.Context(), Root(), &metapb.Rename{Parent: uint64(root), Name: []byte("rename over another"), NewParent: uint64(root), NewName: []byte("new")})
		},
		"unlink":  func(f *File) error { return fs.Unlink(t.Context(), Root(), root, []byte("unlink")) },
		"release": func(f *File) error { f.Release(); return nil },
	} {
		f := create(t, fs, name, 0)
		write(t, f, []byte("0123456789"), 0)
		tree.taken()
		if err := do(f); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if cmds := tree.taken(); len(cmds) == 0 || string(cmds[0].GetMknod().GetName()) != name {
			t.Errorf("%s: the first command was %v", name, cmds)
		}
		f.Release()
		if len(fs.promises.named)+len(fs.promises.dirs) != 0 {
			t.Fatalf("%s: promises are left: %v", name, fs.promises.named)
		}
	}
}

// TestAPromisedNameIsTaken: for others of the same FS the file is there.
func TestAPromisedNameIsTaken(t *testing.T) {
	fs, tree := newPromising(t, Options{})
	f := create(t, fs, "f", os.O_EXCL)
	defer f.Release()
	tree.taken()
	a, err := fs.Lookup(t.Context(), Root(), sys.RootIno, []byte("f"))
	if err != nil || sys.Ino(a.GetIno()) != f.Ino() || len(tree.taken()) != 0 {
		t.Fatalf("looked up: %v, %v", a, err)
	}
	dir, err := fs.GetAttr(t.Context(), Root(), sys.RootIno)
	if err != nil || dir.GetMtimeNs() < a.GetMtimeNs() {
		t.Errorf("the directory's time is %d, expected at least %d (%v)", dir.GetMtimeNs(), a.GetMtimeNs(), err)
	}
	if _, _, err := fs.Create(t.Context(), Root(), sys.RootIno, []byte("f"), 0o644, os.O_EXCL|os.O_RDWR); !sys.Is(err, sys.Exist) {
		t.Errorf("created twice: %v", err)
	}
	write(t, f, []byte("bytes"), 0)
	_, same, err := fs.Create(t.Context(), Root(), sys.RootIno, []byte("f"), 0o644, os.O_RDWR)
	must(t, err)
	defer same.Release()
	wantBytes(t, same, []byte("bytes"))
}

// TestABrokenPromiseIsTold: the writer hears of it at close, and tries again
// with the next one.
func TestABrokenPromiseIsTold(t *testing.T) {
	fs, tree := newPromising(t, Options{})
	f := create(t, fs, "f", os.O_EXCL)
	write(t, f, []byte("bytes"), 0)
	tree.refuse(sys.E(sys.Op("test"), sys.NoSpace))
	if err := f.Flush(t.Context()); !sys.Is(err, sys.NoSpace) {
		t.Errorf("flush on a full tree: %v", err)
	}
	fs.Keep(t.Context(), nil)
	if err := f.Fsync(t.Context()); !sys.Is(err, sys.NoSpace) {
		t.Errorf("fsync on a full tree: %v", err)
	}
	tree.refuse(nil)
	must(t, f.Flush(t.Context()))
	wantBytes(t, f, []byte("bytes"))
	f.Release()

	// Somebody else has the name after all: this FS did not answer in time.
	f = create(t, fs, "g", os.O_EXCL)
	_, err := tree.Client.Do(t.Context(), &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: uint64(sys.RootIno), Name: []byte("g"), Type: uint32(sys.TypeRegular), Mode: 0o600}}})
	must(t, err)
	if err := f.Flush(t.Context()); !sys.Is(err, sys.Exist) {
		t.Errorf("flush of a file whose name is taken: %v", err)
	}
	f.Release()
	a, err := fs.Lookup(t.Context(), Root(), sys.RootIno, []byte("g"))
	if err != nil || a.GetMode() != 0o600 {
		t.Errorf("after the end of the promise: %v, %v", a, err)
	}
}

// TestAFileStaysWithoutItsBytes: open has said that the file is made, so it is
// there, empty, when its bytes could not be stored.
func TestAFileStaysWithoutItsBytes(t *testing.T) {
	store := &faultyStore{Store: block.NewMemory()}
	fs, tree := newPromisingOn(t, store, Options{})
	store.fail(sys.E(sys.Op("test"), sys.NoSpace))
	f := create(t, fs, "f", os.O_EXCL)
	write(t, f, noise(300<<10, 1), 0)
	if err := f.Flush(t.Context()); !sys.Is(err, sys.NoSpace) {
		t.Fatalf("flush: %v, expected no space", err)
	}
	f.Release()
	a, err := tree.Query(t.Context(), &metapb.Query{Op: &metapb.Query_Lookup{
		Lookup: &metapb.Lookup{Parent: uint64(sys.RootIno), Name: []byte("f")}}})
	if err != nil || a.GetAttr().GetIno() != uint64(f.Ino()) || a.GetAttr().GetSize() != 0 {
		t.Errorf("expected the empty file in the tree, found %v, %v", a, err)
	}
}

// TestAPromiseIsKeptOnce: a lost result and a lost session do not make the file
// twice, or not at all.
func TestAPromiseIsKeptOnce(t *testing.T) {
	for name, fail := range map[string]func(*faultyTree){
		"result lost":  func(f *faultyTree) { f.lose = 1 },
		"session gone": func(f *faultyTree) { f.gone = 1 },
	} {
		fs, tree := newPromising(t, Options{})
		f := create(t, fs, "f", os.O_EXCL)
		write(t, f, []byte("bytes"), 0)
		tree.mu.Lock()
		fail(tree.faultyTree)
		tree.mu.Unlock()
		if err := f.Flush(t.Context()); err != nil && name == "session gone" {
			t.Errorf("%s: %v", name, err)
		}
		must(t, f.Flush(t.Context()))
		wantBytes(t, f, []byte("bytes"))
		f.Release()
		again, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_RDONLY)
		must(t, err)
		wantBytes(t, again, []byte("bytes"))
		again.Release()
	}
}

// TestPromisesAreKeptInTime: what nobody closes is made by the background, and
// by Close.
func TestPromisesAreKeptInTime(t *testing.T) {
	fs, tree := newPromising(t, Options{FlushAfter: 20 * time.Millisecond})
	f := create(t, fs, "f", 0)
	for f.i.isPromised() {
		time.Sleep(time.Millisecond)
	}
	tree.taken()
	g := create(t, fs, "g", 0)
	must(t, fs.Close(context.Background()))
	if cmds := tree.taken(); g.i.isPromised() || len(cmds) != 1 || string(cmds[0].GetMknod().GetName()) != "g" {
		t.Errorf("Close sent %v", cmds)
	}
	f.Release()
	g.Release()
}
