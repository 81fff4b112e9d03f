//go:build linux

package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
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

// TestMarks: a heartbeat repeats what the leader has answered to the last one.
func TestMarks(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.await("marks that rise", func() bool { return w.beat.GetLeadership() == leadership && w.beat.GetMark() >= 2 })
}

// TestVotes: what a node refuses, and why, as people read it.
func TestVotes(t *testing.T) {
	w := newWorld(t)
	a := w.up()
	for name, c := range map[string]struct {
		edit func(*procpb.Reservation)
		want string
	}{
		"cpus":   {func(r *procpb.Reservation) { r.Spec.Each.CpuMilli = 4001 }, "4 of 4 CPUs are free, 4.001 are needed"},
		"memory": {func(r *procpb.Reservation) { r.Spec.Each.Memory = 2 << 30 }, "1024 of 1024 MiB of memory are free, 2048 are needed"},
		"ranks":  {func(r *procpb.Reservation) { r.Ranks = []uint32{0, 1, 2}; r.Spec.Each.CpuMilli = 1500 }, "4.5 are needed"},
		"tree":   {func(r *procpb.Reservation) { r.Spec.Dir = "/work" }, "koinon mount DIR"},
		"out":    {func(r *procpb.Reservation) { r.Out = "/.koinon/out/1-1" }, "koinon mount DIR"},
		"fence":  {func(r *procpb.Reservation) { r.Fence = 7 }, "declared lost"},
		"empty":  {func(r *procpb.Reservation) { r.Ranks = nil }, "needs ranks"},
	} {
		o := w.decided(w.ask(w.reservation(1, "exit 0", c.edit)))
		if o.Committed || !strings.Contains(o.Reason, c.want) {
			t.Errorf("%s: a refusal with %q expected, found %+v", name, c.want, o)
		}
	}
	w.free()
	if got := a.fenceNow(); got != 0 {
		t.Errorf("fence 0 expected, found %d", got)
	}
}

// TestReserved: what is reserved and not decided is not given twice, and an
// abort frees it.
func TestReserved(t *testing.T) {
	w := newWorld(t)
	w.up()
	all := func(r *procpb.Reservation) { r.Spec.Each.CpuMilli = 4000 }
	w.start(w.reservation(1, "read x", all, func(r *procpb.Reservation) { r.Spec.Stdin = true }))
	if o := w.decided(w.ask(w.reservation(2, "exit 0", all))); o.Committed || !strings.Contains(o.Reason, "0 of 4 CPUs are free") {
		t.Fatalf("a refusal expected, found %+v", o)
	}
	w.stdin(1, 0, "\n", true)
	w.end(1)
	w.free()
	w.start(w.reservation(3, "exit 0", all))
	w.end(3)
	w.set(func() { w.mute = true })
	tx := w.ask(w.reservation(4, "exit 0", all, func(r *procpb.Reservation) { r.Ranks = []uint32{0} }))
	w.decided(tx) // committed, and nobody tells the node
	if o := w.decided(w.ask(w.reservation(5, "exit 0", all))); o.Committed {
		t.Fatal("the resources of an undecided reservation were given away")
	}
	w.set(func() { w.mute = false })
	w.end(4)
	w.free()
}

// TestCommitTwice: commits that come again, also after a restart, start nothing
// again.
func TestCommitTwice(t *testing.T) {
	w := newWorld(t)
	w.up()
	log := filepath.Join(w.dir, "log")
	tx := w.ask(w.reservation(1, "echo $KOINON_EPOCH >>"+log))
	w.end(1)
	again := []commit.Message{{Kind: commit.MsgCommit, Party: proc.PartyOf(agentNode, 0), Tx: tx, Epoch: tx.Epoch, Low: tx.Seq}}
	w.send(again)
	w.restart()
	w.send(again)
	w.start(w.reservation(2, "exit 0"))
	w.end(2)
	if n := lines(log); n != 1 {
		t.Errorf("it ran %d times", n)
	}
}

