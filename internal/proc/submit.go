package proc

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// submit makes a job, once for a request.
func (c *command) submit(s *procpb.Submit) *procpb.Result {
	const op = sys.Op("proc.Submit")
	if len(s.Request) != 16 {
		return refused(sys.E(op, sys.Invalid, "a request has 16 bytes"))
	}
	request := append([]byte{rowRequest}, s.Request...)
	if id := number(c.get(request)); id != 0 {
		return &procpb.Result{Job: id}
	}
	if err := Check(s.Spec); err != nil {
		return refused(err)
	}
	spec := s.Spec.CloneVT()
	blockers, doomed, err := c.blockers(spec)
	if err != nil {
		return refused(err)
	}
	last := number(c.get([]byte{rowLast}))
	id := s.Job
	if id == 0 || c.get(key(rowJob, id)) != nil {
		id = last + 1
	}
	c.tx.Set([]byte{rowLast}, binary.BigEndian.AppendUint64(nil, max(last, id)))
	c.tx.Set(request, binary.BigEndian.AppendUint64(nil, id))
	c.tx.Set(key(rowActive, id), nil)
	c.delta.specs = map[uint64]*procpb.Spec{id: spec.CloneVT()}
	c.before(id, 0)
	if len(spec.Items) > 0 {
		c.tx.Set(key(rowItems, id), pb.Marshal(&procpb.Spec{Items: spec.Items, NearItems: spec.NearItems}))
		spec.Items, spec.NearItems = nil, nil
	}
	c.tx.Set(key(rowSpec, id), pb.Marshal(spec))
	j := &procpb.Job{Id: id, SubmittedNs: c.now, Tasks: uint32(tasksOf(spec)), Request: s.Request, Version: FirstVersion}
	state := procpb.State_QUEUED
	switch {
	case doomed != nil:
		state = procpb.State_CANCELLED
	case len(blockers) > 0:
		state = procpb.State_WAITING
	}
	*count(j, state) = j.Tasks
	for i := spec.First; i-spec.First < j.Tasks; i++ {
		t := &procpb.Task{Job: id, Index: i, State: state, Version: j.Version}
		if doomed != nil {
			t.EndedNs, t.Why = c.now, doomedBy(doomed)
		}
		c.tx.Set(key(rowTask, id, uint64(i)), pb.Marshal(t))
		c.delta.tasks = append(c.delta.tasks, t)
	}
	for _, b := range blockers {
		b.Blocks = append(b.Blocks, id)
		c.putJob(b)
		j.BlockedBy = append(j.BlockedBy, b.Id)
	}
	c.saveJob(j)
	return &procpb.Result{Job: id}
}

// blockers are the jobs that a new one has to wait for. doomed is one that has
// failed already and should not have.
func (c *command) blockers(spec *procpb.Spec) (wait []*procpb.Job, doomed *procpb.Job, err error) {
	for i, a := range spec.After {
		j := c.job(a.Job)
		if j == nil {
			return nil, nil, sys.E(sys.Op("proc.Submit"), sys.NotExist, sys.Subject(fmt.Sprintf("job %d", a.Job)), "there is no such job to wait for (koinon ps -a lists those that there are)")
		}
		again := slices.ContainsFunc(spec.After[:i], func(o *procpb.After) bool { return o.Job == a.Job })
		switch {
		case !Over(j.State) && !again:
			wait = append(wait, j)
		case Over(j.State) && j.State != procpb.State_EXITED && !a.Any:
			doomed = j
		}
	}
	return wait, doomed, nil
}

func doomedBy(j *procpb.Job) string {
	return fmt.Sprintf("job %d, whose success it waited for, ended as %s", j.Id, strings.ToLower(j.State.String()))
}

// unblock takes a job that has ended from what another one waits for.
func (c *command) unblock(id uint64, ended *procpb.Job) {
	j := c.job(id)
	if j == nil || Over(j.State) {
		return
	}
	j.BlockedBy = slices.DeleteFunc(j.BlockedBy, func(b uint64) bool { return b == ended.Id })
	next, why := procpb.State_QUEUED, ""
	switch {
	case ended.State != procpb.State_EXITED && needsSuccess(c.spec(id), ended.Id):
		next, why = procpb.State_CANCELLED, doomedBy(ended)
	case len(j.BlockedBy) > 0:
		j.Version++
		c.putJob(j)
		return
	}
	c.moveAll(j, procpb.State_WAITING, next, why)
}

func needsSuccess(s *procpb.Spec, job uint64) bool {
	return slices.ContainsFunc(s.After, func(a *procpb.After) bool { return a.Job == job && !a.Any })
}

// moveAll moves the tasks of one state to another one, and writes the job.
func (c *command) moveAll(j *procpb.Job, from, to procpb.State, why string) {
	j.Version++
	var moved []*procpb.Task
	if err := loadTasks(c.tx, j.Id, 0, func(t *procpb.Task) bool {
		if t.State == from {
			moved = append(moved, t)
		}
		return true
	}); err != nil {
		return
	}
	for _, t := range moved {
		t.State, t.Version, t.Why = to, j.Version, why
		if Over(to) {
			t.EndedNs = c.now
		}
		c.tx.Set(key(rowTask, t.Job, uint64(t.Index)), pb.Marshal(t))
		c.delta.tasks = append(c.delta.tasks, t)
	}
	*count(j, from) -= uint32(len(moved))
	*count(j, to) += uint32(len(moved))
	c.saveJob(j)
}

// refuse ends what waits of a job that can never run.
func (c *command) refuse(r *procpb.Refuse) *procpb.Result {
	j := c.job(r.Job)
	if j == nil || Over(j.State) {
		return &procpb.Result{}
	}
	if j.ExitCode == 0 {
		j.ExitCode = ExitTrouble
	}
	c.moveAll(j, procpb.State_QUEUED, procpb.State_FAILED, r.Why)
	return &procpb.Result{}
}

// kill takes what waits out of the queue, and notes what is to be ended.
func (c *command) kill(k *procpb.Kill) *procpb.Result {
	j := c.job(k.Job)
	if j == nil {
		return refused(noJob("proc.Kill", k.Job))
	}
	if k.Signal != sigTerm && k.Signal != sigKill {
		return refused(sys.E(sys.Op("proc.Kill"), sys.Invalid, fmt.Sprintf("signal %d ends nothing for good", k.Signal)))
	}
	var tasks []*procpb.Task
	if err := loadTasks(c.tx, k.Job, 0, func(t *procpb.Task) bool {
		if !Over(t.State) && (len(k.Indices) == 0 || slices.Contains(k.Indices, t.Index)) {
			tasks = append(tasks, t)
		}
		return true
	}); err != nil {
		return &procpb.Result{}
	}
	for _, t := range tasks {
		if k.TimedOut && t.State != procpb.State_RUNNING {
			continue
		}
		t.Killer = k.By
		if t.State != procpb.State_RUNNING {
			t.ExitCode, t.Why = 128+k.Signal, "taken out of the queue by "+k.By
			c.setTask(j, t, procpb.State_KILLED)
			continue
		}
		t.TimedOut = k.TimedOut
		if t.Signal != sigKill { // which nothing takes back
			t.Signal = k.Signal
		}
		c.saveTask(j, t)
	}
	return &procpb.Result{Count: uint32(len(tasks))}
}

// The signals that end a task for good (signal(7)).
const (
	sigKill = 9
	sigTerm = 15
)

func noJob(op sys.Op, id uint64) error {
	return sys.E(op, sys.NotExist, sys.Subject(fmt.Sprintf("job %d", id)), "there is no such job (any more): koinon ps -a lists those that there are")
}
