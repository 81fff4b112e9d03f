package vfs

import "sync"

const (
	// aheadSlack is how far from where the last read ended, in bytes, a read
	// still counts as its continuation: the kernel's own read-ahead does not
	// come in order.
	aheadSlack = 1 << 20
	// aheadLarge is how many bytes a reader must have read in a row before
	// large spans are read for him, aheadStart before he is read ahead of.
	aheadLarge = 128 << 10
	aheadStart = 256 << 10
)

// ahead follows one reader and finds out whether he reads in a row.
type ahead struct {
	mu    sync.Mutex
	next  uint64 // where the furthest read of the row ended
	row   uint64 // bytes read in a row
	asked uint64 // up to where was read ahead
}

// note takes note of a read of n bytes at off. It reports whether large spans
// pay, and what to read ahead, nothing when from >= to. window bounds how far.
func (a *ahead) note(off, n, window uint64) (large bool, from, to uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if off > a.next+aheadSlack || off+aheadSlack < a.next {
		a.row, a.asked = 0, 0
		a.next = off
	}
	a.row += n
	a.next = max(a.next, off+n)
	if a.row < aheadStart || window == 0 {
		return a.row > aheadLarge, 0, 0
	}
	from = max(a.asked, a.next)
	to = a.next + min(window, 2*a.row)
	if to < from+spanLarge {
		return true, 0, 0
	}
	a.asked = to
	return true, from, to
}

// prefetch brings [from, to) of the file into the cache, in the background.
func (i *inode) prefetch(from, to uint64) {
	i.mu.RLock()
	to = min(to, i.size())
	if from >= to {
		i.mu.RUnlock()
		return
	}
	first, end := chunkRange(from, to-from)
	missing := i.unknown(first, end)
	if missing < end {
		i.mu.RUnlock()
		i.fs.startTask(func() {
			if err := i.load(i.fs.ctx, missing, end-missing); err != nil {
				return // the reader will ask for it and be told
			}
			i.mu.RLock()
			defer i.mu.RUnlock()
			if i.unknown(first, end) == end {
				i.fs.cache.prefetch(i.plan(nil, nil, from, to-from))
			}
		})
		return
	}
	defer i.mu.RUnlock()
	var some [8]part
	i.fs.cache.prefetch(i.plan(some[:0], nil, from, to-from))
}
