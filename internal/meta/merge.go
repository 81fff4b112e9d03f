package meta

import (
	"bytes"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// merge replaces the oldest slices of a chunk by fewer that hold the same
// bytes. Nobody sees a difference, so neither times nor version change. It
// takes effect only if the chunk still begins as the merger read it: what was
// truncated, zeroed or covered meanwhile must not come back.
func (s *step) merge(c *metapb.Merge) (*metapb.Result, error) {
	ino := sys.Ino(c.Ino)
	a, err := s.regular(ino)
	if err != nil {
		return nil, err
	}
	w := &writing{attr: a}
	if c.Chunk >= ChunksMax {
		return nil, refuse(sys.Invalid, ino, "no such chunk")
	}
	r, err := s.load(w, c.Chunk)
	if err != nil {
		return nil, err
	}
	if !beginsWith(r.chunk, c) {
		return nil, refuse(sys.Stale, ino, "the chunk changed meanwhile")
	}
	start := uint64(c.Chunk) * sys.ChunkSize
	for _, sl := range c.Merged {
		if cause := badSlice(sl); cause != "" {
			return nil, refuse(sys.Invalid, ino, cause)
		}
		if start+uint64(sl.At)+uint64(sl.Len) > a.Size {
			return nil, refuse(sys.Invalid, ino, "a merged slice that ends behind the file")
		}
		if sl.Slice == 0 || has(c.Old, sl.Slice) {
			continue
		}
		if err := s.takePending(w, sys.SliceID(sl.Slice)); err != nil {
			return nil, err
		}
	}

	before := r.chunk.Slices
	after := make([]*metapb.Slice, 0, len(c.Merged)+len(before)-len(c.Old))
	after = append(append(after, c.Merged...), before[len(c.Old):]...)
	if len(after) > SlicesMax {
		return nil, refuse(sys.Busy, ino, "a chunk has too many slices: merge them first")
	}
	r.chunk.Inline, r.chunk.Slices = nil, after
	w.freed = deadSlices(before, after)
	if err := s.write(w); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a, Slices: uint32(len(after))}, nil
}

// beginsWith reports whether a chunk has the inline base and the first slices
// that a merger read.
func beginsWith(chunk *metapb.Chunk, c *metapb.Merge) bool {
	if len(chunk.Slices) < len(c.Old) || !bytes.Equal(chunk.Inline, c.Inline) {
		return false
	}
	for i, old := range c.Old {
		is := chunk.Slices[i]
		if is.At != old.At || is.Len != old.Len || is.Slice != old.Slice || is.Off != old.Off ||
			is.SliceLen != old.SliceLen {
			return false
		}
	}
	return true
}

func has(list []*metapb.Slice, slice uint64) bool {
	for _, sl := range list {
		if sl.Slice == slice {
			return true
		}
	}
	return false
}
