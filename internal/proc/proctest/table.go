// Package proctest is a process table that does what a test says, for those who
// use one: nothing runs, and time does not pass. A [Table] has the methods of
// proc.Client.
package proctest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// Table is the table, and the nodes. Its methods may be called concurrently.
type Table struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced by every change
	jobs    map[uint64]*job
	nodes   []*procpb.NodeInfo
	kills   []*procpb.KillRequest
	drains  map[sys.NodeID]bool
	calls   map[string]int
	trouble error
	away    map[sys.NodeID]bool
}

type job struct {
	row     *procpb.Job
	spec    *procpb.Spec
	tasks   []*procpb.Task
	version map[uint32]uint64 // of each task's last change
	explain []*procpb.Explanation
	spools  map[spool]*spooled
}

type spool struct{ index, rank, epoch uint32 }

type spooled struct {
	out, err   []byte
	in         []byte
	inEnd      bool
	closed     bool // nobody reads
	ended      bool
	gone       bool
	process    *procpb.Process
	perRequest int // bytes of input taken at a time; 0: all
}

// New returns a table with nodes 1 to n.
func New(n int) *Table {
	t := &Table{changed: make(chan struct{}), jobs: map[uint64]*job{}, drains: map[sys.NodeID]bool{}, calls: map[string]int{}, away: map[sys.NodeID]bool{}}
	for id := uint64(1); id <= uint64(n); id++ {
		t.nodes = append(t.nodes, &procpb.NodeInfo{Alive: true, Used: &procpb.Resources{}, Node: &procpb.Node{
			Id: id, Name: "host" + string(rune('0'+id)), Capacity: &procpb.Resources{CpuMilli: 2000, Memory: 4 << 30}, Labels: []*procpb.Label{{Key: "arch", Value: "amd64"}}, Limits: "cgroup v2",
		}})
	}
	return t
}

// change is any change of the table.
func (t *Table) change(fn func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fn()
	close(t.changed)
	t.changed = make(chan struct{})
}

// Await returns when the condition holds, which is asked after every change.
func (t *Table) Await(ctx context.Context, holds func() bool) error {
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		if holds() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Job is a job as it is now; nil for none.
func (t *Table) Job(id uint64) *procpb.Job {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j := t.jobs[id]; j != nil {
		return j.row.CloneVT()
	}
	return nil
}

// Spec is what was submitted.
func (t *Table) Spec(id uint64) *procpb.Spec {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j := t.jobs[id]; j != nil {
		return j.spec
	}
	return nil
}

// Kills are the requests to kill so far.
func (t *Table) Kills() []*procpb.KillRequest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.kills)
}

// Drained says what was last asked for of a node.
func (t *Table) Drained(id sys.NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.drains[id]
}

// Calls counts the calls of a method.
func (t *Table) Calls(method string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls[method]
}

// Break has every call fail from now on; nil mends it.
func (t *Table) Break(err error) { t.change(func() { t.trouble = err }) }

// Away says whether a node can be reached.
func (t *Table) Away(id sys.NodeID, away bool) { t.change(func() { t.away[id] = away }) }

// Explain sets why a job waits.
func (t *Table) Explain(id uint64, why ...*procpb.Explanation) {
	t.change(func() { t.jobs[id].explain = why })
}

// Start has a task run on nodes, by rank: another try.
func (t *Table) Start(id uint64, index uint32, nodes ...uint64) {
	t.change(func() {
		j := t.jobs[id]
		k := j.task(index)
		k.Epoch++
		k.State, k.Procs, k.StartedNs = procpb.State_RUNNING, nil, time.Now().UnixNano()
		for rank, n := range nodes {
			p := &procpb.Process{Node: n, Pid: uint32(100 + rank), State: procpb.State_RUNNING, StartedNs: k.StartedNs}
			k.Procs = append(k.Procs, p)
			j.spools[spool{index, uint32(rank), k.Epoch}] = &spooled{process: p}
		}
		j.touch(k)
	})
}

