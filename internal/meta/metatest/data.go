package metatest

import (
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

func (x *tree) commit(c *metapb.Commit) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Commit{Commit: c}})
}

func (x *tree) fallocate(c *metapb.Fallocate) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Fallocate{Fallocate: c}})
}

func (x *tree) merge(c *metapb.Merge) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_Merge{Merge: c}})
}

func (x *tree) alloc1(session uint64, count uint32) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_AllocSlices{
		AllocSlices: &metapb.AllocSlices{Session: session, Count: count},
	}})
}

// alloc reserves slices and returns the first one's ID, in placement group 5.
func (x *tree) alloc(session uint64, count uint32) sys.SliceID {
	x.tb.Helper()
	res, err := x.alloc1(session, count)
	x.must(res, err)
	return sys.NewSliceID(res.FirstSlice, 5)
}

// piece is bytes of a slice in a chunk.
func piece(chunk, at, length uint32, id sys.SliceID, off, sliceLen uint32) *metapb.ChunkSlice {
	return &metapb.ChunkSlice{Chunk: chunk, Slice: &metapb.Slice{
		At: at, Len: length, Slice: uint64(id), Off: off, SliceLen: sliceLen,
	}}
}

// write commits a new slice, which must fit into one chunk.
func (x *tree) write(f *metapb.Attr, off uint64, length uint32) sys.SliceID {
	x.tb.Helper()
	id := x.alloc(1, 1)
	c := piece(uint32(off/sys.ChunkSize), uint32(off%sys.ChunkSize), length, id, 0, length)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{c}}))
	return id
}

// chunk returns a chunk of a file, empty when it has no row.
func (x *tree) chunk(f *metapb.Attr, n uint32) *metapb.Chunk {
	x.tb.Helper()
	ans, err := x.query(&metapb.Query{Op: &metapb.Query_GetChunks{
		GetChunks: &metapb.GetChunks{Ino: f.Ino, First: n, Count: 1},
	}})
	if err != nil {
		x.tb.Fatalf("chunk %d of inode %d: %v", n, f.Ino, err)
	}
	if len(ans.Chunks) == 0 {
		return &metapb.Chunk{}
	}
	equal(x, "chunk number", ans.Chunks[0].Number, n)
	return ans.Chunks[0].Chunk
}

func (x *tree) inline(f *metapb.Attr) []byte {
	x.tb.Helper()
	ans, err := x.open(f, 0)
	if err != nil {
		x.tb.Fatalf("open of inode %d: %v", f.Ino, err)
	}
	if len(ans.Chunks) == 0 {
		return nil
	}
	return ans.Chunks[0].Chunk.Inline
}

// freed returns the slices in the queue, and the sequence numbers of the ranges
// in it.
func (x *tree) freed() (ids map[sys.SliceID]uint32, seqs map[uint64]bool) {
	x.tb.Helper()
	ids, seqs = make(map[sys.SliceID]uint32), make(map[uint64]bool)
	for after, end := uint32(0), false; !end; {
		ans, err := x.readFreed(after, 2)
		x.must(nil, err)
		for _, c := range ans.Chunks {
			after = c.Number
			if c.Chunk.FreedNs == 0 {
				x.tb.Fatalf("row %d of the freed slices has no time", c.Number)
			}
			for _, sl := range c.Chunk.Slices {
				if _, twice := ids[sys.SliceID(sl.Slice)]; twice {
					x.tb.Fatalf("slice %v is freed twice", sys.SliceID(sl.Slice))
				}
				ids[sys.SliceID(sl.Slice)] = sl.SliceLen
			}
			for _, r := range c.Chunk.Ranges {
				for seq := r.First; seq < r.First+uint64(r.Count); seq++ {
					seqs[seq] = true
				}
			}
		}
		end = ans.End
	}
	return ids, seqs
}

func (x *tree) readFreed(after, limit uint32) (*metapb.Answer, error) {
	return x.query(&metapb.Query{Op: &metapb.Query_ReadFreed{ReadFreed: &metapb.ReadFreed{After: after, Limit: limit}}})
}

