package wal

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env/envfs"
)

// segment is one file of the log.
type segment struct {
	id   uint64
	file vfs.File
	// top is the highest slot of each group that the segment holds.
	top  map[uint64]uint64
	refs atomic.Int32
}

func newSegment(id uint64, f vfs.File) *segment {
	s := &segment{id: id, file: f, top: map[uint64]uint64{}}
	s.refs.Store(1)
	return s
}

// unref closes the file when nobody reads it any more.
func (s *segment) unref() error {
	if s.refs.Add(-1) > 0 {
		return nil
	}
	return s.file.Close()
}

// obsolete reports whether every entry of the segment has been truncated.
func (s *segment) obsolete(index map[uint64]*groupIndex) bool {
	for group, top := range s.top {
		if g := index[group]; g == nil || g.floor < top {
			return false
		}
	}
	return true
}

// location is where the entry of a slot lies. Its record's checksum tells it
// from any other record, also a sound one of another group or an older ballot.
type location struct {
	slot                uint64
	segment             uint64
	offset, length, crc uint32
}

// groupIndex finds a group's entries by slot.
type groupIndex struct {
	floor uint64 // entries up to it are given up
	// locs is sorted by slot. It is a slice and not a map as entries are
	// appended in order but for a few near the end.
	locs  []location
	bytes int64 // of the records in locs
}

func compareSlot(l location, slot uint64) int {
	switch {
	case l.slot < slot:
		return -1
	case l.slot > slot:
		return 1
	}
	return 0
}

// put adds or replaces a slot's location.
func (g *groupIndex) put(l location) {
	if l.slot <= g.floor {
		return
	}
	size := recordSize(int(l.length))
	if n := len(g.locs); n == 0 || g.locs[n-1].slot < l.slot {
		g.locs = append(g.locs, l)
		g.bytes += size
		return
	}
	i, found := slices.BinarySearchFunc(g.locs, l.slot, compareSlot)
	if found {
		g.bytes += size - recordSize(int(g.locs[i].length))
		g.locs[i] = l
		return
	}
	g.locs = slices.Insert(g.locs, i, l)
	g.bytes += size
}

func (g *groupIndex) get(slot uint64) (location, bool) {
	// Slots are dense as a rule, so the place can be computed.
	if len(g.locs) == 0 || slot < g.locs[0].slot {
		return location{}, false
	}
	if i := slot - g.locs[0].slot; i < uint64(len(g.locs)) && g.locs[i].slot == slot {
		return g.locs[i], true
	}
	i, found := slices.BinarySearchFunc(g.locs, slot, compareSlot)
	if !found {
		return location{}, false
	}
	return g.locs[i], true
}

func (g *groupIndex) truncate(upTo uint64) {
	if upTo <= g.floor {
		return
	}
	g.floor = upTo
	i, found := slices.BinarySearchFunc(g.locs, upTo, compareSlot)
	if found {
		i++
	}
	for _, l := range g.locs[:i] {
		g.bytes -= recordSize(int(l.length))
	}
	// Copied, so that the memory of what is gone is given back.
	g.locs = append(make([]location, 0, len(g.locs)-i+64), g.locs[i:]...)
}

// cutFor returns the highest slot behind which at most tail bytes lie.
func (g *groupIndex) cutFor(tail int64) uint64 {
	for i := len(g.locs) - 1; i >= 0; i-- {
		tail -= recordSize(int(g.locs[i].length))
		if tail < 0 {
			return g.locs[i].slot
		}
	}
	return g.floor
}

func (l *Log) groupIndex(group uint64) *groupIndex {
	g := l.index[group]
	if g == nil {
		g = &groupIndex{}
		l.index[group] = g
	}
	return g
}

// locate finds a slot's entry and takes a reference on its segment. l.mu is held.
func (l *Log) locate(group, slot uint64) (*segment, location, bool) {
	g := l.index[group]
	if g == nil {
		return nil, location{}, false
	}
	loc, ok := g.get(slot)
	if !ok {
		return nil, location{}, false
	}
	i, found := slices.BinarySearchFunc(l.segs, loc.segment, func(s *segment, id uint64) int {
		if s.id < id {
			return -1
		} else if s.id > id {
			return 1
		}
		return 0
	})
	if !found {
		return nil, location{}, false
	}
	l.segs[i].refs.Add(1)
	return l.segs[i], loc, true
}

func makeDir(fs envfs.FS, dir string) error {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(syncDir(fs, dir), syncDir(fs, fs.PathDir(dir)))
}

func syncDir(fs envfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
