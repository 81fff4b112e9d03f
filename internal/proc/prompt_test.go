package proc

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// running says whether a job runs.
func (w *world) running(id uint64) bool {
	w.t.Helper()
	return w.inspect(id).Job.State == procpb.State_RUNNING
}

// TestAJobStartsBeforeItIsAcknowledged, where there is room; its number comes after those before it.
func TestAJobStartsBeforeItIsAcknowledged(t *testing.T) {
	w := newWorld(t)
	for want := uint64(1); want <= 3; want++ {
		id := w.submit(gang(2))
		if id != want || !w.running(id) {
			t.Errorf("job %d expected to run, found job %d: %v", want, id, w.inspect(id).Job)
		}
	}
	waits := w.submit(gang(1)) // there are 6 CPUs
	if waits != 4 || w.running(waits) {
		t.Errorf("job 4 expected to wait, found job %d: %v", waits, w.inspect(waits).Job)
	}
	behind := w.submit(gang(1))
	for id := uint64(1); id <= behind; id++ {
		w.waitFor(id, procpb.State_RUNNING)
		w.finish(id)
	}
	w.eachOnce()
}

// eachOnce fails the test when something was started twice.
func (w *world) eachOnce() {
	w.t.Helper()
	for _, n := range w.nodes {
		n.set(func() {
			for k, times := range n.started {
				if times != 1 {
					w.t.Errorf("%v started %s %d times", n.id, k, times)
				}
			}
		})
	}
}

// TestTheSameRequestComesTwice at the same time, and again: one job.
func TestTheSameRequestComesTwice(t *testing.T) {
	w := newWorld(t)
	before := w.epoch()
	const jobs, times = 20, 3
	var ids [jobs][times + 1]uint64
	send := func(job, time int) {
		req := &procpb.Submit{Request: slices.Repeat([]byte{byte(job + 1)}, 16), Spec: specOf(func(s *procpb.Spec) { s.Each.CpuMilli = 100 })}
		r, err := w.cc.CallLeader(t.Context(), MethodSubmit, nil, pb.Marshal(req))
		reply := &procpb.SubmitReply{}
		if err == nil {
			err = take(r, reply)
		}
		if err != nil {
			t.Errorf("job %d: %v", job, err)
		}
		ids[job][time] = reply.Job
	}
	for job := range jobs {
		var all sync.WaitGroup
		for time := range times {
			all.Go(func() { send(job, time) })
		}
		all.Wait()
		send(job, times)
	}
	for job, got := range ids {
		if got[0] == 0 || len(slices.Compact(got[:])) != 1 || job > 0 && got[0] <= ids[job-1][0] {
			t.Errorf("job %d: one number expected, above the last one's, found %v", job, got)
		}
	}
	if after := w.epoch(); after != before {
		t.Errorf("a coordinator of epoch %d expected, found %d: requests got in each other's way", before, after)
	}
	l := must(w.c.List(t.Context(), &procpb.ListRequest{All: true}))
	if len(l.Jobs) != jobs {
		t.Errorf("%d jobs expected, found %d", jobs, len(l.Jobs))
	}
	for _, i := range l.Jobs {
		w.finish(i.Job.Id)
	}
	w.eachOnce()
}

// TestARefusedStartIsSubmitted: a job whose nodes refuse is in the table, and its client need not wait.
func TestARefusedStartIsSubmitted(t *testing.T) {
	w := newWorld(t)
	for _, n := range w.nodes {
		n.set(func() { n.refuse = "it is Sunday" })
	}
	id := w.submit(gang(3))
	if refusals := w.inspect(id).Explanations[0].Refusals; len(refusals) == 0 || refusals[0].Reason != "it is Sunday" {
		t.Errorf("the refusal expected, found %v", refusals)
	}
	if state := w.inspect(id).Job.State; state != procpb.State_QUEUED {
		t.Errorf("a job that waits expected, found %v", state)
	}
	for _, n := range w.nodes {
		n.set(func() { n.refuse = "" })
	}
	w.waitFor(id, procpb.State_RUNNING)
	w.finish(id)
	w.eachOnce()
}

