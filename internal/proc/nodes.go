package proc

import (
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// ofNode refuses what a node alone may say of itself.
func ofNode(op sys.Op, req *wire.Request, node uint64) error {
	if req.Peer.Node == 0 || uint64(req.Peer.Node) != node {
		return sys.E(op, sys.Permission, "only "+sys.NodeID(node).String()+" may say so")
	}
	return nil
}

// serveHeartbeat takes a node's sign of life. What it answers lets the node's
// processes run on for a while, so it has to be sure that it leads, and that
// the node is not being declared lost.
func (s *Server) serveHeartbeat(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Heartbeat")
	hb := &procpb.Heartbeat{}
	if err := parse(op, req.Payload, hb); err != nil {
		return wire.Response{}, err
	}
	if err := ofNode(op, req, hb.Node.GetId()); err != nil {
		return wire.Response{}, err
	}
	if err := s.newcomer(ctx, hb.Node); err != nil {
		return cluster.LeaderHint(err)
	}
	if err := s.writeNode(ctx, hb.Node); err != nil {
		return cluster.LeaderHint(err)
	}
	l, err := s.leader(ctx, op)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	reply, err := s.beat(l, hb)
	s.mu.Unlock()
	if err != nil {
		return cluster.LeaderHint(err)
	}
	// The lease counts only if no other leader can have waited for its end yet.
	if _, err := s.leader(ctx, op); err != nil {
		return cluster.LeaderHint(err)
	}
	s.mu.Unlock()
	return respond(reply)
}

// newcomer gives a node that knows no fence, and that the table has known, a
// higher one: it has lost its directory, and with it what it voted for. While
// something may still run there it has to wait until it is declared lost.
func (s *Server) newcomer(ctx context.Context, n *procpb.Node) error {
	const op = sys.Op("proc.Heartbeat")
	if n.Fence != 0 {
		return nil
	}
	l, err := s.leader(ctx, op)
	if err != nil {
		return err
	}
	nm := l.model.nodes[n.Id]
	if nm == nil || nm.row.Lost {
		s.mu.Unlock()
		return nil
	}
	fence := nm.row.Fence
	_, busy := l.model.reserved()[n.Id]
	s.mu.Unlock()
	if busy {
		return sys.E(op, sys.Unavailable, sys.Subject(sys.NodeID(n.Id).String()), "the node has lost its directory: what it ran has to end first")
	}
	if _, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_LoseNode{LoseNode: &procpb.LoseNode{Node: n.Id, Fence: fence, Why: "its node has lost its directory"}}}); err != nil {
		return err
	}
	if l, err = s.leader(ctx, op); err != nil {
		return err
	}
	l.coord.Lost(PartyOf(n.Id, fence))
	s.pump(l)
	s.mu.Unlock()
	return nil
}

// writeNode keeps what a node tells of itself, when that is new.
func (s *Server) writeNode(ctx context.Context, n *procpb.Node) error {
	l, err := s.leader(ctx, "proc.Heartbeat")
	if err != nil {
		return err
	}
	nm := l.model.nodes[n.Id]
	same := nm != nil && sameNode(nm.row, n) && !(nm.row.Lost && nm.row.Fence == n.Fence)
	s.mu.Unlock()
	if same {
		return nil
	}
	_, _, err = s.propose(ctx, &procpb.Command{Op: &procpb.Command_SetNode{SetNode: &procpb.SetNode{Node: n}}})
	return err
}

// Labels are those of a map, sorted by key.
func Labels(m map[string]string) []*procpb.Label {
	var out []*procpb.Label
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, &procpb.Label{Key: k, Value: m[k]})
	}
	return out
}

// LabelMap undoes Labels; it is never nil.
func LabelMap(labels []*procpb.Label) map[string]string {
	m := make(map[string]string, len(labels))
	for _, l := range labels {
		m[l.Key] = l.Value
	}
	return m
}

// sameNode compares what nodes tell of themselves.
func sameNode(a, b *procpb.Node) bool {
	return a.Name == b.Name && resources(a.Capacity) == resources(b.Capacity) && maps.Equal(LabelMap(a.Labels), LabelMap(b.Labels)) && a.Mount == b.Mount && a.Limits == b.Limits
}

// beat answers a heartbeat. The caller holds mu.
func (s *Server) beat(l *leadership, hb *procpb.Heartbeat) (*procpb.HeartbeatReply, error) {
	n := l.model.nodes[hb.Node.Id]
	if n == nil || n.losing {
		return nil, sys.E(sys.Op("proc.Heartbeat"), sys.Unavailable, "the node is being declared lost; try again")
	}
	reply := &procpb.HeartbeatReply{Fence: n.row.Fence}
	if hb.Node.Fence != n.row.Fence {
		return reply, nil
	}
	was := n.alive(s.opt.Clock.Boot())
	n.heard, n.silent = s.opt.Clock.Boot(), false
	n.used, n.processes = hb.Used, len(hb.Running)
	if lost := l.forgotten(n, hb); len(lost) > 0 {
		s.opt.Logger.Warn("a node has forgotten processes: they are lost", "node", sys.NodeID(hb.Node.Id), "processes", len(lost))
		s.spawn(func() { s.loseProcesses(lost) })
	}
	reply.Leadership, reply.Mark = l.term, l.mark
	reply.LeaseNs = int64(s.opt.LostAfter * 2 / 3)
	for _, r := range hb.Running {
		if !l.model.runs(r, hb.Node.Id) {
			reply.Stop = append(reply.Stop, r)
		}
	}
	if !was {
		l.model.dirty = true
		signal(s.wake)
	}
	return reply, nil
}

