package vfs

import (
	"container/list"
	"context"
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/sys"
)

// A run is a slice under construction: bytes that follow each other in a
// chunk. It grows at its end and may be changed in place as long as the block
// in question has not been sent.
type run struct {
	chunk  uint32
	base   uint32 // where in the chunk its first byte is
	size   uint32 // bytes
	frozen uint32 // bytes of it, from the start, that may not change any more
	sealed bool   // nothing may change any more
	refs   int    // extents that show it
	busy   bool   // part of a flush
	done   bool   // its slice was published or given up
	tried  *try   // a commit of it of which nobody knows what became; nil when there is none

	inlined *inlined // an append inside a command of which nobody knows what became; nil when there is none

	blocks []outBlock

	idMu    sync.Mutex
	id      sys.SliceID   // 0 until the first block is sent
	session sys.SessionID // on whose account id is
}

// A try is a commit whose result was lost.
type try struct {
	seen bool // one of its slices was found in the file
}

// An outBlock is a block of a run on its way out.
type outBlock struct {
	buf   []byte // its length is its capacity; nil when it was sent and its memory was needed
	state blockState
	done  chan struct{} // of the send that is under way
	err   error         // of the last send
	kept  *list.Element // in FS.kept, when it was sent and is still in memory
}

type blockState uint8

const (
	blockOpen    blockState = iota // in memory; err tells whether a send has failed
	blockSending                   // in memory, unchangeable
	blockSent                      // in the store, and maybe in memory
)

// An extent shows the bytes [lo, hi) of a chunk: those that its run has there.
type extent struct {
	lo, hi uint32
	r      *run
}

// count is how many blocks r has.
func (r *run) count() int { return (int(r.size) + sys.BlockSize - 1) / sys.BlockSize }

// blockLen is how many bytes block b of r has.
func (r *run) blockLen(b int) int { return min(int(r.size)-b*sys.BlockSize, sys.BlockSize) }

// open reports whether bytes may be written from chunk offset at on: within r
// or right after it, where nothing was sent.
func (r *run) open(at uint32) bool {
	return !r.sealed && at-r.base >= r.frozen && at-r.base <= r.size
}

// fill copies p to offset off of r, growing its buffers from credit, which is
// memory taken from the budget. It returns how much it copied, and how much
// more credit it needs when that is not all of p.
func (r *run) fill(from *pool, off uint32, p []byte, credit *int64) (n int, want int64) {
	for n < len(p) {
		b, o := int(off)/sys.BlockSize, int(off)%sys.BlockSize
		if b == len(r.blocks) {
			r.blocks = append(r.blocks, outBlock{})
		}
		blk := &r.blocks[b]
		if need := min(o+len(p)-n, sys.BlockSize); need > len(blk.buf) {
			c := classOf(need)
			if b > 0 {
				c = classOf(sys.BlockSize)
			}
			cost := int64(classSize(c) - len(blk.buf))
			if cost > *credit {
				return n, cost - *credit
			}
			*credit -= cost
			fresh := from.take(c)
			copy(fresh, blk.buf)
			from.give(blk.buf)
			blk.buf = fresh
		}
		k := copy(blk.buf[o:min(len(blk.buf), sys.BlockSize)], p[n:])
		n, off = n+k, off+uint32(k)
		r.size = max(r.size, off)
	}
	return n, 0
}

// put copies p into the dirty bytes from chunk offset at on, as run.fill does.
// Blocks that became full are sent. p ends within the chunk. i.mu is held.
func (i *inode) put(chunk, at uint32, p []byte, credit *int64) (n int, want int64) {
	exts := i.dirty[chunk]
	var r *run
	k, _ := slices.BinarySearchFunc(exts, at, func(e extent, at uint32) int {
		if e.hi < at {
			return -1
		}
		return 1
	})
	for ; k < len(exts) && exts[k].lo <= at; k++ {
		if exts[k].r.open(at) {
			r = exts[k].r
			break
		}
	}
	if r == nil {
		r = &run{chunk: chunk, base: at}
	}
	n, want = r.fill(&i.fs.pool, at-r.base, p, credit)
	if n == 0 {
		return n, want
	}
	i.show(extent{lo: at, hi: at + uint32(n), r: r})
	for b := int(r.frozen) / sys.BlockSize; r.size-r.frozen >= sys.BlockSize; b++ {
		r.frozen += sys.BlockSize
		i.send(r, b)
	}
	return n, want
}

