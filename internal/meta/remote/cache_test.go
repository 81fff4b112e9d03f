package remote

import (
	"testing"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote/remotepb"
	"github.com/koinon/koinon/internal/sys"
)

const dirIno, fileIno = sys.Ino(100), sys.Ino(101)

func dirAttr() *metapb.Attr {
	return &metapb.Attr{Ino: uint64(dirIno), Type: uint32(sys.TypeDir), Mode: 0o755, Nlink: 2}
}

func fileAttr(size uint64) *metapb.Attr {
	return &metapb.Attr{Ino: uint64(fileIno), Type: uint32(sys.TypeRegular), Mode: 0o644, Nlink: 1, Size: size}
}

func lookup(name string) *metapb.Query {
	return &metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: uint64(dirIno), Name: []byte(name)}}}
}

func mknod(name string) *metapb.Command {
	return &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: uint64(dirIno), Name: []byte(name), Type: uint32(sys.TypeRegular)}}}
}

func leased(t *testing.T) (*cache, *fakeClock) {
	t.Helper()
	clock := &fakeClock{boot: time.Hour}
	c := newCache(clock)
	c.renewed(clock.boot, 7, 0, nil, true)
	return c, clock
}

var both = []uint64{uint64(dirIno), uint64(fileIno)}

func hit(t *testing.T, c *cache, q *metapb.Query) bool {
	t.Helper()
	a, err := c.answer(q)
	return a != nil || err != nil
}

func TestCachedWhileTheLeaseRuns(t *testing.T) {
	c, clock := leased(t)
	c.learn(lookup("f"), &metapb.Answer{Attr: fileAttr(3)}, both, 7, 0, c.now())
	a, err := c.answer(lookup("f"))
	if err != nil || a.GetAttr().GetSize() != 3 {
		t.Fatalf("not answered from the cache: %v, %v", a, err)
	}
	a.Attr.Size = 99 // answers belong to the caller
	if a, _ := c.answer(lookup("f")); a.Attr.Size != 3 {
		t.Error("a caller changed the cache")
	}
	c.renewed(clock.boot, 7, 4, []uint64{uint64(fileIno)}, false)
	if hit(t, c, lookup("f")) {
		t.Error("answered from the cache after the inode was revoked")
	}
	c.learn(lookup("f"), &metapb.Answer{Attr: fileAttr(4)}, both, 7, 3, c.now())
	if hit(t, c, lookup("f")) {
		t.Error("cached a reply that was older than a revocation already seen")
	}
	c.learn(lookup("f"), &metapb.Answer{Attr: fileAttr(4)}, both, 7, 4, c.now())
	if !hit(t, c, lookup("f")) {
		t.Error("did not cache a reply that was granted after the revocation")
	}
	clock.boot += Term
	if hit(t, c, lookup("f")) {
		t.Error("answered from the cache after the lease had run out")
	}
}

func TestOwnCommandsAreSeenAtOnce(t *testing.T) {
	c, _ := leased(t)
	c.learn(lookup("f"), &metapb.Answer{}, both, 7, 0, c.now())
	if _, err := c.answer(lookup("f")); !sys.Is(err, sys.NotExist) {
		t.Fatalf("a name that does not exist was answered %v", err)
	}
	before := c.now()
	e := c.begin(mknod("f"))
	if hit(t, c, lookup("f")) {
		t.Error("answered from the cache while a command on the name was under way")
	}
	c.learn(lookup("f"), &metapb.Answer{}, both, 7, 0, c.now())
	if hit(t, c, lookup("f")) {
		t.Error("cached a reply that crossed a command on the directory")
	}
	c.end(e, &metapb.Result{Attr: fileAttr(0), Created: true}, []*metapb.Attr{dirAttr(), fileAttr(0)}, &remotepb.Grant{Inos: both, Term: 7})
	c.learn(lookup("f"), &metapb.Answer{}, both, 7, 0, before)
	if a, err := c.answer(lookup("f")); err != nil || a == nil {
		t.Errorf("the file just made is answered %v, %v", a, err)
	}
}

