package proc

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/proc/sched"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// waitMax is how long a request may wait at the leader.
const waitMax = 10 * time.Second

func respond(m pb.Message) (wire.Response, error) { return wire.Response{Payload: pb.Marshal(m)}, nil }

func parse(op sys.Op, raw []byte, m pb.Message) error {
	if err := pb.Unmarshal(raw, m); err != nil {
		return sys.E(op, sys.Invalid, err)
	}
	return nil
}

func (s *Server) serveSubmit(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Submit")
	var r procpb.Submit
	if err := parse(op, req.Payload, &r); err != nil {
		return wire.Response{}, err
	}
	if err := checkNew(r.Spec); err != nil {
		return wire.Response{}, err
	}
	if err := s.canRun(ctx, r.Spec); err != nil {
		return cluster.LeaderHint(err)
	}
	if err := s.checkTree(ctx, r.Spec); err != nil {
		return cluster.LeaderHint(err)
	}
	id, err := s.submit(ctx, &r)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return respond(&procpb.SubmitReply{Job: id})
}

// nodesWithin is how long a new cluster's nodes have to tell of themselves
// before a job is refused for want of them.
const nodesWithin = 5 * time.Second

// canRun refuses a job that no nodes could ever run.
func (s *Server) canRun(ctx context.Context, spec *procpb.Spec) error {
	const op = sys.Op("proc.Submit")
	until := s.opt.Clock.Boot() + nodesWithin
	for {
		l, err := s.leader(ctx, op)
		if err != nil {
			return err
		}
		var nodes []sched.Node
		for _, n := range l.model.nodes {
			nodes = append(nodes, n.sched(sched.Resources{}))
		}
		s.mu.Unlock()
		members := 0
		if m := s.opt.Cluster.Map(); m != nil {
			members = len(m.Members)
		}
		slices.SortFunc(nodes, func(a, b sched.Node) int { return cmp.Compare(a.ID, b.ID) })
		err = checkNodes(spec, nodes)
		if err == nil || len(nodes) >= members || s.opt.Clock.Boot() > until {
			return err
		}
		select {
		case <-ctx.Done():
			return sys.E(op, sys.Interrupted, ctx.Err())
		case <-time.After(tick):
		}
	}
}

func checkNodes(spec *procpb.Spec, nodes []sched.Node) error {
	const op = sys.Op("proc.Submit")
	if len(nodes) == 0 {
		return sys.E(op, sys.Unavailable, "no node runs processes: see [proc] in the nodes' configuration")
	}
	for _, id := range spec.On {
		if !slices.ContainsFunc(nodes, func(n sched.Node) bool { return n.ID == sys.NodeID(id) }) {
			return sys.E(op, sys.NotExist, sys.Subject(sys.NodeID(id).String()), "there is no such node, or it runs no processes: koinon top lists those that do")
		}
	}
	j := &jobModel{spec: spec, row: &procpb.Job{}}
	g := gangOf(j, &taskModel{row: &procpb.Task{Index: spec.First}}, 1)
	if err := sched.Check(&g, nodes); err != nil {
		return sys.E(op, sys.Invalid, err)
	}
	return nil
}

// checkTree refuses directories that are not there.
func (s *Server) checkTree(ctx context.Context, spec *procpb.Spec) error {
	const op = sys.Op("proc.Submit")
	f := files{treeNow{ctx, s.opt.Tree}}
	if spec.Dir != "" && spec.Dir != "/" {
		parent, err := f.walk(credOf(spec.User), path.Dir(spec.Dir))
		var a *metapb.Attr
		if err == nil {
			a, err = f.lookup(credOf(spec.User), parent, path.Base(spec.Dir))
		}
		if err == nil {
			err = noLink(a, spec.Dir)
		}
		switch {
		case err == nil && a != nil && sys.FileType(a.Type) == sys.TypeDir:
		case err == nil || sys.Is(err, sys.NotExist) || sys.Is(err, sys.NotDir):
			return sys.E(op, sys.NotExist, sys.Subject(spec.Dir), "the working directory is no directory in the tree")
		default:
			return err
		}
	}
	if spec.Out != "" {
		out := outOfItem(spec, Item(spec, spec.First))
		dir, err := f.walk(credOf(spec.User), path.Dir(out))
		var a *metapb.Attr
		if err == nil {
			a, err = f.lookup(rootCred, dir, path.Base(out))
		}
		if sys.Is(err, sys.NotExist) || sys.Is(err, sys.NotDir) {
			return sys.E(op, sys.NotExist, sys.Subject(path.Dir(out)), "the directory in which outputs are to appear is not in the tree: make it first")
		}
		if err != nil {
			return err
		}
		if a != nil {
			return sys.E(op, sys.Exist, sys.Subject(out), "outputs appear under a name that nothing has yet: choose another one, or move this away")
		}
	}
	return nil
}

