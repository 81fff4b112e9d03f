package proc

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// agree carries out a record of the coordinator's log. A commit starts a try of
// a task.
func (c *command) agree(a *procpb.Agree) *procpb.Result {
	r := commit.Record{Kind: commit.RecordKind(a.Kind), Tx: commit.Tx{Epoch: a.Epoch, Seq: a.Seq}}
	for _, p := range a.Parties {
		r.Parties = append(r.Parties, commit.Party(p))
	}
	t := &commit.Table{Epoch: number(c.get([]byte{rowEpoch}))}
	row := key(rowCommit, a.Epoch, a.Seq)
	raw := c.get(row)
	if raw != nil {
		t.Commits = []commit.Commit{{Tx: r.Tx, Parties: r.Parties}}
	}
	took := t.Apply(r)
	switch {
	case r.Kind == commit.RecordOpen:
		c.tx.Set([]byte{rowEpoch}, binary.BigEndian.AppendUint64(nil, t.Epoch))
	case raw == nil && len(t.Commits) > 0:
		if !c.submitted(a) {
			return &procpb.Result{Epoch: t.Epoch}
		}
		v := make([]byte, 0, 8*len(r.Parties))
		for _, p := range r.Parties {
			v = binary.BigEndian.AppendUint64(v, uint64(p))
		}
		c.tx.Set(row, v)
		c.start(a)
	case raw != nil && len(t.Commits) == 0:
		c.tx.Delete(row)
	}
	return &procpb.Result{Took: took, Epoch: t.Epoch}
}

// submitted makes the job that is to be started with it, if there is one; false when it cannot.
func (c *command) submitted(a *procpb.Agree) bool {
	if a.Submit == nil {
		return true
	}
	if a.Job == 0 || a.Submit.Job != a.Job || c.get(key(rowJob, a.Job)) != nil {
		return false
	}
	res := c.submit(a.Submit)
	return res.Failure == nil && res.Job == a.Job
}

// start makes a task run. One that does not wait to be started any more is left
// as it is: its nodes are told to stop what they start.
func (c *command) start(a *procpb.Agree) {
	j, t := c.job(a.Job), c.task(a.Job, a.Index)
	if j == nil || t == nil || t.State != procpb.State_QUEUED || t.Epoch+1 != a.Try {
		return
	}
	t.Epoch, t.StartedNs, t.EndedNs, t.ExitCode, t.Why, t.Placed, t.OutIno = a.Try, c.now, 0, 0, a.Why, a.Why, a.OutIno
	t.Procs = make([]*procpb.Process, len(a.Nodes))
	for rank, node := range a.Nodes {
		t.Procs[rank] = &procpb.Process{Node: node, State: procpb.State_RUNNING}
		c.tx.Set(key(rowOn, node, t.Job, uint64(t.Index)), nil)
	}
	c.setTask(j, t, procpb.State_RUNNING)
}

// reported finds the process that a node speaks of, nil when it is none that
// the table has as alive there: a report that comes twice or too late.
func (c *command) reported(r *procpb.Report) (*procpb.Task, *procpb.Process) {
	t := c.task(r.Job, r.Index)
	if t == nil || t.State != procpb.State_RUNNING || t.Epoch != r.Epoch || int(r.Rank) >= len(t.Procs) || r.Process == nil {
		return nil, nil
	}
	p := t.Procs[r.Rank]
	if p.Node != r.Node || Over(p.State) {
		return nil, nil
	}
	return t, p
}

func (c *command) began(b *procpb.Began) *procpb.Result {
	for _, r := range b.Reports {
		t, p := c.reported(r)
		if t == nil || p.StartedNs != 0 {
			continue
		}
		p.Pid, p.StartedNs = r.Process.Pid, r.Process.StartedNs
		c.recordStatus(t, r.Rank)
		c.saveTask(c.job(t.Job), t)
	}
	return &procpb.Result{}
}

// toldMax is how much a process may have printed to be told with its end, in bytes, so that its node need not be asked.
const toldMax = 4 << 10

// toldOf is what those who follow a job are told of the end of a process beside its row: what it has printed, or that this is
// recorded elsewhere.
func toldOf(r *procpb.Report) *procpb.Report {
	told := &procpb.Report{Job: r.Job, Index: r.Index, Rank: r.Rank, Epoch: r.Epoch, Node: r.Node, Recorded: true}
	if !r.Recorded && len(r.Stdout)+len(r.Stderr) <= toldMax {
		told.Stdout, told.Stderr, told.Recorded = r.Stdout, r.Stderr, false
	}
	return told
}