// show makes e's bytes those that the file has there. i.mu is held.
func (i *inode) show(e extent) {
	exts := i.dirty[e.r.chunk]
	// Take in neighbours and overlaps of the same run, so that a run that is
	// written from start to end stays one extent.
	first, _ := slices.BinarySearchFunc(exts, e.lo, func(x extent, at uint32) int {
		if x.hi < at {
			return -1
		}
		return 1
	})
	if first < len(exts) && exts[first].hi == e.lo && exts[first].r != e.r {
		first++
	}
	var put [3]extent
	fresh := put[:0]
	whole := e
	end := first
	for ; end < len(exts) && (exts[end].lo < e.hi || exts[end].lo == e.hi && exts[end].r == e.r); end++ {
		x := exts[end]
		if x.r == e.r {
			whole.lo, whole.hi = min(whole.lo, x.lo), max(whole.hi, x.hi)
			continue
		}
		if x.lo < e.lo {
			x.r.refs++
			fresh = append(fresh, extent{lo: x.lo, hi: e.lo, r: x.r})
		}
	}
	whole.r.refs++
	fresh = append(fresh, whole)
	if end > first {
		if x := exts[end-1]; x.r != e.r && x.hi > e.hi {
			x.r.refs++
			fresh = append(fresh, extent{lo: e.hi, hi: x.hi, r: x.r})
		}
	}
	var old [4]extent
	gone := append(old[:0], exts[first:end]...)
	i.dirty[e.r.chunk] = slices.Replace(exts, first, end, fresh...)
	for _, x := range gone {
		i.unref(x.r)
	}
}

// unref takes one extent from r. i.mu is held.
func (i *inode) unref(r *run) {
	r.refs--
	i.reap(r)
}

// reap frees the memory of a run that no extent shows and nobody is busy with,
// and gives its slice up when it was not published. i.mu is held.
func (i *inode) reap(r *run) {
	if r.refs > 0 || r.busy {
		return
	}
	r.sealed = true
	sending := false
	for b := range r.blocks {
		if blk := &r.blocks[b]; blk.state == blockSending {
			sending = true
		} else {
			i.fs.release(blk)
		}
	}
	if !sending && !r.done && r.id != 0 {
		r.done = true
		i.fs.ids.giveUp(r.id, r.size)
	}
}

// cut removes the dirty bytes from offset size on. i.mu is held.
func (i *inode) cut(size uint64) {
	at, off := uint32(size/sys.ChunkSize), uint32(size%sys.ChunkSize)
	for chunk, exts := range i.dirty {
		if chunk < at {
			continue
		}
		kept := exts[:0]
		for _, e := range exts {
			switch {
			case chunk > at || e.lo >= off:
				i.unref(e.r)
				continue
			case e.hi > off:
				e.hi = off
			}
			kept = append(kept, e)
		}
		i.setExtents(chunk, kept)
	}
}

// setExtents replaces what is dirty in a chunk. i.mu is held.
func (i *inode) setExtents(chunk uint32, exts []extent) {
	i.dirty[chunk] = exts
	if len(exts) == 0 {
		delete(i.dirty, chunk)
	}
	if len(i.dirty) == 0 && i.promise == nil {
		i.dirtyAt = 0
	}
}

// discard drops all dirty bytes. i.mu is held.
func (i *inode) discard() { i.cut(0) }

// dirtyEnd is the end of the last dirty byte. i.mu is held.
func (i *inode) dirtyEnd() uint64 {
	var end uint64
	for chunk, exts := range i.dirty {
		end = max(end, uint64(chunk)*sys.ChunkSize+uint64(exts[len(exts)-1].hi))
	}
	return end
}

func (i *inode) dirtyBytes() uint64 {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.dirtySum()
}

// dirtySum is how many bytes are dirty. i.mu is held.
func (i *inode) dirtySum() (n uint64) {
	for _, exts := range i.dirty {
		for _, e := range exts {
			n += uint64(e.hi - e.lo)
		}
	}
	return n
}

// send starts to put block b of r into the store. i.mu is held.
func (i *inode) send(r *run, b int) {
	blk := &r.blocks[b]
	blk.state, blk.done, blk.err = blockSending, make(chan struct{}), nil
	i.fs.budget.sent(int64(len(blk.buf)))
	if !i.fs.startTask(func() { i.ship(r, b) }) {
		i.shipped(r, b, errClosed)
	}
}

// ship puts block b of r into the store.
func (i *inode) ship(r *run, b int) {
	i.fs.puts <- struct{}{}
	i.mu.RLock()
	data := r.blocks[b].buf[:r.blockLen(b)]
	i.mu.RUnlock()
	id, err := r.identify(i.fs.ctx, i.fs.ids)
	if err == nil {
		err = i.fs.store.Put(i.fs.ctx, sys.BlockKey{Slice: id, Index: uint32(b)}, data)
	}
	<-i.fs.puts
	i.mu.Lock()
	defer i.mu.Unlock()
	i.shipped(r, b, err)
}

// shipped notes how a send ended. i.mu is held.
func (i *inode) shipped(r *run, b int, err error) {
	blk := &r.blocks[b]
	size := int64(len(blk.buf))
	blk.err = err
	switch {
	case err == nil:
		blk.state = blockSent
		i.fs.keep(i, r, b)
	case sys.Is(err, sys.Stale):
		blk.state = blockOpen // the next flush takes another slice for it
	default:
		blk.state, i.sendErr = blockOpen, err
	}
	i.fs.budget.sent(-size)
	close(blk.done)
	i.reap(r)
}

// identify returns the ID of r's slice, which it takes from ids the first time.
func (r *run) identify(ctx context.Context, ids *sliceIDs) (sys.SliceID, error) {
	r.idMu.Lock()
	defer r.idMu.Unlock()
	if r.id != 0 {
		return r.id, nil
	}
	id, session, err := ids.take(ctx)
	if err == nil {
		r.id, r.session = id, session
	}
	return id, err
}
