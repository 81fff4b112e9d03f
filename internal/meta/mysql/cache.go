package mysql

import (
	"cmp"
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// cacheMax is how many inodes, names, and files without bytes each a leader
	// remembers.
	cacheMax = 1 << 16
	// listMax is the largest directory that is listed from memory.
	listMax = 1 << 10
)

// cache is what the leader knows of the rows without asking: nobody but it
// changes them, or else the fence refuses its next transaction. The goroutine
// that runs the commands alone writes it; others hold mu while they read.
type cache struct {
	mu sync.RWMutex // held to write
	rowsKnown
}

// rowsKnown is what is in a cache.
type rowsKnown struct {
	inodes   map[sys.Ino]*metapb.Attr
	dirs     map[sys.Ino]*directory
	names    int                  // in all of dirs
	bare     map[sys.Ino]struct{} // files that have no chunk
	free     map[sys.Ino]struct{} // numbers that were given out and no inode has
	counters map[meta.Counter]int64
}

// directory is what is known of a directory: of a name that is not there nil.
type directory struct {
	known map[string]*metapb.Dentry
	whole bool // a name that is not known is not there
}

func newCache() *cache { return &cache{rowsKnown: nothingKnown()} }

func nothingKnown() rowsKnown {
	return rowsKnown{inodes: map[sys.Ino]*metapb.Attr{}, dirs: map[sys.Ino]*directory{}, bare: map[sys.Ino]struct{}{},
		free: map[sys.Ino]struct{}{}, counters: map[meta.Counter]int64{}}
}

// reset forgets everything.
func (c *cache) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rowsKnown = nothingKnown()
}

// inode returns a copy, nil when it is not known.
func (c *cache) inode(ino sys.Ino) *metapb.Attr { return c.inodes[ino].CloneVT() }

func (c *cache) counter(name meta.Counter) (int64, bool) {
	n, ok := c.counters[name]
	return n, ok
}

// entry returns a copy, nil of one that is known not to be there.
func (c *cache) entry(parent sys.Ino, name []byte) (d *metapb.Dentry, known bool) {
	dir := c.dirs[parent]
	if dir == nil {
		return nil, false
	}
	d, known = dir.known[string(name)]
	return d.CloneVT(), known || dir.whole
}

// list returns copies of the entries of a directory from a cookie on, in order,
// unless it would have to ask.
func (c *cache) list(parent sys.Ino, from uint64, limit int) (page []keyed[namedEntry], known bool) {
	dir := c.dirs[parent]
	if dir == nil || !dir.whole || len(dir.known) > listMax {
		return nil, false
	}
	for name, d := range dir.known {
		if d.Cookie >= from {
			page = append(page, keyed[namedEntry]{d.Cookie, namedEntry{[]byte(name), d.CloneVT()}})
		}
	}
	slices.SortFunc(page, func(a, b keyed[namedEntry]) int { return cmp.Compare(a.key, b.key) })
	return page[:min(limit, len(page))], true
}

// noChunks says that a file is known to have no chunk.
func (c *cache) noChunks(ino sys.Ino) bool {
	_, ok := c.bare[ino]
	return ok
}

// noInode says that no inode is known to have a number.
func (c *cache) noInode(ino sys.Ino) bool {
	_, ok := c.free[ino]
	return ok
}

// noEntry says that a directory is known to have no such name.
func (c *cache) noEntry(parent sys.Ino, name string) bool {
	dir := c.dirs[parent]
	if dir == nil {
		return false
	}
	d, known := dir.known[name]
	return d == nil && (known || dir.whole)
}

// keep remembers an inode, which belongs to the cache from then on.
func (c *cache) keep(ino sys.Ino, a *metapb.Attr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepInode(ino, a)
}

// keepCounter remembers a counter.
func (c *cache) keepCounter(name meta.Counter, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counters[name] = n
}

// keepEntry remembers an entry, or with nil that there is none of the name. It
// belongs to the cache from then on.
func (c *cache) keepEntry(parent sys.Ino, name string, d *metapb.Dentry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepName(parent, name, d)
}

func (c *rowsKnown) keepInode(ino sys.Ino, a *metapb.Attr) {
	bound(c.inodes)
	c.inodes[ino] = a
}

// bound makes room for one more: when there are too many, any other one goes.
func bound[V any](m map[sys.Ino]V) {
	if len(m) < cacheMax {
		return
	}
	for other := range m {
		delete(m, other)
		return
	}
}

func (c *rowsKnown) keepName(parent sys.Ino, name string, d *metapb.Dentry) {
	dir := c.dirs[parent]
	if dir == nil {
		dir = &directory{known: map[string]*metapb.Dentry{}}
		c.dirs[parent] = dir
	}
	before := len(dir.known)
	if dir.whole && d == nil {
		delete(dir.known, name)
	} else {
		dir.known[name] = d
	}
	c.names += len(dir.known) - before
	for other := range c.dirs {
		if c.names <= cacheMax {
			break
		}
		c.forget(other)
	}
}

func (c *rowsKnown) forget(dir sys.Ino) {
	if d := c.dirs[dir]; d != nil {
		c.names -= len(d.known)
		delete(c.dirs, dir)
	}
}

// learn takes over what is in the database now.
func (c *cache) learn(w *writes) {
	if w.loads() { // which may bring rows of any number
		c.reset()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Numbers are given out in order, so an inode above the last one has no
	// row but those that come now.
	last, known := c.counters[meta.CounterIno]
	if n, ok := w.counters[meta.CounterIno]; ok && known && n-last <= meta.AllocMax {
		for ino := max(sys.Ino(last)+1, sys.FirstIno); ino <= sys.Ino(n); ino++ {
			bound(c.free)
			c.free[ino] = struct{}{}
		}
	}
	for ino, a := range w.inodes {
		if a == nil {
			delete(c.inodes, ino)
			delete(c.bare, ino)
			c.forget(ino)
			continue
		}
		c.keepInode(ino, a)
		_, free := c.free[ino]
		delete(c.free, ino)
		switch {
		case !free && (!known || int64(ino) <= last || ino < sys.FirstIno):
		case sys.FileType(a.Type) == sys.TypeDir:
			for other := range c.dirs {
				if len(c.dirs) < cacheMax {
					break
				}
				c.forget(other)
			}
			c.dirs[ino] = &directory{known: map[string]*metapb.Dentry{}, whole: true}
		default:
			bound(c.bare)
			c.bare[ino] = struct{}{}
		}
	}
	for parent, dir := range w.entries {
		if parent == sys.QuarantineIno { // nobody looks there
			continue
		}
		for name, d := range dir {
			c.keepName(parent, name, d)
		}
	}
	for ino := range w.chunks {
		delete(c.bare, ino)
	}
	for name, n := range w.counters {
		c.counters[name] = n
	}
}