// forgotten finds the processes that a node should have and has not: it has lost what it knew of them, or has given them up.
// One that a heartbeat does not list gets a mark, and is forgotten when one that was made after the node had that mark does not
// list it either: the first may have been on its way while the process was started. Nor is one missed whose start the node has
// not acknowledged. The caller holds mu.
func (l *leadership) forgotten(n *nodeModel, hb *procpb.Heartbeat) []*procpb.Report {
	id := hb.Node.Id
	listed := map[rankKey]bool{}
	for _, r := range hb.Running {
		listed[rankKey{r.Job, r.Index, r.Rank, r.Epoch}] = true
	}
	var lost []*procpb.Report
	missing := map[rankKey]uint64{}
	for k, t := range l.model.on(id) {
		if listed[k] || t.attempt != nil || l.coord.Owes(PartyOf(id, n.row.Fence), t.tx) {
			continue
		}
		mark := n.missing[k]
		switch {
		case mark == 0:
			l.mark++
			mark = l.mark
		case hb.Leadership == l.term && hb.Mark >= mark:
			lost = append(lost, &procpb.Report{Job: k.job, Index: k.index, Rank: k.rank, Epoch: k.epoch, Node: id, Recorded: true,
				Process: &procpb.Process{Node: id, State: procpb.State_LOST, ExitCode: ExitTrouble,
					StartedNs: t.row.Procs[k.rank].StartedNs, Pid: t.row.Procs[k.rank].Pid,
					Why: "its node, " + sys.NodeID(id).String() + ", has forgotten it: how it ended is not known"}})
		}
		missing[k] = mark
	}
	n.missing = missing
	return lost[:min(len(lost), ReportsMax)] // the next heartbeat tells of the others again
}

// on are the processes that should be on a node.
func (m *model) on(node uint64) iter.Seq2[rankKey, *taskModel] {
	return func(yield func(rankKey, *taskModel) bool) {
		for _, j := range m.live {
			for _, t := range j.live {
				if t.row.State != procpb.State_RUNNING {
					continue
				}
				for rank, p := range t.row.Procs {
					if p.Node == node && !Over(p.State) && !yield(rankKey{t.row.Job, t.row.Index, uint32(rank), t.row.Epoch}, t) {
						return
					}
				}
			}
		}
	}
}

// loseProcesses has processes of a node that lives agreed as lost. What does not succeed is found again.
func (s *Server) loseProcesses(reports []*procpb.Report) {
	now := s.opt.Clock.Wall().UnixNano()
	for _, r := range reports {
		r.Process.EndedNs = now
	}
	if _, err := s.report(s.ctx, reports, &procpb.Command{Op: &procpb.Command_Ended{Ended: &procpb.Ended{Reports: reports}}}); err != nil && s.ctx.Err() == nil {
		s.opt.Logger.Warn("that processes are lost is not agreed yet", "err", err)
	}
}

// runs says that a process may run on a node.
func (m *model) runs(r *procpb.Running, node uint64) bool {
	j := m.jobs[r.Job]
	if j == nil || j.tasks[r.Index] == nil {
		return false
	}
	t := j.tasks[r.Index].row
	return t.State == procpb.State_RUNNING && t.Epoch == r.Epoch && int(r.Rank) < len(t.Procs) && t.Procs[r.Rank].Node == node && !Over(t.Procs[r.Rank].State)
}

func (s *Server) serveVotes(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Votes")
	ms := &procpb.Messages{}
	if err := parse(op, req.Payload, ms); err != nil {
		return wire.Response{}, err
	}
	for _, m := range ms.Messages {
		if err := ofNode(op, req, m.Party>>24); err != nil {
			return wire.Response{}, err
		}
	}
	l, err := s.leader(ctx, op)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	s.stepMessages(l, ms)
	s.mu.Unlock()
	return wire.Response{}, nil
}

// checkReports refuses reports of others.
func checkReports(op sys.Op, req *wire.Request, reports []*procpb.Report) error {
	if len(reports) > ReportsMax {
		return sys.E(op, sys.TooBig, "too many reports at once")
	}
	for _, r := range reports {
		if err := ofNode(op, req, r.Node); err != nil {
			return err
		}
		if r.Process == nil || len(r.Stdout) > InlineMax || len(r.Stderr) > InlineMax {
			return sys.E(op, sys.Invalid, "a report without its process, or with too much output")
		}
	}
	return nil
}

func (s *Server) serveBegan(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Began")
	b := &procpb.Began{}
	if err := parse(op, req.Payload, b); err != nil {
		return wire.Response{}, err
	}
	if err := checkReports(op, req, b.Reports); err != nil {
		return wire.Response{}, err
	}
	return s.report(ctx, b.Reports, &procpb.Command{Op: &procpb.Command_Began{Began: b}})
}

func (s *Server) serveEnded(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Ended")
	e := &procpb.Ended{}
	if err := parse(op, req.Payload, e); err != nil {
		return wire.Response{}, err
	}
	if err := checkReports(op, req, e.Reports); err != nil {
		return wire.Response{}, err
	}
	if s.opt.Machine.treeApart {
		if err := s.publishApart(ctx, e); err != nil {
			return cluster.LeaderHint(err)
		}
	}
	return s.report(ctx, e.Reports, &procpb.Command{Op: &procpb.Command_Ended{Ended: e}})
}

// report has reports agreed, and their files seen by every mount.
func (s *Server) report(ctx context.Context, reports []*procpb.Report, cmd *procpb.Command) (wire.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	res, inos, err := s.propose(ctx, cmd)
	if err == nil && s.opt.Machine.treeApart {
		err = s.recordApart(ctx, reports)
	}
	if err == nil {
		err = s.barrier(ctx, inos)
	}
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return respond(res)
}
