package sim

import (
	"fmt"

	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/paxos"
)

// outcome is how an operation ended.
type outcome uint8

const (
	outcomeDone    outcome = iota + 1
	outcomeRefused         // certainly without effect
	outcomeUnknown         // perhaps with effect, perhaps later
)

// op is one write on its way.
type op struct {
	c        *client
	data     []byte
	floor    paxos.Slot // the highest slot finished before the op began
	slot     paxos.Slot // where it was proposed
	finished bool
}

// pendingRead is a read that waits for its slot: to be told of it, with a read index, and then to be applied.
type pendingRead struct {
	id    uint64 // of a read index; zero for a lease
	until paxos.Time
	c     *client
	floor paxos.Slot // the highest slot finished before the read began
	slot  paxos.Slot
	ready bool // slot is known
}

// client does one thing after the other, at whichever replica it takes for the leader.
type client struct {
	w     *group
	id    int
	count int
	at    int // index of the replica it talks to
	turn  int // which operation it waits for; timeouts of others are ignored
}

func newClient(w *group, id int) *client {
	c := &client{w: w, id: id, at: w.Rand.IntN(len(w.replicas))}
	w.After(w.Pick(0, 50*world.Millisecond), c.next)
	return c
}

// next begins the client's next operation.
func (c *client) next() {
	w := c.w
	if w.quiet {
		return
	}
	c.turn++
	turn := c.turn
	w.After(500*world.Millisecond, func() {
		if c.turn == turn {
			c.at = w.Rand.IntN(len(w.replicas))
			c.next()
		}
	})
	r := w.replicas[c.at]
	if w.Now < w.lullUntil {
		c.think()
		return
	}
	if !r.up || w.Now < r.pausedUntil || w.Now < r.fullUntil {
		c.refused()
		return
	}
	switch w.Rand.IntN(4) {
	case 0, 1:
		c.write(r)
	case 2:
		if w.shape.jumps {
			c.indexRead(r)
			return
		}
		c.leaseRead(r)
	case 3:
		c.indexRead(r)
	}
}

// refused looks for another leader.
func (c *client) refused() {
	c.at = c.w.Rand.IntN(len(c.w.replicas))
	for i, r := range c.w.replicas {
		if r.up && r.role == paxos.Leader && c.w.Chance(0.7) {
			c.at = i
		}
	}
	c.think()
}

// think ends the operation and starts another one soon.
func (c *client) think() {
	c.turn++
	turn := c.turn
	c.w.After(c.w.Pick(100*world.Microsecond, 20*world.Millisecond), func() {
		if c.turn == turn {
			c.next()
		}
	})
}

func (c *client) write(r *replica) {
	burst := 1
	if c.w.Chance(0.2) {
		burst = 1 + c.w.Rand.IntN(8)
	}
	for i := range burst {
		c.count++
		o := &op{c: c, floor: c.w.history.finished, data: fmt.Appendf(nil, "%d-%d", c.id, c.count)}
		slot, _, err := r.node.Propose(r.clock(), o.data)
		if err != nil {
			if i == 0 {
				c.refused()
			}
			break
		}
		o.slot = slot
		r.waiting = append(r.waiting, o)
		c.w.Mark('w', uint64(c.id), uint64(r.id), uint64(slot))
	}
	r.drain()
}

// finish ends a write.
func (o *op) finish(how outcome, slot paxos.Slot) {
	w := o.c.w
	if o.finished {
		w.Fail("client %d: write %q finished twice", o.c.id, o.data)
	}
	o.finished = true
	if how != outcomeDone {
		w.stats.Unknown++
		o.c.refused()
		return
	}
	w.stats.Writes++
	if slot <= o.floor {
		w.Fail("client %d: write %q got slot %d, but slot %d was seen before it began", o.c.id, o.data, slot, o.floor)
	}
	w.history.noteFinished(w, slot)
	w.history.written[string(o.data)] = slot
	o.c.think()
}

// leaseRead asks for a lease, waits for its slot, reads the state, and looks at the clock a little later.
func (c *client) leaseRead(r *replica) {
	until, slot := r.node.LeaseRead()
	if until == 0 {
		c.refused()
		return
	}
	r.reads = append(r.reads, &pendingRead{until: until, c: c, floor: c.w.history.finished, slot: slot, ready: true})
	r.serveReads()
}

// readUnderLease reads the state.
func (c *client) readUnderLease(r *replica, rd *pendingRead) {
	seen := r.state.applied
	d := c.w.Pick(0, 100*world.Microsecond)
	if c.w.Chance(0.05) {
		d = c.w.Pick(0, 300*world.Millisecond)
	}
	r.later(d, func() {
		if r.clock() < rd.until {
			c.w.stats.LeaseReads++
			c.sawState("lease", r, rd.floor, seen)
		}
		c.think()
	})
}

// sawState checks what a read has seen against everything finished before it began.
func (c *client) sawState(how string, r *replica, floor, seen paxos.Slot) {
	c.w.Mark('R', uint64(c.id), uint64(r.id), uint64(seen))
	if seen < floor {
		c.w.Fail("client %d: a %s read at node %d sees slot %d, but slot %d was seen before it began", c.id, how, r.id, seen, floor)
	}
	c.w.history.noteFinished(c.w, seen)
}

func (c *client) indexRead(r *replica) {
	c.count++
	rd := &pendingRead{id: uint64(c.id+1)<<32 | uint64(c.count), c: c, floor: c.w.history.finished}
	if err := r.node.ReadIndex(r.clock(), rd.id); err != nil {
		c.refused()
		return
	}
	r.reads = append(r.reads, rd)
	r.drain()
}

// readConfirmed takes in the answer to a ReadIndex.
func (r *replica) readConfirmed(rr paxos.Read) {
	for i, rd := range r.reads {
		if rd.id != rr.ID { // ids are never zero
			continue
		}
		if rr.Lost {
			r.reads = append(r.reads[:i], r.reads[i+1:]...)
			rd.c.refused()
			return
		}
		rd.slot, rd.ready = rr.Slot, true
		r.serveReads()
		return
	}
	r.w.Fail("node %d: read %d answered, but nobody waits for it", r.id, rr.ID)
}

// serveReads answers the reads whose index has been applied.
func (r *replica) serveReads() {
	rest := r.reads[:0]
	for _, rd := range r.reads {
		if rd.ready && rd.slot <= r.state.applied && rd.until != 0 {
			rd.c.readUnderLease(r, rd)
		} else if rd.ready && rd.slot <= r.state.applied {
			r.w.stats.IndexReads++
			rd.c.sawState("index", r, rd.floor, r.state.applied)
			rd.c.think()
		} else {
			rest = append(rest, rd)
		}
	}
	r.reads = rest
}
