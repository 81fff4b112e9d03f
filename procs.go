package koinon

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// Procs is the process table of a cluster: programs that run on its nodes.
// Somebody submits a job; a job is one task or an array of them; a task is a
// gang of processes that start together or not at all. Methods may be called
// concurrently. See docs/processes.md.
//
// Jobs, tasks and processes are named as the command line names them:
// JOB[.INDEX][:RANK], such as "17", "17.4", "17:1".
type Procs struct {
	c     ProcClient
	open  func(ctx context.Context) (*Client, error)
	close func() error
	user  func() *procpb.User // who submits

	mu   sync.Mutex
	tree *Client  // nil until it is needed
	last struct { // the job submitted last, which is followed often
		id   uint64
		spec *procpb.Spec
	}
}

// ProcClient is what Procs needs of the cluster.
type ProcClient interface {
	Submit(ctx context.Context, spec *procpb.Spec) (uint64, error)
	List(ctx context.Context, req *procpb.ListRequest) (*procpb.ListReply, error)
	Wait(ctx context.Context, req *procpb.WaitRequest) (*procpb.WaitReply, error)
	Inspect(ctx context.Context, req *procpb.InspectRequest) (*procpb.InspectReply, error)
	Kill(ctx context.Context, req *procpb.KillRequest) (int, error)
	Nodes(ctx context.Context) (*procpb.NodesReply, error)
	Drain(ctx context.Context, node sys.NodeID, on bool) error
	Output(ctx context.Context, node sys.NodeID, req *procpb.OutputRequest) (*procpb.OutputReply, error)
	Stdin(ctx context.Context, node sys.NodeID, req *procpb.StdinRequest, data []byte) (*procpb.StdinReply, error)
}

var _ ProcClient = (*proc.Client)(nil)

// OpenProcs begins to reach the cluster, through any of its nodes, and waits for
// nobody: the first request tells whether it can be reached. It opens no session.
// Close ends it; jobs go on.
func OpenProcs(_ context.Context, opt Options) (*Procs, error) {
	cfg, opt, err := opt.load()
	if err != nil {
		return nil, err
	}
	conn, err := client.ConnectProcs(cfg, opt.Logger)
	if err != nil {
		return nil, err
	}
	return &Procs{c: conn.Client, close: conn.Close, user: sync.OnceValue(submitter),
		open: func(ctx context.Context) (*Client, error) { return Open(ctx, opt) }}, nil
}

// NewProcs returns a Procs over a table and a tree that are there already; its
// Close leaves both alone. It is for Koinon's own programs and tests; others
// call OpenProcs.
func NewProcs(c ProcClient, tree *Client) *Procs {
	return &Procs{c: c, tree: tree, close: func() error { return nil }, user: submitter}
}

// Tree is the tree of the same cluster. It is opened when it is first asked
// for, and closed with the Procs.
func (p *Procs) Tree(ctx context.Context) (*Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tree != nil {
		return p.tree, nil
	}
	c, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	p.tree = c
	return c, nil
}

// Close leaves the cluster.
func (p *Procs) Close(ctx context.Context) error {
	p.mu.Lock()
	tree := p.tree
	p.mu.Unlock()
	var err error
	if tree != nil && p.open != nil {
		err = tree.Close(ctx)
	}
	return errors.Join(err, p.close())
}

// Submit makes a job and returns its number. What could never run is refused.
func (p *Procs) Submit(ctx context.Context, s JobSpec) (uint64, error) {
	spec, err := p.spec(ctx, &s)
	if err != nil {
		return 0, err
	}
	id, err := p.c.Submit(ctx, spec)
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last.id, p.last.spec = id, spec
	return id, nil
}

// submitted is what a job was submitted with here; nil when that is not known.
func (p *Procs) submitted(id uint64) *procpb.Spec {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.id != id {
		return nil
	}
	return p.last.spec
}

// ListJobs says which jobs to list. The zero value lists those that have not
// ended.
type ListJobs struct {
	Ended bool   // those that have, too
	User  string // only this one's, when not empty
	Below uint64 // only jobs with lower numbers; 0 is all
	Limit int    // of one page; 0 is as many as fit
}

// Jobs lists jobs, the newest first. next is the Below of the next page, 0 when
// this is the last.
func (p *Procs) Jobs(ctx context.Context, opt ListJobs) (jobs []Job, next uint64, err error) {
	r, err := p.c.List(ctx, &procpb.ListRequest{All: opt.Ended, User: opt.User, Below: opt.Below, Limit: uint32(max(0, opt.Limit))})
	if err != nil {
		return nil, 0, err
	}
	for _, info := range r.Jobs {
		jobs = append(jobs, listedJob(info))
	}
	if r.More && len(jobs) > 0 {
		next = jobs[len(jobs)-1].ID
	}
	return jobs, next, nil
}

