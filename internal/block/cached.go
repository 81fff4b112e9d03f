package block

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/koinon/koinon/internal/sys"
)

// partSize is the unit of the cache in bytes: what one read request of the
// kernel asks for at most, so that sequential readers hit whole parts.
const partSize = 128 << 10

// smallRead is the size below which a read that misses is passed on as it is
// the first time a part is touched: a random reader of 4 KiB would otherwise
// fetch 32 times what it asked for.
const smallRead = 64 << 10

// Cache is a Store that keeps recently read parts of blocks in memory. It
// never invalidates: a block never changes. Callers that miss on the same part
// at the same time share one read of the store below. A part that is read in
// small pieces is kept from its second touch on.
type Cache struct {
	Store
	below PartGetter // nil when Store has no GetPart
	limit int

	mu    sync.Mutex
	parts map[partKey]*part
	ring  []*part // loaded parts, swept by the hand of the clock
	hand  int
	used  int
	seen  ghosts
	free  [][]byte // buffers of partSize

	hits, misses atomic.Uint64
}

type partKey struct {
	key   sys.BlockKey
	index int
}

// part is a run of partSize bytes of a block, shorter at the block's end. Its
// data is written by the loader before ready is closed and read by those who
// hold a pin.
type part struct {
	id     partKey
	data   []byte
	err    error
	ready  chan struct{}
	pins   int
	slot   int // in ring, -1 while loading or after eviction
	recent bool
}

var (
	_ Store      = (*Cache)(nil)
	_ PartGetter = (*Cache)(nil)
)

// Cached wraps store with a read cache of at most maxBytes, at least one part.
// The store must be a PartGetter, as all of ours are; Gets of another pass
// through uncached.
func Cached(store Store, maxBytes int) *Cache {
	c := &Cache{Store: store, limit: max(maxBytes, partSize), parts: make(map[partKey]*part)}
	c.below, _ = store.(PartGetter)
	c.seen.init(max(c.limit/partSize/4, 16))
	return c
}

// Stats returns how many parts were found and how many were read from below.
func (c *Cache) Stats() (hits, misses uint64) { return c.hits.Load(), c.misses.Load() }

// Bytes returns what the cached parts hold now.
func (c *Cache) Bytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// Get implements Store.
func (c *Cache) Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error {
	if c.below == nil {
		return c.Store.Get(ctx, key, off, dst)
	}
	n, err := c.GetPart(ctx, key, off, dst)
	if err == nil && n < len(dst) {
		return CheckRange("cache.Get", key, off+n, off, len(dst))
	}
	return err
}

// GetPart implements PartGetter; it is NotSupported when the store below has no
// GetPart.
func (c *Cache) GetPart(ctx context.Context, key sys.BlockKey, off int, dst []byte) (int, error) {
	if off < 0 || off > sys.BlockSize {
		return 0, CheckRange("cache.Get", key, sys.BlockSize, off, len(dst))
	}
	if c.below == nil {
		return 0, sys.E(sys.Op("cache.GetPart"), sys.NotSupported, "the store below has no GetPart")
	}
	if len(dst) == 0 {
		return c.below.GetPart(ctx, key, off, dst)
	}
	n := 0
	for n < len(dst) {
		at := off + n
		end := min((at/partSize+1)*partSize, off+len(dst))
		if run, claimed := c.coldRun(key, at, len(dst)-n); run > 0 {
			got, err := c.fetchRun(ctx, key, at, dst[n:n+run], claimed)
			n += got
			if err != nil || got < run {
				return n, ignoreEnd(err, n)
			}
			continue
		}
		got, err := c.fromPart(ctx, key, at, dst[n:n+end-at])
		n += got
		if err != nil || got < end-at {
			return n, ignoreEnd(err, n)
		}
	}
	return n, nil
}

// ignoreEnd drops the Invalid of a read that began exactly at the block's end
// after n bytes had been read.
func ignoreEnd(err error, n int) error {
	if n > 0 && sys.Is(err, sys.Invalid) {
		return nil
	}
	return err
}

// coldRun returns how many bytes from at on are whole parts that nobody has or
// is loading, and claims those parts: they are read with one call straight into
// the caller's buffer. Or it returns the whole of a small read of a part that
// is touched for the first time. 0 means: go by parts.
func (c *Cache) coldRun(key sys.BlockKey, at, n int) (int, []*part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at%partSize+n <= partSize && n < smallRead {
		id := partKey{key, at / partSize}
		if c.parts[id] == nil && c.seen.add(id) {
			return n, nil
		}
		return 0, nil
	}
	run := 0
	var claimed []*part
	for at%partSize == 0 && n-run >= partSize && c.parts[partKey{key, (at + run) / partSize}] == nil {
		claimed = append(claimed, c.claim(partKey{key, (at + run) / partSize}))
		run += partSize
	}
	return run, claimed
}

// claim makes the caller the one who loads a part, with a pin on it.
func (c *Cache) claim(id partKey) *part {
	p := &part{id: id, ready: make(chan struct{}), slot: -1, pins: 1}
	c.parts[id] = p
	c.misses.Add(1)
	return p
}

// fetchRun reads bytes from below into dst and fills the claimed parts with
// copies.
func (c *Cache) fetchRun(ctx context.Context, key sys.BlockKey, at int, dst []byte, claimed []*part) (int, error) {
	n, err := c.below.GetPart(ctx, key, at, dst)
	for i, p := range claimed {
		c.mu.Lock()
		buf := c.buffer()
		c.mu.Unlock()
		held, failed := 0, err
		if from := i * partSize; err == nil && from >= n {
			failed = CheckRange("cache.Get", key, at+n, at+from+1, 0)
		} else if err == nil {
			held = copy(buf, dst[from:n])
		}
		c.loaded(p, buf, held, failed)
		c.unpin(p)
	}
	return n, err
}

