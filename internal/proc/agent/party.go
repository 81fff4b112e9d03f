//go:build linux

package agent

import (
	"context"
	"sync"
	"time"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// turn is a request of the leader on its way through the participant.
type turn struct {
	in   []*procpb.Message
	out  []*procpb.Message
	err  error
	done chan struct{}
}

// newFence is a fence on its way to the participant.
type newFence struct {
	fence uint64
	done  chan struct{}
}

// partyTick is how often a participant in doubt is told of the time.
const partyTick = 20 * time.Millisecond

// serveParty answers messages of the coordinator by what the participant says
// to them at once.
func (a *Agent) serveParty(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("agent.Party")
	if req.Peer.Node == 0 {
		return wire.Response{}, sys.E(op, sys.Access, "only nodes may ask for reservations")
	}
	ms := &procpb.Messages{}
	if err := pb.Unmarshal(req.Payload, ms); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	answers, err := a.Party(ctx, ms)
	return respond(answers, err)
}

// Party is what MethodParty does, for a leader in the same process. The messages
// are not changed, and must not be afterwards.
func (a *Agent) Party(ctx context.Context, ms *procpb.Messages) (*procpb.Messages, error) {
	const op = sys.Op("agent.Party")
	t := &turn{in: ms.Messages, done: make(chan struct{})}
	select {
	case a.turns <- t:
	case <-ctx.Done():
		return nil, sys.E(op, sys.Interrupted, ctx.Err())
	case <-a.runCtx.Done():
		return nil, errStopping(op)
	}
	select {
	case <-t.done:
	case <-a.runCtx.Done():
		return nil, errStopping(op)
	}
	return &procpb.Messages{Messages: t.out}, t.err
}

func errStopping(op sys.Op) error { return sys.E(op, sys.Unavailable, "the node is stopping") }

func respond(m pb.Message, err error) (wire.Response, error) {
	if err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Payload: pb.Marshal(m)}, nil
}

// owner is the goroutine that has the participant.
type owner struct {
	a     *Agent
	party *commit.Participant
	from  map[commit.Tx]*turn // whose message a transaction's was, in this round
}

// own drives the participant until ctx is done or the store fails.
func (a *Agent) own(ctx context.Context, party *commit.Participant) error {
	o := &owner{a: a, party: party}
	for {
		o.party.Tick(a.now())
		if err := o.settle(); err != nil {
			return err
		}
		var tick <-chan time.Time
		if len(o.party.InDoubt()) > 0 {
			tick = time.After(partyTick)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		case t := <-a.turns:
			if err := o.take(a.gather(t)); err != nil {
				return err
			}
		case f := <-a.fences:
			if err := o.refence(f.fence); err != nil {
				return err
			}
			close(f.done)
		}
	}
}

// turnsMax is how many requests are answered by one write.
const turnsMax = 64

// gather takes the requests that wait, so that they share one write.
func (a *Agent) gather(t *turn) []*turn {
	turns := []*turn{t}
	for len(turns) < turnsMax {
		select {
		case t := <-a.turns:
			turns = append(turns, t)
		default:
			return turns
		}
	}
	return turns
}

// take answers requests.
func (o *owner) take(turns []*turn) error {
	o.from = map[commit.Tx]*turn{}
	for _, t := range turns {
		for _, m := range t.in {
			k := fromWire(m)
			o.from[k.Tx] = t
			if err := o.party.Step(o.a.now(), k); err != nil {
				o.a.log.Debug("a message for another one", "err", err) // late: of before the fence
			}
		}
	}
	err := o.settle()
	o.from = nil
	for _, t := range turns {
		t.err = err
		close(t.done)
	}
	return err
}

// settle does what the participant wants.
func (o *owner) settle() error {
	for o.party.HasReady() {
		r := o.party.Ready()
		o.send(r.Send)
		if len(r.Changes) > 0 || r.Floor != (commit.Tx{}) {
			if err := o.change(r.Floor, r.Changes); err != nil {
				return sys.E(sys.Op("agent.settle"), err)
			}
		}
		if r.Seq != 0 { // what came before it is durable
			o.party.Persisted(r.Seq)
			o.send(r.SendAfter)
		}
		for _, q := range r.Prepare {
			vote, reason := o.a.decide(q)
			if err := o.party.Vote(o.a.now(), q.Tx, vote, reason); err != nil {
				o.a.release(q.Tx)
			}
		}
	}
	return nil
}

