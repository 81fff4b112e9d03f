package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

// Config says where the blocks are and whose they are.
type Config struct {
	// URL is redis://, redis+cluster:// or redis+sentinel://, or rediss for
	// TLS; docs/operating/engines.md describes it.
	URL *engine.URL
	// Cluster is the name of the cluster whose blocks they are.
	Cluster string
	// Identity tells that cluster from others of the same name, for ever.
	Identity string
}

// Store keeps blocks in Redis. Its methods may be called concurrently until
// Close. It does not remember which keys were deleted.
type Store struct {
	place    *place
	where    string // the URL without its secrets
	cluster  string
	identity string
	client   redis.UniversalClient
	blocks   string // prefix of the keys of blocks
	opened   atomic.Bool
	memory   memory
}

var _ block.Store = (*Store)(nil)

var once sync.Once

// Open is New and Ping.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s, err := New(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.Ping(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// New returns a store that does not speak to the servers yet. It is Invalid
// when the URL is wrong.
func New(cfg Config) (*Store, error) {
	once.Do(quiet)
	p, err := parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &Store{place: p, where: cfg.URL.String(), cluster: cfg.Cluster, identity: cfg.Identity, client: p.connect(), blocks: prefix(cfg.Cluster) + "b:"}, nil
}

// Ping asks the servers. It is Invalid or Access when the user, the password,
// the database or the name in the certificate is wrong, Unavailable when they
// do not answer or are not ready. Whose blocks they hold is Verify's question.
func (s *Store) Ping(ctx context.Context) error {
	// A server of a Redis Cluster that is asked as one alone would answer PING.
	_, err := s.owner(ctx)
	if err == nil {
		s.opened.Store(true)
	}
	return err
}

// Close ends the connections. Calls under way fail.
func (s *Store) Close() error { return s.client.Close() }

// String is the URL without its secrets.
func (s *Store) String() string { return s.where }

// ownerKey holds the identity of the cluster whose blocks these are.
func (s *Store) ownerKey() string { return prefix(s.cluster) + "store" }

// owner is the identity of the cluster of this name whose blocks the store
// holds, "" when it holds none.
func (s *Store) owner(ctx context.Context) (string, error) {
	id, err := s.client.Get(ctx, s.ownerKey()).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return id, s.explain(ctx, "redis.Open", "", err)
}

// Claim makes a store that holds no blocks of a cluster of this name the
// cluster's own. It is Exist when it is another's.
func (s *Store) Claim(ctx context.Context) error {
	const op = sys.Op("redis.Claim")
	id, err := s.owner(ctx)
	if err != nil {
		return err
	}
	if id == "" {
		found := false
		if err := s.scan(ctx, func([]string) error { found = true; return errEnough }); err != nil && !errors.Is(err, errEnough) {
			return err
		}
		if found {
			return sys.E(op, sys.Exist, sys.Subject(s.where), fmt.Sprintf("it holds blocks under %s that belong to nobody: name another database, or delete them", s.blocks))
		}
	}
	if err := s.client.SetNX(ctx, s.ownerKey(), s.identity, 0).Err(); err != nil {
		return s.explain(ctx, op, "", err)
	}
	return s.Verify(ctx)
}

// ErrUnclaimed is in the error of Verify when the store is no cluster's of
// this name.
var ErrUnclaimed = errors.New("it holds no blocks of this cluster: the server or the database is another one, or has lost its data")

// unfinished is an ErrUnclaimed of which the reason is known.
type unfinished struct{}

func (unfinished) Error() string {
	return "a copy of the cluster's blocks into it was not finished: run the same `koinon blocks copy` again"
}

func (unfinished) Is(target error) bool { return target == ErrUnclaimed }

// Verify is Exist when the store holds the blocks of another cluster of this
// name, Invalid and ErrUnclaimed when it holds none of any.
func (s *Store) Verify(ctx context.Context) error {
	const op = sys.Op("redis.Verify")
	id, err := s.owner(ctx)
	switch {
	case err != nil:
		return err
	case id == "":
		why := ErrUnclaimed
		if half, err := s.client.Get(ctx, s.copyKey()).Result(); err == nil && half == s.identity {
			why = unfinished{}
		}
		return sys.E(op, sys.Invalid, sys.Subject(s.where), fmt.Errorf("cluster %q: %w", s.cluster, why))
	case id != s.identity:
		return sys.E(op, sys.Exist, sys.Subject(s.where), fmt.Sprintf(
			"it holds the blocks of another cluster that is called %q as well: name another database", s.cluster))
	}
	return nil
}

// masters are the servers that take writes, by address.
func (s *Store) masters(ctx context.Context) ([]*redis.Client, error) {
	c, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return []*redis.Client{s.client.(*redis.Client)}, nil
	}
	var mu sync.Mutex
	var all []*redis.Client
	err := c.ForEachMaster(ctx, func(_ context.Context, m *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, m)
		return nil
	})
	if err != nil {
		return nil, s.explain(ctx, "redis.Masters", "", err)
	}
	slices.SortFunc(all, func(a, b *redis.Client) int {
		switch x, y := a.Options().Addr, b.Options().Addr; {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	return all, nil
}

// copyKey marks a store that is being filled with a cluster's blocks.
func (s *Store) copyKey() string { return prefix(s.cluster) + "copy" }

// BeginCopy makes the store the place of a copy of the cluster's blocks. It is
// not the cluster's own before EndCopy, so that nobody takes half a copy for
// all. It is Exist when it holds the blocks, or a copy of those, of another
// cluster of this name.
func (s *Store) BeginCopy(ctx context.Context) error {
	const op = sys.Op("redis.BeginCopy")
	if err := s.Verify(ctx); err == nil || !errors.Is(err, ErrUnclaimed) {
		return err
	}
	err := s.client.SetNX(ctx, s.copyKey(), s.identity, 0).Err()
	if err != nil {
		return s.explain(ctx, op, "", err)
	}
	id, err := s.client.Get(ctx, s.copyKey()).Result()
	if err != nil {
		return s.explain(ctx, op, "", err)
	}
	if id != s.identity {
		return sys.E(op, sys.Exist, sys.Subject(s.where), fmt.Sprintf("it holds a copy for another cluster that is called %q as well: name another database", s.cluster))
	}
	return nil
}

// EndCopy makes a store that holds all of the cluster's blocks the cluster's
// own.
func (s *Store) EndCopy(ctx context.Context) error {
	const op = sys.Op("redis.EndCopy")
	if err := s.client.SetNX(ctx, s.ownerKey(), s.identity, 0).Err(); err != nil {
		return s.explain(ctx, op, "", err)
	}
	if err := s.client.Unlink(ctx, s.copyKey()).Err(); err != nil {
		return s.explain(ctx, op, "", err)
	}
	return s.Verify(ctx)
}