// TestRestartInDoubt: a node that has voted yes and crashed asks what was
// decided.
func TestRestartInDoubt(t *testing.T) {
	for _, committed := range []bool{true, false} {
		t.Run(fmt.Sprint(committed), func(t *testing.T) {
			w := newWorld(t)
			w.up()
			w.set(func() { w.mute = true })
			tx := w.ask(w.reservation(1, "exit 0"))
			w.decided(tx)
			w.down()
			w.set(func() {
				if !committed { // as if the decision had been lost with its leader
					w.table.Commits = nil
				}
				w.newCoordinator()
				w.mute, w.beat = false, nil
			})
			w.up()
			if committed {
				w.end(1)
			}
			w.free()
			if !committed && w.hasEnded(1) {
				t.Error("what was aborted ran")
			}
		})
	}
}

// TestReboot: a machine that comes back after a crash has lost an unknown part of what was written last, so the agent knows
// nothing of before but its fence. It tells so, and what comes again of transactions of before starts nothing.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	w.fence = 3
	w.up()
	party := proc.PartyOf(agentNode, 3)
	log := filepath.Join(w.dir, "log")
	tx := w.ask(w.reservation(1, "echo $KOINON_JOB >>"+log+"; exec sleep 60"))
	w.decided(tx)
	w.await("a start", func() bool { return len(w.began) > 0 })
	w.set(func() { w.mute = true })
	w.decided(w.ask(w.reservation(2, "echo $KOINON_JOB >>"+log)))
	w.down()
	w.noneLeft()
	w.set(func() { w.mute, w.beat, w.boot = false, nil, "second" })
	if got := w.up().fenceNow(); got != 3 {
		t.Errorf("fence 3 expected, found %d", got)
	}
	w.send([]commit.Message{{Kind: commit.MsgCommit, Party: party, Tx: tx, Epoch: tx.Epoch, Low: tx.Seq}})
	w.await("acknowledgements", func() bool { return w.coord.Idle() })
	w.free()
	if n := len(w.beat.Running); n != 0 {
		t.Errorf("the node still tells of %d processes", n)
	}
	w.start(w.reservation(3, "echo $KOINON_JOB >>"+log))
	w.end(3)
	if b, err := os.ReadFile(log); string(b) != "1\n3\n" || err != nil {
		t.Errorf("jobs 1 and 3 expected, found %q, %v", b, err)
	}
	if left := must(os.ReadDir(filepath.Join(w.dir, "proc", "store"))); len(left) != 2 {
		t.Errorf("the fence and the words of one boot expected, found %v", left)
	}
}

