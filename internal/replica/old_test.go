package replica_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// TestOldDirectory: the whole directory of the first voter is that from before the group grew. The mark knows of the change.
func TestOldDirectory(t *testing.T) {
	others := false
	c := newCluster(t, 1, func(cfg *replica.Config) { cfg.Others, cfg.Mark = others, "/served" })
	c.must(add("x"))
	c.close(1)
	old := vfs.NewMem()
	copyDir(t, c.fs[1], old, "/data")
	c.open(1)
	second, third := c.join(), c.join()
	c.change(ids(1), ids(second, third))
	c.change(ids(1, second, third), nil)
	c.must(add("x"))
	c.await("the mark to be written", func() bool { return !strings.Contains(c.mark(1), "members 0 1\n") })
	c.close(1)
	copyDir(t, old, c.fs[1], "/data")
	if _, err := replica.Open(c.config(1), machines()); !sys.Is(err, sys.Corrupt) || !strings.Contains(err.Error(), "change of members") {
		t.Fatalf("a refusal expected, found %v", err)
	}
	others = true
	c.open(1)
	c.await("the first voter to return", func() bool { return c.count(1, "x") == 2 && c.group(1).Status().Damaged == "" })
	c.close(second)
	c.must(add("x"))
}

// oldImage is a group of three that has grown from one, whose first voter is about to start from its directory and mark
// of before; nobody runs. members are what the three knew, the last ones last.
func oldImage(t *testing.T, others *bool) (c *cluster, second, third sys.NodeID, members []replica.View) {
	t.Helper()
	c = newCluster(t, 1, func(cfg *replica.Config) { cfg.Others, cfg.Mark = *others, "/served" })
	c.must(add("x"))
	c.close(1)
	image := vfs.NewMem()
	copyDir(t, c.fs[1], image, "/data")
	mark := c.mark(1)
	c.open(1)
	second, third = c.join(), c.join()
	c.change(ids(1), ids(second, third))
	members = append(members, c.group(1).View())
	c.change(ids(1, second, third), nil)
	c.must(add("x"))
	members = append(members, c.group(1).View())
	if forgot, err := c.group(1).Forgot(c.ctx(), members[0]); err != nil || forgot {
		t.Fatalf("who is told of what is over has forgotten: %v, %v", forgot, err)
	}
	for _, id := range ids(1, second, third) {
		c.close(id)
	}
	copyDir(t, image, c.fs[1], "/data")
	create(t, c.fs[1], "/served", mark)
	return c, second, third, members
}

// create writes a file.
func create(t *testing.T, fs vfs.FS, name, content string) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write([]byte(content))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestOldImage: the first voter goes back to before the group grew, its mark with it, and leads alone while the others do
// not run. What another knows tells it so; it stops, keeps what it has, and returns from the others.
func TestOldImage(t *testing.T) {
	others := false
	c, second, third, members := oldImage(t, &others)
	h := c.open(1)
	g := c.group(1)
	if _, err := c.do(c.ctx(), rsm.Command{NS: nsTest, Body: add("stray")}); err != nil {
		t.Fatal(err)
	}
	for _, told := range []replica.View{{}, g.View()} {
		if forgot, err := g.Forgot(c.ctx(), told); err != nil || forgot {
			t.Fatalf("told %v it has forgotten: %v, %v", told, forgot, err)
		}
	}
	if _, err := g.Forgot(c.ctx(), replica.View{Members: []byte("nonsense")}); !sys.Is(err, sys.Invalid) {
		t.Fatalf("told nonsense: %v", err)
	}
	another, more := g.View(), g.View()
	another.Sum++
	more.Chosen += 1000
	for _, told := range append(members, another, more) {
		if forgot, err := g.Forgot(c.ctx(), told); err != nil || !forgot || !g.Alone() {
			t.Fatalf("told of later members it goes on: %v, %v", forgot, err)
		}
	}
	for told, want := range map[*replica.View]bool{{}: false, new(g.View()): false, &more: false, &another: true} {
		if differs, err := g.Differs(c.ctx(), *told); err != nil || differs != want {
			t.Errorf("told %+v it differs: %v, %v", *told, differs, err)
		}
	}
	if members[1].Beside(1) != true || g.View().Beside(1) {
		t.Fatal("who votes is not what is told")
	}
	h.Disown("told by a test", true)
	h.Disown("told twice", false)
	<-h.Failed()
	if err := h.Err(); !errors.Is(err, replica.ErrOld) || !strings.Contains(err.Error(), "told by a test") {
		t.Fatalf("it has ended with %v", err)
	}
	if _, _, err := g.Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")}); err == nil {
		t.Fatal("after that it acknowledges")
	}
	c.close(1)
	for range 2 { // refused as often as it is tried
		if _, err := replica.Open(c.config(1), machines()); !sys.Is(err, sys.Corrupt) || !strings.Contains(err.Error(), `old copy ("told by a test")`) {
			t.Fatalf("who knows of nobody to ask is opened: %v", err)
		}
	}
	others = true
	c.open(1)
	c.open(second)
	c.open(third)
	c.await("the first voter to return", func() bool { return c.count(1, "x") == 2 && c.group(1).Status().Damaged == "" })
	if n := c.count(1, "stray"); n != 0 {
		t.Errorf("what was written alone is there: %d", n)
	}
	if _, err := c.fs[1].Stat("/data.old-1/VERSION"); err != nil {
		t.Errorf("the old copy is not kept: %v", err)
	}
	c.close(second)
	c.must(add("x"))
}

