package spread

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// smallBlock is up to what size a block is copied before it is sent, so that
// Put can return at its quorum while a slow replica still takes the copy.
const smallBlock = 64 << 10

// detachedFor bounds how long such a copy may take.
const detachedFor = 30 * time.Second

// Put implements block.Store. It returns when a write quorum has the block and
// the other replicas had StragglerWait to take it; those that did not are
// asked later to fetch it.
func (s *Store) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	const op = sys.Op("spread.Put")
	if err := block.CheckPut(op, key, data); err != nil {
		return err
	}
	sums := block.SumData(data)
	return s.withTable(ctx, op, func(t *placement.Table) error { return s.putAt(ctx, t, key, data, sums) })
}

// putAt sends the block to the nodes that t names.
func (s *Store) putAt(ctx context.Context, t *placement.Table, key sys.BlockKey, data []byte, sums block.Sums) error {
	const op = sys.Op("spread.Put")
	replicas := t.Nodes(key.Slice.PG())
	if len(replicas) == 0 {
		return sys.E(op, sys.Invalid, block.Subject(key), "the cluster has no such placement group")
	}
	p := &putting{s: s, op: op, t: t, key: key, data: data, sums: sums, quorum: placement.Quorum(len(replicas))}
	p.choose(replicas)
	err := p.run(ctx)
	if err == nil {
		s.written.add(key)
		s.owed.add(key, p.skipped...)
	}
	return err
}

// putting is one block on its way to its replicas.
type putting struct {
	s      *Store
	op     sys.Op
	t      *placement.Table
	key    sys.BlockKey
	data   []byte
	sums   block.Sums
	quorum int
	// asked are the nodes that it goes to now, skipped those that were no use
	// lately.
	asked, skipped []sys.NodeID
	answers        chan answer
}

// choose leaves out nodes that were no use lately, if the others suffice.
func (p *putting) choose(replicas []sys.NodeID) {
	for _, id := range replicas {
		if p.s.peers.shun(id) {
			p.skipped = append(p.skipped, id)
		} else {
			p.asked = append(p.asked, id)
		}
	}
	if len(p.asked) < p.quorum {
		p.asked, p.skipped = replicas, nil
	}
}

// run sends and waits. When it returns, nobody uses the caller's data any
// more: either all calls are over, or they work on a copy.
func (p *putting) run(ctx context.Context) error {
	p.answers = make(chan answer, len(p.asked))
	detached := len(p.data) <= smallBlock && p.detach()
	cctx, cancel := ctx, context.CancelFunc(func() {})
	if !detached {
		cctx, cancel = context.WithTimeout(ctx, p.s.opt.SendMax)
		defer cancel()
		for _, id := range p.asked {
			go p.send(cctx, id) // collect waits for every answer
		}
	}
	return p.collect(ctx, cancel, detached)
}

// detach starts sending a copy of the data. It is false, and nothing is sent,
// when too much is on its way already.
func (p *putting) detach() bool {
	c, ok := p.s.copies.take(p.data, len(p.asked))
	if !ok {
		return false
	}
	p.data = c.data
	started := p.s.spawn(func() {
		ctx, cancel := context.WithTimeout(p.s.ctx, detachedFor)
		defer cancel()
		var wg sync.WaitGroup
		for _, id := range p.asked[1:] {
			wg.Go(func() { p.send(ctx, id); c.release() })
		}
		p.send(ctx, p.asked[0])
		c.release()
		wg.Wait()
	})
	if !started {
		for range p.asked {
			c.release()
		}
		for _, id := range p.asked {
			p.answers <- answer{id, errClosed(p.op)}
		}
	}
	return true
}

func errClosed(op sys.Op) error { return sys.E(op, sys.Unavailable, "the store is closed") }

// send gives the block to one node and notes what came of it.
func (p *putting) send(ctx context.Context, id sys.NodeID) {
	n, err := p.s.node(id)
	if err == nil {
		err = n.put(ctx, p.t.Epoch, p.key, p.data, p.sums)
	}
	if late(ctx, err) {
		err = sys.E(p.op, sys.Unavailable, nodeSubject(id), "it did not take the block in time")
	}
	p.s.peers.note(id, err)
	p.answers <- answer{id, err}
	switch sys.KindOf(err) {
	case sys.Unavailable, sys.NoSpace, sys.Corrupt, sys.Interrupted, sys.Other:
		if err != nil {
			p.s.owed.add(p.key, id)
		}
	}
}

// late reports whether err is that of a call whose time was over. Whoever
// noticed: ctx, the call, which looks at the clock itself, or the node, which
// was told how long it has.
func late(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	deadline, ok := ctx.Deadline()
	return ok && ctx.Err() == nil && !time.Now().Before(deadline)
}

// collect waits for the quorum, then for the others for a while.
func (p *putting) collect(ctx context.Context, cancel context.CancelFunc, detached bool) error {
	var failed []answer
	acks := 0
	waiting := slices.Clone(p.asked)
	var late <-chan time.Time
	done, over := ctx.Done(), false // over: the calls were cancelled
	for len(waiting) > 0 {
		select {
		case a := <-p.answers:
			waiting = slices.DeleteFunc(waiting, func(id sys.NodeID) bool { return id == a.id })
			if a.err == nil {
				acks++
			} else if !over || ctx.Err() != nil {
				failed = append(failed, a) // not one that we cancelled
			}
		case <-late:
			late, over = nil, true
			cancel()
			for _, id := range waiting {
				p.s.peers.failed(id)
			}
			continue
		case <-done:
			if detached {
				return sys.E(p.op, sys.Interrupted, block.Subject(p.key), context.Cause(ctx))
			}
			done, over = nil, true // the calls end with ctx
			continue
		}
		enough, hopeless := acks >= p.quorum, acks+len(waiting) < p.quorum
		switch {
		case detached && enough:
			return nil
		case detached && hopeless:
			return combine(p.op, block.Subject(p.key), failed)
		case over || len(waiting) == 0:
		case hopeless:
			over = true
			cancel()
		case enough && late == nil:
			timer := time.NewTimer(p.s.opt.StragglerWait)
			defer timer.Stop()
			late = timer.C
		}
	}
	if acks >= p.quorum {
		return nil
	}
	return combine(p.op, block.Subject(p.key), failed)
}

// copies bounds the memory of detached puts and recycles it.
type copies struct {
	mu   sync.Mutex
	left int64
	pool sync.Pool
}

// copied is a copy of a small block that several senders share.
type copied struct {
	from *copies
	buf  *[smallBlock]byte
	data []byte
	refs atomic.Int32
}

// take copies data for refs users, unless the bound is reached.
func (c *copies) take(data []byte, refs int) (*copied, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < smallBlock {
		return nil, false
	}
	c.left -= smallBlock
	buf, ok := c.pool.Get().(*[smallBlock]byte)
	if !ok {
		buf = new([smallBlock]byte)
	}
	k := &copied{from: c, buf: buf, data: buf[:copy(buf[:], data)]}
	k.refs.Store(int32(refs))
	return k, true
}

// release ends one use.
func (k *copied) release() {
	if k.refs.Add(-1) == 0 {
		k.from.pool.Put(k.buf)
		k.from.mu.Lock()
		k.from.left += smallBlock
		k.from.mu.Unlock()
	}
}
