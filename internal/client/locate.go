package client

import (
	"context"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// Locate tells how many bytes of a file each node holds, by the placement of
// its slices. Of a very long file it looks at the first meta.GetChunksMax
// chunks. Bytes that live with the metadata, and those not written yet, are
// nowhere in particular: they are not counted.
func (c *Client) Locate(ctx context.Context, ino sys.Ino) (map[sys.NodeID]int64, error) {
	a, err := c.tree.Query(ctx, &metapb.Query{Op: &metapb.Query_GetChunks{GetChunks: &metapb.GetChunks{Ino: uint64(ino), Count: meta.GetChunksMax}}})
	if err != nil {
		return nil, err
	}
	held := map[sys.NodeID]int64{}
	for _, chunk := range a.Chunks {
		addHeld(held, c.cluster.Table(), chunk.GetChunk().GetSlices())
	}
	return held, nil
}

// addHeld adds the lengths of slices to the nodes that hold them. What a later
// slice covers counts too: this is about where most is.
func addHeld(held map[sys.NodeID]int64, table *placement.Table, slices []*metapb.Slice) {
	for _, s := range slices {
		if s.Slice == 0 {
			continue // a hole
		}
		for _, id := range table.Nodes(sys.SliceID(s.Slice).PG()) {
			held[id] += int64(s.Len)
		}
	}
}
