//go:build linux

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// output reads all that a process prints, as a client does.
func (w *world) output(job uint64, each func(*procpb.OutputReply)) (stdout, stderr string, end *procpb.Process) {
	w.t.Helper()
	q := &procpb.OutputRequest{Job: job, Epoch: 1, WaitNs: int64(5 * time.Second)}
	for deadline := time.Now().Add(awhile); time.Now().Before(deadline); {
		reply := w.outputOnce(q)
		if reply.Gone {
			w.t.Fatal("the output is gone")
		}
		if each != nil {
			each(reply)
		}
		stdout, stderr = stdout+string(reply.Stdout), stderr+string(reply.Stderr)
		q.Stdout += int64(len(reply.Stdout))
		q.Stderr += int64(len(reply.Stderr))
		if reply.Final {
			return stdout, stderr, reply.Process
		}
	}
	w.t.Fatal("waited in vain for the end of the output")
	return "", "", nil
}

func (w *world) outputOnce(q *procpb.OutputRequest) *procpb.OutputReply {
	w.t.Helper()
	r, err := w.conn.Call(w.t.Context(), proc.MethodOutput, pb.Marshal(q), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Release()
	reply := &procpb.OutputReply{}
	if err := pb.Unmarshal(r.Payload, reply); err != nil {
		w.t.Fatal(err)
	}
	return reply
}

// stdin sends input, all of it.
func (w *world) stdin(job uint64, offset int64, data string, end bool) *procpb.StdinReply {
	w.t.Helper()
	for {
		reply, err := w.stdinOnce(job, offset, data, end)
		if err != nil {
			w.t.Fatal(err)
		}
		if reply.Closed || reply.Offset >= offset+int64(len(data)) {
			return reply
		}
		data = data[reply.Offset-offset:]
		offset = reply.Offset
	}
}

func (w *world) stdinOnce(job uint64, offset int64, data string, end bool) (*procpb.StdinReply, error) {
	r, err := w.conn.Call(w.t.Context(), proc.MethodStdin, pb.Marshal(&procpb.StdinRequest{Job: job, Epoch: 1, Offset: offset, End: end}), []byte(data))
	if err != nil {
		return nil, err
	}
	defer r.Release()
	reply := &procpb.StdinReply{}
	return reply, pb.Unmarshal(r.Payload, reply)
}

// TestOutputWhileItRuns: each line comes when it is printed, and the end with
// the last of them; the node has it for a while after the leader knows.
func TestOutputWhileItRuns(t *testing.T) {
	w := newWorld(t)
	w.up()
	gate := filepath.Join(w.dir, "gate")
	w.start(w.reservation(1, "echo first; echo other >&2; until [ -e "+gate+" ]; do sleep 0.01; done; echo last; exit 2"))
	stdout, stderr, end := w.output(1, func(r *procpb.OutputReply) {
		if strings.Contains(string(r.Stdout), "first") {
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	if stdout != "first\nlast\n" || stderr != "other\n" || end.GetExitCode() != 2 {
		t.Errorf("found %q, %q, %v", stdout, stderr, end)
	}
	w.end(1)
	if again, _, _ := w.output(1, nil); again != stdout {
		t.Errorf("found %q", again)
	}
	if r := w.outputOnce(&procpb.OutputRequest{Job: 99, Epoch: 1}); !r.Gone {
		t.Errorf("found %v", r)
	}
}

// TestLargeOutput goes to the tree whole, far beyond what the spool may hold,
// and can be read from its beginning while and after it is printed.
func TestLargeOutput(t *testing.T) {
	w := newWorld(t)
	w.up()
	const size = 24 << 20
	w.start(w.reservation(1, fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo done >&2", size)))
	r := w.end(1)
	if !r.Recorded || len(r.Stdout) > 0 || r.Process.ExitCode != 0 || r.Process.Why != "" {
		t.Fatalf("found %v", r)
	}
	if got := w.file("/.koinon/proc/1/stdout"); len(got) != size || strings.Trim(got, "x") != "" {
		t.Errorf("%d bytes in the tree, %d expected", len(got), size)
	}
	if got := w.file("/.koinon/proc/1/stderr"); got != "done\n" {
		t.Errorf("found %q", got)
	}
	stdout, _, _ := w.output(1, nil)
	if len(stdout) != size || strings.Trim(stdout, "x") != "" {
		t.Errorf("%d bytes read from the node, %d expected", len(stdout), size)
	}
}

// TestMuchAtOnce: too much for a report goes to the tree although the process
// was quick.
func TestMuchAtOnce(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.start(w.reservation(1, fmt.Sprintf("head -c %d /dev/zero", proc.InlineMax+1)))
	if r := w.end(1); !r.Recorded || len(w.file("/.koinon/proc/1/stdout")) != proc.InlineMax+1 {
		t.Errorf("found %v", r)
	}
}

// TestFilesAreTheUsers: directory and files belong to who has submitted the job,
// what is above to root; a later try has files of its own.
func TestFilesAreTheUsers(t *testing.T) {
	w := newWorld(t)
	w.up()
	const uid, gid = 4711, 4712
	edit := func(r *procpb.Reservation) { r.Spec.User = &procpb.User{Uid: uid, Gid: gid} }
	w.start(w.reservation(1, "echo one; id -u; sleep 0.4", edit))
	w.end(1)
	if got := w.file("/.koinon/proc/1/stdout"); got != "one\n4711\n" {
		t.Errorf("found %q", got)
	}
	for path, want := range map[string][3]uint32{"/.koinon": {0, 0, 0o755}, "/.koinon/proc": {0, 0, 0o755},
		"/.koinon/proc/1": {uid, gid, 0o755}, "/.koinon/proc/1/stdout": {uid, gid, 0o644}} {
		attr := must(w.fs.Resolve(t.Context(), vfs.Root(), path, false))
		if got := [3]uint32{attr.Uid, attr.Gid, attr.Mode & sys.ModePerm}; got != want {
			t.Errorf("%s: %v expected, found %v", path, want, got)
		}
	}
	w.start(w.reservation(1, "echo two; sleep 0.4", edit, func(r *procpb.Reservation) { r.Epoch = 2 }))
	w.await("the second end", func() bool { return len(w.ended) == 2 })
	if got := w.file("/.koinon/proc/1/stdout"); got != "two\n" {
		t.Errorf("found %q", got)
	}
}

// TestStdin takes every byte once, however often it is sent.
func TestStdin(t *testing.T) {
	w := newWorld(t)
	w.up()
	stdin := func(r *procpb.Reservation) { r.Spec.Stdin = true }
	w.start(w.reservation(1, "cat", stdin))
	w.stdin(1, 0, "hello ", false)
	if r := w.stdin(1, 2, "llo world", false); r.Offset != 11 {
		t.Errorf("found %v", r)
	}
	if _, err := w.stdinOnce(1, 100, "x", false); !sys.Is(err, sys.Invalid) {
		t.Errorf("a gap is refused, found %v", err)
	}
	big := strings.Repeat("0123456789", 300_000)
	w.stdin(1, 11, big, true)
	w.stdin(1, 11, big, true)
	stdout, _, end := w.output(1, nil)
	if stdout != "hello world"+big || end.GetExitCode() != 0 {
		t.Errorf("%d bytes came back, %d expected", len(stdout), 11+len(big))
	}
	w.start(w.reservation(2, "exec <&-; sleep 0.2", stdin))
	w.poll("a closed input", func() bool {
		r, err := w.stdinOnce(2, 0, big[:1000], false)
		return err == nil && r.Closed
	})
	w.end(2)
	w.start(w.reservation(3, "sleep 1000"))
	if _, err := w.stdinOnce(3, 0, "x", false); !sys.Is(err, sys.Invalid) {
		t.Errorf("found %v", err)
	}
}