func TestADirectoryJustMadeIsKnownToBeEmpty(t *testing.T) {
	c, _ := leased(t)
	top := sys.Ino(50)
	mkdir := &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: uint64(top), Name: []byte("d"), Type: uint32(sys.TypeDir)}}}
	e := c.begin(mkdir)
	c.end(e, &metapb.Result{Attr: dirAttr(), Created: true}, []*metapb.Attr{dirAttr()}, &remotepb.Grant{Inos: []uint64{uint64(top), uint64(dirIno)}, Term: 7})
	if _, err := c.answer(lookup("anything")); !sys.Is(err, sys.NotExist) {
		t.Fatalf("a name in a directory just made was answered %v", err)
	}
	// A command that failed leaves open what is there.
	e = c.begin(mknod("f"))
	c.end(e, nil, nil, nil)
	if hit(t, c, lookup("f")) {
		t.Error("answered from the cache although a command on the name failed")
	}
	if _, err := c.answer(lookup("g")); !sys.Is(err, sys.NotExist) {
		t.Errorf("another name of the directory was answered %v", err)
	}
}

func TestANewLeaderMakesTheCacheEmpty(t *testing.T) {
	c, clock := leased(t)
	c.learn(lookup("f"), &metapb.Answer{Attr: fileAttr(3)}, both, 7, 0, c.now())
	c.renewed(clock.boot, 8, 0, nil, false)
	if hit(t, c, lookup("f")) {
		t.Error("what one leader granted was used under another")
	}
	c.learn(lookup("f"), &metapb.Answer{Attr: fileAttr(3)}, both, 7, 0, c.now())
	if hit(t, c, lookup("f")) {
		t.Error("cached a reply of the old leader under the new one")
	}
}

// TestPromisesAreKeptSideBySide: what a session knows of a directory that it
// has to itself stays known while it makes files there, in whichever order the
// answers come.
func TestPromisesAreKeptSideBySide(t *testing.T) {
	c, _ := leased(t)
	dirAt := func(version uint64) *metapb.Attr {
		a := dirAttr()
		a.Version, a.Mode = version, 0o755
		return a
	}
	made := func(ino, version uint64, sole bool) (*metapb.Result, []*metapb.Attr, *remotepb.Grant) {
		a := fileAttr(3)
		a.Ino = ino
		g := &remotepb.Grant{Inos: []uint64{ino, uint64(dirIno)}, Term: 7}
		if sole {
			g.Sole = []uint64{uint64(dirIno)}
		}
		return &metapb.Result{Attr: a, Created: true}, []*metapb.Attr{dirAt(version), a}, g
	}
	promised := func(name string, ino uint64) *metapb.Command {
		cmd := mknod(name)
		cmd.GetMknod().Ino, cmd.GetMknod().Body = ino, &metapb.Commit{Inline: []byte("abc")}
		return cmd
	}
	vacant := func(name string) bool { return c.vacant(&metapb.Cred{}, dirIno, []byte(name)) }
	e := c.begin(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 50, Name: []byte("d"), Type: uint32(sys.TypeDir)}}})
	c.end(e, &metapb.Result{Attr: dirAt(1), Created: true}, []*metapb.Attr{dirAt(1)},
		&remotepb.Grant{Inos: []uint64{50, uint64(dirIno)}, Sole: []uint64{uint64(dirIno)}, Term: 7})
	if !vacant("a") || !vacant("b") {
		t.Fatal("the directory just made is not the session's alone")
	}
	a, b := c.begin(promised("a", 71)), c.begin(promised("b", 72))
	if vacant("a") || vacant("b") || !vacant("c") {
		t.Error("expected only names under way to be unsure")
	}
	res, touched, g := made(72, 3, true)
	c.end(b, res, touched, g)
	res, touched, g = made(71, 2, true)
	c.end(a, res, touched, g)
	if got, err := c.answer(&metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: uint64(dirIno)}}}); err != nil || got.Attr.Version != 3 {
		t.Errorf("the directory is answered %v, %v; expected version 3", got, err)
	}
	for name, ino := range map[string]uint64{"a": 71, "b": 72} {
		if got, err := c.answer(lookup(name)); err != nil || got.GetAttr().GetIno() != ino {
			t.Errorf("%s is answered %v, %v", name, got, err)
		}
		open, err := c.answer(&metapb.Query{Op: &metapb.Query_Open{Open: &metapb.Open{Ino: ino}}})
		if err != nil || open == nil || string(open.Chunks[0].Chunk.Inline) != "abc" {
			t.Errorf("an open of %s is answered %v, %v", name, open, err)
		}
	}

	// A reply that crossed the command is too old.
	tick := c.now()
	e = c.begin(promised("c", 73))
	res, touched, g = made(73, 4, false)
	c.end(e, res, touched, g)
	c.learn(&metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: uint64(dirIno)}}}, &metapb.Answer{Attr: dirAt(3)}, []uint64{uint64(dirIno)}, 7, 0, tick)
	if got, err := c.answer(&metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: uint64(dirIno)}}}); err != nil || got.Attr.Version != 4 {
		t.Errorf("the directory is answered %v, %v; expected version 4", got, err)
	}

	// After a failure, or without a grant, nothing is known of it.
	for name, grant := range map[string]*remotepb.Grant{"failed": nil, "not granted": {Inos: []uint64{74}, Term: 7}} {
		c.inos[dirIno].attr = dirAt(4)
		e = c.begin(promised("d", 74))
		c.end(e, nil, nil, grant)
		if vacant("e") {
			t.Errorf("%s: the directory is taken as known", name)
		}
	}
}

