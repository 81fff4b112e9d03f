//go:build linux

package agent

import (
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
)

func TestRunAndEnd(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.start(w.reservation(1, `echo "$KOINON_JOB $KOINON_RANK of $KOINON_SIZE on $KOINON_NODE"; echo trouble >&2; exit 3`))
	r := w.end(1)
	if string(r.Stdout) != "1 0 of 1 on here\n" || string(r.Stderr) != "trouble\n" || r.Recorded {
		t.Errorf("found %q and %q", r.Stdout, r.Stderr)
	}
	if p := r.Process; p.State != procpb.State_FAILED || p.ExitCode != 3 || p.Node != agentNode || p.Pid == 0 || p.StartedNs == 0 || p.EndedNs < p.StartedNs {
		t.Errorf("found %v", p)
	}
	w.free()
}
