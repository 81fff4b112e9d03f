package fsck

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// readers is how many blocks are read at once.
	readers = 8
	// readTries is how often a node is asked for a block, which it may be too busy for, or just being started.
	readTries = 3
	readPause = time.Second // between two of them
)

// reading is the reading of all blocks. mu guards the checker meanwhile.
type reading struct {
	*checker
	mu   sync.Mutex
	next int
	keys []sys.BlockKey
	err  error // the first one
}

// read tests the bytes of all copies of what files need.
func (c *checker) read(ctx context.Context) error {
	if !c.opts.Bytes {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	r := &reading{checker: c, keys: slices.SortedFunc(maps.Keys(c.need), order)}
	run := func(g *sync.WaitGroup, part func(context.Context) error) {
		g.Go(func() {
			if err := part(ctx); err != nil {
				r.mu.Lock()
				r.err = cmp.Or(r.err, err)
				r.mu.Unlock()
				stop()
			}
		})
	}
	var working, holding sync.WaitGroup
	run(&holding, r.hold)
	for range readers {
		run(&working, r.work)
	}
	working.Wait()
	stop()
	holding.Wait()
	return r.err
}

// hold keeps the view open, however long a block takes, until ctx is done.
func (r *reading) hold(ctx context.Context) error {
	tick := time.NewTicker(meta.ViewLife / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.held(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// work reads blocks until there are no more.
func (r *reading) work(ctx context.Context) error {
	for {
		r.mu.Lock()
		i := r.next
		if i == len(r.keys) || ctx.Err() != nil {
			r.mu.Unlock()
			return ctx.Err()
		}
		r.next++
		r.opts.Progress("reading blocks", i, len(r.keys))
		r.mu.Unlock()
		if err := r.block(ctx, r.keys[i]); err != nil {
			return err
		}
	}
}

// block reads a block from all who should have it.
func (r *reading) block(ctx context.Context, key sys.BlockKey) error {
	good, rotten := 0, 0
	for _, node := range r.blocks.Nodes(key.Slice.PG()) {
		r.mu.Lock()
		silent := r.silent[node] != nil
		r.mu.Unlock()
		if silent {
			continue
		}
		n, err := r.readOn(ctx, node, key)
		if err != nil && ctx.Err() != nil {
			return err
		}
		r.mu.Lock()
		switch {
		case err == nil:
			good++
			r.report.Read += int64(n)
		case sys.Is(err, sys.Corrupt):
			rotten++
			r.report.Rotten[holder(node)]++
		case !sys.Is(err, sys.NotExist): // that is thin or missing, and counted
			r.mute(node, "cannot be read from", err)
		}
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if good == 0 && rotten > 0 && !r.someSilent(key) {
		r.report.problem("block %v of file %v has rotted in each of its %d copies: reading it there gives EIO; restore the file from a backup", key, r.need[key], rotten)
	}
	return nil
}

// readOn reads a block from one node, again when that does not say that it is rotten or gone.
func (r *reading) readOn(ctx context.Context, node sys.NodeID, key sys.BlockKey) (n int, err error) {
	for try := 1; ; try++ {
		n, err = r.blocks.ReadOn(ctx, node, key)
		if err == nil || sys.Is(err, sys.Corrupt) || sys.Is(err, sys.NotExist) || try == readTries {
			return n, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(readPause):
		}
	}
}
