package vfs

import (
	"context"
	"math"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// resolveMax is how often a read resolves the file's chunks again because a
// block it was led to is gone: merged, truncated or covered, and collected.
const resolveMax = 3

// A part is bytes that a reader gets from a slice.
type part struct {
	dst      []byte // nil when they are only to be cached
	n        int
	slice    sys.SliceID
	off      uint32 // in the slice
	sliceLen uint32
}

// read fills p from off on, up to the end of the file. The bytes are lent
// instead when lent is not nil and they are in one piece.
func (i *inode) read(ctx context.Context, p []byte, off uint64, f *File, lent *block.Buffer) (int, error) {
	large, from, to := f.ahead.note(off, uint64(len(p)), uint64(i.fs.opts.ReadAhead))
	for attempt := 1; ; attempt++ {
		n, err := i.readOnce(ctx, p, off, large, lent)
		if err == nil {
			if n == len(p) && to > from {
				i.prefetch(from, to)
			}
			return n, nil
		}
		if attempt == resolveMax || !sys.Is(err, sys.NotExist) {
			return 0, err
		}
		i.mu.Lock()
		i.layouts = make(map[uint32]*layout)
		i.mu.Unlock()
	}
}

func (i *inode) readOnce(ctx context.Context, p []byte, off uint64, large bool, lent *block.Buffer) (int, error) {
	for {
		i.mu.RLock()
		if i.displaced(off + uint64(len(p))) {
			i.mu.RUnlock()
			if err := i.publishAppends(ctx, math.MaxUint64); err != nil {
				return 0, err
			}
			continue
		}
		size := i.size()
		if off >= size {
			i.mu.RUnlock()
			return 0, nil
		}
		dst := p[:min(uint64(len(p)), size-off)]
		first, end := chunkRange(off, uint64(len(dst)))
		missing := i.unknown(first, end)
		if missing < end {
			i.mu.RUnlock()
			if err := i.load(ctx, missing, end-missing); err != nil {
				return 0, err
			}
			continue
		}
		var some [8]part
		parts := i.plan(some[:0], dst, off, uint64(len(dst)))
		i.mu.RUnlock()
		if lent != nil && len(parts) == 1 && parts[0].n == len(dst) {
			b, ok, err := i.fs.cache.lend(ctx, &parts[0], large)
			if ok || err != nil {
				*lent = b
				return len(dst), err
			}
		}
		return len(dst), i.fs.cache.fill(ctx, parts, large)
	}
}

// unknown returns the first chunk of [first, end) whose layout is not known,
// end when all are. i.mu is held.
func (i *inode) unknown(first, end uint32) uint32 {
	for c := first; c < end; c++ {
		if i.layouts[c] == nil {
			return c
		}
	}
	return end
}

// load learns the layouts of count chunks from first on.
func (i *inode) load(ctx context.Context, first, count uint32) error {
	count = min(count, meta.GetChunksMax)
	if err := i.keep(ctx); err != nil {
		return err
	}
	for {
		a, err := i.chunks(ctx, first, count)
		if err != nil {
			return err
		}
		i.mu.Lock()
		i.observe(a.GetAttr())
		known, got := i.attr.GetVersion(), a.GetAttr().GetVersion()
		if known == got {
			rows := make(map[uint32]*metapb.Chunk, len(a.GetChunks()))
			for _, c := range a.GetChunks() {
				rows[c.GetNumber()] = c.GetChunk()
			}
			for c := first; c < first+count; c++ {
				i.layouts[c] = resolve(rows[c])
			}
		}
		i.mu.Unlock()
		if known == got {
			return nil
		}
		if known < got {
			// A change of this FS has reached the tree and its result is not
			// here yet: wait for it.
			i.awaitFlush()
		}
	}
}

// awaitFlush waits until a flush that is under way is over.
func (i *inode) awaitFlush() {
	i.flushMu.Lock()
	defer i.flushMu.Unlock()
}

// chunks asks for count rows from first on, at most meta.GetChunksMax.
func (i *inode) chunks(ctx context.Context, first, count uint32) (*metapb.Answer, error) {
	return i.fs.query(ctx, &metapb.Query{Op: &metapb.Query_GetChunks{
		GetChunks: &metapb.GetChunks{Ino: uint64(i.ino), First: first, Count: count}}})
}

// eachRow goes through the rows of the chunks that hold size bytes.
func (i *inode) eachRow(ctx context.Context, size uint64, fn func(n uint32, c *metapb.Chunk)) error {
	_, end := chunkRange(0, size)
	for first := uint32(0); first < end; first += meta.GetChunksMax {
		a, err := i.chunks(ctx, first, min(end-first, meta.GetChunksMax))
		if err != nil {
			return err
		}
		for _, c := range a.GetChunks() {
			fn(c.GetNumber(), c.GetChunk())
		}
	}
	return nil
}

// plan fills dst with what is in memory of the n bytes from off on, and
// appends the rest to parts. A nil dst only collects the parts. The layouts
// are known. i.mu is held.
func (i *inode) plan(parts []part, dst []byte, off, n uint64) []part {
	for n > 0 {
		chunk, lo := uint32(off/sys.ChunkSize), uint32(off%sys.ChunkSize)
		k := min(n, uint64(sys.ChunkSize-lo))
		hi := lo + uint32(k)
		parts = i.planChunk(parts, window{dst: head(dst, k), at: lo}, chunk, lo, hi)
		if dst != nil {
			dst = dst[k:]
		}
		off, n = off+k, n-k
	}
	return parts
}

func head(dst []byte, n uint64) []byte {
	if dst == nil {
		return nil
	}
	return dst[:n]
}

// A window is a reader's buffer that stands for a chunk's bytes from at on.
type window struct {
	dst []byte
	at  uint32
}

// cut returns the part of the buffer for [lo, hi), nil when there is none.
func (w window) cut(lo, hi uint32) []byte {
	if w.dst == nil {
		return nil
	}
	return w.dst[lo-w.at : hi-w.at]
}

// planChunk is plan within a chunk: the dirty bytes, and under them the layout.
func (i *inode) planChunk(parts []part, w window, chunk, lo, hi uint32) []part {
	l := i.layouts[chunk]
	exts := i.dirty[chunk]
	k := 0
	for k < len(exts) && exts[k].hi <= lo {
		k++
	}
	for ; k < len(exts) && exts[k].lo < hi; k++ {
		e := exts[k]
		if e.lo > lo {
			parts = l.plan(parts, w, lo, e.lo)
			lo = e.lo
		}
		to := min(e.hi, hi)
		parts = e.r.plan(parts, w, lo, to)
		lo = to
	}
	if lo < hi {
		parts = l.plan(parts, w, lo, hi)
	}
	return parts
}

// plan plans [lo, hi) of a chunk from its layout.
func (l *layout) plan(parts []part, w window, lo, hi uint32) []part {
	first, end := overlapping(l.segs, lo, hi)
	for _, s := range l.segs[first:end] {
		if s.at > lo {
			clear(w.cut(lo, s.at))
			lo = s.at
		}
		to := min(s.end(), hi)
		off := s.off + lo - s.at
		if s.slice == 0 {
			copy(w.cut(lo, to), l.inline[off:])
		} else {
			parts = append(parts, part{dst: w.cut(lo, to), n: int(to - lo), slice: s.slice, off: off, sliceLen: s.sliceLen})
		}
		lo = to
	}
	if lo < hi {
		clear(w.cut(lo, hi))
	}
	return parts
}

// plan plans the chunk's bytes [lo, hi), which r has: from memory, or from the
// store when they were sent. The inode's mu is held.
func (r *run) plan(parts []part, w window, lo, hi uint32) []part {
	for lo < hi {
		off := lo - r.base
		b, o := off/sys.BlockSize, off%sys.BlockSize
		to := min(hi, lo+sys.BlockSize-o)
		if blk := &r.blocks[b]; blk.buf == nil {
			parts = append(parts, part{dst: w.cut(lo, to), n: int(to - lo), slice: r.id, off: off, sliceLen: (b + 1) * sys.BlockSize})
			if r.sealed {
				parts[len(parts)-1].sliceLen = r.size
			}
		} else {
			copy(w.cut(lo, to), blk.buf[o:])
		}
		lo = to
	}
	return parts
}
