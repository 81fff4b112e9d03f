package koinon

import (
	"slices"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
)

// State is what became of a job, a task or a process.
type State string

// The states; those from StateExited on are ends.
const (
	StateWaiting   State = "waiting"   // for other jobs
	StateQueued    State = "queued"    // for resources, or between two tries
	StateReserving State = "reserving" // nodes are being asked
	StateRunning   State = "running"
	StateExited    State = "exited"    // with 0
	StateFailed    State = "failed"    // with another code, or it could not be started
	StateKilled    State = "killed"    // by somebody, or by its timeout
	StateLost      State = "lost"      // with its node
	StateCancelled State = "cancelled" // never run: what it waited for failed
)

func newState(s procpb.State) State { return State(strings.ToLower(s.String())) }

// Over says whether the state is an end.
func (s State) Over() bool {
	switch s {
	case StateExited, StateFailed, StateKilled, StateLost, StateCancelled:
		return true
	}
	return false
}

// Job is a row of the process table.
type Job struct {
	ID uint64 `json:"id"`
	// Part is the task or the process, such as "17.4" or "17:1", that State,
	// ExitCode, times and Tasks are of; empty for the job as a whole.
	Part    string   `json:"part,omitempty"`
	Name    string   `json:"name,omitempty"`
	Command []string `json:"command"`
	User    string   `json:"user"`
	// State is that of the task furthest from its end; when all have ended the
	// worst.
	State State `json:"state"`
	// ExitCode is that of the task with the lowest index that failed, also while
	// others run; 0 when all exited with 0; nil when there is none: no task has
	// failed yet, was started, or is known how it ended.
	ExitCode  *int       `json:"exit_code,omitempty"`
	Submitted time.Time  `json:"submitted"`
	Started   *time.Time `json:"started,omitempty"` // the first task
	Ended     *time.Time `json:"ended,omitempty"`
	Size      int        `json:"size"` // processes of a task
	Array     bool       `json:"array"`
	Tasks     TaskCounts `json:"tasks"`
	BlockedBy []uint64   `json:"blocked_by,omitempty"` // jobs that it still waits for
	Cut       int        `json:"cut,omitempty"`        // processes that have ended whose output is not whole
	// Nodes are where it runs or ran, and Why is why it waits. Jobs tells both,
	// other methods do not.
	Nodes []uint64 `json:"nodes,omitempty"`
	Why   string   `json:"why,omitempty"`
}

// TaskCounts says how many tasks of a job are in each state.
type TaskCounts struct {
	Total     int `json:"total"`
	Waiting   int `json:"waiting"`
	Queued    int `json:"queued"`
	Running   int `json:"running"`
	Exited    int `json:"exited"`
	Failed    int `json:"failed"`
	Killed    int `json:"killed"`
	Lost      int `json:"lost"`
	Cancelled int `json:"cancelled"`
}

// Ended is how many tasks have ended.
func (c TaskCounts) Ended() int { return c.Exited + c.Failed + c.Killed + c.Lost + c.Cancelled }

// ExitTrouble is the exit code for trouble that is not the process's own.
const ExitTrouble = proc.ExitTrouble

// Exit is the exit code that stands for the job's end: 0 when all tasks exited
// with 0, else that of the first that did not; ExitTrouble for what was lost or
// never run, and for a job that has not ended.
func (j *Job) Exit() int {
	if j.State == StateExited {
		return 0
	}
	if !j.State.Over() || j.ExitCode == nil || *j.ExitCode == 0 {
		return ExitTrouble
	}
	return *j.ExitCode
}

// exitCode is the exit code of what is in a state, nil when it has none: it has
// not ended, was never run, or nobody knows how it ended. Of an array some may
// have failed before that; 0 and ExitTrouble are what the table says otherwise.
func exitCode(s State, code uint32) *int {
	if s != StateExited && code == 0 || s == StateLost && code == ExitTrouble {
		return nil
	}
	n := int(code)
	return &n
}

func newJob(j *procpb.Job) Job {
	return Job{
		ID: j.GetId(), State: newState(j.GetState()), ExitCode: exitCode(newState(j.GetState()), j.GetExitCode()), BlockedBy: j.GetBlockedBy(), Cut: int(j.GetCut()),
		Submitted: time.Unix(0, j.GetSubmittedNs()), Started: moment(j.GetStartedNs()), Ended: moment(j.GetEndedNs()),
		Tasks: TaskCounts{
			Total: int(j.GetTasks()), Waiting: int(j.GetWaiting()), Queued: int(j.GetQueued()), Running: int(j.GetRunning()),
			Exited: int(j.GetExited()), Failed: int(j.GetFailed()), Killed: int(j.GetKilled()), Lost: int(j.GetLost()), Cancelled: int(j.GetCancelled()),
		},
	}
}

// specified is a job with what its specification says.
func specified(j *procpb.Job, s *procpb.Spec) Job {
	job := newJob(j)
	job.Name, job.Command, job.User = s.GetName(), s.GetArgv(), s.GetUser().GetName()
	job.Size, job.Array = int(s.GetSize()), s.GetArray()
	return job
}

func listedJob(i *procpb.JobInfo) Job {
	job := newJob(i.GetJob())
	job.Name, job.Command, job.User, job.Size = i.GetName(), i.GetArgv(), i.GetUser(), int(i.GetSize())
	job.Array = job.Tasks.Total > 1
	job.Nodes, job.Why = i.GetNodes(), i.GetWhy()
	return job
}

// moment is a time in ns since the epoch, nil for 0.
func moment(ns int64) *time.Time {
	if ns == 0 {
		return nil
	}
	t := time.Unix(0, ns)
	return &t
}

