package mysql

import (
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// cacheMax is how many inodes a leader remembers.
const cacheMax = 1 << 16

// cache is what the leader knows of the rows without asking: nobody but it
// changes them, or else the fence refuses its next transaction. It is used by
// the goroutine that runs the commands.
type cache struct {
	inodes   map[sys.Ino]*metapb.Attr
	counters map[meta.Counter]int64
}

func newCache() *cache {
	return &cache{inodes: map[sys.Ino]*metapb.Attr{}, counters: map[meta.Counter]int64{}}
}

// inode returns a copy, nil when it is not known.
func (c *cache) inode(ino sys.Ino) *metapb.Attr { return cloneAttr(c.inodes[ino]) }

func (c *cache) counter(name meta.Counter) (int64, bool) {
	n, ok := c.counters[name]
	return n, ok
}

// keep remembers an inode, which belongs to the cache from then on. When there
// are too many, any other one goes.
func (c *cache) keep(ino sys.Ino, a *metapb.Attr) {
	if len(c.inodes) >= cacheMax {
		for other := range c.inodes {
			delete(c.inodes, other)
			break
		}
	}
	c.inodes[ino] = a
}

// learn takes over what is in the database now.
func (c *cache) learn(w *writes) {
	for ino, a := range w.inodes {
		if a == nil {
			delete(c.inodes, ino)
			continue
		}
		c.keep(ino, a)
	}
	for name, n := range w.counters {
		c.counters[name] = n
	}
}
