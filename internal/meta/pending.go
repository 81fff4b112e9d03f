package meta

import (
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Which slice numbers are reserved and not committed is kept exactly, so that
// the blocks of a writer that died can be found without looking at any file.
// Row n of sys.PendingIno has the numbers from n*pendingRow on, as ranges in
// ascending order. A commit takes its numbers out; a row without ranges is not
// stored.
const pendingRow = 1024

// pendingMax is the number below which sequence numbers stay.
const pendingMax = (1 << 32) * pendingRow

// allocSlices reserves slice numbers for a session.
func (s *step) allocSlices(c *metapb.AllocSlices) (*metapb.Result, error) {
	if c.Count == 0 || c.Count > AllocMax {
		return nil, refuse(sys.Invalid, sys.PendingIno, "a session reserves 1 to 1024 slices at a time")
	}
	last, err := s.tx.Counter(CounterSlice, 0)
	if err != nil {
		return nil, err
	}
	if last+int64(c.Count) >= pendingMax {
		return nil, refuse(sys.NoSpace, sys.PendingIno, "all slice numbers are used up")
	}

	first := uint64(last) + 1
	if err := s.count(CounterSlice, int64(c.Count)); err != nil {
		return nil, err
	}
	for left := c.Count; left > 0; {
		seq := first + uint64(c.Count-left)
		n := min(left, pendingRow-uint32(seq%pendingRow))
		if err := s.addPending(&metapb.Range{First: seq, Count: n, Session: c.Session}); err != nil {
			return nil, err
		}
		left -= n
	}
	return &metapb.Result{FirstSlice: first, Session: c.Session}, nil
}

// addPending records a range that is above all others of its row.
func (s *step) addPending(add *metapb.Range) error {
	n := uint32(add.First / pendingRow)
	chunk, err := s.tx.Chunk(sys.PendingIno, n)
	if err != nil {
		return err
	}
	if chunk == nil {
		chunk = &metapb.Chunk{}
	}
	if i := len(chunk.Ranges) - 1; i >= 0 && chunk.Ranges[i].Session == add.Session &&
		chunk.Ranges[i].First+uint64(chunk.Ranges[i].Count) == add.First {
		chunk.Ranges[i].Count += add.Count
	} else {
		chunk.Ranges = append(chunk.Ranges, add)
	}
	return s.tx.SetChunk(sys.PendingIno, n, chunk)
}

// takePending plans that a slice is committed. It is refused when the slice is
// not reserved: its session has ended and the collector may already be deleting
// its blocks, or it was committed before.
func (s *step) takePending(w *writing, id sys.SliceID) error {
	seq := id.Seq()
	if slices.Contains(w.taken, seq) {
		return nil
	}
	if seq == 0 || seq >= pendingMax {
		return refuse(sys.Invalid, sys.Ino(w.attr.Ino), "slice "+id.String()+" was never reserved")
	}
	reserved, err := s.unreserve(w, seq)
	if err != nil {
		return err
	}
	if !reserved {
		return refuse(sys.SessionGone, sys.Ino(w.attr.Ino), "slice "+id.String()+" is not reserved, or committed already")
	}
	return nil
}

// unreserve plans to take a number out of those that are reserved. It reports
// whether it was among them.
func (s *step) unreserve(w *writing, seq uint64) (bool, error) {
	r, err := s.loadPending(w, uint32(seq/pendingRow))
	if err != nil {
		return false, err
	}
	for i, have := range r.chunk.Ranges {
		if seq < have.First || seq-have.First >= uint64(have.Count) {
			continue
		}
		below := uint32(seq - have.First)
		above := have.Count - below - 1
		var rest []*metapb.Range
		if below > 0 {
			rest = append(rest, &metapb.Range{First: have.First, Count: below, Session: have.Session})
		}
		if above > 0 {
			rest = append(rest, &metapb.Range{First: seq + 1, Count: above, Session: have.Session})
		}
		r.chunk.Ranges = slices.Replace(r.chunk.Ranges, i, i+1, rest...)
		w.taken = append(w.taken, seq)
		return true, nil
	}
	return false, nil
}

// giveUp queues slices that were reserved and will not be committed.
func (s *step) giveUp(c *metapb.GiveUp) (*metapb.Result, error) {
	if len(c.Slices) > AllocMax {
		return nil, refuse(sys.Invalid, sys.PendingIno, "at most 1024 slices are given up at a time")
	}
	w := &writing{}
	var dead []*metapb.Slice
	for _, sl := range c.Slices {
		seq := sys.SliceID(sl.Slice).Seq()
		if seq == 0 || seq >= pendingMax || sl.SliceLen == 0 || sl.SliceLen > sys.ChunkSize {
			return nil, refuse(sys.Invalid, sys.PendingIno, "not a slice that could have been reserved")
		}
		reserved, err := s.unreserve(w, seq)
		if err != nil {
			return nil, err
		}
		if reserved {
			dead = append(dead, &metapb.Slice{Slice: sl.Slice, SliceLen: sl.SliceLen})
		}
	}
	if len(dead) == 0 {
		return &metapb.Result{}, nil
	}
	if err := s.setRows(sys.PendingIno, w.pending); err != nil {
		return nil, err
	}
	return &metapb.Result{}, s.free(dead, nil)
}

func (s *step) loadPending(w *writing, n uint32) (*row, error) {
	for _, r := range w.pending {
		if r.n == n {
			return r, nil
		}
	}
	chunk, err := s.tx.Chunk(sys.PendingIno, n)
	if err != nil {
		return nil, err
	}
	if chunk == nil {
		chunk = &metapb.Chunk{}
	}
	r := &row{n: n, chunk: chunk}
	w.pending = append(w.pending, r)
	return r, nil
}

// endSession queues what a session reserved and never committed. From now on
// its commits are refused.
func (s *step) endSession(c *metapb.EndSession) (*metapb.Result, error) {
	var rows []*row
	var ended []*metapb.Range
	err := s.tx.ScanChunks(sys.PendingIno, 0, func(n uint32, chunk *metapb.Chunk) bool {
		ranges := len(chunk.Ranges)
		chunk.Ranges = slices.DeleteFunc(chunk.Ranges, func(r *metapb.Range) bool {
			if r.Session != c.Session {
				return false
			}
			ended = append(ended, r)
			return true
		})
		if len(chunk.Ranges) < ranges {
			rows = append(rows, &row{n: n, chunk: chunk})
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if err := s.setRows(sys.PendingIno, rows); err != nil {
		return nil, err
	}
	return &metapb.Result{}, s.free(nil, ended)
}
