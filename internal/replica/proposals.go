package replica

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// proposals is an entry in the making: the commands that wait, encoded one
// after another as they come, and who waits for each.
type proposals struct {
	origin  uint64
	buf     []byte // an EntryBatch without its time
	waiters []*waiter
}

// waiter is one caller of Propose.
type waiter struct {
	out  outcome
	done chan struct{}
}

// settle answers everybody, in the order of the commands.
func (p *proposals) settle(outs []outcome) {
	if len(outs) != len(p.waiters) {
		panic(fmt.Sprintf("replica: %d outcomes expected, found %d", len(p.waiters), len(outs)))
	}
	for i, w := range p.waiters {
		if w != nil {
			w.out = outs[i]
			close(w.done)
		}
	}
}

// fail answers everybody with err.
func (p *proposals) fail(err error) {
	for _, w := range p.waiters {
		if w != nil {
			w.out = outcome{err: err}
			close(w.done)
		}
	}
}

// commandMax is the largest body of a command, in bytes.
const commandMax = 8 << 20

// Propose implements rsm.Group.
func (g *Group) Propose(ctx context.Context, cmd rsm.Command) (result []byte, local any, err error) {
	const op = sys.Op("replica.Propose")
	if err := ctx.Err(); err != nil {
		return nil, nil, sys.E(op, sys.Interrupted, err)
	}
	if len(cmd.Body) > min(commandMax, int(g.host.cfg.SegmentBytes/4)) {
		return nil, nil, sys.E(op, sys.TooBig, fmt.Sprintf("a command of %d bytes", len(cmd.Body)))
	}
	w := &waiter{done: make(chan struct{})}
	if err := g.enqueue(&cmd, w); err != nil {
		return nil, nil, err
	}
	if g.host.cfg.Sched.Wait(nil, w.done, ctx.Done(), nil) == env.GotB {
		return nil, nil, sys.E(op, sys.Interrupted, ctx.Err())
	}
	return w.out.result, w.out.local, w.out.err
}

// enqueue puts a command at the end of the queue. w may be nil.
func (g *Group) enqueue(cmd *rsm.Command, w *waiter) error {
	const op = sys.Op("replica.Propose")
	h := g.host
	if v := g.view.Load(); v.role != rsm.Leader {
		return notLeader(op, v.leader)
	}
	if err := h.admit(op, cmd, !h.alone(*g.configs.Load())); err != nil {
		return err
	}
	size := sizeCommand(cmd)
	g.mu.Lock()
	if g.closed != nil {
		err := g.closed
		g.mu.Unlock()
		return err
	}
	if g.queueBytes+size > h.cfg.QueueBytes && g.queueBytes > 0 {
		g.mu.Unlock()
		return sys.E(op, sys.Busy, fmt.Sprintf("%d bytes of commands wait already", h.cfg.QueueBytes))
	}
	var last *proposals
	if n := len(g.queue); n > 0 {
		last = g.queue[n-1]
	}
	if last == nil || len(last.waiters) >= h.cfg.BatchCommands || len(last.buf)+size > h.cfg.BatchBytes {
		last = newProposals(g.rand.Uint64()|1, g.entryBytes)
		g.queue = append(g.queue, last)
	}
	first := len(g.queue) == 1 && len(last.waiters) == 0
	last.buf = appendCommand(last.buf, cmd)
	last.waiters = append(last.waiters, w)
	g.queueBytes += size
	g.queueCommands++
	g.mu.Unlock()
	h.proposed.Add(1)
	if first {
		h.wakeDriver()
	}
	return nil
}

// newProposals makes an entry that will probably have so many bytes.
func newProposals(origin uint64, likely int) *proposals {
	p := &proposals{origin: origin}
	p.buf = appendFixed64(make([]byte, 0, min(max(512, likely+likely/8), 64<<10)), 1, p.origin)
	return p
}

// takeQueue removes the first entry of the queue when fewer than limit are in
// flight, and counts it as in flight.
func (g *Group) takeQueue(limit int) *proposals {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) == 0 || len(g.inflight) >= limit {
		return nil
	}
	p := g.queue[0]
	g.queue[0] = nil
	g.queue = g.queue[1:]
	g.queueBytes -= len(p.buf) - originBytes
	g.queueCommands -= len(p.waiters)
	g.entryBytes = len(p.buf)
	g.inflight[p.origin] = p
	g.underWay += len(p.waiters)
	return p
}

// gathers says that commands should wait for more, as an entry costs much more
// than a command in it. The next one is not full, and either an entry is in
// flight while the log writes, which would not take another one before that is
// durable, or, when the last entry is recent, fewer commands wait than are
// under way: whoever is answered soon may propose again, and shares the next
// entry then. That a few wait for many, and never many for a few, keeps the
// log busy when answers take long.
func (g *Group) gathers(writing, recent bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) != 1 {
		return false
	}
	return writing && len(g.inflight) > 0 || recent && len(g.queue[0].waiters) < g.underWay
}

// answered has the driver look at what waits, now that n commands under way
// are answered, after those who got the answers had a chance to propose again.
func (g *Group) answered(n int) {
	if n > 1 {
		g.host.cfg.Sched.Yield()
	}
	g.mu.Lock()
	g.underWay -= n
	more := len(g.queue) > 0
	g.mu.Unlock()
	if more {
		g.host.wakeDriver()
	}
}

// originBytes is the size of an EntryBatch's origin.
const originBytes = 9

// putBack undoes takeQueue.
func (g *Group) putBack(p *proposals) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.inflight, p.origin)
	g.underWay -= len(p.waiters)
	g.queue = append([]*proposals{p}, g.queue...)
	g.queueBytes += len(p.buf) - originBytes
	g.queueCommands += len(p.waiters)
}

// takeOwn returns the entry in flight with this origin, nil when there is
// none. Its commands are under way until they are answered.
func (g *Group) takeOwn(origin uint64) *proposals {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.inflight[origin]
	delete(g.inflight, origin)
	return p
}

// failQueue answers those who came when leadership was lost already.
func (g *Group) failQueue(leader sys.NodeID) {
	g.mu.Lock()
	queue := g.queue
	if len(queue) > 0 {
		g.queue, g.queueBytes, g.queueCommands = nil, 0, 0
	}
	g.mu.Unlock()
	for _, p := range queue {
		p.fail(notLeader("replica.Propose", leader))
	}
}

// failProposals answers everybody who waits: leadership is lost, or the host
// stops (closed is not nil, and answers all that come later too).
func (g *Group) failProposals(leader sys.NodeID, closed error) {
	const op = sys.Op("replica.Propose")
	g.mu.Lock()
	queue, inflight := g.queue, g.inflight
	g.queue, g.inflight = nil, map[uint64]*proposals{}
	g.queueBytes, g.queueCommands = 0, 0
	for _, p := range inflight {
		g.underWay -= len(p.waiters)
	}
	if closed != nil && g.closed == nil {
		g.closed = closed
	}
	g.mu.Unlock()
	for _, p := range queue {
		if closed != nil {
			p.fail(closed)
		} else {
			p.fail(notLeader(op, leader))
		}
	}
	for _, p := range inflight {
		p.fail(sys.E(op, sys.Unavailable, &rsm.LeaderError{Leader: leader, Proposed: true}))
	}
}

// counters are a host's, over all groups.
type counters struct {
	proposed, entries, applies, deduped    atomic.Uint64
	reads, readIndexes, elections          atomic.Uint64
	snapshotsSent, installs, droppedFrames atomic.Uint64
	syncTimes                              meter // ns
}
