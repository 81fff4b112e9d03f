package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/redis"
	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// watchEvery is how often a node looks whether Redis still does what it
	// did at the start.
	watchEvery = 10 * time.Second
	// watchMax bounds one such look.
	watchMax = 5 * time.Second
)

// ProbeBlocks tries an engine on which a cluster is to be made. It changes
// nothing.
func ProbeBlocks(ctx context.Context, cfg config.Blocks) (err error) {
	if cfg.URL == "" {
		return nil
	}
	url, err := cfg.URL.Load()
	if err != nil {
		return err
	}
	store, err := redis.New(redis.Config{URL: url})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, watchMax)
	defer cancel()
	if err := store.Ping(ctx); err != nil {
		return err
	}
	all, err := store.Settings(ctx)
	if err != nil || cfg.AcceptVolatile {
		return err
	}
	return redis.Volatile(all)
}

// redisBlocks are a node's blocks in Redis.
type redisBlocks struct {
	store *redis.Store
	log   *slog.Logger

	mu       sync.Mutex
	promise  string // what an acknowledged block survives
	trouble  string
	accepted bool // that blocks may be lost
}

// store is where the cluster's blocks are.
func (s *server) store() block.Store {
	if s.redis != nil {
		return s.redis.store
	}
	return s.spread
}

// openBlocks makes the parts that keep blocks.
func (s *server) openBlocks(ctx context.Context) error {
	m, err := cluster.LocalMap(s.group)
	if err != nil {
		return err
	}
	if m != nil {
		if err := client.CheckBlocks(m, s.cfg.Blocks.URL); err != nil {
			return err
		}
	}
	if s.cfg.Blocks.URL == "" {
		return s.openOwnBlocks()
	}
	store, err := client.OpenRedis(s.cfg.Blocks.URL, s.creds)
	if err != nil {
		return err
	}
	s.redis = &redisBlocks{store: store, log: s.log, accepted: s.cfg.Blocks.AcceptVolatile} // close closes it
	told := func(err error) { s.log.Warn("Redis is awaited", "err", err) }
	wait := databaseWait
	if m != nil {
		wait = 0
	}
	err = client.AwaitEngine(ctx, wait, told, func() error { return s.redis.check(ctx, m != nil) })
	if m != nil && sys.Is(err, sys.Unavailable) { // the node is needed for the log; watch goes on asking
		told(err)
		s.redis.trouble = err.Error()
		return nil
	}
	if err == nil {
		s.log.Info("blocks are in Redis", "url", store.String(), "promise", s.redis.promise)
	}
	return err
}

// check looks whether Redis keeps what it is given and, for a cluster that has
// been made, whether it holds the cluster's blocks.
func (r *redisBlocks) check(ctx context.Context, made bool) error {
	if err := r.store.Ping(ctx); err != nil {
		return err
	}
	all, err := r.store.Settings(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.promise = redis.Promise(all)
	r.mu.Unlock()
	if err := redis.Volatile(all); err != nil && !r.accepted {
		return err
	}
	err = r.store.Verify(ctx)
	if !made && errors.Is(err, redis.ErrUnclaimed) {
		return nil
	}
	return err
}

// watch goes on checking: settings can be changed, and a failover brings
// another server.
func (r *redisBlocks) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		look, cancel := context.WithTimeout(ctx, watchMax)
		err := r.check(look, true)
		cancel()
		if ctx.Err() != nil {
			return
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		r.mu.Lock()
		news := text != r.trouble
		r.trouble = text
		r.mu.Unlock()
		switch {
		case news && err != nil:
			r.log.Warn("Redis needs a look", "err", err)
		case news:
			r.log.Info("Redis is well again")
		}
	}
}

// status says where the blocks are, and what a person should look at.
func (r *redisBlocks) status() (where, trouble string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.promise == "" {
		return r.store.String(), r.trouble
	}
	return fmt.Sprintf("%s (%s)", r.store, r.promise), r.trouble
}