// change makes changes durable, and then true.
func (o *owner) change(floor commit.Tx, changes []commit.Change) error {
	var started []*task
	for _, c := range changes {
		if c.State == commit.Committed {
			if h := o.a.held(c.Tx); h != nil {
				started = append(started, o.a.newTask(h.res, nil))
			}
		}
	}
	if err := o.a.store.apply(floor, changes, started); err != nil {
		return err
	}
	for _, t := range started {
		o.a.begin(t)
	}
	for _, c := range changes {
		if c.State != commit.Prepared && c.State != commit.Gone {
			o.a.release(c.Tx) // a task has what it needs by itself
		}
	}
	return nil
}

// send gives messages to who asked, else to the leader.
func (o *owner) send(ms []commit.Message) {
	for _, m := range ms {
		if t := o.from[m.Tx]; t != nil {
			t.out = append(t.out, toWire(m))
		} else {
			o.a.votes.put(toWire(m))
		}
	}
}

// refence makes the node another party, which has nothing. What ran has ended.
func (o *owner) refence(fence uint64) error {
	o.a.abandon()
	if err := o.a.store.reset(fence); err != nil {
		return sys.E(sys.Op("agent.refence"), err)
	}
	o.a.mu.Lock()
	o.a.fence = fence
	o.a.mu.Unlock()
	o.party = commit.NewParticipant(commit.Config{}, proc.PartyOf(uint64(o.a.opts.Node), fence), commit.Recovered{}, o.a.now())
	return nil
}

func fromWire(m *procpb.Message) commit.Message {
	return commit.Message{Kind: commit.MessageKind(m.Kind), Party: commit.Party(m.Party), Tx: commit.Tx{Epoch: m.TxEpoch, Seq: m.TxSeq},
		Epoch: m.Epoch, Low: m.Low, Vote: commit.Vote(m.Vote), Payload: m.Payload, Reason: m.Reason}
}

func toWire(m commit.Message) *procpb.Message {
	return &procpb.Message{Kind: uint32(m.Kind), Party: uint64(m.Party), TxEpoch: m.Tx.Epoch, TxSeq: m.Tx.Seq,
		Epoch: m.Epoch, Low: m.Low, Vote: uint32(m.Vote), Payload: m.Payload, Reason: m.Reason}
}

// mailbox holds messages until somebody takes them. What is too much is
// dropped: the participant asks again.
type mailbox struct {
	mu   sync.Mutex
	ms   []*procpb.Message
	wake wake
}

const mailboxMax = 1024

func (b *mailbox) put(m *procpb.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ms) < mailboxMax {
		b.ms = append(b.ms, m)
	}
	b.wake.set()
}

func (b *mailbox) take() []*procpb.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	ms := b.ms
	b.ms = nil
	return ms
}

// votesTimeout bounds the sending of what is in doubt: it is asked again.
const votesTimeout = 5 * time.Second

// tellVotes brings to the leader what the participant says by itself.
func (a *Agent) tellVotes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.votes.wake:
		}
		sending, cancel := context.WithTimeout(ctx, votesTimeout)
		if err := a.callLeader(sending, proc.MethodVotes, &procpb.Messages{Messages: a.votes.take()}, nil); err != nil && ctx.Err() == nil {
			a.log.Debug("the leader was not asked about reservations", "err", err)
		}
		cancel()
	}
}

// callLeader sends the leader a message and reads its answer, which may be nil.
func (a *Agent) callLeader(ctx context.Context, m wire.Method, req, reply pb.Message) error {
	raw := pb.Marshal(req)
	if a.opts.Leader != nil {
		if answer, ok := a.opts.Leader(ctx, m, raw); ok && reply == nil {
			return nil
		} else if ok {
			return pb.Unmarshal(answer, reply)
		}
	}
	r, err := a.opts.Cluster.CallLeader(ctx, m, nil, raw)
	if err != nil {
		return err
	}
	defer r.Release()
	if reply == nil {
		return nil
	}
	return pb.Unmarshal(r.Payload, reply)
}
