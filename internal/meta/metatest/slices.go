package metatest

import (
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

func testMerge(x *tree) {
	f := x.create(x.root(), "f", 0o644)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("base")}))
	a, b, c := x.write(f, 2, 10), x.write(f, 8, 10), x.write(f, 15, 10)
	before := x.get(f)
	old := x.chunk(f, 0).Slices[:2]
	id := x.alloc(1, 1)
	merged := []*metapb.Slice{piece(0, 0, 18, id, 0, 18).Slice}
	res, err := x.merge(&metapb.Merge{Ino: f.Ino, Old: old, Inline: []byte("base"), Merged: merged})
	x.must(res, err)
	equal(x, "slices", res.Slices, 2)
	equal(x, "attributes", x.get(f).String(), before.String())
	chunk := x.chunk(f, 0)
	equal(x, "inline bytes", len(chunk.Inline), 0)
	equal(x, "first slice", chunk.Slices[0].Slice, uint64(id))
	equal(x, "second slice", chunk.Slices[1].Slice, uint64(c))
	ids, _ := x.freed()
	equal(x, "freed", len(ids), 2)
	equal(x, "freed", ids[a]+ids[b], 20)

	// A merge may also only rearrange pieces of what is there.
	x.write(f, 5, 3)
	old = x.chunk(f, 0).Slices
	last := old[2]
	rearranged := []*metapb.Slice{
		piece(0, 0, 5, id, 0, 18).Slice, last, piece(0, 8, 7, id, 8, 18).Slice, old[1],
	}
	x.must(x.merge(&metapb.Merge{Ino: f.Ino, Old: old, Merged: rearranged}))
	again, _ := x.freed()
	equal(x, "freed", len(again), 2)
}

func testMergeStale(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("base")}))
	first := func() []*metapb.Slice { return x.chunk(f, 0).Slices }
	id := x.alloc(1, 1)
	merged := []*metapb.Slice{piece(0, 0, 4, id, 0, 4).Slice}
	merge := func(old []*metapb.Slice, inline string, with []*metapb.Slice) error {
		_, err := x.merge(&metapb.Merge{Ino: f.Ino, Old: old, Inline: []byte(inline), Merged: with})
		return err
	}
	x.refused(sys.Stale, merge(nil, "", merged))
	x.refused(sys.Stale, merge(nil, "bass", merged))
	x.refused(sys.Stale, merge([]*metapb.Slice{piece(0, 0, 4, id, 0, 4).Slice}, "base", merged))
	x.write(f, 0, 100)
	old := first()
	x.refused(sys.Stale, merge(old, "base", merged))
	x.must(x.truncate(f, 50))
	x.refused(sys.Stale, merge(old, "", merged))
	old = first()
	x.refused(sys.Invalid, merge(old, "", []*metapb.Slice{piece(0, 0, 51, id, 0, 51).Slice}))
	x.refused(sys.Invalid, merge(old, "", []*metapb.Slice{piece(0, 0, 0, id, 0, 4).Slice}))
	x.refused(sys.SessionGone, merge(old, "", []*metapb.Slice{piece(0, 0, 4, id+9<<16, 0, 4).Slice}))
	if err := merge(old, "", merged); err != nil {
		x.tb.Fatalf("merge: %v", err)
	}
	x.refused(sys.Stale, merge(old, "", merged))
	_, err := x.merge(&metapb.Merge{Ino: f.Ino, Chunk: meta.ChunksMax})
	x.refused(sys.Invalid, err)
	_, err = x.merge(&metapb.Merge{Ino: 9999})
	x.refused(sys.Stale, err)
}

func testAllocSlices(x *tree) {
	next := uint64(1)
	for _, n := range []uint32{1, 5, meta.AllocMax, 1000, meta.AllocMax, 1, 1} {
		res, err := x.alloc1(3, n)
		x.must(res, err)
		equal(x, "first sequence number", res.FirstSlice, next)
		equal(x, "session", res.Session, 3)
		next += uint64(n)
	}
	for _, n := range []uint32{0, meta.AllocMax + 1, 1 << 31} {
		_, err := x.alloc1(3, n)
		x.refused(sys.Invalid, err)
	}
	equal(x, "first sequence number", x.alloc(3, 1).Seq(), next)
}

func testAllocInos(x *tree) {
	alloc := func(n uint32) (*metapb.Result, error) {
		return x.do(&metapb.Command{Op: &metapb.Command_AllocInos{AllocInos: &metapb.AllocInos{Count: n}}})
	}
	root := x.root()
	res, err := alloc(3)
	x.must(res, err)
	first := res.FirstIno
	equal(x, "first number", first, uint64(sys.FirstIno))
	last := x.create(root, "next", 0o644).Ino
	equal(x, "number of the next inode", last, first+3)
	for _, n := range []uint32{0, meta.AllocMax + 1} {
		_, err := alloc(n)
		x.refused(sys.Invalid, err)
	}

	make := func(name string, typ sys.FileType, ino uint64) (*metapb.Result, error) {
		return x.do(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
			Parent: root.Ino, Name: []byte(name), Type: uint32(typ), Mode: 0o644, Ino: ino,
			Body: &metapb.Commit{Inline: []byte("body")}}}})
	}
	for range 2 { // the second try finds what the first one made
		res, err = make("f", sys.TypeRegular, first+1)
		f := x.must(res, err)
		equal(x, "number", f.Ino, first+1)
		equal(x, "created", res.Created, true)
		equal(x, "size", f.Size, 4)
		equal(x, "bytes", string(x.chunk(f, 0).Inline), "body")
	}
	for _, bad := range []uint64{1, uint64(sys.FirstIno) - 1, first + 1, last, last + 1} {
		_, err = make("g", sys.TypeRegular, bad)
		x.refused(sys.Invalid, err)
	}
	_, err = x.do(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: root.Ino, Name: []byte("g"), Type: uint32(sys.TypeDir), Ino: first}}})
	x.refused(sys.Invalid, err)
	_, err = make("f", sys.TypeRegular, first)
	x.refused(sys.Exist, err)
	res, err = make("h", sys.TypeRegular, first)
	x.must(res, err)
}