func (c *command) ended(e *procpb.Ended) *procpb.Result {
	for _, r := range e.Reports {
		t, p := c.reported(r)
		if t == nil {
			continue
		}
		q := r.Process
		p.Pid, p.StartedNs, p.EndedNs = q.Pid, q.StartedNs, max(q.EndedNs, 1)
		p.ExitCode, p.Signal, p.Why, p.Oom = q.ExitCode, q.Signal, q.Why, q.Oom
		p.CpuNs, p.RssMax, p.Unstarted, p.Cut = q.CpuNs, q.RssMax, q.Unstarted, q.Cut
		switch {
		case q.State == procpb.State_LOST:
			p.State = procpb.State_LOST
		case p.ExitCode == 0 && p.Signal == 0:
			p.State = procpb.State_EXITED
		case t.Signal != 0:
			p.State = procpb.State_KILLED
		default:
			p.State = procpb.State_FAILED
		}
		switch {
		case p.State == procpb.State_LOST: // whatever ended it then was Koinon's own
			p.ExitCode = ExitTrouble
		case p.Signal != 0:
			p.ExitCode = 128 + p.Signal
		}
		if !r.Recorded {
			c.recordOutput(t, r)
		}
		c.delta.ended = append(c.delta.ended, toldOf(r))
		c.processEnded(t, r.Rank)
	}
	return &procpb.Result{}
}

// processEnded writes a task of which a process has ended, and ends it with
// the last one, with whose status its outputs appear.
func (c *command) processEnded(t *procpb.Task, rank uint32) {
	over := !slices.ContainsFunc(t.Procs, func(p *procpb.Process) bool { return !Over(p.State) })
	if state, _ := verdict(t); over && state == procpb.State_EXITED {
		c.publish(t, t.Procs[rank])
	}
	c.recordStatus(t, rank)
	c.left(t, t.Procs[rank].Node)
	j := c.job(t.Job)
	if over {
		c.finish(j, t)
	} else {
		c.saveTask(j, t)
	}
}

// left deletes the row that a node has a live process of a task, with the last
// one there.
func (c *command) left(t *procpb.Task, node uint64) {
	for _, p := range t.Procs {
		if p.Node == node && !Over(p.State) {
			return
		}
	}
	c.tx.Delete(key(rowOn, node, t.Job, uint64(t.Index)))
}

// finish ends a try all of whose processes have ended: the task is over, or
// goes back into the queue.
func (c *command) finish(j *procpb.Job, t *procpb.Task) {
	spec := c.spec(t.Job)
	state, worst := verdict(t)
	t.Why, t.ExitCode = "", 0
	if worst != nil {
		t.ExitCode, t.Why = worst.ExitCode, worst.Why
	}
	unstarted := !slices.ContainsFunc(t.Procs, func(p *procpb.Process) bool { return !p.Unstarted })
	switch {
	case unstarted:
		t.ExitCode = ExitTrouble
		t.Unstarted++
	case state == procpb.State_LOST:
		t.ExitCode = ExitTrouble
		t.Lost++
	}
	if state == procpb.State_KILLED && t.Killer != "" {
		t.Why = "ended by " + t.Killer
	}
	again := (state == procpb.State_FAILED || state == procpb.State_LOST) && triesLeft(spec, t)
	if again {
		if unstarted {
			t.Why = "it could not be started where it was placed: " + t.Why
		} else {
			t.Why = fmt.Sprintf("try %d of %d has %s; %s", t.Epoch-t.Unstarted, spec.Retries+1, strings.ToLower(state.String()), t.Why)
		}
		state = procpb.State_QUEUED
	}
	c.setTask(j, t, state)
}

// forPeople is an error without the names of operations, which are ours.
func forPeople(err error) error {
	e, ok := err.(*sys.Error)
	if !ok {
		return err
	}
	plain := *e
	plain.Op = ""
	if plain.Err != nil {
		plain.Err = forPeople(plain.Err)
	}
	return &plain
}

// verdict is how a task ended, and the process that says why: the first that
// did not end well.
func verdict(t *procpb.Task) (procpb.State, *procpb.Process) {
	state := procpb.State_EXITED
	var worst *procpb.Process
	for _, p := range t.Procs {
		if p.State == procpb.State_EXITED {
			continue
		}
		if p.State == procpb.State_LOST {
			state = procpb.State_LOST
		} else if state != procpb.State_LOST {
			state = procpb.State_FAILED
		}
		if worst == nil || p.EndedNs < worst.EndedNs {
			worst = p
		}
	}
	if state == procpb.State_FAILED && t.Signal != 0 {
		state = procpb.State_KILLED
	}
	return state, worst
}

