package proc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/proc/sched"
	"github.com/koinon/koinon/internal/sys"
)

// planShare bounds planning to one part in so many of the time while somebody
// waits: a plan over a long queue takes a while.
const planShare = 5

// plan starts what can be started, at once or as soon as there may be another
// plan. The caller holds mu.
func (s *Server) plan(l *leadership, now time.Duration) {
	if !l.model.dirty {
		if now-l.planned > time.Second {
			l.model.dirty = len(l.model.jobs) > 0 // refusals and silent nodes pass by themselves
		}
		return
	}
	if early := l.planned + planShare*l.took - now; early > 0 && l.waiting > 0 {
		if !l.later {
			l.later = true
			time.AfterFunc(early, func() {
				s.mu.Lock()
				l.later = false
				s.mu.Unlock()
				signal(s.wake)
			})
		}
		return
	}
	l.model.dirty, l.planned = false, now
	snap, who, waiting := s.snapshot(l, now)
	if len(who) == 0 {
		l.took, l.waiting = 0, waiting
		return
	}
	p := sched.MakePlan(snap)
	l.waiting = waiting - len(p.Start)
	for _, w := range p.Wait {
		who[w.Gang-1].task.why = w.Why
	}
	for _, st := range p.Start {
		a := who[st.Gang-1]
		a.why, a.done = st.Why, make(chan struct{})
		for _, n := range st.Nodes {
			a.nodes = append(a.nodes, uint64(n))
		}
		l.model.try(a)
		if a.job.spec.Out == "" {
			s.attempt(l, a)
			continue
		}
		s.spawn(func() { s.prepareOut(l, a) })
	}
	l.took = s.opt.Clock.Boot() - now
}

// prepareOut makes the private directory of a task's outputs, then goes on.
func (s *Server) prepareOut(l *leadership, a *attempt) {
	ctx, cancel := context.WithTimeout(s.ctx, proposeTimeout)
	defer cancel()
	f := files{treeNow{ctx, s.opt.Tree}}
	t := a.task.row
	p := OutPath(TaskName(a.job.spec, t.Job, t.Index), t.Epoch+1)
	ino, err := f.under(OutDir, path.Base(p), a.job.spec.User)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lead != l {
		return
	}
	if err != nil {
		a.task.why = fmt.Sprintf("its directory for outputs cannot be made: %v", forPeople(err))
		s.giveUp(l, a, 0, a.task.why)
		return
	}
	a.ino = ino
	s.attempt(l, a)
	s.pump(l)
}

// attempt asks the nodes of an attempt to reserve. The caller holds mu.
func (s *Server) attempt(l *leadership, a *attempt) {
	if a.task.row.State != procpb.State_QUEUED || a.job.stops > 0 {
		s.giveUp(l, a, 0, "")
		return
	}
	tx, err := l.coord.Begin(s.now(), s.parts(l, a))
	switch {
	case errors.Is(err, commit.ErrDeposed):
		l.over = true
		signal(s.wake)
	case err != nil:
		s.giveUp(l, a, 0, err.Error())
	default:
		a.tx = tx
		l.model.attempts[tx] = a
	}
}

// parts is what each node of an attempt is asked to reserve.
func (s *Server) parts(l *leadership, a *attempt) []commit.Part {
	spec, t := a.job.spec, a.task.row
	slim := &procpb.Spec{Name: spec.Name, Argv: spec.Argv, Env: spec.Env, Dir: spec.Dir, Each: spec.Each, Size: spec.Size, Array: spec.Array,
		TimeoutNs: spec.TimeoutNs, GraceNs: spec.GraceNs, Stdin: spec.Stdin, User: spec.User}
	r := &procpb.Reservation{Job: t.Job, Index: t.Index, Epoch: t.Epoch + 1, Nodes: a.nodes, Spec: slim, Item: Item(spec, t.Index)}
	if spec.Out != "" {
		r.Out = OutPath(TaskName(spec, t.Job, t.Index), t.Epoch+1)
	}
	for _, n := range a.nodes {
		r.Names = append(r.Names, sys.NodeID(n).String())
		r.Hosts = append(r.Hosts, s.hostOf(sys.NodeID(n)))
	}
	nodes := slices.Clone(a.nodes)
	slices.Sort(nodes)
	var parts []commit.Part
	for _, n := range slices.Compact(nodes) {
		r.Ranks, r.Fence = nil, l.model.nodes[n].row.Fence
		for rank, on := range a.nodes {
			if on == n {
				r.Ranks = append(r.Ranks, uint32(rank))
			}
		}
		parts = append(parts, commit.Part{Party: PartyOf(n, r.Fence), Payload: pb.Marshal(r)})
	}
	return parts
}

