package metatest

import (
	"fmt"
	"math"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// purge takes steps and returns how many there were.
func (x *tree) purge(limit uint32) uint32 {
	x.tb.Helper()
	res, err := x.do(&metapb.Command{Op: &metapb.Command_Purge{Purge: &metapb.Purge{Limit: limit}}})
	x.must(res, err)
	return res.Purged
}

func (x *tree) keepOpen(until int64, inos ...uint64) []uint64 {
	x.tb.Helper()
	res, err := x.do(&metapb.Command{Op: &metapb.Command_KeepOpen{
		KeepOpen: &metapb.KeepOpen{Inos: inos, UntilNs: until},
	}})
	x.must(res, err)
	return res.Kept
}

// gone says whether an inode is purged.
func (x *tree) gone(a *metapb.Attr) bool {
	x.tb.Helper()
	_, err := x.getAttr1(a.Ino)
	if err != nil {
		x.refused(sys.Stale, err)
	}
	return err != nil
}

func testOpenUnlinked(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("bytes")}))
	x.must(x.unlink(root, "f"))
	equal(x, "links", x.get(f).Nlink, 0)
	equal(x, "bytes", string(x.inline(f)), "bytes")
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, InlineOff: 5, Inline: []byte(" more")}))
	equal(x, "bytes", string(x.inline(f)), "bytes more")
	x.must(x.truncate(f, 3))
	id := x.write(f, 100, 10)
	x.must(x.chmod(f, 0o600))
	x.must(x.setXattr(f, "user.a", "v", 0))
	x.must(x.fallocate(&metapb.Fallocate{Ino: f.Ino, Len: 1000}))
	equal(x, "size", x.get(f).Size, 1000)
	equal(x, "kept", len(x.keepOpen(math.MaxInt64, f.Ino, root.Ino, 9999)), 1)
	x.purge(100)
	equal(x, "gone while open", x.gone(f), false)

	g := x.create(root, "g", 0o644)
	x.must(x.setXattr(g, "user.a", "v", 0))
	x.write(g, 0, 10)
	x.must(x.unlink(root, "g"))
	equal(x, "steps", x.purge(100), 2)
	equal(x, "gone", x.gone(g), true)
	_, err := x.commit(&metapb.Commit{Ino: g.Ino, Inline: []byte("x")})
	x.refused(sys.Stale, err)
	_, err = x.open(g, 0)
	x.refused(sys.Stale, err)
	_, err = x.setXattr(g, "user.a", "v", 0)
	x.refused(sys.Stale, err)
	_, err = x.truncate(g, 0)
	x.refused(sys.Stale, err)
	if ids, _ := x.freed(); len(ids) != 1 || ids[id] != 0 {
		x.tb.Fatalf("freed: expected the slice of the purged file only, found %v", ids)
	}
	_, err = x.do(&metapb.Command{Op: &metapb.Command_Purge{Purge: &metapb.Purge{}}})
	x.refused(sys.Invalid, err)
}

// Those whose time has come go, whatever order they came in.
func testQuarantineOrder(x *tree) {
	root := x.root()
	var files []*metapb.Attr
	for i := range 20 {
		name := fmt.Sprintf("%d", i)
		files = append(files, x.create(root, name, 0o644))
		x.must(x.unlink(root, name))
		if i%3 == 0 {
			equal(x, "kept", len(x.keepOpen(math.MaxInt64-int64(i), files[i].Ino)), 1)
		}
	}
	equal(x, "steps", x.purge(100), 13)
	for i, f := range files {
		equal(x, fmt.Sprintf("file %d is gone", i), x.gone(f), i%3 != 0)
	}
	quarantined := x.list(&metapb.Attr{Ino: uint64(sys.QuarantineIno)})
	equal(x, "in quarantine", len(quarantined), 7)
	for i, name := range quarantined[1:] {
		if name < quarantined[i] {
			x.tb.Fatalf("expected deadlines in order, found %q before %q", quarantined[i], name)
		}
	}
}

