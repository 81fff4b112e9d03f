package vfs

import (
	"container/list"
	"context"
	"sync"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// spanSmall is what is read at once for a reader who jumps about, in
	// bytes, spanLarge for one who goes on from where he was.
	spanSmall = 128 << 10
	spanLarge = 1 << 20
	// spanWhole is the size up to which a block is read as a whole.
	spanWhole = 256 << 10
	// prefetchMax is how many spans are read ahead at once.
	prefetchMax = 16
	// fillMax is how many spans one read waits for at a time.
	fillMax = 16
)

// spanCache keeps spans of blocks that were read. Blocks never change, so
// nothing in it is ever out of date.
type spanCache struct {
	fs    *FS
	limit int64

	mu    sync.Mutex
	spans map[spanKey]*span
	order list.List // of *span, the latest first
	used  int64     // bytes of memory that spans have, or will have at least
	loads int       // reads from the store that are under way
}

type spanKey struct {
	block sys.BlockKey
	off   uint32
	large bool
}

// A span is bytes of a block, in the memory in which the store read them. It
// may be used by who holds it.
type span struct {
	key    spanKey
	n      int
	memory int // counted in used: n, once buf is there what it takes
	refs   int
	at     *list.Element // nil once it left the cache
	done   chan struct{} // closed when buf or err is there
	buf    block.Buffer
	err    error
}

func newSpanCache(fs *FS, limit int64) *spanCache {
	return &spanCache{fs: fs, limit: limit, spans: make(map[spanKey]*span)}
}

// fill gets the bytes of parts.
func (c *spanCache) fill(ctx context.Context, parts []part, large bool) error {
	type use struct {
		s    *span
		from int
		dst  []byte
	}
	var uses [fillMax]use
	for len(parts) > 0 {
		n := 0
		for n < fillMax && len(parts) > 0 {
			p := &parts[0]
			key, from, size := spanAt(p, large)
			k := min(size-from, p.n)
			uses[n] = use{s: c.hold(key, size, true), from: from, dst: p.dst[:k]}
			n++
			p.dst, p.n, p.off = p.dst[k:], p.n-k, p.off+uint32(k)
			if p.n == 0 {
				parts = parts[1:]
			}
		}
		var err error
		for _, u := range uses[:n] {
			if err == nil {
				if err = u.s.wait(ctx); err == nil {
					copy(u.dst, u.s.buf.Data[u.from:])
				}
			}
			c.drop(u.s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lend gets the bytes of p in place, when one span has them all.
func (c *spanCache) lend(ctx context.Context, p *part, large bool) (b block.Buffer, ok bool, err error) {
	key, from, size := spanAt(p, large)
	if p.n > size-from {
		return b, false, nil
	}
	s := c.hold(key, size, true)
	if err := s.wait(ctx); err != nil {
		c.drop(s)
		return b, false, err
	}
	return block.Buffer{Data: s.buf.Data[from : from+p.n : from+p.n], Memory: s.memory, Free: func() { c.drop(s) }}, true, nil
}

// prefetch starts to read the spans of parts that are not cached, as far as
// not too many are being read already. It reports how many bytes it got to.
func (c *spanCache) prefetch(parts []part) {
	for _, p := range parts {
		for p.n > 0 {
			key, from, size := spanAt(&p, true)
			s := c.hold(key, size, false)
			if s == nil {
				return
			}
			c.drop(s)
			k := min(size-from, p.n)
			p.n, p.off = p.n-k, p.off+uint32(k)
		}
	}
}

// spanAt returns the span that holds the first bytes of p, where in it they
// begin, and how many bytes it has.
func spanAt(p *part, large bool) (key spanKey, from, size int) {
	index, off := p.off/sys.BlockSize, int(p.off%sys.BlockSize)
	blockLen := min(int(p.sliceLen-index*sys.BlockSize), sys.BlockSize)
	large = large || blockLen <= spanWhole
	unit := spanSmall
	if large {
		unit = spanLarge
	}
	start := off / unit * unit
	size = min(unit, blockLen-start)
	key = spanKey{block: sys.BlockKey{Slice: p.slice, Index: index}, off: uint32(start), large: large}
	return key, off - start, size
}

// hold returns a span, which is being read if it was not cached; drop ends its
// use. Without must it returns nil rather than start one read too many.
func (c *spanCache) hold(key spanKey, size int, must bool) *span {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.spans[key]; s != nil {
		s.refs++
		c.order.MoveToFront(s.at)
		return s
	}
	if !must && c.loads >= prefetchMax {
		return nil
	}
	s := &span{key: key, n: size, memory: size, refs: 2, done: make(chan struct{})}
	s.at = c.order.PushFront(s)
	c.spans[key] = s
	c.used += int64(size)
	c.loads++
	c.evict()
	if !c.fs.startTask(func() { c.load(s) }) {
		s.err = errClosed
		close(s.done)
		c.loaded(s)
	}
	return s
}

// load reads a span from the store.
func (c *spanCache) load(s *span) {
	buf, err := c.fs.store.Read(c.fs.ctx, s.key.block, int(s.key.off), s.n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.buf, s.err = buf, err; err == nil {
		c.used += int64(buf.Memory - s.memory)
		s.memory = buf.Memory
		c.evict()
	}
	close(s.done)
	c.loaded(s)
}

// loaded ends the reader's own use of a span. c.mu is held.
func (c *spanCache) loaded(s *span) {
	c.loads--
	if s.err != nil {
		c.remove(s)
	}
	c.unref(s)
}

func (s *span) wait(ctx context.Context) error {
	select {
	case <-s.done:
		return s.err
	default:
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return sys.E(sys.Op("vfs.ReadAt"), sys.Interrupted, ctx.Err())
	}
}

func (c *spanCache) drop(s *span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(s)
}

// unref ends a use. c.mu is held.
func (c *spanCache) unref(s *span) {
	if s.refs--; s.refs == 0 && s.at == nil {
		c.free(s)
	}
}

// remove takes a span out of the cache. c.mu is held.
func (c *spanCache) remove(s *span) {
	if s.at == nil {
		return
	}
	c.order.Remove(s.at)
	s.at = nil
	delete(c.spans, s.key)
	if s.refs == 0 {
		c.free(s)
	}
}

func (c *spanCache) free(s *span) {
	c.used -= int64(s.memory)
	s.buf.Release()
}

// evict makes room: the spans go that were not used for longest, but for those
// in use. c.mu is held.
func (c *spanCache) evict() {
	for e := c.order.Back(); e != nil && c.used > c.limit; {
		s, before := e.Value.(*span), e.Prev()
		if s.refs == 0 {
			c.remove(s)
		}
		e = before
	}
}
