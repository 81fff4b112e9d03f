package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// waitMax is how long one try waits for replicas.
const waitMax = 2 * time.Second

// set sets a block's fields, nx: those that are not there, and reports whether
// it was not there. With replicas in the URL they have all of it when set
// returns: a WAIT goes behind, on the same connection, which is what it is
// about, and so to the master itself. While a slot moves from one master to
// another its blocks wait then.
func (s *Store) set(ctx context.Context, key sys.BlockKey, data, sums []byte, nx bool) (fresh bool, err error) {
	const op = sys.Op("redis.Put")
	explain := func(err error) (bool, error) { return false, s.explain(ctx, op, block.Subject(key), err) }
	cluster, clustered := s.client.(*redis.ClusterClient)
	pipe := s.client.Pipeline()
	if s.place.replicas > 0 && clustered {
		master, err := cluster.MasterForKey(ctx, s.key(key))
		if err != nil {
			return explain(err)
		}
		pipe = master.Pipeline()
	}
	last := s.fill(ctx, pipe, key, data, sums, nx)
	wait := redis.NewIntCmd(ctx, "wait", s.place.replicas, waitMax.Milliseconds())
	if s.place.replicas > 0 {
		_ = pipe.Process(ctx, wait) // its error comes from Exec
	}
	if _, err := pipe.Exec(ctx); err != nil {
		if text := err.Error(); clustered && (strings.HasPrefix(text, "MOVED") || strings.HasPrefix(text, "ASK") || strings.HasPrefix(text, "READONLY")) {
			cluster.ReloadState(ctx)
		}
		_, err := explain(err)
		if sys.Is(err, sys.NoSpace) {
			err = errors.Join(err, s.undo(ctx, key, last))
		}
		return false, err
	}
	if n := wait.Val(); n < int64(s.place.replicas) {
		return false, sys.E(op, sys.Unavailable, block.Subject(key), fmt.Sprintf(
			"%s: %d of %d replicas have it after %v: start the replicas of its master again, or ask for fewer (replicas=) in the URL", s.where, n, s.place.replicas, waitMax))
	}
	set, err := last.Int64()
	if err != nil {
		return explain(err)
	}
	return set == 1, nil
}

// undo deletes a block whose sums were set although a page was refused: a full
// Redis may have room again for what is small. Sums that were there stay.
func (s *Store) undo(ctx context.Context, key sys.BlockKey, sums *redis.Cmd) error {
	if set, err := sums.Int64(); err != nil || set == 0 {
		return nil // there is nothing to undo
	}
	if err := s.client.Unlink(context.WithoutCancel(ctx), s.key(key)).Err(); err != nil {
		return s.explain(ctx, "redis.Put", block.Subject(key), err)
	}
	return nil
}
