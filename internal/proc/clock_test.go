package proc

import (
	"testing"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/proc/procpb"
)

// wrongClock is a machine's clock whose time of day the test sets.
type wrongClock struct {
	env.System
	w *world
}

// Wall implements env.Clock.
func (c wrongClock) Wall() time.Time {
	return c.System.Wall().Add(time.Duration(c.w.dayTime.Load()))
}

// TestTheTimeOfDayJumps sets the clocks of the leader: nothing is timed out, declared lost or forgotten before its time, and what
// waits out a refusal does not wait longer.
func TestTheTimeOfDayJumps(t *testing.T) {
	w := newWorld(t)
	long := w.submit(specOf(func(s *procpb.Spec) { s.TimeoutNs = int64(time.Hour) }))
	w.waitFor(long, procpb.State_RUNNING)
	over := w.submit(specOf())
	w.finish(over)

	w.dayTime.Store(int64(30 * 24 * time.Hour))
	looks := w.looks()
	w.await("the leader has looked at timeouts and nodes twice", func() bool { return w.looks() >= looks+2*lookEvery })
	if task := w.inspect(long).Tasks[0]; task.State != procpb.State_RUNNING || task.Signal != 0 {
		t.Errorf("a task with an hour left expected, found %v", task)
	}
	s := w.leader().server
	s.mu.Lock()
	before := s.lead.dayTime(s.opt.Clock.Boot()) - int64(s.opt.Retention)
	s.mu.Unlock()
	s.sweep(before)
	if job := w.inspect(over).Job; job.State != procpb.State_EXITED {
		t.Errorf("a job that ended just now expected, found %v", job)
	}

	for _, n := range w.nodes {
		n.set(func() { n.refuse = "not yet" })
	}
	waits := w.submit(specOf())
	w.await("a refusal", func() bool {
		e := w.inspect(waits).Explanations
		return len(e) > 0 && len(e[0].Refusals) > 0
	})
	w.dayTime.Store(-int64(24 * time.Hour))
	for _, n := range w.nodes {
		n.set(func() { n.refuse = "" })
	}
	w.waitFor(waits, procpb.State_RUNNING)

	short := w.submit(specOf(func(s *procpb.Spec) { s.TimeoutNs = int64(100 * time.Millisecond) }))
	w.await("what has run for too long is ended, with the clock a day behind", func() bool { return w.inspect(short).Tasks[0].Signal == sigTerm })
}

// looks is when the leader last looked at nodes and timeouts.
func (w *world) looks() time.Duration {
	s := w.leader().server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lead == nil {
		return 0
	}
	return s.lead.looked
}
