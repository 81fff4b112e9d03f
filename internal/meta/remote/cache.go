package remote

import (
	"sync"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// cachedInosMax bounds the inodes of a cache; past it, some are dropped.
	cachedInosMax = 100_000
	// cachedNamesMax bounds the names that a cache keeps of one directory.
	cachedNamesMax = 200_000
	// cachedBytesMax bounds the bytes of small files in a cache.
	cachedBytesMax = 64 << 20
	// stirSlots is the size of the table that remembers when a command of our
	// own last touched an inode. Sharing a slot only costs a miss.
	stirSlots = 1 << 12
)

// cache keeps what the leader granted leases on. Its methods may be called
// concurrently.
type cache struct {
	clock  env.Clock
	revoke func(inos []sys.Ino) // told what is given up; nil inos: everything

	mu    sync.Mutex
	term  uint64        // leadership that granted what is here
	seen  uint64        // last revocation carried out
	until time.Duration // Boot time to which the lease runs
	inos  map[sys.Ino]*cached
	bytes int    // of small files, in inos
	tick  uint64 // counts beginnings and ends of our own commands
	stirs [stirSlots]stir
}

// stir tells of our own commands on the inodes of a slot.
type stir struct {
	last   uint64 // tick of the last beginning or end
	flying int    // commands under way
}

// cached is what is known of one inode. Any part may be missing.
type cached struct {
	attr   *metapb.Attr
	chunks []*metapb.NumberedChunk // chunk 0, when opened
	opened bool
	bytes  int // in chunks
	names  map[string]name
	// complete says that a name which is neither in names nor in unsure does
	// not exist. listed is how far a listing under way has come.
	complete bool
	listed   uint64
	unsure   map[string]struct{}
	sole     bool // nobody else uses a name in it before it is given up
}

// name is a directory entry; ino 0 says that there is none.
type name struct {
	ino sys.Ino
	typ uint32
}

func newCache(clock env.Clock) *cache {
	return &cache{clock: clock, inos: map[sys.Ino]*cached{}}
}

func stirSlot(ino sys.Ino) int { return int((uint64(ino) * 0x9e3779b97f4a7c15) >> (64 - 12)) }

// valid says whether the lease runs. Callers hold mu.
func (c *cache) valid() bool { return c.term != 0 && c.clock.Boot() < c.until }

// left returns how much longer the lease runs.
func (c *cache) left() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.valid() {
		return 0
	}
	return c.until - c.clock.Boot()
}

// renewed takes the answer to a renewal sent at the given Boot time, and
// returns what the next one confirms.
func (c *cache) renewed(sent time.Duration, term, seq uint64, inos []uint64, reset bool) (uint64, uint64) {
	var gone []sys.Ino
	c.mu.Lock()
	if reset || term != c.term {
		c.clear()
		reset = true
	} else {
		gone = make([]sys.Ino, 0, len(inos))
		for _, i := range inos {
			c.forget(sys.Ino(i))
			gone = append(gone, sys.Ino(i))
		}
	}
	c.term, c.seen = term, seq
	c.mu.Unlock()
	if c.revoke != nil && (reset || len(gone) > 0) {
		if reset {
			gone = nil
		}
		c.revoke(gone)
	}
	c.mu.Lock()
	if term != 0 {
		c.until = sent + Term
	}
	c.mu.Unlock()
	return term, seq
}

// lost drops everything and stops caching until the next renewal.
func (c *cache) lost() {
	c.mu.Lock()
	c.clear()
	c.until = 0
	c.mu.Unlock()
	if c.revoke != nil {
		c.revoke(nil)
	}
}

// now is the moment at which a query leaves; what comes back is cached only if
// no command of ours touched it since.
func (c *cache) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tick
}

// fresh says whether a reply may be cached: granted by the current leader, not
// revoked since, and the lease runs.
func (c *cache) fresh(term, seq uint64) bool {
	return term != 0 && term == c.term && seq >= c.seen && c.valid()
}

// still says whether no command of ours touched ino since tick.
func (c *cache) still(ino sys.Ino, tick uint64) bool {
	s := &c.stirs[stirSlot(ino)]
	return s.flying == 0 && s.last <= tick
}

func (c *cache) at(ino sys.Ino) *cached {
	e := c.inos[ino]
	if e == nil {
		if len(c.inos) >= cachedInosMax {
			n := 0
			for i := range c.inos { // any will do: map order is as good as random
				c.forget(i)
				if n++; n >= cachedInosMax/16 {
					break
				}
			}
		}
		e = &cached{}
		c.inos[ino] = e
	}
	return e
}

func (c *cache) clear() { c.inos, c.bytes = map[sys.Ino]*cached{}, 0 }

func (c *cache) forget(ino sys.Ino) {
	if e := c.inos[ino]; e != nil {
		c.bytes -= e.bytes
		delete(c.inos, ino)
	}
}

// setChunks keeps what an open of the file answers.
func (c *cache) setChunks(e *cached, chunks []*metapb.NumberedChunk) {
	c.dropChunks(e)
	e.chunks, e.opened = chunks, true
	for _, n := range chunks {
		e.bytes += len(n.Chunk.GetInline())
	}
	if c.bytes += e.bytes; c.bytes <= cachedBytesMax {
		return
	}
	for _, o := range c.inos { // any will do
		if o != e {
			c.dropChunks(o)
		}
		if c.bytes <= cachedBytesMax*7/8 {
			return
		}
	}
}

func (c *cache) dropChunks(e *cached) {
	c.bytes -= e.bytes
	e.chunks, e.opened, e.bytes = nil, false, 0
}

func (e *cached) setName(n string, v name) {
	if e.names == nil {
		e.names = map[string]name{}
	}
	if len(e.names) >= cachedNamesMax {
		e.names, e.complete, e.listed = map[string]name{}, false, 0
	}
	e.names[n] = v
	delete(e.unsure, n)
}

func (e *cached) dropName(n string) {
	delete(e.names, n)
	if e.complete || e.listed > 0 {
		if e.unsure == nil {
			e.unsure = map[string]struct{}{}
		}
		e.unsure[n] = struct{}{}
	}
}

// find returns what is known of a name in dir.
func (e *cached) find(n string) (name, bool) {
	if v, ok := e.names[n]; ok {
		return v, true
	}
	if e.complete {
		_, unsure := e.unsure[n]
		return name{}, !unsure
	}
	return name{}, false
}

// attrOf returns a copy of an inode's attributes, nil when they are not here.
func (c *cache) attrOf(ino sys.Ino) *metapb.Attr {
	if e := c.inos[ino]; e != nil && e.attr != nil {
		return e.attr.CloneVT()
	}
	return nil
}