// TestFenceOfACrash: a fence that had been written when the machine or the daemon crashed, before the rows were, drops them.
func TestFenceOfACrash(t *testing.T) {
	w := newWorld(t)
	w.fence = 3
	w.up()
	w.start(w.reservation(1, "exec sleep 60"))
	w.await("a start", func() bool { return len(w.began) > 0 })
	w.down()
	w.noneLeft()
	if err := os.WriteFile(filepath.Join(w.dir, "proc", "store", fenceFile), []byte("4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.fence, w.beat = 4, nil })
	if got := w.up().fenceNow(); got != 4 {
		t.Errorf("fence 4 expected, found %d", got)
	}
	w.free()
	w.start(w.reservation(2, "exit 0"))
	w.end(2)
}

// TestStoreOfBefore: the rows of a version that did not keep them by boot are taken over.
func TestStoreOfBefore(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.start(w.reservation(1, "until [ -e "+filepath.Join(w.dir, "gate")+" ]; do sleep 0.02; done; exit 5"))
	w.await("a start", func() bool { return len(w.began) > 0 })
	w.down()
	dir := filepath.Join(w.dir, "proc", "store")
	for _, e := range must(os.ReadDir(filepath.Join(dir, w.boot))) {
		must(0, os.Rename(filepath.Join(dir, w.boot, e.Name()), filepath.Join(dir, e.Name())))
	}
	must(0, os.Remove(filepath.Join(dir, w.boot)))
	w.up()
	must(0, os.WriteFile(filepath.Join(w.dir, "gate"), nil, 0o600))
	if r := w.end(1); r.Process.ExitCode != 5 {
		t.Errorf("found %v", r)
	}
	w.free()
}

// TestRestart: what runs while the daemon is away is found again with all its
// output; what ends meanwhile is reported.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.up()
	gate := filepath.Join(w.dir, "gate")
	w.start(w.reservation(1, "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; [ $i = 1000 ] && until [ -e "+gate+" ]; do sleep 0.02; done; done; exit 4"))
	w.poll("output in the tree", func() bool { return strings.Contains(w.file("/.koinon/proc/1/stdout"), "line 1000\n") })
	w.start(w.reservation(2, "until [ -e "+gate+" ]; do sleep 0.02; done; echo gone; exit 5"))
	w.await("a start", func() bool { return len(w.began) > 0 })
	w.down()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.up()
	if r := w.end(1); r.Process.ExitCode != 4 || !r.Recorded {
		t.Errorf("found %v", r)
	}
	var want strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if got := w.file("/.koinon/proc/1/stdout"); got != want.String() {
		t.Errorf("the output has %d bytes, %d expected", len(got), want.Len())
	}
	if r := w.end(2); r.Process.ExitCode != 5 {
		t.Errorf("found %v", r)
	}
	w.free()
}

// TestEndsAreResent until the leader takes them, also after a restart.
func TestEndsAreResent(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.set(func() { w.deaf = true })
	w.start(w.reservation(1, "echo x; exit 9"))
	w.start(w.reservation(2, "exit 0", func(r *procpb.Reservation) { r.Spec.Argv = []string{"/nowhere/at/all"} }))
	w.free()
	w.restart()
	w.set(func() { w.deaf = false })
	if r := w.end(1); r.Process.ExitCode != 9 || string(r.Stdout) != "x\n" {
		t.Errorf("found %v", r)
	}
	if r := w.end(2); r.Process.ExitCode != proc.ExitNotFound {
		t.Errorf("found %v", r)
	}
}

// TestExecErrors: exit codes as env(1) has them, and a reason.
func TestExecErrors(t *testing.T) {
	w := newWorld(t)
	w.up()
	plain := filepath.Join(w.dir, "plain")
	if err := os.WriteFile(plain, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		argv string
		code uint32
	}{{"nosuchcommand", proc.ExitNotFound}, {plain, proc.ExitForbidden}} {
		job := uint64(i + 1)
		w.start(w.reservation(job, "", func(r *procpb.Reservation) { r.Spec.Argv = []string{c.argv} }))
		if p := w.end(job).Process; p.ExitCode != c.code || p.State != procpb.State_FAILED || p.Why == "" || strings.Contains(p.Why, "executor.Start") {
			t.Errorf("%s: found %v", c.argv, p)
		}
	}
	w.mounts = []string{w.dir}
	w.start(w.reservation(9, "exit 0", func(r *procpb.Reservation) { r.Spec.Dir = "/not/there" }))
	if p := w.end(9).Process; p.ExitCode != proc.ExitTrouble || !strings.Contains(p.Why, "directory") {
		t.Errorf("found %v", p)
	}
	w.free()
}

// TestLeaseEnds: without a leader processes end in time, and are reported when
// there is one.
func TestLeaseEnds(t *testing.T) {
	w := newWorld(t)
	w.set(func() { w.lease = 2500 * time.Millisecond })
	w.up()
	w.start(w.reservation(1, "sleep 1000"))
	w.await("a start", func() bool { return len(w.began) > 0 })
	w.set(func() { w.silent, w.deaf = true, true })
	began := time.Now()
	w.poll("the end", func() bool { return w.agent.find(taskKey{1, 0, 1}, 0).isOver() })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it ran for %v without a lease", took)
	}
	w.set(func() { w.silent, w.deaf = false, false })
	if p := w.end(1).Process; p.State != procpb.State_LOST || p.Why == "" {
		t.Errorf("found %v", p)
	}
	w.free()
}

