package proc

import (
	"fmt"
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
)

// parted is the state, the exit code and the counts of a part of a job.
func (x *table) parted(job uint64, rank int, indices ...uint32) string {
	c := &command{tx: x.rows}
	var tasks []*procpb.Task
	for _, i := range indices {
		tasks = append(tasks, c.task(job, i))
	}
	p := Part(c.job(job), c.spec(job), tasks, rank)
	return fmt.Sprintf("%s %d %d/%d %v", StateName(p.State), p.ExitCode, p.Tasks, p.Running, p.EndedNs != 0)
}

// TestPartOfAnArray: a task has a state and a code of its own, whatever the others do.
func TestPartOfAnArray(t *testing.T) {
	x := newTable(t)
	id := x.submit(specOf(func(s *procpb.Spec) { s.Array, s.Last = true, 3 }))
	for i := range uint32(3) {
		x.start(id, i, 1)
	}
	x.end(id, 0, 0, &procpb.Process{ExitCode: 10})
	x.must(&procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: id, Indices: []uint32{1}, Signal: sigTerm}}})
	x.end(id, 1, 0, &procpb.Process{Signal: sigTerm})
	for want, indices := range map[string][]uint32{
		"failed 10 1/0 true": {0}, "killed 143 1/0 true": {1}, "running 0 1/1 false": {2}, "queued 0 1/0 false": {3},
		"failed 10 2/0 true": {0, 1}, "running 143 2/1 false": {1, 2},
	} {
		if got := x.parted(id, -1, indices...); got != want {
			t.Errorf("tasks %v: %s, want %s", indices, got, want)
		}
	}
}

// TestPartOfAGang: a process has ended before the others have, unless it may be tried again with them.
func TestPartOfAGang(t *testing.T) {
	for _, retries := range []uint32{0, 1} {
		x := newTable(t)
		id := x.submit(specOf(func(s *procpb.Spec) { s.Size, s.Retries = 2, retries }))
		x.start(id, 0, 1, 2)
		x.end(id, 0, 0, &procpb.Process{})
		if got, want := x.parted(id, 0, 0), []string{"exited 0 1/0 true", "running 0 1/1 false"}[retries]; got != want {
			t.Errorf("%d retries: %s, want %s", retries, got, want)
		}
		x.end(id, 0, 1, &procpb.Process{ExitCode: 4})
		for rank, want := range [][]string{{"exited 0 1/0 true", "failed 4 1/0 true"}, {"queued 0 1/0 false", "queued 0 1/0 false"}}[retries] {
			if got := x.parted(id, rank, 0); got != want {
				t.Errorf("%d retries, rank %d: %s, want %s", retries, rank, got, want)
			}
		}
		if retries == 0 {
			continue
		}
		// What is taken out of the queue has not ended as its first try did.
		x.must(&procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: id, Signal: sigTerm}}})
		if got := x.parted(id, 0, 0); got != "killed 143 1/0 true" {
			t.Errorf("taken out of the queue: %s", got)
		}
	}
}