func (s *Server) serveWait(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Wait")
	var r procpb.WaitRequest
	if err := parse(op, req.Header, &r); err != nil {
		return wire.Response{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, waitMax+proposeTimeout)
	defer cancel()
	until := time.NewTimer(min(time.Duration(r.WaitNs), waitMax))
	defer until.Stop()
	var settled <-chan time.Time
	for {
		changed := s.hub.changed(r.Job)
		reply, err := s.news(ctx, &r)
		if err != nil {
			return cluster.LeaderHint(err)
		}
		if r.Seen || Over(reply.Job.State) {
			// Who learns that it has ended, or a part of it, goes on to look at what it wrote.
			if err := s.opt.Barrier(ctx); err != nil {
				return cluster.LeaderHint(err)
			}
			return respond(reply)
		}
		if reply.Job.Version > r.Version && settled == nil {
			if r.SettleNs <= 0 {
				return respond(reply)
			}
			settling := time.NewTimer(min(time.Duration(r.SettleNs), waitMax))
			defer settling.Stop()
			settled = settling.C
		}
		select {
		case <-changed:
		case <-settled:
			return respond(reply)
		case <-until.C:
			return respond(reply)
		case <-s.ctx.Done():
			return cluster.LeaderHint(errStopping(op))
		case <-ctx.Done():
			return wire.Response{}, sys.E(op, sys.Interrupted, ctx.Err())
		}
	}
}

// news is what a Wait answers.
func (s *Server) news(ctx context.Context, r *procpb.WaitRequest) (*procpb.WaitReply, error) {
	reply := &procpb.WaitReply{}
	err := s.group.Read(ctx, rsm.NSProc, func(v rsm.Reader) error {
		reply = &procpb.WaitReply{Job: &procpb.Job{}}
		if ok, err := load(v, key(rowJob, r.Job), reply.Job); err != nil || !ok {
			return cmp.Or(err, noJob("proc.Wait", r.Job))
		}
		if r.Version == 0 {
			spec, err := loadSpec(v, r.Job)
			if err != nil {
				return err
			}
			reply.Spec = spec
		}
		if !r.Tasks || reply.Job.Version <= r.Version {
			return nil
		}
		var known bool
		if reply.Tasks, reply.Ended, known = s.hub.since(r.Job, r.Version, reply.Job.Version); known {
			if r.Version == 0 {
				reply.Ended = latest(reply.Ended, reply.Tasks)
			}
			return nil
		}
		return loadTasks(v, r.Job, 0, func(t *procpb.Task) bool {
			if t.Version > r.Version {
				reply.Tasks = append(reply.Tasks, t)
			}
			return true
		})
	})
	return reply, err
}

// latest leaves out the ends of earlier tries than those that the tasks tell of: who has not followed a job before gets what the
// files hold, however much is remembered.
func latest(ended []*procpb.Report, tasks []*procpb.Task) []*procpb.Report {
	epoch := make(map[uint32]uint32, len(tasks))
	for _, t := range tasks {
		epoch[t.Index] = t.Epoch
	}
	return slices.DeleteFunc(ended, func(r *procpb.Report) bool { return r.Epoch != epoch[r.Index] })
}

func (s *Server) serveInspect(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Inspect")
	var r procpb.InspectRequest
	if err := parse(op, req.Header, &r); err != nil {
		return wire.Response{}, err
	}
	reply := &procpb.InspectReply{}
	if err := s.group.Read(ctx, rsm.NSProc, func(v rsm.Reader) (err error) {
		reply = &procpb.InspectReply{Job: &procpb.Job{}}
		if ok, err := load(v, key(rowJob, r.Job), reply.Job); err != nil || !ok {
			return cmp.Or(err, noJob(op, r.Job))
		}
		if reply.Spec, err = loadSpec(v, r.Job); err != nil {
			return err
		}
		return loadTasks(v, r.Job, 0, func(t *procpb.Task) bool {
			if len(r.Indices) == 0 || slices.Contains(r.Indices, t.Index) {
				reply.Tasks = append(reply.Tasks, t)
			}
			return true
		})
	}); err != nil {
		return cluster.LeaderHint(err)
	}
	l, err := s.leader(ctx, op)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	defer s.mu.Unlock()
	s.explain(l, reply)
	return respond(reply)
}

// explainMax is how many tasks of a job are explained: the others wait as they
// do.
const explainMax = 8

// explain adds why tasks wait. The caller holds mu.
func (s *Server) explain(l *leadership, reply *procpb.InspectReply) {
	j := l.model.jobs[reply.Job.Id]
	if j == nil {
		return
	}
	now := s.opt.Clock.Boot()
	snap, who, _ := s.snapshot(l, now)
	for _, t := range reply.Tasks {
		tm := j.tasks[t.Index]
		if tm == nil || Over(t.State) || t.State == procpb.State_RUNNING || len(reply.Explanations) >= explainMax {
			continue
		}
		e := &procpb.Explanation{Index: t.Index, Why: tm.why}
		if len(j.row.BlockedBy) > 0 {
			e.Why = fmt.Sprintf("waits for job %d", j.row.BlockedBy[0])
		}
		if tm.attempt != nil {
			t.State = procpb.State_RESERVING
		}
		for _, r := range tm.gang.Refusals {
			e.Refusals = append(e.Refusals, &procpb.Refusal{Node: uint64(r.Node), Reason: r.Reason, Count: uint32(r.Count), AtNs: int64(r.At)})
		}
		if at := slices.IndexFunc(who, func(a *attempt) bool { return a.task == tm }); at >= 0 {
			for _, r := range sched.Explain(snap, sched.GangID(at+1)) {
				if r.Holder != 0 {
					held := who[r.Holder-1]
					r.Why += fmt.Sprintf(" (job %v)", TaskName(held.job.spec, held.job.row.Id, held.task.row.Index))
				}
				e.Nodes = append(e.Nodes, &procpb.NodeReason{Node: uint64(r.Node), Name: r.Name, Room: r.Room, Why: r.Why})
			}
		}
		reply.Explanations = append(reply.Explanations, e)
	}
}

func (s *Server) serveKill(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("proc.Kill")
	var r procpb.KillRequest
	if err := parse(op, req.Header, &r); err != nil {
		return wire.Response{}, err
	}
	if r.Signal == 0 || r.Signal > 64 {
		return wire.Response{}, sys.E(op, sys.Invalid, fmt.Sprintf("there is no signal %d", r.Signal))
	}
	res, err := s.kill(ctx, &r)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return respond(res)
}

func (s *Server) kill(ctx context.Context, r *procpb.KillRequest) (*procpb.Result, error) {
	const op = sys.Op("proc.Kill")
	l, err := s.leader(ctx, op)
	if err != nil {
		return nil, err
	}
	j := l.model.jobs[r.Job]
	concerned := func(t *taskModel) bool { return len(r.Indices) == 0 || slices.Contains(r.Indices, t.row.Index) }
	if j != nil && j.submit != nil {
		s.mu.Unlock()
		return nil, noJob(op, r.Job) // nobody has been told its number yet
	}
	if j == nil {
		s.mu.Unlock()
		_, err := s.news(ctx, &procpb.WaitRequest{Job: r.Job, Version: 1})
		return &procpb.Result{}, err // it has ended, or never was
	}
	if r.Signal != sigTerm && r.Signal != sigKill {
		defer s.mu.Unlock()
		res := &procpb.Result{}
		for _, t := range j.tasks {
			if concerned(t) && t.row.State == procpb.State_RUNNING {
				s.signal(t.row, r.Signal, 0)
				res.Count++
			}
		}
		return res, nil
	}
	// What is about to start must not start after this has been answered.
	j.stops++
	var open []*attempt
	for _, t := range j.tasks {
		if a := t.attempt; a != nil && concerned(t) {
			open = append(open, a)
			if a.tx != (commit.Tx{}) {
				if err := l.coord.Abort(a.tx, "ended by "+r.By); err != nil {
					s.opt.Logger.Debug("too late to abort: it is ended as soon as it has started", "err", err)
				}
			}
		}
	}
	s.pump(l)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		j.stops--
		l.model.dirty = true
		s.mu.Unlock()
		signal(s.wake)
	}()
	for _, a := range open {
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, sys.E(op, sys.Interrupted, ctx.Err())
		case <-s.ctx.Done():
			return nil, errStopping(op)
		}
	}
	res, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: r.Job, Indices: r.Indices, Signal: r.Signal, By: r.By}}})
	return res, err
}