// notPublished is why a process does not count as ended well.
func notPublished(out string, err error) string {
	return fmt.Sprintf("its outputs could not appear as %s: %v", out, forPeople(err))
}

// outOfItem is where the outputs of a task with an item appear.
func outOfItem(s *procpb.Spec, item string) string {
	return strings.ReplaceAll(s.Out, "{}", path.Base(item))
}

// setNode takes in what a node tells of itself.
func (c *command) setNode(n *procpb.Node) *procpb.Result {
	if n.GetId() == 0 {
		return refused(sys.E(sys.Op("proc.SetNode"), sys.Invalid, "a node has a number"))
	}
	old := &procpb.Node{Fence: 1}
	c.read(key(rowNode, n.Id), old)
	n.Draining, n.Lost = old.Draining, old.Lost && n.Fence != old.Fence
	n.Fence = old.Fence
	c.saveNode(n)
	return &procpb.Result{Epoch: n.Fence}
}

func (c *command) saveNode(n *procpb.Node) {
	c.tx.Set(key(rowNode, n.Id), pb.Marshal(n))
	c.delta.nodes = append(c.delta.nodes, n)
}

func (c *command) drain(d *procpb.Drain) *procpb.Result {
	n := &procpb.Node{}
	if !c.read(key(rowNode, d.Node), n) {
		return refused(sys.E(sys.Op("proc.Drain"), sys.NotExist, sys.Subject(sys.NodeID(d.Node).String()), "no such node has ever told of itself: koinon top lists those that have"))
	}
	n.Draining = d.On
	c.saveNode(n)
	return &procpb.Result{}
}

// loseNode ends everything that a node runs, as far as the table is concerned,
// and raises its fence.
func (c *command) loseNode(l *procpb.LoseNode) *procpb.Result {
	n := &procpb.Node{}
	if !c.read(key(rowNode, l.Node), n) || n.Fence != l.Fence {
		return &procpb.Result{}
	}
	n.Fence++
	n.Lost = true
	c.saveNode(n)
	type at struct {
		job   uint64
		index uint32
	}
	var on []at
	c.scan(key(rowOn, l.Node), key(rowOn, l.Node+1), func(k, _ []byte) bool {
		ns := numbers(k)
		on = append(on, at{ns[1], uint32(ns[2])})
		return true
	})
	for _, a := range on {
		t := c.task(a.job, a.index)
		if t == nil || t.State != procpb.State_RUNNING {
			c.tx.Delete(key(rowOn, l.Node, a.job, uint64(a.index)))
			continue
		}
		for rank, p := range t.Procs {
			if p.Node == l.Node && !Over(p.State) {
				p.State, p.EndedNs, p.Why, p.ExitCode = procpb.State_LOST, c.now, l.Why, ExitTrouble
				c.processEnded(t, uint32(rank))
			}
		}
	}
	return &procpb.Result{Epoch: n.Fence, Count: uint32(len(on))}
}

// expire forgets jobs that ended long ago, with their files.
func (c *command) expire(e *procpb.Expire) *procpb.Result {
	var old [][2]uint64
	c.scan([]byte{rowEnded}, key(rowEnded, uint64(max(e.BeforeNs, 0))), func(k, _ []byte) bool {
		ns := numbers(k)
		old = append(old, [2]uint64{ns[0], ns[1]})
		return uint32(len(old)) < e.Max
	})
	for _, o := range old {
		c.forget(o[0], o[1])
	}
	return &procpb.Result{Count: uint32(len(old))}
}

func (c *command) forget(ended, id uint64) {
	spec := c.spec(id)
	var tasks [][]byte
	if err := loadTasks(c.tx, id, 0, func(t *procpb.Task) bool {
		tasks = append(tasks, key(rowTask, id, uint64(t.Index)))
		for rank := range t.Procs {
			c.forgetFiles(ProcessName(spec, id, t.Index, uint32(rank)))
		}
		return true
	}); err != nil {
		return
	}
	if j := c.job(id); j != nil {
		c.tx.Delete(append([]byte{rowRequest}, j.Request...))
	}
	for _, k := range append(tasks, key(rowEnded, ended, id), key(rowJob, id), key(rowSpec, id), key(rowItems, id)) {
		c.tx.Delete(k)
	}
	c.delta.gone = append(c.delta.gone, id)
}