func testInline(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	put := func(off uint64, bytes string) (*metapb.Result, error) {
		return x.commit(&metapb.Commit{Ino: f.Ino, InlineOff: off, Inline: []byte(bytes)})
	}
	a := x.must(put(2, "cd"))
	equal(x, "size", a.Size, 4)
	equal(x, "bytes", string(x.inline(f)), "\x00\x00cd")
	if a.Version <= f.Version || a.MtimeNs <= f.MtimeNs || a.CtimeNs != a.MtimeNs {
		x.tb.Fatalf("expected later times and a higher version than %v, found %v", f, a)
	}
	x.must(put(1, "bc"))
	equal(x, "bytes", string(x.inline(f)), "\x00bcd")
	x.must(put(0, "a"))
	x.must(put(6, "gh"))
	equal(x, "bytes", string(x.inline(f)), "abcd\x00\x00gh")
	x.must(put(0, "12345678"))
	equal(x, "bytes", string(x.inline(f)), "12345678")
	x.must(put(sys.InlineMax-1, "e"))
	equal(x, "size", x.get(f).Size, sys.InlineMax)

	_, err := put(sys.InlineMax, "x")
	x.refused(sys.NotInline, err)
	_, err = put(1<<50, "x")
	x.refused(sys.FileTooLarge, err)
	_, err = x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("x"), Size: ptr[uint64](sys.InlineMax + 1)})
	x.refused(sys.NotInline, err)
	x.must(x.truncate(f, sys.InlineMax+1))
	_, err = put(0, "x")
	x.refused(sys.NotInline, err)
	x.must(x.truncate(f, 10))
	x.must(put(0, "x"))
	x.write(f, 4, 2)
	_, err = put(0, "y")
	x.refused(sys.NotInline, err)
	equal(x, "bytes", string(x.inline(f)), "x2345678\x00\x00"[:len(x.inline(f))])

	before := x.get(f)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino}))
	equal(x, "after nothing", x.get(f).String(), before.String())
	_, err = x.commit(&metapb.Commit{Ino: 9999, Inline: []byte("x")})
	x.refused(sys.Stale, err)
	_, err = x.commit(&metapb.Commit{Ino: root.Ino, Inline: []byte("x")})
	x.refused(sys.IsDir, err)
}

func testCommitSlices(x *tree) {
	f := x.create(x.root(), "f", 0o644)
	id := x.alloc(7, 3)
	res, err := x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{
		piece(0, 0, 100, id, 0, 1000), piece(0, 200, 100, id, 500, 1000), piece(2, 5, 10, id+1<<16, 0, 10),
	}})
	a := x.must(res, err)
	equal(x, "size", a.Size, 2*sys.ChunkSize+15)
	equal(x, "longest list", res.Slices, 2)
	equal(x, "slices", len(x.chunk(f, 0).Slices), 2)
	equal(x, "slices of a hole", len(x.chunk(f, 1).Slices), 0)
	equal(x, "slice", x.chunk(f, 2).Slices[0].Slice, uint64(id+1<<16))
	a = x.must(x.commit(&metapb.Commit{Ino: f.Ino, Size: ptr[uint64](10)}))
	equal(x, "size", a.Size, 2*sys.ChunkSize+15)
	a = x.must(x.commit(&metapb.Commit{Ino: f.Ino, Size: ptr[uint64](1 << 40)}))
	equal(x, "size", a.Size, 1<<40)

	ans, err := x.query(&metapb.Query{Op: &metapb.Query_GetChunks{
		GetChunks: &metapb.GetChunks{Ino: f.Ino, First: 0, Count: meta.GetChunksMax},
	}})
	x.must(nil, err)
	equal(x, "rows", len(ans.Chunks), 2)
	equal(x, "size", ans.Attr.Size, 1<<40)
	for _, bad := range []*metapb.GetChunks{
		{Ino: f.Ino}, {Ino: f.Ino, Count: meta.GetChunksMax + 1}, {Ino: f.Ino, First: meta.ChunksMax, Count: 1},
	} {
		_, err = x.query(&metapb.Query{Op: &metapb.Query_GetChunks{GetChunks: bad}})
		x.refused(sys.Invalid, err)
	}
}

