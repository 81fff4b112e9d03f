package spread

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// Get implements block.Store.
func (s *Store) Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error {
	b, err := s.Read(ctx, key, off, len(dst))
	if err != nil {
		return err
	}
	defer b.Release()
	copy(dst, b.Data)
	return nil
}

// Read implements block.Store. The memory is that in which the answer came.
func (s *Store) Read(ctx context.Context, key sys.BlockKey, off, n int) (block.Buffer, error) {
	const op = sys.Op("spread.Get")
	if err := block.CheckRange(op, key, sys.BlockSize, off, n); err != nil {
		return block.Buffer{}, err
	}
	var b block.Buffer
	epoch := uint64(0)
	read := func(t *placement.Table) (err error) {
		epoch = t.Epoch
		b, err = s.getAt(ctx, op, t, key, off, n)
		return err
	}
	err := s.withTable(ctx, op, read)
	if sys.Is(err, sys.NotExist) && s.cluster.Refresh(ctx) == nil {
		// The block may have moved since the table was fetched.
		if t := s.cluster.Table(); t != nil && t.Epoch != epoch {
			err = read(t)
		}
	}
	if err == nil && len(b.Data) < n {
		err = block.CheckRange(op, key, off+len(b.Data), off, n)
		b.Release()
	}
	return b, err
}

// order returns the nodes that may have a block in the order in which they are
// asked: the preferred one, the other replicas beginning with a different one
// for each block, those that were no use lately, and where the group was
// before.
func (s *Store) order(t *placement.Table, key sys.BlockKey) []sys.NodeID {
	replicas := t.Nodes(key.Slice.PG())
	ids := make([]sys.NodeID, 0, len(replicas)+2)
	var last []sys.NodeID
	start := int((key.Slice.Seq() + uint64(key.Index)) % uint64(max(1, len(replicas))))
	for i := range replicas {
		id := replicas[(start+i)%len(replicas)]
		switch {
		case s.peers.shun(id):
			last = append(last, id)
		case id == s.opt.Prefer && len(ids) > 0:
			ids = append(ids, ids[0])
			ids[0] = id
		default:
			ids = append(ids, id)
		}
	}
	return append(append(ids, last...), t.Sources(key.Slice.PG())...)
}

// getting is one read on its way through the nodes that may have the block.
type getting struct {
	s       *Store
	key     sys.BlockKey
	off, n  int
	answers chan found
	failed  []answer
}

// found is what a node answered to a read.
type found struct {
	answer
	read read
}

// getAt reads from the first node that has the block and sends the right
// bytes. When a node takes long, the next is asked as well.
func (s *Store) getAt(ctx context.Context, op sys.Op, t *placement.Table, key sys.BlockKey, off, n int) (block.Buffer, error) {
	ids := s.order(t, key)
	if len(ids) == 0 {
		return block.Buffer{}, sys.E(op, sys.NotExist, block.Subject(key), "the cluster has no such placement group")
	}
	g := &getting{s: s, key: key, off: off, n: n, answers: make(chan found, len(ids))}
	if s.opt.Local != nil && ids[0] == s.opt.Prefer {
		b, err := s.opt.Local.read(ctx, key, off, n)
		if err == nil || sys.Is(err, sys.Invalid) {
			return b, err
		}
		g.failed = append(g.failed, answer{ids[0], err})
		ids = ids[1:]
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := g.race(ctx, ids)
	if err != nil {
		return block.Buffer{}, err
	}
	if r.reply != nil {
		g.tellOwed(t)
		return block.Buffer{Data: r.reply.Payload, Memory: r.reply.Memory(), Free: r.reply.Release}, nil
	}
	return block.Buffer{}, g.verdict(op)
}

// race asks the nodes one after the other, the next one when the last has
// failed or is slow. An empty read means that all have failed; an error that
// the request itself is wrong or was given up.
func (g *getting) race(ctx context.Context, ids []sys.NodeID) (read, error) {
	next, running := 0, 0
	ask := func() {
		if next < len(ids) {
			id := ids[next]
			next++
			running++
			if !g.s.spawn(func() { g.ask(ctx, id) }) {
				g.answers <- found{answer: answer{id, errClosed("spread.Get")}}
			}
		}
	}
	ask()
	patience := g.s.pace.patience(g.s.opt.HedgeAfter)
	hedge := time.NewTimer(patience)
	defer hedge.Stop()
	for running > 0 {
		select {
		case f := <-g.answers:
			running--
			if f.err == nil {
				return f.read, nil
			}
			if sys.Is(f.err, sys.Invalid) || ctx.Err() != nil {
				return read{}, f.err
			}
			g.failed = append(g.failed, f.answer)
			if running == 0 {
				ask()
			}
		case <-hedge.C:
			ask()
			hedge.Reset(patience)
		}
	}
	return read{}, nil
}

// pace remembers how long nodes take to answer reads. When all are busy, asking
// a second one makes them busier and brings nothing; only one that is slow
// beside the others is worth a second request.
type pace struct{ typical atomic.Int64 } // in ns, a moving average

// slowFactor is how many times the typical time a node may take, patienceMax
// how many times the least patience that is at most.
const (
	slowFactor  = 3
	patienceMax = 8
)

// note takes note of an answer that took d. One that is lost between two notes
// at once does no harm.
func (p *pace) note(d time.Duration) {
	old := p.typical.Load()
	p.typical.Store(old + (int64(d)-old)/8)
}

// patience returns how long to wait for a node, at least least.
func (p *pace) patience(least time.Duration) time.Duration {
	return min(max(least, slowFactor*time.Duration(p.typical.Load())), patienceMax*least)
}

// ask reads from one node. Whether the answer is still wanted is not known
// here: replies that nobody takes are collected as garbage.
func (g *getting) ask(ctx context.Context, id sys.NodeID) {
	n, err := remoteTo(g.s.cluster, id)
	var r read
	if err == nil {
		began := time.Now()
		if r, err = n.get(ctx, g.key, g.off, g.n); err == nil {
			g.s.pace.note(time.Since(began))
		}
	}
	if err == nil || ctx.Err() == nil {
		g.s.peers.note(id, err)
	}
	g.answers <- found{answer{id, err}, r}
}

// tellOwed notes the replicas that should have had the block and had not.
func (g *getting) tellOwed(t *placement.Table) {
	for _, a := range g.failed {
		if (sys.Is(a.err, sys.Corrupt) || sys.Is(a.err, sys.NotExist)) && t.Holds(g.key.Slice.PG(), a.id) {
			g.s.owed.add(g.key, a.id)
			if sys.Is(a.err, sys.Corrupt) {
				g.s.log.Warn("a replica is damaged; another one was read", "block", g.key, "node", a.id, "err", a.err)
			} else { // most often it is still on its way there
				g.s.log.Debug("a replica is missing; another one was read", "block", g.key, "node", a.id)
			}
		}
	}
}

// verdict says why no node had the bytes: damaged copies outweigh nodes that
// did not answer, which outweigh nodes that never had it.
func (g *getting) verdict(op sys.Op) error {
	kind := sys.NotExist
	errs := make([]error, 0, len(g.failed))
	for _, a := range g.failed {
		errs = append(errs, fmt.Errorf("%v: %w", a.id, a.err))
		switch {
		case sys.Is(a.err, sys.Corrupt):
			kind = sys.Corrupt
		case !sys.Is(a.err, sys.NotExist) && kind == sys.NotExist:
			kind = sys.Unavailable
		}
	}
	return sys.E(op, kind, block.Subject(g.key), errors.Join(errs...))
}