// TestOldCopiesOfAll: all directories are put back from before the last change of members. They wait, and say what is to be
// done where that was meant.
func TestOldCopiesOfAll(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Mark = "/served" })
	c.must(add("x"))
	all := ids(1, 2, 3)
	copies := map[sys.NodeID]vfs.FS{}
	for _, id := range all {
		c.close(id)
		copies[id] = vfs.NewMem()
		copyDir(t, c.fs[id], copies[id], "/data")
	}
	for _, id := range all {
		c.open(id)
	}
	fourth := c.join()
	c.change(all, ids(fourth))
	for _, id := range all {
		c.await("the mark to be written", func() bool { return !strings.Contains(c.mark(id), "members 0 1\n") })
	}
	for _, id := range append(all, fourth) {
		c.close(id)
	}
	for _, id := range all {
		copyDir(t, copies[id], c.fs[id], "/data")
		c.open(id)
	}
	for _, id := range all {
		c.await("the way out", func() bool {
			return strings.Contains(c.group(id).Status().Damaged, "remove on each the file that knows more, here /served")
		})
	}
	for _, id := range all {
		c.close(id)
		if err := c.fs[id].Remove("/served"); err != nil {
			t.Fatal(err)
		}
		c.open(id)
	}
	c.must(add("x"))
	if n := c.count(c.leader(), "x"); n != 2 {
		t.Errorf("x is %d", n)
	}
}

// TestDamagedLogTellsOfNoCommand: it may have kept an older one than the one that was chosen.
func TestDamagedLogTellsOfNoCommand(t *testing.T) {
	c := newCluster(t, 3, nil)
	for range 20 {
		c.must(add("x"))
	}
	c.await("the first to have all", func() bool { return c.count(1, "x") == 20 })
	for id := range sys.NodeID(3) {
		c.close(id + 1)
	}
	c.open(1)
	if v := c.group(1).View(); v.Slot == 0 || v.Slot > v.Chosen {
		t.Fatalf("a whole log tells %+v", v)
	}
	c.close(1)
	pokeWith(t, c.fs[1], 4096+16, "x") // of the group's first state: all entries are whole
	c.open(1)
	if v := c.group(1).View(); c.group(1).Status().Damaged == "" || v.Slot != 0 || v.Chosen == 0 {
		t.Fatalf("a damaged log tells %+v, %+v", v, c.group(1).Status())
	}
}

// TestMarkIsTriedAgain: a mark that cannot be written is written when it can be.
func TestMarkIsTriedAgain(t *testing.T) {
	c := newCluster(t, 1, func(cfg *replica.Config) { cfg.Mark = "/away/served" })
	c.must(add("x"))
	if _, err := c.fs[1].Stat("/away/served"); err == nil {
		t.Fatal("there is a mark in a directory that is not there")
	}
	if err := c.fs[1].MkdirAll("/away", 0o700); err != nil {
		t.Fatal(err)
	}
	c.await("the mark to be written", func() bool {
		_, err := c.fs[1].Stat("/away/served")
		return err == nil
	})
}
