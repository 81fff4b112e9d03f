package proc

import (
	"fmt"
	"strings"

	"github.com/koinon/koinon/internal/meta/embedded"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// Machine is the process table as one namespace, replica.NSProc, of a group's
// state. The body of a command is a procpb.Command, its result a procpb.Result.
// Where the tree is in the same state, what the end of a process does to it is
// part of the same step: its files, and the outputs that appear. A Server of
// the same process hears through it what changes.
type Machine struct {
	hub *hub
	// treeApart says that the tree is in a database: then the leader changes it.
	treeApart bool
}

var _ rsm.Machine = (*Machine)(nil)

// NewMachine returns the machine of one host. treeApart says that the tree is
// not in the group's state.
func NewMachine(treeApart bool) *Machine { return &Machine{hub: newHub(), treeApart: treeApart} }

// Apply runs one command. What is not a command this version knows is refused,
// on every replica alike.
func (m *Machine) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) (result []byte, local any) {
	var t tree
	if !m.treeApart {
		t = &treeInState{tx: tx.In(rsm.NSMeta), st: st}
	}
	res, inos := m.apply(tx, t, st, body)
	return pb.Marshal(res), inos
}

// treeInState is the tree as a command of this namespace changes it.
type treeInState struct {
	tx   rsm.Tx
	st   rsm.Stamp
	inos []sys.Ino // that have changed
}

// Do implements tree.
func (t *treeInState) Do(cmd *metapb.Command) (*metapb.Result, error) {
	res, out := embedded.Run(t.tx, t.st, cmd)
	if out != nil {
		t.inos = append(t.inos, out.Inos...)
	}
	if res.Failure != nil {
		return nil, res.Failure.Err()
	}
	return res, nil
}

// Query implements tree.
func (t *treeInState) Query(q *metapb.Query) (*metapb.Answer, error) {
	a, err := embedded.Read(t.tx, q)
	if err != nil {
		return nil, err
	}
	if a.Failure != nil {
		return nil, a.Failure.Err()
	}
	return a, nil
}

// store is what a command reads and writes.
type store interface {
	rsm.Reader
	Set(key, value []byte)
	Delete(key []byte)
}

// apply runs a command; t is nil where the tree is elsewhere. It returns the
// inodes that it changed.
func (m *Machine) apply(tx store, t tree, st rsm.Stamp, body []byte) (*procpb.Result, []sys.Ino) {
	var cmd procpb.Command
	if err := pb.Unmarshal(body, &cmd); err != nil {
		return refused(sys.E(sys.Op("proc.Apply"), sys.Invalid, "not a command")), nil
	}
	c := &command{tx: tx, tree: t, now: st.TimeNs}
	res := c.run(&cmd)
	m.hub.publish(c.delta)
	if s, ok := t.(*treeInState); ok {
		return res, s.inos
	}
	return res, nil
}

func (c *command) run(cmd *procpb.Command) *procpb.Result {
	switch op := cmd.Op.(type) {
	case *procpb.Command_Submit:
		return c.submit(op.Submit)
	case *procpb.Command_Agree:
		return c.agree(op.Agree)
	case *procpb.Command_Began:
		return c.began(op.Began)
	case *procpb.Command_Ended:
		return c.ended(op.Ended)
	case *procpb.Command_Kill:
		return c.kill(op.Kill)
	case *procpb.Command_SetNode:
		return c.setNode(op.SetNode.GetNode())
	case *procpb.Command_LoseNode:
		return c.loseNode(op.LoseNode)
	case *procpb.Command_Drain:
		return c.drain(op.Drain)
	case *procpb.Command_Expire:
		return c.expire(op.Expire)
	case *procpb.Command_Refuse:
		return c.refuse(op.Refuse)
	}
	return refused(sys.E(sys.Op("proc.Apply"), sys.NotSupported, "not a command this node knows: are all nodes of one version?"))
}

// command is one command while it runs.
type command struct {
	tx    store
	tree  tree // nil: elsewhere
	now   int64
	delta delta

	at      processKey // whose files were written last
	home    uint64
	homeErr error
}

// processKey is which process something is about.
type processKey struct {
	job         uint64
	index, rank uint32
}

// delta is what a command has changed: whole rows, as it left them. They are
// not written to afterwards.
type delta struct {
	jobs  []*procpb.Job
	specs map[uint64]*procpb.Spec // of new jobs, with their items
	tasks []*procpb.Task
	nodes []*procpb.Node
	gone  []uint64          // jobs that are forgotten
	ended []*procpb.Report  // see toldOf
	from  map[uint64]uint64 // the versions that jobs had before, of those that were looked at
}

func refused(err error) *procpb.Result {
	return &procpb.Result{Failure: failureOf(err)}
}

// failureOf is an error as it is sent; Err the way back.
func failureOf(err error) *procpb.Failure {
	f := &procpb.Failure{Kind: uint32(sys.KindOf(err)), Cause: err.Error()}
	if e, ok := err.(*sys.Error); ok {
		f.Subject = string(e.Subject)
		if e.Err != nil {
			f.Cause = e.Err.Error()
		}
	}
	return f
}

