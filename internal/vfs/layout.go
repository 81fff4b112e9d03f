package vfs

import (
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// A segment says where a run of a chunk's bytes is: in a slice, or in the
// chunk's inline base (slice 0).
type segment struct {
	at, n    uint32 // in the chunk
	slice    sys.SliceID
	off      uint32 // in the slice, or in the inline base
	sliceLen uint32 // of the whole slice
}

func (s segment) end() uint32 { return s.at + s.n }

func (s segment) isInline() bool { return s.slice == 0 }

// A layout is a chunk resolved: its segments in order, disjoint; what is
// between them is zeroes.
type layout struct {
	segs   []segment
	inline []byte // the base layer; read-only
	slices int    // length of the row's list
}

// resolve lays the slices of a chunk over each other and over its inline base.
// A later slice covers an earlier one; a slice 0 covers with zeroes.
func resolve(c *metapb.Chunk) *layout {
	l := &layout{inline: c.GetInline(), slices: len(c.GetSlices())}
	if n := uint32(len(l.inline)); n > 0 {
		l.segs = append(l.segs, segment{n: n, sliceLen: n})
	}
	for _, s := range c.GetSlices() {
		l.cover(s)
	}
	return l
}

// cover lays one more slice over l.
func (l *layout) cover(s *metapb.Slice) {
	lo, hi := s.GetAt(), s.GetAt()+s.GetLen()
	first, end := overlapping(l.segs, lo, hi)
	var put [3]segment
	fresh := put[:0]
	if first < end {
		if head := l.segs[first]; head.at < lo {
			head.n = lo - head.at
			fresh = append(fresh, head)
		}
	}
	if s.GetSlice() != 0 {
		fresh = append(fresh, segment{at: lo, n: s.GetLen(), slice: sys.SliceID(s.GetSlice()), off: s.GetOff(), sliceLen: s.GetSliceLen()})
	}
	if first < end {
		if tail := l.segs[end-1]; tail.end() > hi {
			cut := hi - tail.at
			tail.at, tail.n, tail.off = hi, tail.n-cut, tail.off+cut
			fresh = append(fresh, tail)
		}
	}
	l.segs = slices.Replace(l.segs, first, end, fresh...)
}

// overlapping returns which of segs, sorted and disjoint, have a byte in
// [lo, hi): those from first on, up to end.
func overlapping(segs []segment, lo, hi uint32) (first, end int) {
	first, _ = slices.BinarySearchFunc(segs, lo, func(s segment, at uint32) int {
		if s.end() <= at {
			return -1
		}
		return 1
	})
	end = first
	for end < len(segs) && segs[end].at < hi {
		end++
	}
	return first, end
}

// row returns l as the list of slices that stands for the same bytes, the
// inline base left out.
func rowOf(segs []segment) []*metapb.Slice {
	row := make([]*metapb.Slice, 0, len(segs))
	for _, s := range segs {
		if s.slice != 0 {
			row = append(row, &metapb.Slice{At: s.at, Len: s.n, Slice: uint64(s.slice), Off: s.off, SliceLen: s.sliceLen})
		}
	}
	return row
}
