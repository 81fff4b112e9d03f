package replica

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

func beUint64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// readWaiter waits for a read index, then for the state to reach it.
type readWaiter struct {
	slot   uint64
	ballot paxos.Ballot // of the leadership that gave the index
	err    error
	done   chan struct{}
}

// Read implements rsm.Group.
func (g *Group) Read(ctx context.Context, ns rsm.Namespace, fn func(r rsm.Reader) error) error {
	const op = sys.Op("replica.Read")
	h := g.host
	v := g.view.Load()
	if v.role != rsm.Leader {
		return notLeader(op, v.leader)
	}
	h.reads.Add(1)
	if v.lease != 0 && (paxos.Time(h.cfg.Clock.Boot()) < v.lease || h.cfg.bugs.has(BugReadNoLease)) {
		// The lease was looked up first. What this node knows to be chosen by
		// now another one may have applied and shown, so it must be in the state.
		if !h.cfg.bugs.has(BugReadNoSlot) {
			if err := g.awaitSlot(ctx, g.leaseSlot.Load()); err != nil {
				return err
			}
		}
		err := g.ReadLocal(ns, fn)
		if h.cfg.bugs.has(BugReadNoLease) {
			return err
		}
		// The state was read before the clock, so that a pause in between
		// cannot make an old state look current.
		after := g.view.Load()
		if after.ballot == v.ballot && after.lease != 0 && paxos.Time(h.cfg.Clock.Boot()) < after.lease {
			return err
		}
	}
	return g.readIndex(ctx, ns, fn)
}

// readIndex is Read without a lease: a majority says that this node leads.
func (g *Group) readIndex(ctx context.Context, ns rsm.Namespace, fn func(r rsm.Reader) error) error {
	const op = sys.Op("replica.Read")
	h := g.host
	h.readIndexes.Add(1)
	w := &readWaiter{done: make(chan struct{})}
	g.mu.Lock()
	if g.closed != nil {
		err := g.closed
		g.mu.Unlock()
		return err
	}
	g.readers = append(g.readers, w)
	first := len(g.readers) == 1
	g.mu.Unlock()
	if first {
		h.wakeDriver()
	}
	if h.cfg.Sched.Wait(nil, w.done, ctx.Done(), nil) == env.GotB {
		return sys.E(op, sys.Interrupted, ctx.Err())
	}
	if w.err != nil {
		return w.err
	}
	err := g.ReadLocal(ns, fn)
	// While the ballot is the same, no command of a later leader has been
	// given to the state: what fn saw is what this leadership chose.
	if after := g.view.Load(); after.ballot != w.ballot {
		return notLeader(op, after.leader)
	}
	return err
}

// awaitSlot waits until the state has reached slot. It fails when leadership is
// lost first.
func (g *Group) awaitSlot(ctx context.Context, slot uint64) error {
	if g.applied.Load() >= slot {
		return nil
	}
	w := &readWaiter{slot: slot, done: make(chan struct{})}
	g.mu.Lock()
	if g.closed != nil || g.applied.Load() >= slot {
		defer g.mu.Unlock()
		return g.closed
	}
	g.appliedWait = append(g.appliedWait, w)
	g.mu.Unlock()
	if g.host.cfg.Sched.Wait(nil, w.done, ctx.Done(), nil) == env.GotA {
		return w.err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.appliedWait = slices.DeleteFunc(g.appliedWait, func(o *readWaiter) bool { return o == w })
	return sys.E(sys.Op("replica.Read"), sys.Interrupted, ctx.Err())
}

// ReadLocal implements rsm.Group.
func (g *Group) ReadLocal(ns rsm.Namespace, fn func(r rsm.Reader) error) error {
	h := g.host
	// Held until fn is done, so that Close does not take the state away.
	if !h.use() {
		return h.stopped(sys.Op("replica.Read"))
	}
	defer h.unuse()
	for {
		before := g.replaced.Load()
		snap := h.db.NewSnapshot()
		err := fn(&view{reader: snap, prefix: namespacePrefix(g.id, ns)})
		if cerr := snap.Close(); err == nil {
			err = cerr
		}
		if before%2 == 0 && g.replaced.Load() == before {
			return err
		}
		// The rows of this view were taken away while fn ran.
		pause := h.cfg.Sched.NewTimer(time.Millisecond)
		h.cfg.Sched.Wait(pause, h.stop, nil, nil)
		pause.Stop()
	}
}

// takeReaders returns those who wait for a read index.
func (g *Group) takeReaders() []*readWaiter {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.readers
	g.readers = nil
	return r
}

// awaitApplied lets readers go on when the state has reached slot, if the
// leadership of ballot lasts until then.
func (g *Group) awaitApplied(ws []*readWaiter, slot uint64, ballot paxos.Ballot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range ws {
		w.slot, w.ballot = slot, ballot
		if g.applied.Load() >= slot || g.host.cfg.bugs.has(BugReadNoWait) {
			close(w.done)
		} else {
			g.appliedWait = append(g.appliedWait, w)
		}
	}
}

// appliedTo publishes that the state has reached slot.
func (g *Group) appliedTo(slot uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.applied.Store(slot)
	kept := g.appliedWait[:0]
	for _, w := range g.appliedWait {
		if w.slot <= slot {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	clear(g.appliedWait[len(kept):])
	g.appliedWait = kept
}

// failReaders answers readers with an error.
func failReaders(ws []*readWaiter, err error) {
	for _, w := range ws {
		w.err = err
		close(w.done)
	}
}

// failApplyWait answers readers who wait for the state with an error.
func (g *Group) failApplyWait(err error) {
	g.mu.Lock()
	ws := g.appliedWait
	g.appliedWait = nil
	g.mu.Unlock()
	failReaders(ws, err)
}

// failAllReaders answers everybody who waits for a read.
func (g *Group) failAllReaders(err error) {
	g.mu.Lock()
	ws := append(g.readers, g.appliedWait...)
	g.readers, g.appliedWait = nil, nil
	g.mu.Unlock()
	failReaders(ws, err)
}
