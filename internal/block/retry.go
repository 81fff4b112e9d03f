package block

import (
	"context"
	"fmt"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// Retried returns a Store that repeats what fails because the store cannot be
// reached or lacks a quorum, for up to patience, so that nodes which restart
// are no error to programs. A try that hangs is given up then, too. Every call
// may be repeated: blocks never change. Patience 0 is a single try, which may
// take as long as the store lets it.
func Retried(s Store, patience time.Duration) Store { return &retried{s, patience} }

type retried struct {
	store    Store
	patience time.Duration
}

var _ Store = (*retried)(nil)

const (
	retryPauseMin = 5 * time.Millisecond
	retryPauseMax = 200 * time.Millisecond
)

// try runs fn until it does not fail for want of nodes. The error is the last.
func (r *retried) try(ctx context.Context, fn func(context.Context) error) error {
	if r.patience <= 0 {
		return fn(ctx)
	}
	all, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	err := fn(all)
	for pause := retryPauseMin; err != nil && away(err) && all.Err() == nil; pause = min(2*pause, retryPauseMax) {
		timer := time.NewTimer(pause)
		select {
		case <-all.Done():
		case <-timer.C:
			if again := fn(all); again == nil || !sys.Is(again, sys.Interrupted) || ctx.Err() != nil {
				err = again
			} // else it was given up in the end, and the try before knows why
		}
		timer.Stop()
	}
	if err != nil && sys.Is(err, sys.Interrupted) && ctx.Err() == nil && all.Err() != nil {
		return sys.E(sys.Op("block.Retried"), sys.Unavailable, fmt.Errorf("no answer within %v: %w", r.patience, err))
	}
	return err
}

// away says that the store may answer a little later. Interrupted, while the
// caller's context goes on, is one of several nodes that was given up because
// of the others.
func away(err error) bool { return sys.Is(err, sys.Unavailable) || sys.Is(err, sys.Interrupted) }

func (r *retried) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	return r.try(ctx, func(ctx context.Context) error { return r.store.Put(ctx, key, data) })
}

func (r *retried) Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error {
	return r.try(ctx, func(ctx context.Context) error { return r.store.Get(ctx, key, off, dst) })
}

func (r *retried) Read(ctx context.Context, key sys.BlockKey, off, n int) (b Buffer, err error) {
	err = r.try(ctx, func(ctx context.Context) (err error) {
		b, err = r.store.Read(ctx, key, off, n)
		return err
	})
	return b, err
}

func (r *retried) Delete(ctx context.Context, keys []sys.BlockKey) error {
	return r.try(ctx, func(ctx context.Context) error { return r.store.Delete(ctx, keys) })
}

func (r *retried) Sync(ctx context.Context, slices []sys.SliceID) error {
	return r.try(ctx, func(ctx context.Context) error { return r.store.Sync(ctx, slices) })
}

func (r *retried) List(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) (infos []Info, err error) {
	err = r.try(ctx, func(ctx context.Context) (err error) {
		infos, err = r.store.List(ctx, pg, after, limit)
		return err
	})
	return infos, err
}

func (r *retried) Usage(ctx context.Context) (u Usage, err error) {
	err = r.try(ctx, func(ctx context.Context) (err error) {
		u, err = r.store.Usage(ctx)
		return err
	})
	return u, err
}
