package metatest

import (
	"context"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// testCheck breaks sound trees in every way that Check knows and looks whether
// it tells.
func testCheck(t *testing.T, open func(t *testing.T) meta.Tx) {
	for _, c := range []struct {
		name, want string
		breakIt    func(b *broken)
	}{
		{"Dangling", "does not exist", func(b *broken) { b.setInode(b.f, nil) }},
		{"Type", "has the type", func(b *broken) { b.f.Type = uint32(sys.TypeFIFO); b.setInode(b.f, b.f) }},
		{"Links", "has 5 links and 1 entries", func(b *broken) { b.f.Nlink = 5; b.setInode(b.f, b.f) }},
		{"Orphan", "has 1 links and 0 entries", func(b *broken) { b.setDentry(b.d, "f", nil) }},
		{"DirectoryLinks", "links and 0 subdirectories", func(b *broken) { b.d.Nlink = 9; b.setInode(b.d, b.d) }},
		{"Parent", "its parent is inode 77", func(b *broken) { b.d.Parent = 77; b.setInode(b.d, b.d) }},
		{"Unreached", "directories are reached", func(b *broken) { b.d.Parent = 77; b.setInode(b.d, b.d) }},
		{"TwoParents", "2 entries", func(b *broken) {
			b.setDentry(b.root, "again", &metapb.Dentry{Ino: b.d.Ino, Type: b.d.Type, Cookie: 20})
			b.root.NextCookie = 30
			b.setInode(b.root, b.root)
		}},
		{"Cookie", "has the cookie 99", func(b *broken) {
			b.setDentry(b.d, "f", nil)
			b.setDentry(b.d, "f", &metapb.Dentry{Ino: b.f.Ino, Type: b.f.Type, Cookie: 99})
		}},
		{"Size", "counter says", func(b *broken) { b.f.Size = 1 << 20; b.setInode(b.f, b.f) }},
		{"Beyond", "its size is 5", func(b *broken) { b.f.Size = 5; b.setInode(b.f, b.f) }},
		{"Counter", "inodes, the counter says", func(b *broken) { b.count(meta.CounterInodes, 3) }},
		{"Quarantine", "0 links and 0 entries", func(b *broken) { b.f.Nlink = 0; b.setInode(b.f, b.f); b.setDentry(b.d, "f", nil) }},
		{"ChunkOfDirectory", "is no regular file", func(b *broken) { b.setChunk(b.d, 0, &metapb.Chunk{Inline: []byte("x")}) }},
		{"InlineElsewhere", "its chunk 1 has inline", func(b *broken) { b.setChunk(b.f, 1, &metapb.Chunk{Inline: []byte("x")}) }},
		{"FreedInUse", "which is freed", func(b *broken) {
			c := &metapb.Chunk{FreedNs: 1, Slices: []*metapb.Slice{{Slice: uint64(b.id), SliceLen: 10}}}
			b.setChunk(&metapb.Attr{Ino: uint64(sys.FreedIno)}, 1, c)
		}},
		{"PendingInUse", "which is not committed", func(b *broken) {
			c := &metapb.Chunk{Ranges: []*metapb.Range{{First: b.id.Seq(), Count: 1}}}
			b.setChunk(&metapb.Attr{Ino: uint64(sys.PendingIno)}, 0, c)
		}},
		{"NeverReserved", "never reserved", func(b *broken) { b.count(meta.CounterSlice, -1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBroken(t, open(t))
			c.breakIt(b)
			rep, err := meta.Check(context.Background(), b.x.c, meta.CheckOptions{})
			if err != nil {
				t.Fatalf("check: %v", err)
			}
			for _, p := range rep.Problems {
				if strings.Contains(p.String(), c.want) {
					return
				}
			}
			t.Fatalf("expected a problem with %q, found %v", c.want, rep.Problems)
		})
	}
	t.Run("Slices", func(t *testing.T) {
		b := newBroken(t, open(t))
		seen := map[sys.SliceID]int{}
		rep, err := meta.Check(context.Background(), b.x.c, meta.CheckOptions{
			Slice: func(ino sys.Ino, chunk uint32, sl *metapb.Slice) error {
				seen[sys.SliceID(sl.Slice)]++
				return nil
			},
		})
		if err != nil || len(rep.Problems) > 0 {
			t.Fatalf("check: %v, %v", rep, err)
		}
		if seen[b.id] != 1 || len(seen) != 1 || rep.Dirs != 2 || rep.Files != 1 || rep.Slices != 1 || rep.Bytes != 10 {
			t.Fatalf("expected 2 directories and a file with slice %v, found %+v, %v", b.id, rep, seen)
		}
	})
}

// broken is a tree to break: the file d/f with a slice of 10 bytes.
type broken struct {
	t          *testing.T
	x          *tree
	tx         meta.Tx
	root, d, f *metapb.Attr
	id         sys.SliceID
}

func newBroken(t *testing.T, tx meta.Tx) *broken {
	x := &tree{tb: t, c: &local{tb: t, tx: tx}}
	x.format(0)
	b := &broken{t: t, x: x, tx: tx}
	b.d = x.mkdir(x.root(), "d", 0o755)
	f := x.create(b.d, "f", 0o644)
	b.id = x.write(f, 0, 10)
	b.root, b.d, b.f = x.root(), x.get(b.d), x.get(f)
	x.check()
	return b
}

func (b *broken) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *broken) setInode(a, to *metapb.Attr) {
	b.t.Helper()
	b.ok(b.tx.SetInode(sys.Ino(a.Ino), to))
}

func (b *broken) setDentry(dir *metapb.Attr, name string, d *metapb.Dentry) {
	b.t.Helper()
	b.ok(b.tx.SetDentry(sys.Ino(dir.Ino), []byte(name), d))
}

func (b *broken) setChunk(a *metapb.Attr, n uint32, c *metapb.Chunk) {
	b.t.Helper()
	b.ok(b.tx.SetChunk(sys.Ino(a.Ino), n, c))
}

func (b *broken) count(name meta.Counter, delta int64) {
	b.t.Helper()
	_, err := b.tx.Counter(name, delta)
	b.ok(err)
}

// testTouched looks whether those who cache are told of every change.
func testTouched(t *testing.T, open func(t *testing.T) meta.Tx) {
	rec := meta.Touched(open(t))
	l := &local{tb: t, tx: rec}
	x := &tree{tb: t, c: l}
	x.format(0)
	touched := func(want ...*metapb.Attr) {
		t.Helper()
		found := rec.Inos()
		same := len(found) == len(want)
		for i := 0; same && i < len(want); i++ {
			same = found[i] == sys.Ino(want[i].Ino)
		}
		if !same {
			t.Fatalf("expected %v, found %v", want, found)
		}
		for _, a := range rec.Attrs() {
			if now := x.get(a); now.String() != a.String() {
				t.Fatalf("expected the attributes %v, found %v", now, a)
			}
		}
		rec = meta.Touched(rec.Tx)
		l.tx = rec
	}
	root := x.root()
	touched(root)
	d := x.mkdir(root, "d", 0o755)
	touched(root, d)
	f := x.create(d, "f", 0o644)
	touched(d, f)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("x")}))
	touched(f)
	x.must(x.link(f, root, "g"))
	touched(root, f)
	x.must(x.setXattr(f, "user.a", "v", 0))
	touched(f)
	x.must(x.rename(root, "d", root, "e", plain))
	touched(root, d)
	_, err := x.unlink(root, "none")
	x.refused(sys.NotExist, err)
	touched()
	x.must(x.unlink(root, "g"))
	touched(root, f)
	x.must(x.unlink(d, "f"))
	touched(d, f)
	x.purge(10)
	touched(f)
	x.must(x.rmdir(root, "e"))
	touched(root, d)
	x.alloc(1, 1)
	touched()
}
