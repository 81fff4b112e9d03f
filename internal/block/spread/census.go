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

// EachOn tells fn which blocks of a placement group one node itself holds.
func (s *Store) EachOn(ctx context.Context, id sys.NodeID, pg sys.PG, fn func(block.Info)) error {
	for after := (sys.BlockKey{}); ; {
		infos, err := s.listOn(ctx, id, pg, after, block.ListMax)
		if err != nil {
			return err
		}
		for _, i := range infos {
			fn(i)
			after = i.Key
		}
		if len(infos) < block.ListMax {
			return nil
		}
	}
}

// HasOn reports whether one node itself holds a block.
func (s *Store) HasOn(ctx context.Context, id sys.NodeID, key sys.BlockKey) (bool, error) {
	before := key
	if before.Index > 0 {
		before.Index--
	} else {
		before = sys.BlockKey{Slice: key.Slice - 1, Index: ^uint32(0)}
	}
	infos, err := s.listOn(ctx, id, key.Slice.PG(), before, 1)
	return len(infos) == 1 && infos[0].Key == key, err
}

// ReadOn reads all of a block from one node, and tests it. It returns the block's size in bytes; sys.Corrupt is a copy that has
// rotted there, sys.NotExist one that is not there.
func (s *Store) ReadOn(ctx context.Context, id sys.NodeID, key sys.BlockKey) (int, error) {
	n, err := remoteTo(s.cluster, id)
	if err != nil {
		return 0, err
	}
	r, err := n.get(ctx, key, 0, sys.BlockSize)
	if err != nil {
		return 0, err
	}
	r.reply.Release()
	return r.size, nil
}

// listOn is List on one node: what that node itself holds, without what it
// remembers as deleted.
func (s *Store) listOn(ctx context.Context, id sys.NodeID, pg sys.PG, after sys.BlockKey, limit int) ([]block.Info, error) {
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
				live = append(live, block.Info{Key: k.Key, Size: k.Size})
			}
		}
		if len(known) < limit {
			break
		}
	}
	return live, nil
}
