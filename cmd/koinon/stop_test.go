//go:build linux && !client

package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	client "github.com/koinon/koinon"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/proc/proctest"
)

// A command that was asked to stop before it made a job makes none.
func TestRunStoppedEarly(t *testing.T) {
	j := newJobs(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	j.ctx = ctx
	if out, errOut, code := j.runs("run", "--", "true"); code != 130 || out != "" || errOut != "" || j.table.Job(1) != nil {
		t.Errorf("exit code %d, %q, %q, job %v", code, out, errOut, j.table.Job(1))
	}
}

// Ctrl-C asks the job to stop, once more kills it, a third one leaves.
func TestRunInterrupted(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "--", "stubborn")
	j.followed()
	j.table.Start(1, 0, 1)
	signals := func() (out []uint32) {
		for _, k := range j.table.Kills() {
			out = append(out, k.Signal)
		}
		return out
	}
	j.signals <- os.Interrupt
	j.await(func() bool { return slices.Equal(signals(), []uint32{15}) })
	j.signals <- os.Interrupt
	j.await(func() bool { return slices.Equal(signals(), []uint32{15, 9}) })
	j.signals <- os.Interrupt
	s.ends(130, "", "koinon: asking job 1 to stop; Ctrl-C again kills it\nkoinon: killing job 1; Ctrl-C again leaves it alone\nkoinon: job 1 may go on: `koinon ps` shows it\n")
}

// SIGTERM asks it to stop too.
func TestRunTerminated(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "--", "docile")
	j.followed()
	j.table.Start(1, 0, 1)
	j.signals <- syscall.SIGTERM
	j.await(func() bool { return len(j.table.Kills()) == 1 })
	j.table.End(1, 0, 0, 143)
	s.ends(143, "", "koinon: asking job 1 to stop; Ctrl-C again kills it\n")
}

// followed waits until the client of the first job has heard that it is made.
func (j *jobs) followed() {
	j.t.Helper()
	j.await(func() bool { return j.table.Calls("Wait") > 0 })
}

// stoppedTable is one whose client is stopped while it submits.
type stoppedTable struct {
	*proctest.Table
	stop context.CancelCauseFunc
}

func (s stoppedTable) Submit(ctx context.Context, _ *procpb.Spec) (uint64, error) {
	s.stop(&signalError{syscall.SIGTERM})
	return 0, context.Cause(ctx)
}

// TestRunDetachedStopped: who is stopped while it submits says that the job may have been made.
func TestRunDetachedStopped(t *testing.T) {
	ctx, stop := context.WithCancelCause(t.Context())
	var errOut bytes.Buffer
	a := &app{out: &bytes.Buffer{}, err: &errOut}
	err := newProcsApp(a).submit(ctx, client.NewProcs(stoppedTable{proctest.New(1), stop}, nil), client.JobSpec{Command: []string{"true"}})
	if code := a.exitCodeOf(ctx, err); code != 143 || !strings.Contains(errOut.String(), "the job may have been made") {
		t.Errorf("%d, %q", code, errOut.String())
	}
}
