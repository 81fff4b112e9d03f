package proctest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// call begins a call: it counts it, and locks the table (see lock).
func (t *Table) call(method string) error {
	t.change(func() { t.calls[method]++ })
	return t.lock()
}

// lock locks the table, unless something is wrong with everything.
func (t *Table) lock() error {
	t.mu.Lock()
	if err := t.trouble; err != nil {
		t.mu.Unlock()
		return err
	}
	return nil
}

func none(id uint64) error {
	return sys.E(sys.NotExist, sys.Subject(fmt.Sprintf("job %d", id)), "there is no such job")
}

// Submit is proc.Client's: the tasks are queued.
func (t *Table) Submit(_ context.Context, spec *procpb.Spec) (uint64, error) {
	if err := t.call("Submit"); err != nil {
		return 0, err
	}
	t.mu.Unlock()
	var id uint64
	t.change(func() {
		id = uint64(len(t.jobs) + 1)
		j := &job{spec: spec, version: map[uint32]uint64{}, spools: map[spool]*spooled{}, row: &procpb.Job{Id: id, SubmittedNs: time.Now().UnixNano()}}
		for i := spec.First; i <= spec.Last; i++ {
			j.tasks = append(j.tasks, &procpb.Task{Job: id, Index: i, State: procpb.State_QUEUED})
			j.version[i] = 1
		}
		j.row.Tasks = uint32(len(j.tasks))
		j.touch(j.tasks[0])
		j.row.Version = 1
		t.jobs[id] = j
	})
	return id, nil
}

// List is proc.Client's, with pages of at most 1,000 jobs.
func (t *Table) List(_ context.Context, req *procpb.ListRequest) (*procpb.ListReply, error) {
	if err := t.call("List"); err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	limit := int(req.Limit)
	if limit == 0 {
		limit = 1000
	}
	r := &procpb.ListReply{}
	for id := uint64(len(t.jobs)); id > 0; id-- {
		j := t.jobs[id]
		if req.Below != 0 && id >= req.Below || !req.All && proc.Over(j.row.State) || req.User != "" && j.spec.User.Name != req.User {
			continue
		}
		if len(r.Jobs) == limit {
			r.More = true
			break
		}
		info := &procpb.JobInfo{Job: j.row.CloneVT(), Name: j.spec.Name, Argv: j.spec.Argv, User: j.spec.User.GetName(), Size: j.spec.Size}
		for _, k := range j.tasks {
			for _, p := range k.Procs {
				if !slices.Contains(info.Nodes, p.Node) {
					info.Nodes = append(info.Nodes, p.Node)
				}
			}
		}
		if len(j.explain) > 0 {
			info.Why = j.explain[0].Why
		}
		r.Jobs = append(r.Jobs, info)
	}
	return r, nil
}

// Wait is proc.Client's.
func (t *Table) Wait(ctx context.Context, req *procpb.WaitRequest) (*procpb.WaitReply, error) {
	name := "Wait"
	if req.Seen {
		name = "Seen"
	}
	if err := t.call(name); err != nil {
		return nil, err
	}
	for {
		j, changed := t.jobs[req.Job], t.changed
		if j == nil {
			t.mu.Unlock()
			return nil, none(req.Job)
		}
		if j.row.Version > req.Version || req.Seen {
			r := &procpb.WaitReply{Job: j.row.CloneVT()}
			if req.Version == 0 {
				r.Spec = j.spec
			}
			for _, k := range j.tasks {
				if req.Tasks && j.version[k.Index] > req.Version {
					r.Tasks = append(r.Tasks, k.CloneVT())
				}
			}
			r.Ended = j.ended(r.Tasks)
			t.mu.Unlock()
			return r, nil
		}
		t.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, sys.E(sys.Interrupted, ctx.Err())
		}
		if err := t.lock(); err != nil {
			return nil, err
		}
	}
}

// ended are the processes of these tasks that have, as far as their nodes have what they wrote.
func (j *job) ended(tasks []*procpb.Task) (ended []*procpb.Report) {
	for _, k := range tasks {
		for rank, p := range k.Procs {
			s := j.spool(k.Index, uint32(rank))
			if proc.Over(p.State) && s != nil && s.ended && !s.gone {
				ended = append(ended, &procpb.Report{Job: j.row.Id, Index: k.Index, Rank: uint32(rank), Epoch: k.Epoch, Node: p.Node,
					Stdout: slices.Clone(s.out), Stderr: slices.Clone(s.err)})
			}
		}
	}
	return ended
}

