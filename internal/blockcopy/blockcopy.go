// Package blockcopy copies all blocks of one store into another, each checked
// on both sides. Blocks never change, so what is there already need not be
// copied again: a copy that was cut short goes on when it is run again.
package blockcopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// Walker is what a store has that tells its blocks faster than List.
type Walker interface {
	// Walk tells fn all blocks, some of them perhaps twice.
	Walk(ctx context.Context, fn func([]block.Info) error) error
}

// Options of Run.
type Options struct {
	// Groups is the number of placement groups to ask From for, when it is no
	// Walker.
	Groups int
	// Verify reads and compares also the blocks that are there already.
	Verify bool
	// Progress, if not nil, is told of each block what was done up to it, and
	// its size in bytes. It is called by one goroutine at a time.
	Progress func(r Report, size int64)
}

// Report is what Run has done.
type Report struct {
	Copied  int64 `json:"copied"`       // blocks that were written, read back and compared
	Bytes   int64 `json:"bytes_copied"` // in them
	There   int64 `json:"there"`        // blocks that were there already
	Removed int64 `json:"removed"`      // blocks that were deleted from the source meanwhile
	Damaged int64 `json:"damaged"`      // blocks that are not as they were put in the source, and were left out
}

const op = sys.Op("blocks copy")

// workers is how many blocks are on their way at once, and so in memory, twice.
const workers = 8

// copier is one run.
type copier struct {
	from, to block.Store
	opts     Options
	mu       sync.Mutex
	report   Report
	err      error   // the first
	damaged  []error // of the source, not all
}

// leaveOut notes a block that is damaged in the source.
func (c *copier) leaveOut(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.report.Damaged++; c.report.Damaged <= damagedMax {
		c.damaged = append(c.damaged, err)
	}
}

// ErrDamaged is in the error of Run when all blocks were copied but some that the
// source does not have as they were put.
var ErrDamaged = errors.New("everything else was copied; `koinon fsck` says whether files need them: write those again, or restore them from a backup")

// damagedMax is how many damaged blocks an error names.
const damagedMax = 100

// Run copies. A block that is damaged in the source, of kind Corrupt, is left
// out, and told in the end with ErrDamaged. The first other one that cannot be
// copied ends it; the report tells what was done until then.
func Run(ctx context.Context, from, to block.Store, opts Options) (Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &copier{from: from, to: to, opts: opts}
	keys := make(chan block.Info)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for info := range keys {
				if err := c.one(ctx, info); err != nil {
					c.fail(err)
					cancel()
				}
			}
		})
	}
	err := c.walk(ctx, func(infos []block.Info) error {
		for _, info := range infos {
			select {
			case keys <- info:
			case <-ctx.Done():
				return sys.E(op, sys.Interrupted, context.Cause(ctx))
			}
		}
		return nil
	})
	close(keys)
	wg.Wait()
	if c.err != nil {
		err = c.err
	}
	if err == nil && c.report.Damaged > 0 {
		err = sys.E(op, sys.Corrupt, fmt.Errorf("%d blocks are damaged in the source and were left out: %w\n%w",
			c.report.Damaged, errors.Join(c.damaged...), ErrDamaged))
	}
	return c.report, err
}

func (c *copier) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// walk tells fn all blocks of the source.
func (c *copier) walk(ctx context.Context, fn func([]block.Info) error) error {
	if w, ok := c.from.(Walker); ok {
		return w.Walk(ctx, fn)
	}
	for pg := range c.opts.Groups {
		for after := (sys.BlockKey{}); ; {
			infos, err := c.from.List(ctx, sys.PG(pg), after, block.ListMax)
			if err != nil {
				return err
			}
			if err := fn(infos); err != nil {
				return err
			}
			if len(infos) < block.ListMax {
				break
			}
			after = infos[len(infos)-1].Key
		}
	}
	return nil
}

// one brings a block over.
func (c *copier) one(ctx context.Context, info block.Info) error {
	there, err := c.there(ctx, info)
	if err != nil {
		return err
	}
	removed := false
	if !there || c.opts.Verify {
		removed, err = c.compare(ctx, info, !there)
		if errors.As(err, new(*damaged)) {
			c.leaveOut(err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case removed:
		c.report.Removed++
	case there:
		c.report.There++
	default:
		c.report.Copied++
		c.report.Bytes += int64(info.Size)
	}
	if c.opts.Progress != nil {
		c.opts.Progress(c.report, int64(info.Size))
	}
	return nil
}

// there reports whether the destination has a block, of the same size.
func (c *copier) there(ctx context.Context, info block.Info) (bool, error) {
	b, err := c.to.Read(ctx, info.Key, info.Size-1, 1)
	switch sys.KindOf(err) {
	case sys.NotExist:
		return false, nil
	case sys.Invalid:
		return false, differs(info.Key)
	}
	b.Release()
	if err != nil || info.Size == sys.BlockSize {
		return err == nil, err
	}
	if b, err = c.to.Read(ctx, info.Key, info.Size, 1); err == nil { // it goes on
		b.Release()
		return false, differs(info.Key)
	} else if !sys.Is(err, sys.Invalid) {
		return false, err
	}
	return true, nil
}

func differs(key sys.BlockKey) error {
	return sys.E(op, sys.Exist, block.Subject(key), "the destination holds other bytes under this name: it is another cluster's, give an empty one")
}

// damaged is the error of a block that the source does not have as it was put.
type damaged struct{ error }

// compare reads a block from both sides, after it has put it when asked to.
// removed says that the source has it no more.
func (c *copier) compare(ctx context.Context, info block.Info, put bool) (removed bool, err error) {
	want, err := c.from.Read(ctx, info.Key, 0, info.Size)
	if sys.Is(err, sys.NotExist) {
		return true, nil
	}
	if sys.Is(err, sys.Corrupt) {
		return false, &damaged{err}
	}
	if err != nil {
		return false, fmt.Errorf("reading the source: %w", err)
	}
	defer want.Release()
	if put {
		if err := c.to.Put(ctx, info.Key, want.Data); err != nil {
			return false, fmt.Errorf("writing the destination: %w", err)
		}
		if err := c.to.Sync(ctx, []sys.SliceID{info.Key.Slice}); err != nil {
			return false, fmt.Errorf("writing the destination: %w", err)
		}
	}
	got, err := c.to.Read(ctx, info.Key, 0, info.Size)
	if err != nil {
		return false, fmt.Errorf("reading the destination: %w", err)
	}
	defer got.Release()
	if !bytes.Equal(got.Data, want.Data) {
		return false, differs(info.Key)
	}
	return false, nil
}
