// Package collect frees what nobody uses any more: unlinked inodes whose
// retention is over, and the blocks of slices that no file has. It runs at the
// leader. Each thing it deletes was named by a command in the log; nothing is
// deleted because it is absent from a list.
package collect

import (
	"context"
	"log/slog"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Collector works through the quarantine and the queue of freed slices.
type Collector struct {
	Tree   meta.Client
	Blocks block.Store
	Clock  env.Clock
	Logger *slog.Logger
	// Grace is how long blocks outlive their slice, for readers that resolved
	// the slice before it was freed.
	Grace time.Duration
	// PGs is the number of placement groups of the cluster.
	PGs int
	// Hold keeps what is in quarantine, whatever its deadline: clients may not
	// have been able to say that they have it open.
	Hold bool
}

const (
	purgeSteps = 256  // of one command, so that it delays others little
	keysMax    = 4096 // of one delete
)

// Done is what a round has freed.
type Done struct {
	Steps int // chunks and inodes purged
	Rows  int // rows of freed slices dropped
	Keys  int // blocks deleted, or found to be gone
}

// Run works for one round: until nothing more is due. Trouble ends the round;
// what is left is due in the next.
func (c *Collector) Run(ctx context.Context) (Done, error) {
	var d Done
	for !c.Hold {
		res, err := c.Tree.Do(ctx, &metapb.Command{Op: &metapb.Command_Purge{Purge: &metapb.Purge{Limit: purgeSteps}}})
		if err != nil {
			return d, err
		}
		d.Steps += int(res.Purged)
		if res.Purged < purgeSteps {
			break
		}
	}
	return d, c.freed(ctx, &d)
}

// freed deletes the blocks of rows older than the grace time, and then the rows.
func (c *Collector) freed(ctx context.Context, d *Done) error {
	before := c.Clock.Wall().Add(-c.Grace).UnixNano()
	for after := uint32(0); ; {
		a, err := c.Tree.Query(ctx, &metapb.Query{Op: &metapb.Query_ReadFreed{ReadFreed: &metapb.ReadFreed{After: after, Limit: 64}}})
		if err != nil {
			return err
		}
		var rows []uint32
		for _, n := range a.Chunks {
			after = n.Number
			if n.Chunk.FreedNs > before {
				continue
			}
			if err := c.delete(ctx, n.Chunk, d); err != nil {
				return err
			}
			rows = append(rows, n.Number)
		}
		if len(rows) > 0 {
			_, err := c.Tree.Do(ctx, &metapb.Command{Op: &metapb.Command_DropFreed{DropFreed: &metapb.DropFreed{Rows: rows}}})
			if err != nil {
				return err
			}
			d.Rows += len(rows)
		}
		if a.End {
			return nil
		}
	}
}

// delete removes all blocks that a row names. A row is kept unless every
// replica has confirmed, so that a node that is away cannot bring them back.
func (c *Collector) delete(ctx context.Context, row *metapb.Chunk, d *Done) error {
	var keys []sys.BlockKey
	flush := func(most int) error {
		if len(keys) == 0 || len(keys) < most {
			return nil
		}
		err := c.Blocks.Delete(ctx, keys)
		d.Keys += len(keys)
		keys = keys[:0]
		return err
	}
	for _, r := range row.Ranges { // how long these slices are nobody knows
		for seq := r.First; seq < r.First+uint64(r.Count); seq++ {
			for i := range uint32(sys.ChunkSize / sys.BlockSize) {
				keys = append(keys, sys.BlockKey{Slice: sys.PlaceSlice(seq, c.PGs), Index: i})
			}
			if err := flush(keysMax); err != nil {
				return err
			}
		}
	}
	for _, s := range row.Slices {
		for i := range (s.SliceLen + sys.BlockSize - 1) / sys.BlockSize {
			keys = append(keys, sys.BlockKey{Slice: sys.SliceID(s.Slice), Index: i})
		}
		if err := flush(keysMax); err != nil {
			return err
		}
	}
	return flush(1)
}