// Task is one of a job's, as of its latest try.
type Task struct {
	Name      string     `json:"name"` // JOB, or JOB.INDEX in an array
	Index     int        `json:"index"`
	Item      string     `json:"item,omitempty"` // what {} stands for
	State     State      `json:"state"`
	Try       int        `json:"try"`                 // counts from 1; 0 before the first, or where none could be started
	Why       string     `json:"why,omitempty"`       // why it was placed where it is, or ended as it did
	ExitCode  *int       `json:"exit_code,omitempty"` // of the first rank that failed, 0 when all exited with 0; nil as in Job
	Killer    string     `json:"killer,omitempty"`
	TimedOut  bool       `json:"timed_out,omitempty"`
	Lost      int        `json:"lost,omitempty"`   // how many tries were lost with a node
	Placed    string     `json:"placed,omitempty"` // why the latest try was placed where it is
	Started   *time.Time `json:"started,omitempty"`
	Ended     *time.Time `json:"ended,omitempty"`
	Processes []Process  `json:"processes"`
}

// Process is a member of a task's gang.
type Process struct {
	Name      string        `json:"name"` // the task's, with :RANK in a gang
	Rank      int           `json:"rank"`
	Node      uint64        `json:"node"`
	PID       int           `json:"pid,omitempty"`
	State     State         `json:"state"`
	ExitCode  *int          `json:"exit_code,omitempty"` // nil when it has not ended, or nobody knows how
	Signal    int           `json:"signal,omitempty"`    // that ended it
	Why       string        `json:"why,omitempty"`
	OOM       bool          `json:"oom,omitempty"` // killed for want of memory
	Cut       string        `json:"cut,omitempty"` // why what it printed is not whole
	Started   *time.Time    `json:"started,omitempty"`
	Ended     *time.Time    `json:"ended,omitempty"`
	CPU       time.Duration `json:"cpu_ns"`     // user and system
	MemoryMax int64         `json:"memory_max"` // the most at once, bytes; 0 when not known
	Files     string        `json:"files"`      // directory in the tree with stdout, stderr and status
}

func newTask(spec *procpb.Spec, t *procpb.Task) Task {
	task := Task{
		Name: proc.TaskName(spec, t.Job, t.Index).String(), Index: int(t.Index), State: newState(t.State), Try: int(t.Epoch - t.Unstarted),
		Why: t.Why, ExitCode: exitCode(newState(t.State), t.ExitCode), Killer: t.Killer, TimedOut: t.TimedOut, Lost: int(t.Lost), Placed: t.Placed,
		Started: moment(t.StartedNs), Ended: moment(t.EndedNs), Processes: []Process{},
	}
	if i := int(t.Index); i < len(spec.GetItems()) {
		task.Item = spec.Items[i]
	}
	if !slices.ContainsFunc(t.Procs, func(p *procpb.Process) bool { return !p.Unstarted }) { // as if there had been none
		task.Started = nil
		return task
	}
	for rank, p := range t.Procs {
		name := proc.ProcessName(spec, t.Job, t.Index, uint32(rank))
		task.Processes = append(task.Processes, Process{
			Name: name.String(), Rank: rank, Node: p.Node, PID: int(p.Pid), State: newState(p.State),
			ExitCode: exitCode(newState(p.State), p.ExitCode), Signal: int(p.Signal), Why: p.Why, OOM: p.Oom, Cut: p.Cut, Started: moment(p.StartedNs), Ended: moment(p.EndedNs), CPU: time.Duration(p.CpuNs), MemoryMax: p.RssMax,
			Files: proc.FilesDir(name),
		})
	}
	return task
}

// JobDetails is everything about a job.
type JobDetails struct {
	Job
	Spec     JobSpec       `json:"spec"`
	TaskList []Task        `json:"task_list"`
	Waiting  []Explanation `json:"waiting"` // why tasks wait
}

// Explanation says why a task waits.
type Explanation struct {
	Task     string       `json:"task"`
	Why      string       `json:"why"`
	Nodes    []NodeReason `json:"nodes,omitempty"`
	Refusals []Refusal    `json:"refusals,omitempty"`
}

// NodeReason is what one node has to do with a task's waiting.
type NodeReason struct {
	Node uint64 `json:"node"`
	Name string `json:"name"`
	Room int    `json:"room"` // processes that would fit
	Why  string `json:"why,omitempty"`
}

// Refusal is a node that was asked to reserve, and did not.
type Refusal struct {
	Node   uint64    `json:"node"`
	Reason string    `json:"reason"`
	Count  int       `json:"count"`
	Last   time.Time `json:"last"`
}

func newJobDetails(r *procpb.InspectReply) *JobDetails {
	d := &JobDetails{Job: specified(r.GetJob(), r.GetSpec()), Spec: newJobSpec(r.GetSpec()), TaskList: []Task{}, Waiting: []Explanation{}}
	for _, t := range r.GetTasks() {
		d.TaskList = append(d.TaskList, newTask(r.Spec, t))
	}
	if len(d.TaskList) == 1 && !d.Array && d.TaskList[0].Started == nil { // it was placed where it could not be started
		d.Started = nil
	}
	for _, e := range r.GetExplanations() {
		x := Explanation{Task: proc.TaskName(r.Spec, d.ID, e.Index).String(), Why: e.Why}
		for _, n := range e.Nodes {
			x.Nodes = append(x.Nodes, NodeReason{Node: n.Node, Name: n.Name, Room: int(n.Room), Why: n.Why})
		}
		for _, f := range e.Refusals {
			x.Refusals = append(x.Refusals, Refusal{Node: f.Node, Reason: f.Reason, Count: int(f.Count), Last: time.Unix(0, f.AtNs)})
		}
		d.Waiting = append(d.Waiting, x)
	}
	return d
}
