package vfs

import (
	"container/list"
	"sync"
)

// keptBlocks are the blocks that are in the store, not published yet, and
// still in memory, those first that were sent first. Their memory is part of
// the budget and can be had whenever somebody needs it. Meanwhile they are
// read from memory, and can be sent once more when their slice is lost because
// the client's session ended.
type keptBlocks struct {
	mu   sync.Mutex // taken under inode.mu
	list list.List  // of keptBlock
}

type keptBlock struct {
	i *inode
	r *run
	b int
}

// keep keeps a block that was sent in memory, unless somebody waits for its
// memory. i.mu is held.
func (fs *FS) keep(i *inode, r *run, b int) {
	blk := &r.blocks[b]
	fs.kept.mu.Lock()
	blk.kept = fs.kept.list.PushBack(keptBlock{i, r, b})
	fs.kept.mu.Unlock()
	if !fs.budget.plenty() { // asked last: whoever came to wait before has not seen it in the list
		fs.release(blk)
	}
}

// forget takes a block out of the list; its memory stays. The inode's mu is
// held.
func (k *keptBlocks) forget(blk *outBlock) {
	k.mu.Lock()
	k.list.Remove(blk.kept)
	k.mu.Unlock()
	blk.kept = nil
}

// release frees a block's memory. The inode's mu is held.
func (fs *FS) release(blk *outBlock) {
	if blk.kept != nil {
		fs.kept.forget(blk)
	}
	if blk.buf == nil {
		return
	}
	size := int64(len(blk.buf))
	fs.pool.give(blk.buf)
	blk.buf = nil
	fs.budget.give(size)
}

// reclaim frees kept blocks of at least n bytes, or all there are.
func (fs *FS) reclaim(n int64) {
	for n > 0 {
		fs.kept.mu.Lock()
		first := fs.kept.list.Front()
		if first == nil {
			fs.kept.mu.Unlock()
			return
		}
		k := fs.kept.list.Remove(first).(keptBlock) // what is in the list is ours
		fs.kept.mu.Unlock()
		k.i.mu.Lock()
		// It may have been released, or be about to be sent again.
		if blk := &k.r.blocks[k.b]; blk.kept == first {
			n -= int64(len(blk.buf))
			fs.release(blk)
		}
		k.i.mu.Unlock()
	}
}