// hostOf is the host, a name or an address, at which other nodes reach a node.
func (s *Server) hostOf(n sys.NodeID) string {
	addr := s.opt.Cluster.Addr(n)
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// giveUp puts a task back into the queue. The caller holds mu.
func (s *Server) giveUp(l *leadership, a *attempt, node sys.NodeID, why string) {
	if a.task.attempt != a {
		return
	}
	l.model.settle(a)
	close(a.done)
	if why != "" {
		a.task.why = why
		a.task.gang.Refuse(sched.Time(l.dayTime(s.opt.Clock.Boot())), node, why)
	}
	l.model.dirty = true
}

// nodeOf is the node behind a party.
func nodeOf(p commit.Party) sys.NodeID { return sys.NodeID(p >> 24) }

// pump does what the coordinator asks for. The caller holds mu.
func (s *Server) pump(l *leadership) {
	for l.coord.HasReady() && !l.over {
		rd := l.coord.Ready()
		l.over = rd.Deposed
		for _, o := range rd.Outcomes {
			s.outcome(l, o)
		}
		for _, r := range rd.Agree {
			if r.Kind == commit.RecordForget {
				l.forgets = append(l.forgets, r) // nobody waits for it: step proposes it, together with others
			} else {
				s.startAgree(l, r)
			}
		}
		byParty := map[commit.Party][]commit.Message{}
		for _, m := range rd.Send {
			byParty[m.Party] = append(byParty[m.Party], m)
		}
		for p, ms := range byParty {
			s.spawn(func() { s.send(l, p, ms) })
		}
	}
	if l.over {
		signal(s.wake) // it is for turn to end it
	}
}

// startAgree proposes a record. The caller holds mu.
func (s *Server) startAgree(l *leadership, r commit.Record) {
	cmd := l.recordOf(r)
	s.spawn(func() { s.agree(l, r, cmd) })
}

// outcome takes in a decision.
func (s *Server) outcome(l *leadership, o commit.Outcome) {
	a := l.model.attempts[o.Tx]
	if a == nil {
		return
	}
	if !o.Committed {
		s.giveUp(l, a, nodeOf(o.By), strings.TrimSpace(o.Reason))
		return
	}
	s.follow(l, s.opt.Clock.Boot()) // that it runs is in the model before it counts as started
	a.task.tx = o.Tx
	s.giveUp(l, a, 0, "")
}

// recordOf is the command for a record of the coordinator's log.
func (l *leadership) recordOf(r commit.Record) *procpb.Command {
	agree := &procpb.Agree{Kind: uint32(r.Kind), Epoch: r.Tx.Epoch, Seq: r.Tx.Seq}
	for _, p := range r.Parties {
		agree.Parties = append(agree.Parties, uint64(p))
	}
	if a := l.model.attempts[r.Tx]; a != nil && r.Kind == commit.RecordCommit {
		t := a.task.row
		agree.Job, agree.Index, agree.Try, agree.Nodes, agree.Why, agree.OutIno = t.Job, t.Index, t.Epoch+1, a.nodes, a.why, a.ino
		agree.Submit = a.job.submit
	}
	return &procpb.Command{Op: &procpb.Command_Agree{Agree: agree}}
}

// agree proposes a record until its fate is known, or this node does not lead
// any more.
func (s *Server) agree(l *leadership, r commit.Record, cmd *procpb.Command) {
	for s.ctx.Err() == nil && s.group.Leading() == l.term {
		ctx, cancel := context.WithTimeout(s.ctx, proposeTimeout)
		res, _, err := s.propose(ctx, cmd)
		cancel()
		if err == nil {
			s.mu.Lock()
			l.coord.Agreed(s.now(), r, res.Took)
			if s.lead == l {
				s.pump(l)
				s.plan(l, s.opt.Clock.Boot())
				s.pump(l)
			}
			s.mu.Unlock()
			return
		}
		s.opt.Logger.Debug("a record of the coordinator is proposed again", "record", r.String(), "err", err)
		s.pause(tick)
	}
}

func (s *Server) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
	case <-t.C:
	}
}

