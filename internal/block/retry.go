package block

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// Retried returns a Store that repeats what fails because the store cannot be
// reached or lacks a quorum, for up to patience, so that nodes which restart
// are no error to programs. Every call may be repeated: blocks never change.
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
func (r *retried) try(ctx context.Context, fn func() error) error {
	err := fn()
	if err == nil || !away(err) {
		return err
	}
	end := time.Now().Add(r.patience)
	for pause := retryPauseMin; away(err) && ctx.Err() == nil && time.Now().Before(end); pause = min(2*pause, retryPauseMax) {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
			err = fn()
		}
		timer.Stop()
	}
	return err
}

// away says that the store may answer a little later. Interrupted, while the
// caller's context goes on, is one of several nodes that was given up because
// of the others.
func away(err error) bool { return sys.Is(err, sys.Unavailable) || sys.Is(err, sys.Interrupted) }

func (r *retried) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	return r.try(ctx, func() error { return r.store.Put(ctx, key, data) })
}

func (r *retried) Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error {
	return r.try(ctx, func() error { return r.store.Get(ctx, key, off, dst) })
}

func (r *retried) Read(ctx context.Context, key sys.BlockKey, off, n int) (b Buffer, err error) {
	err = r.try(ctx, func() (err error) {
		b, err = r.store.Read(ctx, key, off, n)
		return err
	})
	return b, err
}

func (r *retried) Delete(ctx context.Context, keys []sys.BlockKey) error {
	return r.try(ctx, func() error { return r.store.Delete(ctx, keys) })
}

func (r *retried) Sync(ctx context.Context, slices []sys.SliceID) error {
	return r.try(ctx, func() error { return r.store.Sync(ctx, slices) })
}

func (r *retried) List(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) (infos []Info, err error) {
	err = r.try(ctx, func() (err error) {
		infos, err = r.store.List(ctx, pg, after, limit)
		return err
	})
	return infos, err
}

func (r *retried) Usage(ctx context.Context) (u Usage, err error) {
	err = r.try(ctx, func() (err error) {
		u, err = r.store.Usage(ctx)
		return err
	})
	return u, err
}
