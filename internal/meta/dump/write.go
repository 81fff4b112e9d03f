package dump

import (
	"context"
	"io"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// Summary is what a dump holds.
type Summary struct {
	Cluster   string `json:"cluster"`
	Version   string `json:"version"` // of the koinon that wrote it
	CreatedNs int64  `json:"created_ns"`
	PGs       uint32 `json:"placement_groups"`
	Rows      uint64 `json:"rows"`
	Inodes    uint64 `json:"inodes"`
	Entries   uint64 `json:"entries"`
	Chunks    uint64 `json:"chunks"`
}

func newSummary(h *metapb.DumpHeader) *Summary {
	return &Summary{Cluster: h.Cluster, Version: h.Version, CreatedNs: h.CreatedNs, PGs: h.Pgs}
}

func (s *Summary) count(rows []*metapb.Row) {
	s.Rows += uint64(len(rows))
	for _, r := range rows {
		switch r.Row.(type) {
		case *metapb.Row_Inode:
			s.Inodes++
		case *metapb.Row_Entry:
			s.Entries++
		case *metapb.Row_Chunk:
			s.Chunks++
		}
	}
}

// Write dumps the tree that view shows, which must not change meanwhile: a
// meta.View. What has been written to w when it fails is no dump. progress is
// told how many rows have been written.
func Write(ctx context.Context, view meta.Querier, h *metapb.DumpHeader, w io.Writer, progress func(rows uint64)) (*Summary, error) {
	const op = sys.Op("dump.Write")
	d, err := newWriter(w, h)
	if err != nil {
		return nil, sys.E(op, err)
	}
	sum := newSummary(h)
	for from := (*metapb.Cursor)(nil); ; {
		a, err := view.Query(ctx, &metapb.Query{Op: &metapb.Query_ScanRows{ScanRows: &metapb.ScanRows{From: from}}})
		if err != nil {
			return nil, err
		}
		if err := d.addAll(a.Rows); err != nil {
			return nil, sys.E(op, err)
		}
		sum.count(a.Rows)
		progress(sum.Rows)
		if a.End {
			break
		}
		from = a.Next
	}
	if err := d.end(); err != nil {
		return nil, sys.E(op, err)
	}
	return sum, nil
}

// batchCost is how many bytes of rows go into one frame. One row may exceed it.
const batchCost = 1 << 20

// addAll writes rows in frames that a load can take as they are.
func (d *writer) addAll(rows []*metapb.Row) error {
	for len(rows) > 0 {
		n, cost := 0, 0
		for n < len(rows) && (n == 0 || cost < batchCost) {
			cost += pb.Size(rows[n])
			n++
		}
		if err := d.add(rows[:n]); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}
