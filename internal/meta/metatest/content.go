package metatest

import (
	"bytes"
	"math/rand/v2"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// content is a file and what its bytes must be. The file is put together from
// small stretches around chunk borders, the only places where much can happen.
type content struct {
	x      *tree
	f      *metapb.Attr
	rand   *rand.Rand
	blocks map[uint64][]byte // of every slice
	want   map[uint64]byte   // not zero
	size   uint64
	mark   byte
}

// edges are where things happen; each comes with a window behind it.
var edges = []uint64{0, sys.ChunkSize - 32, sys.ChunkSize, 2*sys.ChunkSize - 16, 3 * sys.ChunkSize}

const window = 64

// testContent does random things to a file and compares all its bytes.
func testContent(x *tree) {
	root := x.root()
	seeds := uint64(20)
	if x.far {
		seeds = 2
	}
	for seed := range seeds {
		c := &content{
			x: x, f: x.create(root, string(rune('a'+seed)), 0o644), rand: rand.New(rand.NewPCG(seed, 1)),
			blocks: make(map[uint64][]byte), want: make(map[uint64]byte),
		}
		for range 60 {
			c.step()
			c.compare(seed)
		}
	}
}

func (c *content) offset() uint64 {
	return edges[c.rand.IntN(len(edges))] + c.rand.Uint64N(window)
}

// bytesOf returns n bytes that differ from all around.
func (c *content) bytesOf(n uint32) []byte {
	c.mark = c.mark%250 + 1
	return bytes.Repeat([]byte{c.mark}, int(n))
}

func (c *content) step() {
	off, n := c.offset(), 1+c.rand.Uint32N(window)
	switch c.rand.IntN(10) {
	case 0, 1, 2:
		c.write(off, n)
	case 3:
		c.writeInline(off, n)
	case 4, 5:
		c.truncate(off)
	case 6:
		c.zero(off, uint64(n)+c.rand.Uint64N(2)*sys.ChunkSize, c.rand.IntN(2) == 0)
	case 7:
		c.merge(uint32(off / sys.ChunkSize))
	case 8:
		c.append(off, n)
	case 9:
		c.appendInline(off, n)
	}
}

func (c *content) put(off uint64, data []byte) {
	for i, b := range data {
		c.want[off+uint64(i)] = b
	}
	c.size = max(c.size, off+uint64(len(data)))
}

// write commits a slice, in two pieces where it crosses a chunk's border.
func (c *content) write(off uint64, n uint32) {
	commit, data := c.slices(off, n)
	c.x.must(c.x.commit(commit))
	c.put(off, data)
}

// append commits slices to the end of the file, which their writer takes to be
// at off.
func (c *content) append(off uint64, n uint32) {
	commit, data := c.slices(off, n)
	commit.AppendAt = &off
	fits := true
	for _, cs := range commit.Slices {
		at := uint64(cs.Chunk)*sys.ChunkSize + uint64(cs.Slice.At) - off + c.size
		fits = fits && at%sys.ChunkSize+uint64(cs.Slice.Len) <= sys.ChunkSize
	}
	_, err := c.x.commit(commit)
	if !fits {
		c.x.refused(sys.Range, err)
		return
	}
	c.x.must(nil, err)
	c.put(c.size, data)
}

func (c *content) appendInline(off uint64, n uint32) {
	data := c.bytesOf(n)
	small := c.size+uint64(n) <= sys.InlineMax && len(c.x.chunk(c.f, 0).Slices) == 0
	_, err := c.x.commit(&metapb.Commit{Ino: c.f.Ino, InlineOff: off, Inline: data, AppendAt: &off})
	if !small {
		c.x.refused(sys.NotInline, err)
		return
	}
	c.x.must(nil, err)
	c.put(c.size, data)
}

// slices makes a commit of new slices.
func (c *content) slices(off uint64, n uint32) (*metapb.Commit, []byte) {
	data := c.bytesOf(n)
	commit := &metapb.Commit{Ino: c.f.Ino}
	first := c.x.alloc(1, 2)
	for i, at := 0, off; at < off+uint64(n); i++ {
		chunk, in := uint32(at/sys.ChunkSize), uint32(at%sys.ChunkSize)
		length := min(uint32(off+uint64(n)-at), sys.ChunkSize-in)
		id := first + sys.SliceID(i)<<16
		c.blocks[uint64(id)] = data[at-off:][:length]
		commit.Slices = append(commit.Slices, piece(chunk, in, length, id, 0, length))
		at += uint64(length)
	}
	return commit, data
}

func (c *content) writeInline(off uint64, n uint32) {
	data := c.bytesOf(n)
	small := max(c.size, off+uint64(n)) <= sys.InlineMax && len(c.x.chunk(c.f, 0).Slices) == 0
	_, err := c.x.commit(&metapb.Commit{Ino: c.f.Ino, InlineOff: off, Inline: data})
	if !small {
		c.x.refused(sys.NotInline, err)
		return
	}
	c.x.must(nil, err)
	c.put(off, data)
}

func (c *content) clear(off, end uint64) {
	for at := range c.want {
		if at >= off && at < end {
			delete(c.want, at)
		}
	}
}

func (c *content) truncate(size uint64) {
	c.x.must(c.x.truncate(c.f, size))
	c.clear(size, 1<<62)
	c.size = size
}

func (c *content) zero(off, n uint64, keep bool) {
	c.x.must(c.x.fallocate(&metapb.Fallocate{Ino: c.f.Ino, Off: off, Len: n, Zero: true, KeepSize: keep}))
	c.clear(off, off+n)
	if !keep {
		c.size = max(c.size, off+n)
	}
}

// merge replaces some of a chunk's first slices, and its inline base, by new
// slices: one for the window at the chunk's start and one for that at its end.
func (c *content) merge(n uint32) {
	chunk := c.x.chunk(c.f, n)
	old := chunk.Slices[:c.rand.IntN(len(chunk.Slices)+1)]
	end := uint32(len(chunk.Inline))
	for _, sl := range old {
		end = max(end, sl.At+sl.Len)
	}
	first := c.x.alloc(1, 2)
	var merged []*metapb.Slice
	for i, start := range []uint32{0, sys.ChunkSize - 2*window} {
		data := make([]byte, min(end-min(end, start), 4*window))
		if len(data) == 0 {
			break
		}
		for at := range data {
			data[at] = c.resolve(&metapb.Chunk{Inline: chunk.Inline, Slices: old}, start+uint32(at))
		}
		id := first + sys.SliceID(i)<<16
		c.blocks[uint64(id)] = data
		merged = append(merged, piece(n, start, uint32(len(data)), id, 0, uint32(len(data))).Slice)
	}
	if len(merged) == 0 {
		return
	}
	c.x.must(c.x.merge(&metapb.Merge{Ino: c.f.Ino, Chunk: n, Old: old, Inline: chunk.Inline, Merged: merged}))
}

// resolve returns a byte of a chunk as a reader finds it.
func (c *content) resolve(chunk *metapb.Chunk, at uint32) byte {
	for i := len(chunk.Slices) - 1; i >= 0; i-- {
		sl := chunk.Slices[i]
		if at < sl.At || at >= sl.At+sl.Len {
			continue
		}
		if sl.Slice == 0 {
			return 0
		}
		return c.blocks[sl.Slice][sl.Off+at-sl.At]
	}
	if int(at) < len(chunk.Inline) {
		return chunk.Inline[at]
	}
	return 0
}

func (c *content) compare(seed uint64) {
	c.x.tb.Helper()
	equal(c.x, "size", c.x.get(c.f).Size, c.size)
	freed, _ := c.x.freed()
	var chunks [5]*metapb.Chunk
	for n := range chunks {
		chunks[n] = c.x.chunk(c.f, uint32(n))
		for _, sl := range chunks[n].Slices {
			if _, bad := freed[sys.SliceID(sl.Slice)]; bad {
				c.x.tb.Fatalf("seed %d: slice %v is freed and in use", seed, sys.SliceID(sl.Slice))
			}
		}
	}
	for _, edge := range edges {
		for at := edge; at < edge+2*window; at++ {
			found := c.resolve(chunks[at/sys.ChunkSize], uint32(at%sys.ChunkSize))
			if found != c.want[at] {
				c.x.tb.Fatalf("seed %d: byte %d: expected %d, found %d", seed, at, c.want[at], found)
			}
		}
	}
}
