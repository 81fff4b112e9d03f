package spread

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// Options configure a Store. Cluster is required; a zero value of the others
// means its default.
type Options struct {
	Cluster Cluster
	// Prefer is the node that is asked first when it holds a block: the
	// nearest one.
	Prefer sys.NodeID
	// Local, when set, is the server of node Prefer in this process: its
	// engine is read and written without the network.
	Local *Server
	// HedgeAfter is how long a read waits for a node before it asks another
	// one too (default 75 ms), at least: up to eight times as long while nodes
	// in general take longer.
	HedgeAfter time.Duration
	// StragglerWait is how long a Put that has its quorum waits for the other
	// replicas (default 100 ms).
	StragglerWait time.Duration
	// SendMax is how long a node may take to take a block (default 30 s): a
	// Put that needs one that hangs fails then, and can be tried again.
	SendMax time.Duration
	// DetachedBytes bounds the copies of small blocks that go on to slow
	// replicas after Put has returned (default 32 MiB).
	DetachedBytes int64
	// RepairEvery is how often nodes that missed a block are asked to fetch it
	// (default 1 s).
	RepairEvery time.Duration
	Logger      *slog.Logger
}

// Store keeps blocks on the nodes of a cluster. Methods may be called
// concurrently until Close.
type Store struct {
	opt     Options
	cluster Cluster
	log     *slog.Logger
	peers   peers
	written written
	owed    owed
	copies  copies
	pace    pace

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex // guards closed against bg.Add
	closed bool
	bg     sync.WaitGroup
}

var (
	_ block.Store = (*Store)(nil)
)

// New returns a store over the nodes of a cluster. Close must be called.
func New(opt Options) *Store {
	if opt.HedgeAfter == 0 {
		opt.HedgeAfter = 75 * time.Millisecond
	}
	if opt.StragglerWait == 0 {
		opt.StragglerWait = 100 * time.Millisecond
	}
	if opt.SendMax == 0 {
		opt.SendMax = detachedFor
	}
	if opt.DetachedBytes == 0 {
		opt.DetachedBytes = 32 << 20
	}
	if opt.RepairEvery == 0 {
		opt.RepairEvery = time.Second
	}
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	s := &Store{opt: opt, cluster: opt.Cluster, log: opt.Logger}
	s.copies.left = opt.DetachedBytes
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.bg.Go(s.repairing)
	return s
}

// Close ends what runs in the background and waits for it. Calls under way
// fail or finish.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.bg.Wait()
	return nil
}

// spawn runs fn in a goroutine that Close waits for. It returns false, and
// does not run fn, when the store is closed.
func (s *Store) spawn(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.bg.Go(fn)
	return true
}

// staleTries is how often an operation is repeated with a newer table.
const staleTries = 8

// withTable runs fn with the placement table, again with a newer one while
// nodes answer that it is stale.
func (s *Store) withTable(ctx context.Context, op sys.Op, fn func(t *placement.Table) error) error {
	var err error
	for try := range staleTries {
		t := s.cluster.Table()
		if t == nil {
			if err := s.cluster.Refresh(ctx); err != nil {
				return sys.E(op, sys.Unavailable, fmt.Errorf("fetching the placement table: %w", err))
			}
			if t = s.cluster.Table(); t == nil {
				return sys.E(op, sys.Unavailable, "the cluster has no placement table yet")
			}
		}
		if err = fn(t); !sys.Is(err, sys.StaleEpoch) {
			return err
		}
		if rerr := s.cluster.Refresh(ctx); rerr != nil {
			return sys.E(op, sys.Unavailable, fmt.Errorf("fetching the placement table: %w", rerr))
		}
		if now := s.cluster.Table(); now == nil || now.Epoch == t.Epoch {
			// A node is behind: it renews its table when it sees ours.
			if werr := sleep(ctx, 2*time.Millisecond<<try); werr != nil {
				return sys.E(op, sys.Interrupted, werr)
			}
		}
	}
	return sys.E(op, sys.Unavailable, fmt.Errorf("nodes do not agree on the placement table: %w", err))
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// node returns the way to a node: its server in this process, or a connection.
func (s *Store) node(id sys.NodeID) (node, error) {
	if s.opt.Local != nil && id == s.opt.Prefer {
		return local{s.opt.Local}, nil
	}
	return remoteTo(s.cluster, id)
}

// node is what a Store asks of a node besides reading.
type node interface {
	put(ctx context.Context, epoch uint64, key sys.BlockKey, data []byte, sums block.Sums) error
	delete(ctx context.Context, epoch uint64, keys []sys.BlockKey) error
	sync(ctx context.Context, epoch uint64, slices []sys.SliceID) ([]sys.BlockKey, error)
	list(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]block.Known, error)
	repair(ctx context.Context, keys []sys.BlockKey) ([]sys.BlockKey, error)
	usage(ctx context.Context) (block.Usage, error)
}