func testKeepOpen(x *tree) {
	root := x.root()
	var inos []uint64
	for i := range 10 {
		name := fmt.Sprintf("%d", i)
		f := x.create(root, name, 0o644)
		inos = append(inos, f.Ino)
		x.must(x.link(f, root, name+"b"))
		x.must(x.unlink(root, name))
		if i%2 == 0 {
			x.must(x.unlink(root, name+"b"))
		}
	}
	far := x.root().CtimeNs + time.Hour.Nanoseconds()
	equal(x, "kept", len(x.keepOpen(far, inos...)), 5)
	equal(x, "kept once more", len(x.keepOpen(far, inos...)), 5)
	equal(x, "deadline", x.get(&metapb.Attr{Ino: inos[0]}).DeadlineNs, far)
	x.keepOpen(far-1, inos...)
	equal(x, "deadline after a shorter one", x.get(&metapb.Attr{Ino: inos[0]}).DeadlineNs, far)
	x.keepOpen(far+1, inos[0])
	equal(x, "deadline after a longer one", x.get(&metapb.Attr{Ino: inos[0]}).DeadlineNs, far+1)
	equal(x, "steps", x.purge(100), 0)
	equal(x, "kept without inodes", len(x.keepOpen(far)), 0)

	f := x.create(root, "f", 0o644)
	x.must(x.unlink(root, "f"))
	before := x.get(f).DeadlineNs
	for _, span := range []time.Duration{math.MinInt64, time.Hour, time.Minute} {
		x.must(x.do(&metapb.Command{Op: &metapb.Command_KeepOpen{
			KeepOpen: &metapb.KeepOpen{Inos: []uint64{f.Ino}, ForNs: span.Nanoseconds()}}}))
	}
	if kept := x.get(f).DeadlineNs - before; kept < time.Hour.Nanoseconds() || kept > 2*time.Hour.Nanoseconds() {
		x.tb.Fatalf("expected the command's time and an hour, found %v more", time.Duration(kept))
	}
}

// Purge works in bounded steps, and nobody reads what is half freed.
func testPurgeBounded(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	g := x.create(root, "g", 0o644)
	for n := range uint64(10) {
		x.write(f, n*sys.ChunkSize, 10)
	}
	x.must(x.unlink(root, "f"))
	x.must(x.unlink(root, "g"))
	total := uint32(0)
	equal(x, "first steps", x.purge(3), 3)
	equal(x, "gone", x.gone(f), true)
	equal(x, "kept", len(x.keepOpen(math.MaxInt64, f.Ino)), 0)
	_, err := x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("x")})
	x.refused(sys.Stale, err)
	for total = 3; ; {
		n := x.purge(4)
		if total += n; n < 4 {
			break
		}
	}
	equal(x, "steps", total, 12)
	equal(x, "gone", x.gone(g), true)
	ids, _ := x.freed()
	equal(x, "freed", len(ids), 10)

	h := x.create(root, "h", 0o644)
	for n := range uint64(3) {
		x.write(h, n*sys.ChunkSize, 10)
	}
	x.must(x.unlink(root, "h"))
	equal(x, "as many steps as chunks", x.purge(3), 3)
	x.check()
	equal(x, "the last step", x.purge(3), 1)
	equal(x, "no step", x.purge(3), 0)
}

func testRetention(x *tree) {
	x.format(time.Hour)
	root := x.root()
	f := x.create(root, "f", 0o644)
	x.must(x.unlink(root, "f"))
	equal(x, "steps", x.purge(100), 0)
	a := x.get(f)
	equal(x, "deadline", a.DeadlineNs, a.CtimeNs+time.Hour.Nanoseconds())
	ans, err := x.query(&metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}})
	x.must(nil, err)
	equal(x, "retention", ans.RetentionNs, time.Hour.Nanoseconds())
	equal(x, "inline bytes within bounds", 0 < ans.InlineMax && ans.InlineMax <= sys.InlineMax, true)
}

func testRestore(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	f := x.create(d, "f\xff", 0o644)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("bytes")}))
	x.must(x.unlink(d, "f\xff"))
	ans, err := x.readDir(&metapb.Attr{Ino: uint64(sys.QuarantineIno)}, 0, 10)
	x.must(nil, err)
	equal(x, "in quarantine", len(ans.Entries), 1)
	e := ans.Entries[0]
	equal(x, "inode", e.Ino, f.Ino)
	equal(x, "name", string(e.Origin.GetName()), "f\xff")
	equal(x, "directory", e.Origin.GetParent(), d.Ino)
	equal(x, "time", e.Origin.GetRemovedNs(), x.get(f).CtimeNs)

	restore := func(u *tree, ino uint64, name string) (*metapb.Result, error) {
		return u.do(&metapb.Command{Op: &metapb.Command_Restore{
			Restore: &metapb.Restore{Ino: ino, Parent: d.Ino, Name: []byte(name)},
		}})
	}
	_, err = restore(x.as(1000, 100), f.Ino, "g")
	x.refused(sys.Permission, err)
	x.create(d, "taken", 0o644)
	_, err = restore(x, f.Ino, "taken")
	x.refused(sys.Exist, err)
	_, err = restore(x, d.Ino, "g")
	x.refused(sys.Invalid, err)
	_, err = restore(x, 9999, "g")
	x.refused(sys.Stale, err)
	a := x.must(restore(x, f.Ino, "g"))
	equal(x, "links", a.Nlink, 1)
	equal(x, "deadline", a.DeadlineNs, 0)
	equal(x, "steps", x.purge(10), 0)
	equal(x, "bytes", string(x.inline(x.lookup(d, "g"))), "bytes")
	_, err = restore(x, f.Ino, "h")
	x.refused(sys.Invalid, err)
}
