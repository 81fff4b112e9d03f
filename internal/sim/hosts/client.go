package hosts

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/internal/sys"
)

// client does one thing after the other, at whichever node it takes for the
// leader. What is in a session it sends until it knows the outcome.
type client struct {
	c       *cluster
	id      int
	count   uint64
	at      int // index of the node it talks to
	turn    int // which try it waits for; what comes of others is ignored
	session sys.SessionID
	seq     uint64
	op      *op
}

// op is one operation.
type op struct {
	id    uint64
	kind  opKind
	floor position // the last position seen before it began
	seq   uint64   // within the session
	body  []byte
}

type opKind uint8

const (
	opRead opKind = iota
	opWrite
	opWriteOnce // without a session: sent once
	opLocal     // a look at what a node has applied
	opOpen      // a session
)

// patience is how long a client waits for an answer.
const patience = 400 * world.Millisecond

func newClient(c *cluster, id int) *client {
	cl := &client{c: c, id: id, at: c.Rand.IntN(len(c.nodes))}
	c.After(c.Pick(0, 50*world.Millisecond), cl.next)
	return cl
}

// next begins the next operation, or sends the present one again.
func (cl *client) next() {
	c := cl.c
	if c.quiet {
		return
	}
	if cl.op == nil {
		cl.op = cl.choose()
	}
	cl.turn++
	turn := cl.turn
	c.After(patience, func() {
		if cl.turn == turn {
			cl.ended(turn, nil, sys.E(sys.Op("hosts.client"), sys.Interrupted, "no answer"))
		}
	})
	at := cl.at
	if cl.op.kind == opLocal {
		at = c.Rand.IntN(len(c.nodes))
	}
	n := c.nodes[at]
	g := n.group()
	if g == nil {
		cl.look(nil)
		return
	}
	l, op := n.life, cl.op
	ctx, cancel := context.WithCancel(context.Background())
	c.After(patience, cancel)
	l.proc.Go(func() {
		result, err := cl.do(ctx, l, g, op)
		if n.life != l || l.closing {
			return // nobody hears of it
		}
		if err == nil && (op.kind == opRead || op.kind == opLocal) {
			cl.saw(op, result) // also when it comes late
		}
		cl.ended(turn, result, err)
	})
}

func (cl *client) choose() *op {
	c := cl.c
	cl.count++
	o := &op{id: uint64(cl.id)<<32 | cl.count, floor: c.history.finished, kind: opKind(c.Rand.IntN(4))}
	switch {
	case o.kind == opWrite && cl.session == 0:
		o.kind = opOpen
	case o.kind == opWrite:
		cl.seq++
		o.seq = cl.seq
	}
	o.body = binary.BigEndian.AppendUint64(nil, o.id)
	o.body = append(o.body, byte(c.Rand.IntN(c.shape.keys)))
	o.body = append(o.body, bytes.Repeat([]byte{byte(o.id)}, 1+c.Rand.IntN(c.shape.valueBytes))...)
	return o
}

// do runs an operation at a host, as a goroutine of its process.
func (cl *client) do(ctx context.Context, l *life, g *replica.Group, o *op) ([]byte, error) {
	c := cl.c
	switch o.kind {
	case opLocal:
		var out []byte
		err := g.ReadLocal(nsLedger, func(r rsm.Reader) error {
			v, err := r.Get(lastKey)
			out = bytes.Clone(v)
			return err
		})
		return out, err
	case opRead:
		var out []byte
		err := g.Read(ctx, nsLedger, func(r rsm.Reader) error {
			v, err := r.Get(lastKey)
			out = bytes.Clone(v)
			if c.Chance(0.1) { // it takes a while, and more comes meanwhile
				l.proc.Sleep(c.Pick(0, 300*world.Millisecond))
			}
			return err
		})
		return out, err
	case opOpen:
		id, err := g.OpenSession(ctx, fmt.Sprintf("client %d", cl.id))
		return binary.BigEndian.AppendUint64(nil, uint64(id)), err
	}
	cmd := rsm.Command{NS: nsLedger, Body: o.body}
	if o.kind == opWrite {
		cmd.Session, cmd.Seq, cmd.Ack = cl.session, o.seq, o.seq-1
	}
	result, _, err := g.Propose(ctx, cmd)
	return result, err
}

// ended takes in what came of a try.
func (cl *client) ended(turn int, result []byte, err error) {
	c, o := cl.c, cl.op
	if cl.turn != turn {
		return
	}
	switch {
	case err == nil:
		cl.done(o, result)
	case sys.Is(err, sys.SessionGone):
		c.stats.Unknown++
		cl.op, cl.session, cl.seq = nil, 0, 0
	case o.kind == opWriteOnce:
		c.stats.Unknown++
		cl.op = nil
	case !sys.Is(err, sys.NotLeader) && !sys.Is(err, sys.Unavailable) && !sys.Is(err, sys.Busy) && !sys.Is(err, sys.Interrupted) &&
		!sys.Is(err, sys.NoSpace):
		c.Fail("client %d: operation %d: %v", cl.id, o.id, err)
	}
	cl.look(err)
}

// saw checks what a read has seen.
func (cl *client) saw(o *op, result []byte) {
	c, h := cl.c, &cl.c.history
	at, digest := decodeLast(result)
	c.Mark('R', uint64(cl.id), at.slot, uint64(at.index))
	if o.kind == opLocal {
		c.stats.LocalReads++
	} else if c.stats.Reads++; at.less(o.floor) {
		c.Fail("client %d: a read sees %v, but %v was seen before it began", cl.id, at, o.floor)
	}
	if at != (position{}) && h.digests[at] != digest {
		c.Fail("client %d: a read sees a state at %v that never was", cl.id, at)
	}
	h.saw(at)
}

// done takes in a result and checks it.
func (cl *client) done(o *op, result []byte) {
	c, h := cl.c, &cl.c.history
	cl.op = nil
	switch o.kind {
	case opOpen:
		c.stats.Sessions++
		cl.session, cl.seq = sys.SessionID(binary.BigEndian.Uint64(result)), 0
		return
	case opLocal, opRead:
		return
	}
	c.stats.Writes++
	at := position{binary.BigEndian.Uint64(result), binary.BigEndian.Uint32(result[8:])}
	c.Mark('W', uint64(cl.id), at.slot, uint64(at.index))
	if !o.floor.less(at) {
		c.Fail("client %d: a write takes effect at %v, but %v was seen before it began", cl.id, at, o.floor)
	}
	if h.byOp[o.id] != at {
		c.Fail("client %d: operation %d was acknowledged at %v, it took effect at %v", cl.id, o.id, at, h.byOp[o.id])
	}
	h.acked[o.id] = at
	h.saw(at)
}

// look chooses where to go on, and goes on soon.
func (cl *client) look(err error) {
	c := cl.c
	if to, ok := rsm.LeaderOf(err); ok && c.Chance(0.8) {
		cl.at = int(to) - 1
	} else if n := c.leader(); n != nil && c.Chance(0.8) {
		cl.at = int(n.id) - 1
	} else if err != nil || c.nodes[cl.at].group() == nil {
		cl.at = c.Rand.IntN(len(c.nodes))
	}
	cl.turn++
	turn := cl.turn
	c.After(c.Pick(100*world.Microsecond, 15*world.Millisecond), func() {
		if cl.turn == turn {
			cl.next()
		}
	})
}
