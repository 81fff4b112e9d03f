package spread

import (
	"context"
	"errors"
	"fmt"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// fetcher brings blocks from other nodes to this one.
type fetcher struct {
	self    sys.NodeID
	engine  Engine
	cluster Cluster
	slots   chan struct{} // bounds the blocks that are held in memory
}

// fetchSlots is how many blocks a node fetches at a time.
const fetchSlots = 4

func newFetcher(self sys.NodeID, engine Engine, cluster Cluster) *fetcher {
	return &fetcher{self: self, engine: engine, cluster: cluster, slots: make(chan struct{}, fetchSlots)}
}

// sources returns the other nodes that may have blocks of pg, those of the
// table first.
func (f *fetcher) sources(t *placement.Table, pg sys.PG) []sys.NodeID {
	var ids []sys.NodeID
	for _, list := range [][]sys.NodeID{t.Nodes(pg), t.Sources(pg)} {
		for _, id := range list {
			if id != f.self {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// repair makes sure that the block is here and sound. A block that was deleted
// here stays deleted, and that is no error.
func (f *fetcher) repair(ctx context.Context, t *placement.Table, key sys.BlockKey) error {
	size, err := f.engine.Size(key)
	switch {
	case sys.Is(err, sys.Stale):
		return nil
	case sys.Is(err, sys.NotExist):
		_, err := f.fetch(ctx, key, f.sources(t, key.Slice.PG()), false)
		return err
	case err != nil:
		return err
	}
	if err := f.verify(ctx, key, size); !sys.Is(err, sys.Corrupt) {
		return err
	}
	_, err = f.fetch(ctx, key, f.sources(t, key.Slice.PG()), true)
	return err
}

// verify reads a block of size bytes and checks it.
func (f *fetcher) verify(ctx context.Context, key sys.BlockKey, size int) error {
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.give()
	var p block.Proof
	_, err := f.engine.GetProof(ctx, key, 0, make([]byte, size), &p)
	return err
}

// fetch gets the whole block from the first of the nodes that has it and keeps
// it, in place of a damaged one when replace is set. It returns its size.
func (f *fetcher) fetch(ctx context.Context, key sys.BlockKey, from []sys.NodeID, replace bool) (int, error) {
	if err := f.take(ctx); err != nil {
		return 0, err
	}
	defer f.give()
	var errs []error
	for _, id := range from {
		n, err := f.fetchFrom(ctx, key, id, replace)
		switch {
		case err == nil:
			return n, nil
		case sys.Is(err, sys.Stale):
			return 0, nil // deleted meanwhile
		case sys.Is(err, sys.NoSpace), ctx.Err() != nil:
			return 0, err
		}
		errs = append(errs, fmt.Errorf("%v: %w", id, err))
	}
	kind := sys.NotExist
	for _, err := range errs {
		if !sys.Is(err, sys.NotExist) {
			kind = sys.Unavailable
		}
	}
	return 0, sys.E(sys.Op("spread.fetch"), kind, block.Subject(key), errors.Join(errs...))
}

func (f *fetcher) fetchFrom(ctx context.Context, key sys.BlockKey, id sys.NodeID, replace bool) (int, error) {
	node, err := remoteTo(f.cluster, id)
	if err != nil {
		return 0, err
	}
	got, err := node.get(ctx, key, 0, sys.BlockSize)
	if err != nil {
		return 0, err
	}
	defer got.reply.Release()
	data := got.reply.Payload
	sums := block.SumData(data)
	if replace {
		return len(data), f.engine.Replace(ctx, key, data, sums)
	}
	return len(data), f.engine.PutSums(ctx, key, data, sums)
}

func (f *fetcher) take(ctx context.Context) error {
	select {
	case f.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return sys.E(sys.Op("spread.fetch"), sys.Interrupted, context.Cause(ctx))
	}
}

func (f *fetcher) give() { <-f.slots }