// Write has a process write.
func (t *Table) Write(id uint64, index, rank uint32, stdout, stderr string) {
	t.change(func() {
		s := t.jobs[id].spool(index, rank)
		s.out = append(s.out, stdout...)
		s.err = append(s.err, stderr...)
	})
}

// End ends a process; with the last one of the gang ends the task.
func (t *Table) End(id uint64, index, rank, code uint32) {
	t.change(func() {
		j := t.jobs[id]
		k := j.task(index)
		p := k.Procs[rank]
		p.State, p.EndedNs, p.ExitCode = ended(code), time.Now().UnixNano(), code
		s := j.spool(index, rank)
		s.ended, s.closed = true, true
		if code != 0 && k.ExitCode == 0 {
			k.ExitCode = code
		}
		if !slices.ContainsFunc(k.Procs, func(p *procpb.Process) bool { return !proc.Over(p.State) }) {
			k.State, k.EndedNs = ended(k.ExitCode), p.EndedNs
		}
		j.touch(k)
	})
}

func ended(code uint32) procpb.State {
	if code == 0 {
		return procpb.State_EXITED
	}
	return procpb.State_FAILED
}

// Why has a process end for a reason in words.
func (t *Table) Why(id uint64, index, rank uint32, why string) {
	t.change(func() { t.jobs[id].task(index).Procs[rank].Why = why })
}

// Set gives a task a state, without a process doing anything.
func (t *Table) Set(id uint64, index uint32, state procpb.State, code uint32) {
	t.change(func() {
		j := t.jobs[id]
		k := j.task(index)
		k.State, k.ExitCode = state, code
		for y, s := range j.spools {
			s.ended = s.ended || y.index == index
		}
		j.touch(k)
	})
}

// Forget has the nodes forget what the processes of a task have written.
func (t *Table) Forget(id uint64, index uint32) {
	t.change(func() {
		for y, s := range t.jobs[id].spools {
			if y.index == index {
				s.gone = true
			}
		}
	})
}

// TakeInput has a process take at most so many bytes of its input at a time.
func (t *Table) TakeInput(id uint64, most int) {
	t.change(func() { t.jobs[id].spool(0, 0).perRequest = most })
}

// Input is what a process has been given to read, and whether that is all.
func (t *Table) Input(id uint64) (in string, end bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.jobs[id].spool(0, 0)
	return string(s.in), s.inEnd
}

func (j *job) task(index uint32) *procpb.Task { return j.tasks[index-j.spec.First] }

func (j *job) spool(index, rank uint32) *spooled {
	return j.spools[spool{index, rank, j.task(index).Epoch}]
}

// touch brings the job up to date with a changed task.
func (j *job) touch(k *procpb.Task) {
	r := j.row
	r.Version++
	j.version[k.Index] = r.Version
	r.Waiting, r.Queued, r.Running, r.Exited, r.Failed, r.Killed, r.Lost, r.Cancelled = 0, 0, 0, 0, 0, 0, 0, 0
	r.ExitCode = 0
	least, worst := procpb.State_CANCELLED, procpb.State_EXITED
	for _, t := range j.tasks {
		*map[procpb.State]*uint32{
			procpb.State_WAITING: &r.Waiting, procpb.State_QUEUED: &r.Queued, procpb.State_RUNNING: &r.Running, procpb.State_EXITED: &r.Exited,
			procpb.State_FAILED: &r.Failed, procpb.State_KILLED: &r.Killed, procpb.State_LOST: &r.Lost, procpb.State_CANCELLED: &r.Cancelled,
		}[t.State]++
		least, worst = min(least, t.State), max(worst, t.State)
		if r.ExitCode == 0 {
			r.ExitCode = t.ExitCode
		}
	}
	r.State = least
	if proc.Over(least) {
		r.State, r.EndedNs = worst, time.Now().UnixNano()
	}
	if r.StartedNs == 0 {
		r.StartedNs = k.StartedNs
	}
}
