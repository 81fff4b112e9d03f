package client

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/redis"
	"github.com/koinon/koinon/internal/block/spread"
	"github.com/koinon/koinon/internal/blockcopy"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

const opCopy = sys.Op("blocks copy")

// ClusterScheme begins the name of a block store that is whichever one the
// cluster of a client's configuration uses.
const ClusterScheme = "cluster:"

// CopyReport is what CopyBlocks has done.
type CopyReport struct {
	blockcopy.Report
	// Clients were connected to the source's cluster at the beginning or the
	// end: what they wrote meanwhile may be missing.
	Clients uint64 `json:"clients_connected"`
}

// CopyBlocks copies all blocks of one store into another. A store is that of a
// cluster, cluster:FILE with a client's configuration, or a Redis, given as an
// engine, with the blocks of the cluster of cfg. A Redis that was filled
// belongs to that cluster when all is there.
func CopyBlocks(ctx context.Context, cfg *config.Client, from, to string, opts blockcopy.Options, log *slog.Logger) (r CopyReport, err error) {
	src, err := openEnd(ctx, cfg, from, log)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	dst, err := openEnd(ctx, cfg, to, log)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, dst.close()) }()
	if src.redis != nil && !src.made {
		if err := src.redis.Verify(ctx); err != nil {
			return r, err
		}
	}
	if !dst.made { // by its cluster
		if err := dst.redis.BeginCopy(ctx); err != nil {
			return r, err
		}
	}
	opts.Groups = src.groups
	before := connected(ctx, src.cfg, log)
	r.Report, err = blockcopy.Run(ctx, src.store, dst.store, opts)
	if err != nil && !errors.Is(err, blockcopy.ErrDamaged) {
		return r, err
	}
	r.Clients = max(before, connected(ctx, src.cfg, log))
	if dst.made {
		return r, err
	}
	// What is damaged will not come however often it is tried.
	return r, errors.Join(err, dst.redis.EndCopy(ctx))
}

// connected is how many clients a cluster has, 0 when nobody leads it.
func connected(ctx context.Context, cfg *config.Client, log *slog.Logger) uint64 {
	s, err := ReadStatus(ctx, cfg, log)
	if err != nil || !s.Majority {
		return 0
	}
	for _, n := range s.Nodes {
		if n.ID == s.Leader && n.Log != nil {
			return n.Log.Sessions
		}
	}
	return 0
}

// copyEnd is one side of a copy.
type copyEnd struct {
	store  block.Store
	redis  *redis.Store // nil when nodes keep the blocks
	groups int
	made   bool           // it is the store of a cluster
	cfg    *config.Client // of the cluster whose blocks they are
	close  func() error
}

func openEnd(ctx context.Context, cfg *config.Client, name string, log *slog.Logger) (*copyEnd, error) {
	if file, ok := strings.CutPrefix(name, ClusterScheme); ok {
		return clusterEnd(ctx, file, log)
	}
	if cfg == nil {
		return nil, sys.E(opCopy, sys.Invalid, sys.Subject(engine.Ref(name).String()), "the blocks of which cluster? Choose it with --config FILE")
	}
	creds, err := auth.LoadCredentials(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		return nil, err
	}
	s, err := OpenRedis(engine.Ref(name), creds)
	if err != nil {
		return nil, err
	}
	if err := s.Ping(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &copyEnd{store: patient(s, cfg), redis: s, cfg: cfg, close: s.Close}, nil
}

// clusterEnd is the store that a cluster uses.
func clusterEnd(ctx context.Context, file string, log *slog.Logger) (*copyEnd, error) {
	cfg, err := config.LoadClient(file)
	if err != nil {
		return nil, err
	}
	cc, err := dial(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	s, err := redisOf(ctx, cc, cfg)
	if err != nil {
		return nil, errors.Join(err, cc.Close())
	}
	if s != nil {
		return &copyEnd{store: patient(s, cfg), redis: s, made: true, cfg: cfg, close: func() error { return errors.Join(s.Close(), cc.Close()) }}, nil
	}
	n := spread.New(spread.Options{Cluster: cc, Logger: log})
	return &copyEnd{store: block.Retried(n, cfg.Timeout.Std()), groups: len(cc.Table().PGs), made: true, cfg: cfg,
		close: func() error { return errors.Join(n.Close(), cc.Close()) }}, nil
}

// walking is a patient store that still tells its blocks in one go.
type walking struct {
	block.Store
	blockcopy.Walker
}

func patient(s *redis.Store, cfg *config.Client) block.Store {
	return walking{block.Retried(s, cfg.Timeout.Std()), s}
}
