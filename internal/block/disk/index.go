package disk

import (
	"slices"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// entry says where a block is. A size of 0 means that the key is deleted.
type entry struct {
	segment uint32
	sector  uint32
	size    uint32
}

func (e entry) deleted() bool { return e.size == 0 }

func (e entry) offset() int64 { return int64(e.sector) * sectorSize }

// index knows every key that was ever put or deleted here. It is guarded by
// the store's lock. Keys are never removed from it: a deleted one must be
// refused for ever.
type index struct {
	entries map[sys.BlockKey]entry
	groups  map[sys.PG]*keys
	blocks  int
}

func newIndex() *index {
	return &index{entries: make(map[sys.BlockKey]entry), groups: make(map[sys.PG]*keys)}
}

// set makes e the entry of key and returns the one it replaces.
func (x *index) set(key sys.BlockKey, e entry) (old entry, had bool) {
	old, had = x.entries[key]
	x.entries[key] = e
	if !had {
		g := x.groups[key.Slice.PG()]
		if g == nil {
			g = &keys{}
			x.groups[key.Slice.PG()] = g
		}
		g.add(key)
	}
	if had && !old.deleted() {
		x.blocks--
	}
	if !e.deleted() {
		x.blocks++
	}
	return old, had
}

// scan calls fn for the keys of pg after a key, in order, deleted ones too,
// until it returns false. settle must have been called.
func (x *index) scan(pg sys.PG, after sys.BlockKey, fn func(sys.BlockKey, entry) bool) {
	g := x.groups[pg]
	if g == nil {
		return
	}
	from, found := slices.BinarySearchFunc(g.sorted, after, block.CompareKeys)
	if found {
		from++
	}
	for _, key := range g.sorted[from:] {
		if !fn(key, x.entries[key]) {
			return
		}
	}
}

// unsettled reports whether pg has keys that are not in order yet.
func (x *index) unsettled(pg sys.PG) bool {
	g := x.groups[pg]
	return g != nil && len(g.fresh) > 0
}

// settle puts the keys of pg in order.
func (x *index) settle(pg sys.PG) {
	if g := x.groups[pg]; g != nil {
		g.settle()
	}
}

// keys are the keys of one placement group. Most come in order, as slices are
// numbered upwards; those that do not wait in fresh until somebody wants to
// see the order.
type keys struct {
	sorted, fresh []sys.BlockKey
}

func (g *keys) add(k sys.BlockKey) {
	if n := len(g.sorted); len(g.fresh) == 0 && (n == 0 || g.sorted[n-1].Less(k)) {
		g.sorted = append(g.sorted, k)
		return
	}
	g.fresh = append(g.fresh, k)
}

// settle merges fresh into sorted, from the end, so that it costs what is
// behind the smallest fresh key.
func (g *keys) settle() {
	if len(g.fresh) == 0 {
		return
	}
	slices.SortFunc(g.fresh, block.CompareKeys)
	i, j := len(g.sorted)-1, len(g.fresh)-1
	g.sorted = append(g.sorted, g.fresh...)
	for k := len(g.sorted) - 1; j >= 0; k-- {
		if i >= 0 && g.fresh[j].Less(g.sorted[i]) {
			g.sorted[k] = g.sorted[i]
			i--
		} else {
			g.sorted[k] = g.fresh[j]
			j--
		}
	}
	g.fresh = nil
}