// fromPart serves dst, which lies in one part, from the cache, and loads the
// part when it is not there.
func (c *Cache) fromPart(ctx context.Context, key sys.BlockKey, at int, dst []byte) (int, error) {
	id := partKey{key, at / partSize}
	for {
		p, mine := c.pin(id)
		if mine {
			c.load(ctx, p)
		} else {
			select {
			case <-p.ready:
			case <-ctx.Done():
				c.unpin(p)
				return 0, sys.E(sys.Op("cache.Get"), sys.Interrupted, Subject(key), context.Cause(ctx))
			}
		}
		err := p.err
		n := 0
		if err == nil {
			if from := at % partSize; from <= len(p.data) {
				n = copy(dst, p.data[from:])
			}
		}
		c.unpin(p)
		// The reader that loaded may have given up; that is not our error.
		if !mine && err != nil && ctx.Err() == nil &&
			(sys.Is(err, sys.Interrupted) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			continue
		}
		if err == nil && n == 0 && at%partSize > len(p.data) {
			err = CheckRange("cache.Get", key, id.index*partSize+len(p.data), at, len(dst))
		}
		return n, err
	}
}

// pin returns the part with a pin on it; mine is true when the caller must
// load it.
func (c *Cache) pin(id partKey) (p *part, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p = c.parts[id]
	if p == nil {
		return c.claim(id), true
	}
	c.hits.Add(1)
	p.pins++
	p.recent = true
	return p, false
}

// load reads the part from below and wakes those who wait for it.
func (c *Cache) load(ctx context.Context, p *part) {
	c.mu.Lock()
	buf := c.buffer()
	c.mu.Unlock()
	n, err := c.below.GetPart(ctx, p.id.key, p.id.index*partSize, buf)
	c.loaded(p, buf, n, err)
}

// loaded publishes n bytes of buf as the part, or the error.
func (c *Cache) loaded(p *part, buf []byte, n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		p.err = err
		c.recycle(buf)
		if c.parts[p.id] == p {
			delete(c.parts, p.id)
		}
	case n <= partSize/2:
		// Small blocks must not occupy whole parts.
		p.data = append(make([]byte, 0, n), buf[:n]...)
		c.recycle(buf)
	default:
		p.data = buf[:n]
	}
	if err == nil && c.parts[p.id] == p {
		p.slot = len(c.ring)
		c.ring = append(c.ring, p)
		c.used += cap(p.data)
		c.evict(p)
	}
	close(p.ready)
}

// evict drops parts until the bound holds: the hand of the clock passes over
// pinned parts and gives recently read ones a second round. The part keep is
// the newest and stays.
func (c *Cache) evict(keep *part) {
	for tries := 2 * len(c.ring); c.used > c.limit && tries > 0; tries-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		p := c.ring[c.hand]
		switch {
		case p == keep:
			c.hand++
		case p.recent:
			p.recent = false
			c.hand++
		default:
			c.drop(p)
		}
	}
}

// drop takes a loaded part out of the cache; its buffer is reused once nobody
// reads it.
func (c *Cache) drop(p *part) {
	delete(c.parts, p.id)
	last := len(c.ring) - 1
	c.ring[p.slot] = c.ring[last]
	c.ring[p.slot].slot = p.slot
	c.ring[last] = nil
	c.ring = c.ring[:last]
	p.slot = -1
	c.used -= cap(p.data)
	if p.pins == 0 {
		c.recycle(p.data)
	}
}

// unpin lets go of a part.
func (c *Cache) unpin(p *part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.pins--; p.pins == 0 && p.slot < 0 && c.parts[p.id] != p && p.err == nil {
		c.recycle(p.data)
	}
}

// buffer returns a buffer of partSize.
func (c *Cache) buffer() []byte {
	if n := len(c.free); n > 0 {
		buf := c.free[n-1]
		c.free = c.free[:n-1]
		return buf
	}
	return make([]byte, partSize)
}

// recycle keeps a few whole buffers for the next loads.
func (c *Cache) recycle(buf []byte) {
	if cap(buf) == partSize && len(c.free) < 16 {
		c.free = append(c.free, buf[:partSize])
	}
}

// Delete implements Store.
func (c *Cache) Delete(ctx context.Context, keys []sys.BlockKey) error {
	c.mu.Lock()
	for _, key := range keys {
		for i := range sys.BlockSize / partSize {
			if p := c.parts[partKey{key, i}]; p != nil && p.slot >= 0 {
				c.drop(p)
			}
		}
	}
	c.mu.Unlock()
	return c.Store.Delete(ctx, keys)
}

// ghosts remembers the last few parts that were touched and not cached.
type ghosts struct {
	set  map[partKey]struct{}
	ring []partKey
	next int
}

func (g *ghosts) init(n int) {
	g.set, g.ring = make(map[partKey]struct{}, n), make([]partKey, n)
}

// add reports whether id is new and remembers it; an id that was known is
// forgotten, as it is going to be cached.
func (g *ghosts) add(id partKey) bool {
	if _, known := g.set[id]; known {
		delete(g.set, id)
		return false
	}
	delete(g.set, g.ring[g.next])
	g.ring[g.next] = id
	g.next = (g.next + 1) % len(g.ring)
	g.set[id] = struct{}{}
	return true
}