// failed is the way back, nil for nil.
func failed(op sys.Op, f *procpb.Failure) error {
	if f == nil {
		return nil
	}
	if f.Subject == "" {
		return sys.E(op, sys.Kind(f.Kind), f.Cause)
	}
	return sys.E(op, sys.Kind(f.Kind), sys.Subject(f.Subject), f.Cause)
}

// get returns a row, nil when it is absent. Trouble of the engine is kept by
// the Tx, and the host stops: what the command does then does not count.
func (c *command) get(k []byte) []byte {
	v, err := c.tx.Get(k)
	if err != nil {
		return nil
	}
	return v
}

func (c *command) read(k []byte, row pb.Message) bool {
	ok, err := load(c.tx, k, row)
	return ok && err == nil
}

func (c *command) scan(lo, hi []byte, fn func(k, v []byte) bool) {
	if err := c.tx.Scan(lo, hi, fn); err != nil {
		return
	}
}

func (c *command) job(id uint64) *procpb.Job {
	j := &procpb.Job{}
	if !c.read(key(rowJob, id), j) {
		return nil
	}
	c.before(id, j.Version)
	return j
}

// before notes which version a job had before the command.
func (c *command) before(id, version uint64) {
	if _, noted := c.delta.from[id]; noted {
		return
	}
	if c.delta.from == nil {
		c.delta.from = map[uint64]uint64{}
	}
	c.delta.from[id] = version
}

func (c *command) task(job uint64, index uint32) *procpb.Task {
	t := &procpb.Task{}
	if !c.read(key(rowTask, job, uint64(index)), t) {
		return nil
	}
	return t
}

// spec is a job's specification without its items.
func (c *command) spec(job uint64) *procpb.Spec {
	s := &procpb.Spec{}
	c.read(key(rowSpec, job), s)
	return s
}

// item is what {} stands for in a task.
func (c *command) item(s *procpb.Spec, job uint64, index uint32) string {
	if s.Array && strings.Contains(s.Out, "{}") {
		items := &procpb.Spec{}
		c.read(key(rowItems, job), items)
		s = s.CloneVT()
		s.Items = items.Items
	}
	return Item(s, index)
}

// count is where a job counts its tasks of a state.
func count(j *procpb.Job, s procpb.State) *uint32 {
	switch s {
	case procpb.State_WAITING:
		return &j.Waiting
	case procpb.State_QUEUED:
		return &j.Queued
	case procpb.State_RUNNING:
		return &j.Running
	case procpb.State_EXITED:
		return &j.Exited
	case procpb.State_FAILED:
		return &j.Failed
	case procpb.State_KILLED:
		return &j.Killed
	case procpb.State_LOST:
		return &j.Lost
	case procpb.State_CANCELLED:
		return &j.Cancelled
	}
	panic(fmt.Sprintf("proc: expected a state that a row has, found %v", s))
}

// stateOf is the state of a job with such tasks.
func stateOf(j *procpb.Job) procpb.State {
	for _, s := range []procpb.State{
		procpb.State_RUNNING, procpb.State_QUEUED, procpb.State_WAITING, // not over
		procpb.State_LOST, procpb.State_FAILED, procpb.State_KILLED, procpb.State_CANCELLED,
	} {
		if *count(j, s) > 0 {
			return s
		}
	}
	return procpb.State_EXITED
}

// setTask writes a task that changes its state to s, and its job.
func (c *command) setTask(j *procpb.Job, t *procpb.Task, s procpb.State) {
	*count(j, t.State)--
	*count(j, s)++
	t.State = s
	if s == procpb.State_RUNNING && j.StartedNs == 0 {
		j.StartedNs = c.now
	}
	if Over(s) {
		t.EndedNs = c.now
		for _, p := range t.Procs {
			if p.Cut != "" {
				j.Cut++
			}
		}
		if t.ExitCode != 0 && (j.ExitCode == 0 || t.Index < j.ExitIndex) {
			j.ExitCode, j.ExitIndex = t.ExitCode, t.Index
		}
	}
	c.saveTask(j, t)
}

// saveTask writes a task that is to be seen as changed, and its job.
func (c *command) saveTask(j *procpb.Job, t *procpb.Task) {
	j.Version++
	t.Version = j.Version
	c.tx.Set(key(rowTask, t.Job, uint64(t.Index)), pb.Marshal(t))
	c.delta.tasks = append(c.delta.tasks, t)
	c.saveJob(j)
}

// saveJob writes a job, and ends it when all of its tasks have.
func (c *command) saveJob(j *procpb.Job) {
	j.State = stateOf(j)
	if Over(j.State) && j.EndedNs == 0 {
		j.EndedNs = c.now
		c.tx.Delete(key(rowActive, j.Id))
		c.tx.Set(key(rowEnded, uint64(j.EndedNs), j.Id), nil)
		blocks := j.Blocks
		j.Blocks = nil
		c.putJob(j)
		for _, id := range blocks {
			c.unblock(id, j)
		}
		return
	}
	c.putJob(j)
}

func (c *command) putJob(j *procpb.Job) {
	c.tx.Set(key(rowJob, j.Id), pb.Marshal(j))
	c.delta.jobs = append(c.delta.jobs, j.CloneVT())
}