// Inspect is proc.Client's.
func (t *Table) Inspect(_ context.Context, req *procpb.InspectRequest) (*procpb.InspectReply, error) {
	if err := t.call("Inspect"); err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	j := t.jobs[req.Job]
	if j == nil {
		return nil, none(req.Job)
	}
	r := &procpb.InspectReply{Job: j.row.CloneVT(), Spec: j.spec, Explanations: j.explain}
	for _, k := range j.tasks {
		if len(req.Indices) == 0 || slices.Contains(req.Indices, k.Index) {
			r.Tasks = append(r.Tasks, k.CloneVT())
		}
	}
	return r, nil
}

// Kill is proc.Client's. What runs goes on: the test ends it.
func (t *Table) Kill(_ context.Context, req *procpb.KillRequest) (int, error) {
	if err := t.call("Kill"); err != nil {
		return 0, err
	}
	j := t.jobs[req.Job]
	t.mu.Unlock()
	if j == nil {
		return 0, none(req.Job)
	}
	n := 0
	t.change(func() {
		t.kills = append(t.kills, req)
		for _, k := range j.tasks {
			if proc.Over(k.State) || len(req.Indices) > 0 && !slices.Contains(req.Indices, k.Index) {
				continue
			}
			n++
			if k.State != procpb.State_RUNNING && (req.Signal == 9 || req.Signal == 15) {
				k.State, k.ExitCode = procpb.State_KILLED, 128+req.Signal
				j.touch(k)
			}
		}
	})
	return n, nil
}

// Nodes is proc.Client's.
func (t *Table) Nodes(context.Context) (*procpb.NodesReply, error) {
	if err := t.call("Nodes"); err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	return &procpb.NodesReply{Nodes: t.nodes}, nil
}

// Drain is proc.Client's.
func (t *Table) Drain(_ context.Context, node sys.NodeID, on bool) error {
	if err := t.call("Drain"); err != nil {
		return err
	}
	defer t.mu.Unlock()
	t.drains[node] = on
	return nil
}

// node finds a process at its node. The table is locked when it succeeds.
func (t *Table) node(node sys.NodeID, id uint64, y spool) (*spooled, error) {
	if err := t.lock(); err != nil {
		return nil, err
	}
	if t.away[node] {
		t.mu.Unlock()
		return nil, sys.E(sys.Unavailable, sys.Subject(node.String()), "the node cannot be reached")
	}
	return t.jobs[id].spools[y], nil
}

// Output is proc.Client's.
func (t *Table) Output(ctx context.Context, node sys.NodeID, req *procpb.OutputRequest) (*procpb.OutputReply, error) {
	t.change(func() { t.calls["Output"]++ })
	for {
		s, err := t.node(node, req.Job, spool{req.Index, req.Rank, req.Epoch})
		if err != nil {
			return nil, err
		}
		if s == nil || s.gone {
			t.mu.Unlock()
			return &procpb.OutputReply{Gone: true}, nil
		}
		r := &procpb.OutputReply{Stdout: slices.Clone(s.out[req.Stdout:]), Stderr: slices.Clone(s.err[req.Stderr:]), Final: s.ended}
		if r.Final {
			r.Process = s.process.CloneVT()
		}
		changed := t.changed
		t.mu.Unlock()
		if r.Final || len(r.Stdout) > 0 || len(r.Stderr) > 0 || req.WaitNs == 0 {
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, sys.E(sys.Interrupted, ctx.Err())
		}
	}
}

// Stdin is proc.Client's.
func (t *Table) Stdin(_ context.Context, node sys.NodeID, req *procpb.StdinRequest, data []byte) (*procpb.StdinReply, error) {
	s, err := t.node(node, req.Job, spool{req.Index, req.Rank, req.Epoch})
	if err != nil {
		return nil, err
	}
	t.mu.Unlock()
	r := &procpb.StdinReply{}
	t.change(func() {
		if skip := int64(len(s.in)) - req.Offset; skip > 0 { // sent before
			data = data[min(skip, int64(len(data))):]
		}
		if s.perRequest > 0 {
			data = data[:min(len(data), s.perRequest)]
		}
		if !s.closed {
			s.in = append(s.in, data...)
			s.inEnd = s.inEnd || req.End
		}
		r.Offset, r.Closed = int64(len(s.in)), s.closed
	})
	return r, nil
}
