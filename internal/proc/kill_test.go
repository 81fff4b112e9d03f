package proc

import (
	"slices"
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
)

func TestKillWhileItIsReservedAndWhileItRuns(t *testing.T) {
	w := newWorld(t)
	for _, n := range w.nodes {
		n.set(func() { n.mute = true })
	}
	waits := w.submit(gang(2))
	w.await("it is being reserved", func() bool {
		l, err := w.c.List(t.Context(), &procpb.ListRequest{})
		return err == nil && len(l.Jobs) == 1 && l.Jobs[0].Job.State == procpb.State_RESERVING
	})
	if n, err := w.c.Kill(t.Context(), &procpb.KillRequest{Job: waits, Signal: 15, By: "ana"}); err != nil || n != 1 {
		t.Fatalf("kill: %d, %v", n, err)
	}
	w.waitFor(waits, procpb.State_KILLED)
	for _, n := range w.nodes {
		n.set(func() { n.mute = false })
	}
	runs := w.submit(gang(1))
	w.waitFor(runs, procpb.State_RUNNING)
	if _, err := w.c.Kill(t.Context(), &procpb.KillRequest{Job: runs, Signal: 15, By: "ana"}); err != nil {
		t.Fatal(err)
	}
	w.await("its node is told", func() bool {
		told := false
		for _, n := range w.nodes {
			n.set(func() { told = told || slices.Contains(n.signals, 15) })
		}
		return told
	})
	w.await("it ends", func() bool {
		for _, n := range w.nodes {
			n.end(runs, 0, 15)
		}
		return w.inspect(runs).Job.State == procpb.State_KILLED
	})
	for _, n := range w.nodes {
		if len(n.runs()) != 0 {
			t.Errorf("%v still runs something", n.id)
		}
	}
}

// TestSignalToWhatJustStarts: a node that has not got the task yet is told again soon, also what it is told once only.
func TestSignalToWhatJustStarts(t *testing.T) {
	w := newWorld(t)
	id := w.submit(gang(1))
	w.waitFor(id, procpb.State_RUNNING)
	for _, n := range w.nodes {
		n.set(func() { n.early = 3 })
	}
	if k, err := w.c.Kill(t.Context(), &procpb.KillRequest{Job: id, Signal: 10, By: "ana"}); err != nil || k != 1 {
		t.Fatalf("kill: %d, %v", k, err)
	}
	w.await("its node is told", func() bool {
		told := false
		for _, n := range w.nodes {
			n.set(func() { told = told || slices.Equal(n.signals, []uint32{10}) })
		}
		return told
	})
	for _, n := range w.nodes {
		n.set(func() { n.early = 0 })
	}
	w.finish(id)
}