// TestFence: a node that was declared lost ends everything, forgets what it had
// promised, and is of use again under its next name.
func TestFence(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.start(w.reservation(1, "exec sleep 1000"))
	w.await("a start", func() bool { return len(w.began) > 0 })
	pid := int(w.began[0].Process.Pid)
	w.set(func() { w.mute = true })
	w.ask(w.reservation(2, "sleep 1000"))
	w.set(func() {
		w.fence, w.mute = 3, false
		w.coord.Lost(proc.PartyOf(agentNode, 0))
	})
	w.await("the fence", func() bool { return w.beat.Node.Fence == 3 && len(w.beat.Running) == 0 })
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d of before the fence is there: %v", pid, err)
	}
	w.free()
	w.restart()
	w.start(w.reservation(1, "exit 0", func(r *procpb.Reservation) { r.Epoch = 2 }))
	w.await("the end", func() bool { // that of the first try may have been told before the fence was there
		return slices.ContainsFunc(w.ended, func(r *procpb.Report) bool { return r.Epoch == 2 && r.Process.State == procpb.State_EXITED })
	})
}

// TestExecutorIsGone: what the executor's directory was lost with is lost. It
// has ended before that is told, and is not run again.
func TestExecutorIsGone(t *testing.T) {
	w := newWorld(t)
	w.set(func() { w.fence = 3 })
	w.up()
	w.await("the fence", func() bool { return w.beat != nil && w.beat.Node.Fence == 3 })
	starts := filepath.Join(w.dir, "starts")
	w.start(w.reservation(1, "echo started >> "+starts+"; exec sleep 1000"))
	w.start(w.reservation(2, "echo started >> "+starts+"; exec sleep 1000"))
	w.await("two starts", func() bool { return len(w.began) == 2 })
	pid := int(w.began[0].Process.Pid)
	w.down()
	if err := os.RemoveAll(filepath.Join(w.dir, "proc", "executor")); err != nil {
		t.Fatal(err)
	}
	w.up()
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d of before is there: %v", pid, err)
	}
	for job := range uint64(2) {
		if p := w.end(job + 1).Process; p.State != procpb.State_LOST || !strings.Contains(p.Why, "executor") {
			t.Errorf("found %v", p)
		}
	}
	w.free()
	w.start(w.reservation(3, "echo started >> "+starts))
	w.end(3)
	w.restart() // which finds nothing amiss
	w.start(w.reservation(4, "exit 0"))
	if p := w.end(4).Process; p.State != procpb.State_EXITED {
		t.Errorf("found %v", p)
	}
	if text := string(must(os.ReadFile(starts))); text != strings.Repeat("started\n", 3) {
		t.Errorf("three starts expected, found %q", text)
	}
}

// TestRecordsAreGone: the executor's records are lost while the daemon runs. What
// ran is lost, which is told, and what comes then is told of as ever.
func TestRecordsAreGone(t *testing.T) {
	w := newWorld(t)
	w.up()
	for job := uint64(3); job < 6; job++ { // whose events come before those of the next supervisor
		w.start(w.reservation(job, "exit 0"))
		w.end(job)
	}
	w.start(w.reservation(1, "exec sleep 1000"))
	w.await("a start", func() bool { return len(w.began) > 0 })
	dir := filepath.Join(w.dir, "proc", "executor")
	conn := must(net.Dial("unix", filepath.Join(dir, "socket")))
	var peer *unix.Ucred
	var err error
	cerr := must(conn.(*net.UnixConn).SyscallConn()).Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr, conn.Close(), unix.Kill(int(peer.Pid), unix.SIGKILL), os.Remove(filepath.Join(dir, "records"))); err != nil {
		t.Fatal(err)
	}
	if p := w.end(1).Process; p.State != procpb.State_LOST || !strings.Contains(p.Why, "records") {
		t.Errorf("found %v", p)
	}
	w.start(w.reservation(2, "exit 3"))
	if p := w.end(2).Process; p.ExitCode != 3 {
		t.Errorf("found %v", p)
	}
	w.free()
}

