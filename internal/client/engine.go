package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/block/redis"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

// CheckBlocks refuses a configuration that has the blocks elsewhere than the
// cluster has had them from its first start on.
func CheckBlocks(m *clusterpb.Map, url engine.Ref) error {
	const op = sys.Op("blocks")
	switch {
	case m.Blocks == nil && url != "":
		return sys.E(op, sys.Invalid, sys.Subject("cluster "+m.Cluster), fmt.Sprintf(
			"its nodes keep its blocks, from its first start on, and the configuration says %s: take [blocks] url out, or --blocks; docs/operating/engines.md tells how to move", url))
	case m.Blocks != nil && url == "":
		return sys.E(op, sys.Invalid, sys.Subject("cluster "+m.Cluster), fmt.Sprintf(
			"it keeps its blocks in Redis, first at %s: put that into the configuration, with the password, as [blocks] url = %q", m.Blocks.Url, "@FILE"))
	}
	return nil
}

// OpenRedis is the store with the blocks of the cluster that credentials are of.
func OpenRedis(ref engine.Ref, creds *auth.Credentials) (*redis.Store, error) {
	url, err := ref.Load()
	if err != nil {
		return nil, err
	}
	return redis.New(redis.Config{URL: url, Cluster: creds.Identity().Cluster, Identity: creds.CAID()})
}

// redisOf connects a client to the blocks of its cluster, nil when the nodes
// keep them.
func redisOf(ctx context.Context, cc *cluster.Client, cfg *config.Client) (*redis.Store, error) {
	if err := CheckBlocks(cc.Map(), cfg.Blocks.URL); err != nil || cfg.Blocks.URL == "" {
		return nil, err
	}
	creds, err := auth.LoadCredentials(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		return nil, err
	}
	s, err := OpenRedis(cfg.Blocks.URL, creds)
	if err != nil {
		return nil, err
	}
	err = AwaitEngine(ctx, cfg.Timeout.Std(), func(error) {}, func() error {
		if err := s.Ping(ctx); err != nil {
			return err
		}
		return s.Verify(ctx)
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// AwaitEngine runs open until it does not fail because the engine is away, for
// some time. told is called with each such failure.
func AwaitEngine(ctx context.Context, wait time.Duration, told func(error), open func() error) error {
	for end := time.Now().Add(wait); ; {
		err := open()
		if sys.KindOf(err) != sys.Unavailable || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		told(err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}