// TestTheLeaderFallsWhileAJobIsOnItsWay: it is made once, or not at all and its client is told so.
func TestTheLeaderFallsWhileAJobIsOnItsWay(t *testing.T) {
	w := newWorld(t)
	var ids []uint64
	var mu sync.Mutex
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			for ctx.Err() == nil {
				id, err := w.c.Submit(t.Context(), specOf(func(s *procpb.Spec) { s.Each.CpuMilli = 50 }))
				if err != nil && !sys.Is(err, sys.Unavailable) && !sys.Is(err, sys.Interrupted) {
					t.Errorf("submit: %v", err)
				}
				if err == nil {
					mu.Lock()
					ids = append(ids, id)
					mu.Unlock()
					w.end(id)
				}
			}
		})
	}
	for range 4 {
		w.depose()
	}
	stop()
	clients.Wait()
	slices.Sort(ids)
	if len(ids) == 0 || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("numbers of their own expected, found %v", ids)
	}
	for _, id := range ids {
		w.finish(id)
	}
	w.eachOnce()
}

// end ends what the nodes run of a job by now.
func (w *world) end(id uint64) {
	for _, n := range w.nodes {
		n.end(id, 0, 0)
	}
}

// TestALeadershipOfBeforeMakesNothing: what it has counted belongs to others by now.
func TestALeadershipOfBeforeMakesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.leader().server
	before := &leadership{gone: make(chan struct{})}
	if id, err := s.bring(before, &procpb.Submit{Request: slices.Repeat([]byte{1}, 16), Spec: specOf()}); err == nil {
		t.Errorf("job %d was made", id)
	}
	if n := len(must(w.c.List(t.Context(), &procpb.ListRequest{All: true})).Jobs); n != 0 {
		t.Errorf("%d jobs are in the table", n)
	}
}

// TestAForeseenNumberGoesToAnother: the job that has it in the table counts, and the end of the attempt to make the other does not touch it.
func TestAForeseenNumberGoesToAnother(t *testing.T) {
	x := newTable(t)
	m := must(loadModel(x.rows, 0))
	x.m.hub.take()
	foreseen := submission(99, specOf(func(s *procpb.Spec) { s.Name = "foreseen" })).GetSubmit()
	foreseen.Job = 1
	j := m.foresee(foreseen, 0)
	a := &attempt{job: j, task: j.tasks[0], nodes: []uint64{1}, tx: commit.Tx{Epoch: 1, Seq: 1}, done: make(chan struct{})}
	m.try(a)
	m.attempts[a.tx] = a
	id := x.submit(specOf(func(s *procpb.Spec) { s.Name = "there" }))
	x.start(id, 0, 2)
	for _, d := range x.m.hub.take() {
		m.follow(&d, 0)
	}
	m.settle(a)
	if j := m.jobs[1]; id != 1 || a.job.submit == nil || j == nil || j.submit != nil || j.spec.Name != "there" || m.live[1] != j || len(j.live) != 1 || !slices.Equal(m.order, []uint64{1}) {
		t.Errorf("job 1, which is there, expected to run, found %+v, %+v", m.jobs[1], m.live[1])
	}
	if used := m.reserved(); used[1].CPU != 0 || used[2].CPU != 1000 {
		t.Errorf("node 2 expected to be used, found %v", used)
	}
}

// epoch is that of the newest coordinator.
func (w *world) epoch() (epoch uint64) {
	w.t.Helper()
	if err := w.leader().host.Group(0).ReadLocal(rsm.NSProc, func(r rsm.Reader) error {
		raw, err := r.Get([]byte{rowEpoch})
		epoch = number(raw)
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return epoch
}