func (s *Server) serveNodes(ctx context.Context, _ *wire.Request) (wire.Response, error) {
	l, err := s.leader(ctx, "proc.Nodes")
	if err != nil {
		return cluster.LeaderHint(err)
	}
	defer s.mu.Unlock()
	now := s.opt.Clock.Boot()
	used := l.model.reserved()
	reply := &procpb.NodesReply{}
	for id, n := range l.model.nodes {
		i := &procpb.NodeInfo{Node: n.row, Used: &procpb.Resources{CpuMilli: used[id].CPU, Memory: used[id].Memory},
			Processes: uint32(n.processes), HeardNs: -1, Alive: n.alive(now)}
		if n.heard > 0 {
			i.HeardNs = int64(now - n.heard)
		}
		reply.Nodes = append(reply.Nodes, i)
	}
	slices.SortFunc(reply.Nodes, func(a, b *procpb.NodeInfo) int { return cmp.Compare(a.Node.Id, b.Node.Id) })
	return respond(reply)
}

func (s *Server) serveDrain(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var r procpb.DrainRequest
	if err := parse("proc.Drain", req.Header, &r); err != nil {
		return wire.Response{}, err
	}
	res, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_Drain{Drain: &procpb.Drain{Node: r.Node, On: r.On}}})
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return respond(res)
}