func testEndSession(x *tree) {
	f := x.create(x.root(), "f", 0o644)
	end := func(session uint64) {
		x.tb.Helper()
		x.must(x.do(&metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Session: session}}}))
	}
	commit := func(seq uint64) error {
		id := sys.NewSliceID(seq, 9)
		_, err := x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{piece(0, uint32(seq)*10, 5, id, 0, 5)}})
		return err
	}
	a := x.alloc(100, 1000).Seq()
	b := x.alloc(200, 1000).Seq()
	c := x.alloc(100, 100).Seq()
	committed := map[uint64]bool{a: true, a + 500: true, a + 501: true, a + 999: true, b + 7: true, c + 99: true}
	for seq := range committed {
		x.must(nil, commit(seq))
	}
	end(100)
	end(100)
	end(300)
	ids, seqs := x.freed()
	equal(x, "freed slices", len(ids), 0)
	equal(x, "freed numbers", len(seqs), 1100-5)
	for seq := range seqs {
		if committed[seq] || seq < a || seq >= a+1000 && seq < c || seq >= c+100 {
			x.tb.Fatalf("freed: slice number %d is committed or of another session", seq)
		}
	}
	x.refused(sys.SessionGone, commit(a+1))
	x.must(nil, commit(b+8))
	end(200)
	_, seqs = x.freed()
	equal(x, "freed numbers", len(seqs), 1100-5+1000-2)
}

func testGiveUp(x *tree) {
	f := x.create(x.root(), "f", 0o644)
	commit := func(id sys.SliceID) error {
		_, err := x.commit(&metapb.Commit{Ino: f.Ino, Slices: []*metapb.ChunkSlice{piece(0, uint32(id.Seq())*10, 5, id, 0, 5)}})
		return err
	}
	giveUp := func(ids ...sys.SliceID) error {
		c := &metapb.GiveUp{}
		for _, id := range ids {
			c.Slices = append(c.Slices, &metapb.Slice{Slice: uint64(id), SliceLen: 7})
		}
		_, err := x.do(&metapb.Command{Op: &metapb.Command_GiveUp{GiveUp: c}})
		return err
	}
	at := func(first sys.SliceID, n uint64) sys.SliceID { return sys.NewSliceID(first.Seq()+n, 3) }
	a, b := x.alloc(100, 1000), x.alloc(200, 1000)
	used := at(a, 20)
	x.must(nil, commit(used))
	x.must(nil, giveUp())
	// One of them twice, one that is committed, one that nobody has reserved.
	x.must(nil, giveUp(at(a, 0), at(a, 10), at(a, 10), used, at(b, 30), at(b, 5000)))
	x.must(nil, giveUp(at(a, 10), used))
	ids, seqs := x.freed()
	equal(x, "freed slices", len(ids), 3)
	equal(x, "freed numbers", len(seqs), 0)
	for _, id := range []sys.SliceID{at(a, 0), at(a, 10), at(b, 30)} {
		equal(x, "length of a freed slice", ids[id], 7)
		x.refused(sys.SessionGone, commit(id))
	}
	x.must(nil, commit(at(a, 11)))
	x.must(x.do(&metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Session: 100}}}))
	_, seqs = x.freed()
	equal(x, "freed numbers", len(seqs), 1000-4)

	x.refused(sys.Invalid, giveUp(0))
	x.refused(sys.Invalid, giveUp(at(b, 1), sys.NewSliceID(1<<43, 0)))
	x.refused(sys.Invalid, giveUp(make([]sys.SliceID, meta.AllocMax+1)...))
	for _, n := range []uint32{0, sys.ChunkSize + 1} {
		_, err := x.do(&metapb.Command{Op: &metapb.Command_GiveUp{GiveUp: &metapb.GiveUp{
			Slices: []*metapb.Slice{{Slice: uint64(at(b, 1)), SliceLen: n}}}}})
		x.refused(sys.Invalid, err)
	}
	x.must(nil, commit(at(b, 1)))
}

func testFreed(x *tree) {
	root := x.root()
	for range 5 {
		f := x.create(root, "f", 0o644)
		x.write(f, 0, 10)
		x.must(x.truncate(f, 0))
		x.must(x.unlink(root, "f"))
	}
	ans, err := x.readFreed(0, 3)
	x.must(nil, err)
	equal(x, "rows", len(ans.Chunks), 3)
	equal(x, "end", ans.End, false)
	drop := &metapb.DropFreed{Row: ans.Chunks[0].Number, Rows: []uint32{ans.Chunks[2].Number, 4711, 0}}
	x.must(x.do(&metapb.Command{Op: &metapb.Command_DropFreed{DropFreed: drop}}))
	left, _ := x.freed()
	equal(x, "slices left", len(left), 3)
	rest, err := x.readFreed(ans.Chunks[2].Number, 0)
	x.must(nil, err)
	equal(x, "rows above", len(rest.Chunks), 2)
	equal(x, "end", rest.End, true)
	last, err := x.readFreed(1<<32-1, 0)
	x.must(nil, err)
	equal(x, "rows above the last", len(last.Chunks), 0)
	equal(x, "end", last.End, true)
}