var (
	_ node = remote{}
	_ node = local{}
)

// local is the node in this process.
type local struct{ *Server }

func (l local) list(_ context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]block.Known, error) {
	return l.engine.Knows(pg, after, limit)
}

func (l local) repair(ctx context.Context, keys []sys.BlockKey) ([]sys.BlockKey, error) {
	failed, _ := l.Server.repair(ctx, keys)
	return failed, nil
}

func (l local) usage(ctx context.Context) (block.Usage, error) { return l.engine.Usage(ctx) }

// answer is what one node said.
type answer struct {
	id  sys.NodeID
	err error
}

// severity orders the kinds of error that decide what a call as a whole
// returns when nodes failed for different reasons.
var severity = []sys.Kind{sys.StaleEpoch, sys.Exist, sys.Stale, sys.Invalid, sys.Interrupted, sys.NoSpace}

// combine makes one error of what several nodes answered. Its text names them.
func combine(op sys.Op, subject sys.Subject, answers []answer) error {
	kind, errs := sys.Unavailable, make([]error, 0, len(answers))
	rank := len(severity)
	var full []string
	var space error
	for _, a := range answers {
		if a.err == nil {
			continue
		}
		if sys.Is(a.err, sys.NoSpace) {
			full, space = append(full, a.id.String()), cmp.Or(sys.Root(a.err), space)
		}
		errs = append(errs, fmt.Errorf("%v: %w", a.id, a.err))
		if at := slices.Index(severity, sys.KindOf(a.err)); at >= 0 && at < rank {
			rank, kind = at, severity[at]
		}
	}
	if space != nil && len(full) == len(errs) {
		slices.Sort(full)
		return sys.E(op, kind, subject, fmt.Errorf("no space left on %s: %w", strings.Join(full, ", "), space))
	}
	return sys.E(op, kind, subject, errors.Join(errs...))
}

// peers remembers which nodes were lately no use, so that calls need not wait
// for them.
type peers struct {
	mu    sync.Mutex
	avoid map[sys.NodeID]shunned
}

type shunned struct {
	until time.Time
	pause time.Duration
}

// The pauses for which a node that failed is not asked unless it must be.
const (
	pauseMin = 100 * time.Millisecond
	pauseMax = 5 * time.Second
)

// failed notes that a node did not answer, or too late.
func (p *peers) failed(id sys.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.avoid == nil {
		p.avoid = make(map[sys.NodeID]shunned)
	}
	a := p.avoid[id]
	if time.Now().Before(a.until) {
		return // part of the same trouble
	}
	a.pause = min(max(2*a.pause, pauseMin), pauseMax)
	a.until = time.Now().Add(a.pause)
	p.avoid[id] = a
}

// worked notes that a node answered.
func (p *peers) worked(id sys.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.avoid, id)
}

// shun reports whether a node should be left alone now.
func (p *peers) shun(id sys.NodeID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.avoid[id]
	return ok && time.Now().Before(a.until)
}

// note judges a node by its answer.
func (p *peers) note(id sys.NodeID, err error) {
	switch {
	case err == nil:
		p.worked(id)
	case sys.Is(err, sys.Unavailable):
		p.failed(id)
	}
}
