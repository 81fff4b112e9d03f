package meta

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// freedRow is how many slices and ranges a row of sys.FreedIno has at most.
const freedRow = 256

// free queues slices and ranges of slices whose blocks no file has any more.
// The rows carry the time, because a reader that resolved a slice before may
// still be reading its blocks.
func (s *step) free(dead []*metapb.Slice, ranges []*metapb.Range) error {
	for len(dead)+len(ranges) > 0 {
		n := min(len(dead), freedRow)
		m := min(len(ranges), freedRow-n)
		chunk := &metapb.Chunk{Slices: dead[:n], Ranges: ranges[:m], FreedNs: s.now}
		dead, ranges = dead[n:], ranges[m:]
		number, err := s.nextFreedRow()
		if err != nil {
			return err
		}
		if err := s.tx.SetChunk(sys.FreedIno, number, chunk); err != nil {
			return err
		}
	}
	return nil
}

// nextFreedRow returns a row number that is not in use, at least 1. Numbers
// come round again after 2^32.
func (s *step) nextFreedRow() (uint32, error) {
	for {
		last, err := s.tx.Counter(CounterFreed, 1)
		if err != nil {
			return 0, err
		}
		number := uint32(last)
		if number == 0 {
			continue
		}
		used, err := s.tx.Chunk(sys.FreedIno, number)
		if err != nil || used == nil {
			return number, err
		}
	}
}

// dropFreed forgets rows whose blocks are gone.
func (s *step) dropFreed(c *metapb.DropFreed) (*metapb.Result, error) {
	rows := c.Rows
	if c.Row != 0 {
		rows = append(rows, c.Row)
	}
	for _, n := range rows {
		chunk, err := s.tx.Chunk(sys.FreedIno, n)
		if err != nil {
			return nil, err
		}
		if chunk == nil {
			continue
		}
		if err := s.tx.SetChunk(sys.FreedIno, n, nil); err != nil {
			return nil, err
		}
	}
	return &metapb.Result{}, nil
}

// readFreed lists rows for the collector.
func (s *step) readFreed(q *metapb.ReadFreed, ans *metapb.Answer) error {
	limit := int(min(q.Limit, ReadFreedMax))
	if limit == 0 {
		limit = ReadFreedMax
	}
	if q.After == 1<<32-1 {
		ans.End = true
		return nil
	}
	ans.End = true
	return s.tx.ScanChunks(sys.FreedIno, q.After+1, func(n uint32, c *metapb.Chunk) bool {
		if len(ans.Chunks) == limit {
			ans.End = false
			return false
		}
		ans.Chunks = append(ans.Chunks, &metapb.NumberedChunk{Number: n, Chunk: c})
		return true
	})
}
