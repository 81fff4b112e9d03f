package proc

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
)

// TestCutOutputs counts the processes whose output is not whole, of the tries that count.
func TestCutOutputs(t *testing.T) {
	x := newTable(t)
	gang := x.submit(specOf(func(s *procpb.Spec) { s.Size, s.Retries = 3, 1 }))
	x.start(gang, 0, 1, 2, 3)
	x.end(gang, 0, 0, &procpb.Process{ExitCode: 1, Cut: "first"})
	x.end(gang, 0, 1, &procpb.Process{})
	x.end(gang, 0, 2, &procpb.Process{})
	x.start(gang, 0, 1, 2, 3)
	for rank, why := range []string{"full", "", "full"} {
		x.end(gang, 0, uint32(rank), &procpb.Process{Cut: why})
	}
	if j, k := x.job(gang), x.task(gang, 0); j.State != procpb.State_EXITED || j.Cut != 2 || k.Procs[0].Cut != "full" || k.Procs[1].Cut != "" {
		t.Fatalf("expected two outputs that are not whole, found %v, %v", j, k)
	}
	for rank, want := range map[int]uint32{-1: 2, 0: 1, 1: 0, 2: 1} {
		if p := Part(x.job(gang), specOf(func(s *procpb.Spec) { s.Size, s.Retries = 3, 1 }), []*procpb.Task{x.task(gang, 0)}, rank); p.Cut != want {
			t.Errorf("rank %d: %d outputs expected, found %v", rank, want, p)
		}
	}
}

// TestNoPlaceForOutput: what was put where the files of a process go costs its output, which is told, and not its end.
func TestNoPlaceForOutput(t *testing.T) {
	x := newTable(t)
	f := files{treeNow{context.Background(), x.tree}}
	dir, err := f.under("/.koinon", "proc", nil)
	if err != nil {
		t.Fatal(err)
	}
	id := x.submit(specOf())
	if err := f.put(dir, fmt.Sprint(id), []byte("in the way"), nil); err != nil {
		t.Fatal(err)
	}
	x.start(id, 0, 1)
	x.end(id, 0, 0, &procpb.Process{})
	if j, p := x.job(id), x.task(id, 0).Procs[0]; j.State != procpb.State_EXITED || j.Cut != 1 || !strings.Contains(p.Cut, "could not be written") {
		t.Fatalf("expected an end without output, found %v, %v", j, p)
	}
}