// snapshot is the model's, with the members of the cluster that do not answer, once they had the time to. The caller holds mu.
func (s *Server) snapshot(l *leadership, now time.Duration) (snap *sched.Snapshot, who []*attempt, waiting int) {
	snap, who, waiting = l.model.snapshot(now, l.dayTime(now))
	if now-l.since < deadAfter {
		return snap, who, waiting
	}
	for _, m := range s.opt.Cluster.Map().GetMembers() {
		if n := l.model.nodes[m.Id]; n != nil && !n.alive(now) {
			snap.Down = append(snap.Down, sys.NodeID(m.Id))
		}
	}
	return snap, who, waiting
}

// send brings messages to a node, and takes in its answers.
func (s *Server) send(l *leadership, p commit.Party, ms []commit.Message) {
	back, err := s.ask(nodeOf(p), Messages(ms))
	switch {
	case sys.Is(err, sys.NotExist):
		return // it has left, and will be declared lost
	case sys.Is(err, sys.Corrupt):
		s.opt.Logger.Warn("a node answers a transaction with nonsense", "node", nodeOf(p), "err", err)
		return
	case err != nil:
		s.opt.Logger.Debug("messages of a transaction have not arrived; they are sent again", "node", nodeOf(p), "err", err)
		s.unreached(l, p, ms)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lead == l {
		s.stepMessages(l, back)
	}
}

// ask brings messages to a node and returns its answers. sys.NotExist: there is no such node; sys.Corrupt: it answers nonsense.
func (s *Server) ask(n sys.NodeID, ms *procpb.Messages) (*procpb.Messages, error) {
	ctx, cancel := context.WithTimeout(s.ctx, prepareTimeout)
	defer cancel()
	if own := s.own.Load(); own != nil && own.node == n {
		return own.party(ctx, ms)
	}
	conn := s.opt.Cluster.Conn(n)
	if conn == nil {
		return nil, sys.E(sys.Op("proc.ask"), sys.NotExist, sys.Subject(n.String()))
	}
	reply, err := conn.Call(ctx, MethodParty, nil, pb.Marshal(ms))
	if err != nil {
		return nil, err
	}
	back := &procpb.Messages{}
	return back, take(reply, back)
}

// unreached does without a node that could not be asked, until its next sign of
// life: waiting for its vote would hold up the others.
func (s *Server) unreached(l *leadership, p commit.Party, ms []commit.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lead != l {
		return
	}
	if n := l.model.nodes[uint64(nodeOf(p))]; n != nil {
		n.silent = true
	}
	for _, m := range ms {
		if m.Kind != commit.MsgPrepare {
			continue
		}
		if err := l.coord.Abort(m.Tx, nodeOf(p).String()+" could not be reached"); err != nil {
			s.opt.Logger.Debug("it is decided already", "tx", m.Tx, "err", err)
		}
	}
	s.pump(l)
}

// stepMessages gives messages to the coordinator. The caller holds mu.
func (s *Server) stepMessages(l *leadership, ms *procpb.Messages) {
	for _, m := range FromMessages(ms) {
		if err := l.coord.Step(s.now(), m); err != nil {
			s.opt.Logger.Warn("a message of a transaction makes no sense", "message", m.String(), "err", err)
		}
	}
	s.pump(l)
	s.plan(l, s.opt.Clock.Boot())
	s.pump(l)
}

// Messages encodes messages of transactions; FromMessages is the way back.
func Messages(ms []commit.Message) *procpb.Messages {
	out := &procpb.Messages{}
	for _, m := range ms {
		out.Messages = append(out.Messages, &procpb.Message{Kind: uint32(m.Kind), Party: uint64(m.Party), TxEpoch: m.Tx.Epoch, TxSeq: m.Tx.Seq,
			Epoch: m.Epoch, Low: m.Low, Vote: uint32(m.Vote), Payload: m.Payload, Reason: m.Reason})
	}
	return out
}

// FromMessages decodes messages of transactions.
func FromMessages(ms *procpb.Messages) []commit.Message {
	out := make([]commit.Message, 0, len(ms.GetMessages()))
	for _, m := range ms.GetMessages() {
		out = append(out, commit.Message{Kind: commit.MessageKind(m.Kind), Party: commit.Party(m.Party), Tx: commit.Tx{Epoch: m.TxEpoch, Seq: m.TxSeq},
			Epoch: m.Epoch, Low: m.Low, Vote: commit.Vote(m.Vote), Payload: m.Payload, Reason: m.Reason})
	}
	return out
}