// TestTheFileSystemDies: what the executor had not synced when the machine, or its
// file system, died is gone. What may have been started is lost and not run again; an end that is
// known is told.
func TestTheFileSystemDies(t *testing.T) {
	w := newWorld(t)
	w.set(func() { w.fence = 3 })
	w.up()
	w.await("the fence", func() bool { return w.beat != nil && w.beat.Node.Fence == 3 })
	starts, records := filepath.Join(w.dir, "starts"), filepath.Join(w.dir, "proc", "executor", "records")
	w.set(func() { w.deaf = true })
	w.start(w.reservation(1, "echo started >> "+starts+"; exit 7"))
	w.free()
	synced := must(os.Stat(records)).Size()
	w.start(w.reservation(2, "echo started >> "+starts+"; exec sleep 1000"))
	w.await("two starts", func() bool { return len(w.began) > 0 })
	w.down()
	w.noneLeft()
	if err := os.Truncate(records, synced); err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.deaf = false })
	w.up()
	if p := w.end(1).Process; p.State != procpb.State_FAILED || p.ExitCode != 7 {
		t.Errorf("found %v", p)
	}
	if p := w.end(2).Process; p.State != procpb.State_LOST || !strings.Contains(p.Why, "the node died") {
		t.Errorf("found %v", p)
	}
	w.free()
	w.start(w.reservation(3, "echo started >> "+starts))
	w.end(3)
	if text := string(must(os.ReadFile(starts))); text != strings.Repeat("started\n", 3) {
		t.Errorf("three starts expected, found %q", text)
	}
}

// TestSignals: a stop with grace, a plain signal, and what cannot be told yet.
func TestSignals(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.start(w.reservation(1, "trap 'echo hup' HUP; trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 0.02; done"))
	w.poll("the process", func() bool { return w.file("/.koinon/proc/1/stdout") == "ready\n" })
	must(0, w.signal(1, 1, 0))
	w.poll("the signal", func() bool { return w.file("/.koinon/proc/1/stdout") == "ready\nhup\n" })
	must(0, w.signal(1, 15, 10*time.Second))
	if r := w.end(1); r.Process.ExitCode != 7 || r.Process.State != procpb.State_KILLED || w.file("/.koinon/proc/1/stdout") != "ready\nhup\nterm\n" {
		t.Errorf("found %v", r)
	}
	w.start(w.reservation(2, "trap '' TERM; while :; do sleep 0.02; done"))
	w.await("a start", func() bool { return len(w.began) > 1 })
	must(0, w.signal(2, 15, 50*time.Millisecond))
	if p := w.end(2).Process; p.Signal != 9 || p.ExitCode != 137 || p.State != procpb.State_KILLED {
		t.Errorf("found %v", p)
	}
	if err := w.signal(3, 15, 0); !sys.Is(err, sys.NotExist) {
		t.Errorf("found %v", err)
	}
}

// TestManyTasks: a thousand quick ones leave nothing behind.
func TestManyTasks(t *testing.T) {
	w := newWorld(t)
	a := w.up()
	const tasks, atOnce = 1000, 10
	began := time.Now()
	for i := range tasks {
		job := uint64(i + 1)
		w.await("room", func() bool { return i-len(w.ended) < atOnce })
		w.start(w.reservation(job, "", func(r *procpb.Reservation) { r.Spec.Argv = []string{"true"} }))
	}
	w.await("all ends", func() bool { return len(w.ended) == tasks })
	t.Logf("%d tasks in %v", tasks, time.Since(began))
	w.free()
	seen := map[uint64]bool{}
	for _, r := range w.ended {
		if r.Process.State != procpb.State_EXITED || seen[r.Job] {
			t.Errorf("found %v", r)
		}
		seen[r.Job] = true
	}
	w.poll("an empty list", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.tasks) == 0 && len(a.holds) == 0
	})
	w.restart()
	w.poll("an empty executor", func() bool { return len(must(w.agent.exec.List(t.Context()))) == 0 })
	w.down()
	s, was, err := openStore(filepath.Join(w.dir, "proc", "store"), w.boot, w.log)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if len(was.tasks) > 0 {
		t.Errorf("%d tasks are left in the store", len(was.tasks))
	}
}

