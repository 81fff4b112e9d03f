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

// set makes a value unless there is one, and reports whether it did. With
// replicas in the URL they have it when set returns.
func (s *Store) set(ctx context.Context, key sys.BlockKey, value []byte) (fresh bool, err error) {
	const op = sys.Op("redis.Put")
	if s.place.replicas == 0 {
		fresh, err = s.client.SetNX(ctx, s.key(key), value, 0).Result()
		return fresh, s.explain(ctx, op, block.Subject(key), err)
	}
	return s.setReplicated(ctx, key, func(p redis.Pipeliner) *redis.BoolCmd { return p.SetNX(ctx, s.key(key), value, 0) })
}

// again brings a value that is there already, and should be, to the replicas:
// an earlier try may not have waited for them.
func (s *Store) again(ctx context.Context, key sys.BlockKey, value []byte) error {
	if s.place.replicas == 0 {
		return nil
	}
	_, err := s.setReplicated(ctx, key, func(p redis.Pipeliner) *redis.BoolCmd { return p.SetXX(ctx, s.key(key), value, 0) })
	return err
}

// setReplicated sends a command with a WAIT behind it on the same connection,
// which is what WAIT is about: so it must go to the master itself. While a slot
// moves from one master to another its blocks wait.
func (s *Store) setReplicated(ctx context.Context, key sys.BlockKey, cmd func(redis.Pipeliner) *redis.BoolCmd) (bool, error) {
	const op = sys.Op("redis.Put")
	var master *redis.Client
	var err error
	cluster, ok := s.client.(*redis.ClusterClient)
	if ok {
		master, err = cluster.MasterForKey(ctx, s.key(key))
	} else {
		master = s.client.(*redis.Client)
	}
	if err != nil {
		return false, s.explain(ctx, op, block.Subject(key), err)
	}
	pipe := master.Pipeline()
	set := cmd(pipe)
	wait := redis.NewIntCmd(ctx, "wait", s.place.replicas, waitMax.Milliseconds())
	_ = pipe.Process(ctx, wait) // its error comes from Exec
	_, err = pipe.Exec(ctx)
	if err != nil && !errors.Is(err, redis.Nil) {
		if text := err.Error(); ok && (strings.HasPrefix(text, "MOVED") || strings.HasPrefix(text, "ASK") || strings.HasPrefix(text, "READONLY")) {
			cluster.ReloadState(ctx)
		}
		return false, s.explain(ctx, op, block.Subject(key), err)
	}
	if n := wait.Val(); n < int64(s.place.replicas) {
		return false, sys.E(op, sys.Unavailable, block.Subject(key), fmt.Sprintf(
			"%s: %d of %d replicas have it after %v: start the replicas of that master again, or ask for fewer (replicas=) in the URL", master.Options().Addr, n, s.place.replicas, waitMax))
	}
	return set.Val(), nil
}
