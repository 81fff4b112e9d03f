package spread

import (
	"context"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// Groups is the number of placement groups, 0 before a table is known.
func (s *Store) Groups() int {
	if t := s.cluster.Table(); t != nil {
		return len(t.PGs)
	}
	return 0
}

// Nodes lists who should hold a placement group.
func (s *Store) Nodes(pg sys.PG) []sys.NodeID { return s.cluster.Table().Nodes(pg) }

// ListOn is List on one node: what that node itself holds, without what it
// remembers as deleted.
func (s *Store) ListOn(ctx context.Context, id sys.NodeID, pg sys.PG, after sys.BlockKey, limit int) ([]block.Info, error) {
	limit = block.ListLimit(limit)
	n, err := s.node(id)
	if err != nil {
		return nil, err
	}
	var live []block.Info
	for len(live) < limit {
		known, err := n.list(ctx, pg, after, limit)
		if err != nil {
			return nil, err
		}
		for _, k := range known {
			after = k.Key
			if !k.Deleted() && len(live) < limit {
				live = append(live, block.Info(k))
			}
		}
		if len(known) < limit {
			break
		}
	}
	return live, nil
}