// TestEnvironment: what a process finds, and that its own words count.
func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	w.mounts = []string{w.dir}
	if err := os.Mkdir(filepath.Join(w.dir, "work"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.up()
	res := w.reservation(4, `pwd; echo "$1|$KOINON_INDEX|$KOINON_NODES|$KOINON_EPOCH|$KOINON_TREE|$KOINON_OUT|$USER|$HOME|$ITEM|$KOINON_JOB|$KOINON_ITEM|$KOINON_HOSTS"`)
	res.Index, res.Epoch, res.Item, res.Out = 7, 2, "some file", "/.koinon/out/4.7-2"
	res.Spec.Dir, res.Spec.Array = "/work", true
	res.Spec.Env = []string{"HOME=/elsewhere", "ITEM=<{}>"}
	res.Spec.Argv = append(res.Spec.Argv, "sh", "a {}")
	w.start(res)
	r := w.end(4)
	want := fmt.Sprintf("%s/work\na some file|7|here|2|%s|%s/.koinon/out/4.7-2|%s|/elsewhere|<some file>|4|some file|10.0.0.7\n", w.dir, w.dir, w.dir, userEnv(res.Spec.User)[2][len("USER="):])
	if string(r.Stdout) != want {
		t.Errorf("found %q, %q expected; %s", r.Stdout, want, r.Stderr)
	}
}

// TestTreeInTrouble: output waits for the tree, and is cut when there is no room
// for it; the end is told in any case.
func TestTreeInTrouble(t *testing.T) {
	w := newWorld(t)
	w.set(func() { w.fsDown = true })
	w.up()
	w.start(w.reservation(1, "echo early; sleep 0.5; echo late"))
	w.poll("the end", func() bool { return w.agent.find(taskKey{1, 0, 1}, 0).isOver() })
	if w.hasEnded(1) {
		t.Error("the end was told without the output")
	}
	w.set(func() { w.fsDown = false })
	if r := w.end(1); !r.Recorded || w.file("/.koinon/proc/1/stdout") != "early\nlate\n" {
		t.Errorf("found %v, %q", r, w.file("/.koinon/proc/1/stdout"))
	}

	ctx := t.Context()
	if _, err := w.fs.Mknod(ctx, vfs.Root(), &metapb.Mknod{Parent: uint64(must(w.fs.Resolve(ctx, vfs.Root(), "/.koinon/proc", false)).GetIno()),
		Name: []byte("2"), Type: uint32(sys.TypeRegular), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	w.start(w.reservation(2, "head -c 40000000 /dev/zero; exit 6"))
	if r := w.end(2); r.Process.ExitCode != 6 || !strings.Contains(r.Process.Why, "output was cut") {
		t.Errorf("found %v", r)
	}
}

// hasEnded says whether the end of a job was told.
func (w *world) hasEnded(job uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.ended {
		if r.Job == job {
			return true
		}
	}
	return false
}

// TestSignalWhileItStarts: a signal that comes while a process is being started reaches it.
func TestSignalWhileItStarts(t *testing.T) {
	w := newWorld(t)
	w.up()
	for job := uint64(1); job <= 30; job++ {
		w.start(w.reservation(job, "exec sleep 60"))
		err := w.signal(job, 10, 0)
		for sys.Is(err, sys.NotExist) {
			err = w.signal(job, 10, 0)
		}
		must(0, err)
		if r := w.end(job); r.Process.Signal != 10 {
			t.Errorf("job %d: found %v", job, r)
		}
	}
}

func (w *world) signal(job uint64, sig uint32, grace time.Duration) error {
	r, err := w.conn.Call(w.t.Context(), proc.MethodSignal,
		pb.Marshal(&procpb.SignalRequest{Job: job, Epoch: 1, Signal: sig, GraceNs: int64(grace)}), nil)
	r.Release()
	return err
}