func testCommitRefused(x *tree) {
	f := x.create(x.root(), "f", 0o644)
	id := x.alloc(7, 2)
	for _, c := range []struct {
		kind  sys.Kind
		slice *metapb.ChunkSlice
	}{
		{sys.Invalid, piece(0, 0, 0, id, 0, 10)},
		{sys.Invalid, piece(0, 0, 11, id, 0, 10)},
		{sys.Invalid, piece(0, 0, 10, id, 1, 10)},
		{sys.Invalid, piece(0, 0, 2, id, 1<<32-1, 10)},
		{sys.Invalid, piece(0, sys.ChunkSize-5, 6, id, 0, 10)},
		{sys.Invalid, piece(0, 0, 1, id, 0, sys.ChunkSize+1)},
		{sys.Invalid, piece(0, 0, 1, 0, 0, 10)},
		{sys.Invalid, &metapb.ChunkSlice{}},
		{sys.Invalid, piece(0, 0, 10, 5, 0, 10)},
		{sys.FileTooLarge, piece(meta.ChunksMax, 0, 10, id, 0, 10)},
		{sys.SessionGone, piece(0, 0, 10, id+2<<16, 0, 10)},
	} {
		good := piece(1, 0, 10, id+1<<16, 0, 10)
		_, err := x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{good, c.slice}})
		x.refused(c.kind, err)
		_, err = x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{good, c.slice}, AppendAt: ptr[uint64](0)})
		x.refused(c.kind, err)
	}
	for _, c := range []*metapb.Commit{
		{InlineOff: 9, Inline: []byte("x"), AppendAt: ptr[uint64](10)},
		{InlineOff: 1 << 63, Inline: []byte("x"), AppendAt: ptr[uint64](0)},
		{Slices: []*metapb.ChunkSlice{piece(1, 9, 10, id, 0, 10)}, AppendAt: ptr[uint64](sys.ChunkSize + 10)},
		{Size: ptr[uint64](10), AppendAt: ptr[uint64](0)},
	} {
		c.Ino = f.Ino
		kind := sys.Invalid
		if c.InlineOff > 1<<43 {
			kind = sys.FileTooLarge
		}
		_, err := x.commit(c)
		x.refused(kind, err)
	}
	_, err := x.commit(&metapb.Commit{Ino: f.Ino, Size: ptr[uint64](1<<43 + 1)})
	x.refused(sys.FileTooLarge, err)
	equal(x, "size", x.get(f).Size, 0)
	last := piece(meta.ChunksMax-1, sys.ChunkSize-10, 10, id, 0, 10)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{last}}))
	equal(x, "size", x.get(f).Size, meta.FileSizeMax)
	// What was committed once is not committed again.
	_, err = x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{piece(0, 0, 10, id, 0, 10)}})
	x.refused(sys.SessionGone, err)
}

// A slice that covers others frees them.
func testCommitCovers(x *tree) {
	f := x.create(x.root(), "f", 0o644)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("base")}))
	a, b := x.write(f, 100, 50), x.write(f, 200, 50)
	c := x.write(f, 90, 100)
	equal(x, "slices", len(x.chunk(f, 0).Slices), 2)
	ids, _ := x.freed()
	if _, ok := ids[a]; !ok || len(ids) != 1 {
		x.tb.Fatalf("freed: expected %v, found %v", a, ids)
	}
	equal(x, "inline bytes", string(x.inline(f)), "base")
	all := x.write(f, 0, 1000)
	equal(x, "slices", len(x.chunk(f, 0).Slices), 1)
	equal(x, "inline bytes", string(x.inline(f)), "")
	ids, _ = x.freed()
	for _, id := range []sys.SliceID{a, b, c} {
		if _, ok := ids[id]; !ok {
			x.tb.Fatalf("freed: expected %v too, found %v", id, ids)
		}
	}
	if _, ok := ids[all]; ok {
		x.tb.Fatalf("freed: %v is in use", all)
	}

	// Two pieces of one slice: it goes when both are covered.
	id := x.alloc(1, 1)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{
		piece(3, 0, 10, id, 0, 100), piece(3, 50, 10, id, 50, 100),
	}}))
	x.write(f, 3*sys.ChunkSize, 20)
	if ids, _ = x.freed(); ids[id] != 0 {
		x.tb.Fatalf("freed: a piece of %v is in use", id)
	}
	x.write(f, 3*sys.ChunkSize+50, 20)
	ids, _ = x.freed()
	equal(x, "length of the freed slice", ids[id], 100)
}

func testLargeFile(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	ids := map[sys.SliceID]bool{}
	const chunks = 600
	first := x.alloc(1, chunks)
	for n := range uint32(chunks) {
		id := first + sys.SliceID(n)<<16
		ids[id] = true
		x.must(x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{
			piece(n, 0, sys.ChunkSize, id, 0, sys.ChunkSize),
		}}))
	}
	x.must(x.truncate(f, 0))
	freed, _ := x.freed()
	equal(x, "freed slices", len(freed), chunks)
	for id := range ids {
		if _, ok := freed[id]; !ok {
			x.tb.Fatalf("slice %v is not freed", id)
		}
	}
	equal(x, "chunks left", len(x.chunk(f, 0).Slices)+len(x.chunk(f, chunks-1).Slices), 0)

	// A list of slices does not grow without bound.
	for n := range uint32(meta.SlicesMax/meta.AllocMax) + 1 {
		first = x.alloc(1, meta.AllocMax)
		commit := &metapb.Commit{Ino: f.Ino}
		for i := range uint32(meta.AllocMax) {
			at := 2 * (n*meta.AllocMax + i)
			commit.Slices = append(commit.Slices, piece(0, at, 1, first+sys.SliceID(i)<<16, 0, 1))
		}
		res, err := x.commit(commit)
		if n == meta.SlicesMax/meta.AllocMax {
			x.refused(sys.Busy, err)
			break
		}
		x.must(res, err)
		equal(x, "longest list", res.Slices, (n+1)*meta.AllocMax)
	}
	equal(x, "slices of a chunk", len(x.chunk(f, 0).Slices), meta.SlicesMax)
}