// TestWhatWasWrittenIsKnown follows a small file from its creation through a
// write from its start, and through one that leaves its bytes unknown.
func TestWhatWasWrittenIsKnown(t *testing.T) {
	c, _ := leased(t)
	open := &metapb.Query{Op: &metapb.Query_Open{Open: &metapb.Open{Ino: uint64(fileIno)}}}
	commit := func(off uint64, data string) *metapb.Command {
		return &metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Ino: uint64(fileIno), InlineOff: off, Inline: []byte(data)}}}
	}
	versioned := func(size, version uint64) *metapb.Attr {
		a := fileAttr(size)
		a.Version = version
		return a
	}
	run := func(cmd *metapb.Command, res *metapb.Result, attr *metapb.Attr) {
		e := c.begin(cmd)
		c.end(e, res, []*metapb.Attr{dirAttr(), attr}, &remotepb.Grant{Inos: both, Term: 7})
	}
	run(mknod("f"), &metapb.Result{Attr: versioned(0, 1), Created: true}, versioned(0, 1))
	if a, err := c.answer(open); err != nil || a == nil || len(a.Chunks) != 0 {
		t.Fatalf("an open of the file just made is answered %v, %v", a, err)
	}
	run(commit(0, "abc"), &metapb.Result{Attr: versioned(3, 2)}, versioned(3, 2))
	if a, err := c.answer(open); err != nil || a == nil || string(a.Chunks[0].Chunk.Inline) != "abc" {
		t.Fatalf("an open of the file just written is answered %v, %v", a, err)
	}
	if c.bytes != 3 {
		t.Errorf("%d bytes are counted instead of 3", c.bytes)
	}
	run(commit(1, "X"), &metapb.Result{Attr: fileAttr(3)}, fileAttr(3))
	if hit(t, c, open) {
		t.Error("an open is answered from the cache although a later write changed the bytes")
	}
	if c.bytes != 0 {
		t.Errorf("%d bytes are counted although none are kept", c.bytes)
	}
	run(mknod("f"), &metapb.Result{Attr: versioned(0, 1), Created: true}, versioned(0, 1))
	run(commit(0, "abc"), &metapb.Result{Attr: versioned(9, 3)}, versioned(9, 3))
	if hit(t, c, open) {
		t.Error("an open is answered from the cache although somebody else wrote in between")
	}
}