// Inspect tells everything about a job; TaskList has only the tasks, and of them
// the processes, that name means.
func (p *Procs) Inspect(ctx context.Context, name string) (*JobDetails, error) {
	n, err := proc.ParseName(name)
	if err != nil {
		return nil, err
	}
	r, err := p.c.Inspect(ctx, &procpb.InspectRequest{Job: n.Job, Indices: indices(n)})
	if err != nil {
		return nil, err
	}
	if err := checkName(n, r.Spec); err != nil {
		return nil, err
	}
	d := newJobDetails(r)
	if n.Rank >= 0 {
		for i := range d.TaskList {
			t := &d.TaskList[i]
			t.Processes = slices.DeleteFunc(t.Processes, func(q Process) bool { return q.Rank != n.Rank })
		}
	}
	return d, nil
}

// indices are the tasks that a name means: none for all.
func indices(n proc.Name) []uint32 {
	if n.Index < 0 {
		return nil
	}
	return []uint32{uint32(n.Index)}
}

// Kill signals a job, or one task of an array. Signals 15 and 9 end it for
// good, also what waits; 15 is followed by 9 after the job's grace time. Other
// signals are passed on to what runs. by says who, for people. It returns how
// many tasks it concerned. One rank of a gang cannot be signalled alone.
func (p *Procs) Kill(ctx context.Context, name string, signal int, by string) (tasks int, err error) {
	n, err := proc.ParseName(name)
	if err != nil {
		return 0, err
	}
	if n.Rank >= 0 {
		return 0, sys.E(sys.Op("koinon.Kill"), sys.Invalid, sys.Subject(name), "the processes of a gang are signalled together: leave out :"+strconv.Itoa(n.Rank))
	}
	if signal < 1 || signal > signalMax {
		return 0, sys.E(sys.Op("koinon.Kill"), sys.Invalid, "a signal is a number from 1 to 64")
	}
	if n.Index >= 0 {
		if err := p.has(ctx, n); err != nil {
			return 0, err
		}
	}
	return p.c.Kill(ctx, &procpb.KillRequest{Job: n.Job, Indices: indices(n), Signal: uint32(signal), By: by})
}

// has refuses a name that a job has not.
func (p *Procs) has(ctx context.Context, n proc.Name) error {
	if spec := p.submitted(n.Job); spec != nil {
		return checkName(n, spec)
	}
	r, err := p.c.Wait(ctx, &procpb.WaitRequest{Job: n.Job}) // which of version 0 waits for nothing
	if err != nil {
		return err
	}
	return checkName(n, r.Spec)
}

// signalMax is the highest signal of Linux, which the nodes run.
const signalMax = 64

// ProcNode is a node as the process table knows it.
type ProcNode struct {
	ID        uint64            `json:"id"`
	Name      string            `json:"name"`
	Alive     bool              `json:"alive"`    // it has told of itself of late
	Draining  bool              `json:"draining"` // it takes nothing new
	CPUs      float64           `json:"cpus"`
	CPUsUsed  float64           `json:"cpus_reserved"`
	Memory    int64             `json:"memory"` // bytes
	MemUsed   int64             `json:"memory_reserved"`
	Processes int               `json:"processes"`
	Labels    map[string]string `json:"labels"`
	Mount     string            `json:"mount,omitempty"` // where the tree is mounted there
	Limits    string            `json:"limits"`          // what enforces limits, or why nothing does
}

// Nodes lists the nodes with what they have and what is reserved there.
func (p *Procs) Nodes(ctx context.Context) ([]ProcNode, error) {
	r, err := p.c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	nodes := make([]ProcNode, 0, len(r.Nodes))
	for _, i := range r.Nodes {
		n := i.GetNode()
		nodes = append(nodes, ProcNode{
			ID: n.GetId(), Name: n.GetName(), Alive: i.Alive, Draining: n.GetDraining(), Labels: proc.LabelMap(n.GetLabels()),
			CPUs: cpus(n.GetCapacity()), CPUsUsed: cpus(i.Used), Memory: n.GetCapacity().GetMemory(), MemUsed: i.GetUsed().GetMemory(),
			Processes: int(i.Processes), Mount: n.GetMount(), Limits: n.GetLimits(),
		})
	}
	return nodes, nil
}

func cpus(r *procpb.Resources) float64 { return float64(r.GetCpuMilli()) / milli }

// milli is how many thousandths of a CPU are one.
const milli = 1000

// Drain says whether a node takes new processes. What runs there goes on.
func (p *Procs) Drain(ctx context.Context, node uint64, on bool) error {
	return p.c.Drain(ctx, sys.NodeID(node), on)
}