func testTruncate(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	a, b := x.write(f, 0, 100), x.write(f, 50, 100)
	c := x.write(f, 5*sys.ChunkSize, 10)
	x.must(x.truncate(f, 2*sys.ChunkSize))
	ids, _ := x.freed()
	if _, ok := ids[c]; !ok || len(ids) != 1 {
		x.tb.Fatalf("freed: expected %v, found %v", c, ids)
	}
	x.must(x.truncate(f, 70))
	slices := x.chunk(f, 0).Slices
	equal(x, "slices", len(slices), 2)
	equal(x, "length of the second", slices[1].Len, 20)
	equal(x, "length of all of the second", slices[1].SliceLen, 100)
	x.must(x.truncate(f, 50))
	slices = x.chunk(f, 0).Slices
	equal(x, "slices", len(slices), 1)
	equal(x, "slice", slices[0].Slice, uint64(a))
	ids, _ = x.freed()
	equal(x, "freed", ids[b], 100)
	x.must(x.truncate(f, 1000))
	equal(x, "slices after growth", len(x.chunk(f, 0).Slices), 1)
	equal(x, "length after growth", x.chunk(f, 0).Slices[0].Len, 50)
}

// What a file stores leaves out its holes, however they came about.
func testStored(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	stored := func(what string, want uint64) {
		x.tb.Helper()
		equal(x, what, x.get(f).Stored, want)
	}
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("bytes")}))
	stored("inline bytes", 5)
	x.must(x.truncate(f, 3))
	stored("after truncation", 3)
	x.must(x.truncate(f, 10*sys.ChunkSize))
	stored("with a hole at the end", 3)
	x.write(f, 100, 1000)
	stored("a slice behind a hole", 1003)
	x.write(f, 600, 1000)
	stored("a slice over part of another", 1503)
	x.write(f, 0, 200)
	stored("a slice over base, hole and slice", 1600)
	x.write(f, 5*sys.ChunkSize+7, 70)
	stored("another chunk", 1670)
	x.must(x.fallocate(&metapb.Fallocate{Ino: f.Ino, Off: 150, Len: 50, KeepSize: true, Zero: true}))
	stored("a hole that was punched", 1620)
	x.write(f, 160, 10)
	stored("a write into it", 1630)
	x.must(x.truncate(f, 1000))
	stored("cut", 960)
	x.must(x.fallocate(&metapb.Fallocate{Ino: f.Ino, Off: 0, Len: 5000, Zero: true}))
	stored("all zeroed", 0)
	equal(x, "a directory", x.get(root).Stored, 0)
	g := x.must(x.mknod(&metapb.Mknod{Parent: root.Ino, Name: []byte("g"), Type: uint32(sys.TypeRegular), Body: &metapb.Commit{Inline: []byte("body")}}))
	equal(x, "a file made with bytes", g.Stored, 4)
}

func testFallocate(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	alloc := func(off, length uint64, keep, zero bool) (*metapb.Result, error) {
		return x.fallocate(&metapb.Fallocate{Ino: f.Ino, Off: off, Len: length, KeepSize: keep, Zero: zero})
	}
	equal(x, "size", x.must(alloc(100, 50, false, false)).Size, 150)
	equal(x, "size kept", x.must(alloc(100, 500, true, false)).Size, 150)
	equal(x, "size of a smaller range", x.must(alloc(0, 10, false, false)).Size, 150)
	equal(x, "size after zeroing", x.must(alloc(100, 100, false, true)).Size, 200)
	equal(x, "size after punching", x.must(alloc(100, 1000, true, true)).Size, 200)
	for _, bad := range []struct {
		off, length uint64
		kind        sys.Kind
	}{{0, 0, sys.Invalid}, {1 << 43, 1, sys.FileTooLarge}, {1 << 63, 1 << 63, sys.FileTooLarge}, {0, 1<<43 + 1, sys.FileTooLarge}} {
		_, err := alloc(bad.off, bad.length, false, false)
		x.refused(bad.kind, err)
	}
	_, err := x.fallocate(&metapb.Fallocate{Ino: root.Ino, Len: 1})
	x.refused(sys.IsDir, err)

	id := x.write(f, 0, 100)
	for n := range uint64(4) {
		x.write(f, n*sys.ChunkSize+1000, 100)
	}
	x.must(alloc(1050, 3*sys.ChunkSize, true, true))
	for n, want := range []int{3, 0, 0, 2} {
		equal(x, "slices", len(x.chunk(f, uint32(n)).Slices), want)
	}
	ids, _ := x.freed()
	equal(x, "freed", len(ids), 2)
	x.must(alloc(0, 1000, true, true))
	ids, _ = x.freed()
	equal(x, "freed", ids[id], 100)
}
