//go:build linux

package executor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// playDaemon opens an executor, starts what it is asked to on its input, one script a line, and waits to be killed.
func playDaemon(dir string) {
	x, err := Open(context.Background(), dir, options(dir))
	if err == nil {
		err = x.Renew(context.Background(), env.System{}.Boot()+time.Hour)
	}
	lines := bufio.NewScanner(os.Stdin)
	for job := uint64(1); err == nil && lines.Scan(); job++ {
		s := spec(job, lines.Text())
		s.Stdin = true
		if err = x.Start(context.Background(), s); err == nil {
			_, err = fmt.Println("started")
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// playPanic is a test that panics while a process of it runs. It prints the PID of one that forked away.
func playPanic(dir string) {
	x, err := Open(context.Background(), dir, options(dir))
	if err == nil {
		err = x.Renew(context.Background(), env.System{}.Boot()+time.Hour)
	}
	s := spec(1, forksAway+"; sleep 1000")
	if err == nil {
		err = x.Start(context.Background(), s)
	}
	if err == nil {
		_, err = x.Output(s.ID, Stdout).Wait(context.Background(), 0)
	}
	if err == nil {
		_, err = io.Copy(os.Stdout, io.NewSectionReader(x.Output(s.ID, Stdout), 0, 1<<20))
	}
	panic(fmt.Sprint("as it should: ", err))
}

func TestNothingIsLeftOfATestThatPanics(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "supervisor")
	cmd := exec.Command(os.Args[0], "panic", dir)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 {
		t.Fatalf("it ended by %v and printed %q", err, out)
	}
	lock, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	// The supervisor gives its lock up when all is done.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
	gone(t, strings.TrimSpace(string(out)))
	nothingLeft(t, dir)
}

// killedDaemon runs a daemon that starts scripts and is then killed.
func killedDaemon(t *testing.T, dir string, scripts ...string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "daemon", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, s := range scripts {
		if _, err := fmt.Fprintln(in, s); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() || lines.Text() != "started" {
			t.Fatalf("the daemon says %q", lines.Text())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("a daemon that was killed ended well")
	}
}

func TestTheDaemonIsKilled(t *testing.T) {
	n := newNode(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	killedDaemon(t, n.dir, "echo quick; exit 3", "read a; echo $a; read b; exit $b")
	n.open(options(n.dir))
	if st := n.await(ID{Job: 1, Epoch: 1}); st.Code != 3 || n.read(ID{Job: 1, Epoch: 1}, Stdout) != "quick\n" {
		t.Errorf("what ended meanwhile: %+v", st)
	}
	id := ID{Job: 2, Epoch: 1}
	list, err := n.List(t.Context())
	if err != nil || len(list) != 2 || list[1].ID != id || list[1].Status != nil || list[1].PID == 0 {
		t.Fatalf("the list is %+v, %v", list, err)
	}
	in, err := n.Stdin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "again\n42\n"); err != nil {
		t.Fatal(err)
	}
	if st := n.await(id); st.Code != 42 || n.read(id, Stdout) != "again\n" {
		t.Errorf("what went on ended as %+v and printed %q", st, n.read(id, Stdout))
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	var seqs []uint64
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for e := range n.Events(ctx, 0) {
		if len(seqs) > 0 && e.Seq <= seqs[len(seqs)-1] {
			t.Errorf("event %d after %v", e.Seq, seqs)
		}
		if seqs = append(seqs, e.Seq); len(seqs) == 4 {
			break
		}
	}
	if e := <-n.Events(ctx, seqs[2]); e.Seq != seqs[3] || e.ID != id || e.Status.Code != 42 {
		t.Errorf("the event after %d is %+v", seqs[2], e)
	}
}

// supervisorPID asks the kernel who listens.
func (n *node) supervisorPID() int {
	n.t.Helper()
	conn, err := dialSocket(n.t.Context(), n.home)
	if err != nil {
		n.t.Fatal(err)
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		n.t.Fatal(err)
	}
	var peer *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, cerr, conn.Close()); err != nil {
		n.t.Fatal(err)
	}
	return int(peer.Pid)
}

func TestTheSupervisorIsKilled(t *testing.T) { eachTracking(t, testTheSupervisorIsKilled) }

func testTheSupervisorIsKilled(t *testing.T, n *node) {
	done := spec(1, "echo done; exit 9")
	n.run(done)
	away := forksAway
	if n.Enforced().Tracking == ByAttempt {
		away = strings.Replace(away, "env -i PATH=$PATH", "", 1) // who hides even that is not found by the next supervisor
	}
	s := spec(2, away+"; exec sleep 1000")
	n.start(s)
	pid := n.awaitLine(s.ID)
	main := fmt.Sprint(n.list()[s.ID].PID)
	if err := n.Fence(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n.supervisorPID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The next call finds nobody, and starts another one.
	if st := n.await(s.ID); st.Cause != Lost || st.ExitCode() != 125 {
		t.Errorf("what ran ended as %+v", st)
	}
	gone(t, pid)
	gone(t, main)
	if st := n.await(done.ID); st.Code != 9 || n.read(done.ID, Stdout) != "done\n" {
		t.Errorf("what had ended: %+v", st)
	}
	if err := n.Start(t.Context(), s); err != nil {
		t.Errorf("start the lost attempt again: %v", err)
	}
	if err := n.Start(t.Context(), spec(3, "true")); !sys.Is(err, sys.Unavailable) {
		t.Errorf("a start without a lease: %v", err)
	}
	n.renew(time.Hour)
	below := spec(4, "true")
	below.ID.Epoch = 0
	if err := n.Start(t.Context(), below); !sys.Is(err, sys.StaleEpoch) {
		t.Errorf("a start below the fence: %v", err)
	}
	if st := n.run(spec(5, "exit 1")); st.Code != 1 {
		t.Errorf("ended as %+v", st)
	}
}

func (n *node) list() map[ID]Process {
	n.t.Helper()
	list, err := n.List(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	m := map[ID]Process{}
	for _, p := range list {
		m[p.ID] = p
	}
	return m
}

func TestTheLeaseRunsOut(t *testing.T) { eachTracking(t, testTheLeaseRunsOut) }

func testTheLeaseRunsOut(t *testing.T, n *node) {
	s := spec(1, forksAway+"; trap '' TERM; sleep 1000")
	n.start(s)
	pid := n.awaitLine(s.ID)
	n.renew(200 * time.Millisecond)
	n.renew(time.Hour) // in time
	if p := n.list()[s.ID]; p.Status != nil {
		t.Fatalf("ended as %+v under a lease", p.Status)
	}
	n.renew(100 * time.Millisecond)
	if st := n.await(s.ID); st.Cause != Fenced || st.Signal != syscall.SIGKILL {
		t.Errorf("ended as %+v", st)
	}
	gone(t, pid)
	if err := n.Start(t.Context(), spec(2, "true")); !sys.Is(err, sys.Unavailable) {
		t.Errorf("a start after the lease: %v", err)
	}
	n.renew(time.Hour)
	if st := n.run(spec(2, "true")); st.ExitCode() != 0 {
		t.Errorf("ended as %+v", st)
	}
}

// limited are nodes that must enforce limits: those of root where cgroups are there, as in CI.
func limited(t testing.TB) *node {
	n := newNode(t)
	if e := n.Enforced(); os.Geteuid() == 0 && (!e.CPU || !e.Memory || e.Tracking != ByCgroup) {
		t.Fatalf("limits are not enforced for root: %+v", e)
	}
	return n
}

func TestMemoryLimit(t *testing.T) {
	n := limited(t)
	if !n.Enforced().Memory {
		t.Logf("not enforced: %s", n.Enforced().Why)
		return
	}
	const eat = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo survived"
	s := spec(1, eat)
	s.Limits.Memory = 32 << 20
	if st := n.run(s); st.Cause != OOM {
		t.Errorf("ended as %+v and printed %q", st, n.read(s.ID, Stdout))
	}
	s = spec(2, "echo fits")
	s.Limits.Memory = 32 << 20
	if st := n.run(s); st.ExitCode() != 0 || st.Cause != Exited {
		t.Errorf("ended as %+v", st)
	}
	s = spec(3, "kill -KILL $$")
	s.Limits.Memory = 32 << 20
	if st := n.run(s); st.Cause != Exited || st.Signal != syscall.SIGKILL {
		t.Errorf("ended as %+v", st)
	}
}

func TestCPULimit(t *testing.T) {
	n := limited(t)
	if !n.Enforced().CPU {
		t.Logf("not enforced: %s", n.Enforced().Why)
		return
	}
	// The same work, by its own clock: 200 ms of CPU under a tenth of one take two seconds.
	s := spec(1, "while :; do :; done")
	s.Limits.CPU = 100
	s.Timeout = 2 * time.Second
	s.KillGrace = time.Second
	if st := n.run(s); st.CPU < 50*time.Millisecond || st.CPU > time.Second {
		t.Errorf("used %v of CPU in 2 s, want about 200 ms", st.CPU)
	}
}

func TestFlood(t *testing.T) {
	const spoolMax = 1 << 20
	n := newNode(t, func(o *Options) { o.SpoolMax = spoolMax })
	const size = 64 << 20
	s := spec(1, fmt.Sprintf("yes 0123456 | head -c %d; exit 8", size))
	n.start(s)
	o := n.Output(s.ID, Stdout)
	st, err := o.Wait(t.Context(), spoolMax-1)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, copyBuffer)
	for at := int64(0); ; {
		if st.Size-at > spoolMax+copyBuffer+65536 {
			t.Fatalf("%d bytes are kept that nobody has acknowledged", st.Size-at)
		}
		for at < st.Size {
			m, err := o.ReadAt(buf[:min(int64(len(buf)), st.Size-at)], at)
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range buf[:m] {
				if c != "0123456\n"[(at+int64(i))%8] {
					t.Fatalf("byte %d is %q", at+int64(i), c)
				}
			}
			at += int64(m)
		}
		if err := o.Ack(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		if st.Final {
			break
		}
		if st, err = o.Wait(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	if end := n.await(s.ID); end.Code != 8 || end.Stdout != size {
		t.Errorf("ended as %+v", end)
	}
	var file unix.Stat_t
	if err := unix.Stat(o.Path(), &file); err != nil {
		t.Fatal(err)
	}
	if kept := file.Blocks * 512; kept > 2*spoolMax {
		t.Errorf("%d bytes of disk are used after all was acknowledged", kept)
	}
	if err := o.Ack(t.Context(), size+1); !sys.Is(err, sys.Invalid) {
		t.Errorf("acknowledge what is not there: %v", err)
	}
	// Nobody reads: the process waits, and can be stopped.
	s = spec(2, "yes")
	n.start(s)
	if _, err := n.Output(s.ID, Stdout).Wait(t.Context(), spoolMax-1); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(t.Context(), s.ID, 0); err != nil {
		t.Fatal(err)
	}
	if end := n.await(s.ID); end.Stdout > spoolMax+copyBuffer+65536 {
		t.Errorf("%d bytes were taken in", end.Stdout)
	}
}

func TestAcknowledgedOutputAfterACrash(t *testing.T) {
	n := newNode(t)
	s := spec(1, "yes 0123456 | head -c 3000000")
	n.run(s)
	o := n.Output(s.ID, Stdout)
	if err := o.Ack(t.Context(), 2_000_000); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n.supervisorPID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	st, err := o.State(t.Context())
	if err != nil || st.Acked > 2_000_000 || st.Acked < 900_000 || st.Size != 3_000_000 || !st.Final {
		t.Fatalf("the state is %+v, %v", st, err)
	}
	if got := n.read(s.ID, Stdout); strings.ContainsRune(got, 0) || int64(len(got)) != st.Size-st.Acked {
		t.Errorf("%d bytes are read after %d, with holes: %v", len(got), st.Acked, strings.ContainsRune(got, 0))
	}
}

// A machine that dies may lose the last records. Of attempts that are in none there is nothing.
func TestRecordsAreLost(t *testing.T) {
	n := newNode(t)
	kept, lost := spec(1, "echo kept"), spec(2, "echo lost")
	n.run(kept)
	records := filepath.Join(n.dir, recordsName)
	info, err := os.Stat(records)
	if err != nil {
		t.Fatal(err)
	}
	n.run(lost)
	if err := unix.Kill(n.supervisorPID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Some file systems have zeros where a file had grown.
	if err := errors.Join(os.Truncate(records, info.Size()), os.Truncate(records, info.Size()+64)); err != nil {
		t.Fatal(err)
	}
	if list := n.list(); len(list) != 1 || list[kept.ID].Status == nil {
		t.Errorf("the list is %+v", list)
	}
	if got := n.read(kept.ID, Stdout); got != "kept\n" {
		t.Errorf("found %q", got)
	}
	if left, err := filepath.Glob(spoolPath(n.dir, lost.ID, "*")); err != nil || len(left) > 0 {
		t.Errorf("spools are left: %v, %v", left, err)
	}
}

func TestAnotherUser(t *testing.T) {
	n := newNode(t)
	s := spec(1, "id -u; id -g; id -G; grep -h -E 'Cap(Prm|Eff|Amb)' /proc/self/status | tr -d '\\t'; echo ok >/dev/stderr")
	s.UID, s.GID, s.Groups = nobody, nobody, []uint32{nobody, 4242}
	if os.Geteuid() != 0 {
		if err := n.Start(t.Context(), s); !sys.Is(err, sys.Permission) {
			t.Errorf("another user without root: %v", err)
		}
		return
	}
	st := n.run(s)
	const want = "65534\n65534\n65534 4242\nCapPrm:0000000000000000\nCapEff:0000000000000000\nCapAmb:0000000000000000\n"
	if out, e := n.read(s.ID, Stdout), n.read(s.ID, Stderr); st.ExitCode() != 0 || out != want || e != "ok\n" {
		t.Errorf("ended as %+v and printed %q and %q", st, out, e)
	}
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o777); err != nil {
		t.Fatal(err)
	}
	for i, dir := range []string{dir, below} {
		s.ID.Job, s.Dir = uint64(2+i), dir
		if err := n.Start(t.Context(), s); !errors.Is(err, ErrNoDirectory) {
			t.Errorf("in another user's directory %s: %v", dir, err)
		}
	}
}

// TestDeadMount: where the file system has died nothing starts, and that is the
// node's trouble. Who is not root has it in the test of a whole cluster.
func TestDeadMount(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	n := newNode(t)
	dir := t.TempDir()
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	s := spec(1, "true")
	s.Dir = dir
	if err := n.Start(t.Context(), s); !errors.Is(err, ErrAway) || !sys.Is(err, sys.Unavailable) {
		t.Errorf("on a dead mount: %v", err)
	}
	if list, err := n.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v are known", list, err)
	}
}

func TestList(t *testing.T) {
	n := newNode(t)
	s := spec(1, "sleep 1000 & sleep 1000 & i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo ready; wait")
	n.start(s)
	n.awaitLine(s.ID)
	p := n.list()[s.ID]
	if p.Count != 3 || p.RSS < 100<<10 || p.RSS > 1<<30 || p.CPU <= 0 || p.CPU > time.Minute || p.Status != nil {
		t.Errorf("the usage is %+v", p)
	}
	if err := n.Stop(t.Context(), s.ID, 0); err != nil {
		t.Fatal(err)
	}
	st := n.await(s.ID)
	if p = n.list()[s.ID]; p.Status == nil || p.Count != 0 || p.CPU != st.CPU || st.CPU <= 0 {
		t.Errorf("after its end the list says %+v", p)
	}
}

func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	const many = 200
	for i := range uint64(many) {
		s := spec(i, fmt.Sprintf("echo %d; exit %d", i, i))
		if i%2 == 1 {
			s.Limits = Limits{CPU: 1000, Memory: 64 << 20}
		}
		n.start(s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	left := many
	for e := range n.Events(ctx, 0) {
		if e.Status == nil {
			continue
		}
		if out := n.read(e.ID, Stdout); e.Status.ExitCode() != int(e.ID.Job) || out != fmt.Sprintln(e.ID.Job) {
			t.Errorf("%v ended as %+v, and printed %q", e.ID, e.Status, out)
		}
		if err := n.Forget(ctx, e.ID); err != nil {
			t.Error(err)
		}
		if left--; left == 0 {
			break
		}
	}
	if left > 0 || len(n.list()) != 0 {
		t.Errorf("%d have not ended, %d are known", left, len(n.list()))
	}
}

func TestADirectoryHasOneSupervisor(t *testing.T) {
	n := newNode(t)
	lock, err := os.OpenFile(filepath.Join(n.dir, lockName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the lock of the directory: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(n.dir, socketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	first, second := n.supervisorPID(), 0
	x, err := Open(t.Context(), n.dir, options(n.dir))
	if err != nil {
		t.Fatal(err)
	}
	second = n.supervisorPID()
	if first != second {
		t.Errorf("supervisor %d took the place of %d", second, first)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "x"), Options{Command: []string{"/bin/false"}}); !sys.Is(err, sys.Unavailable) {
		t.Errorf("a supervisor that does not start: %v", err)
	}
}

func BenchmarkTrue(b *testing.B) {
	for _, l := range []Limits{{}, {CPU: 1000, Memory: 1 << 30}} {
		b.Run(fmt.Sprintf("limits=%v", l != Limits{}), func(b *testing.B) {
			n := newNode(b)
			events := n.Events(b.Context(), 0)
			job := uint64(0)
			for b.Loop() {
				job++
				s := spec(job, "")
				s.Argv, s.Limits = []string{"/bin/true"}, l
				n.start(s)
				for e := range events {
					if e.Status != nil {
						if e.Status.ExitCode() != 0 {
							b.Fatalf("ended as %+v", e.Status)
						}
						break
					}
				}
				if err := n.Forget(b.Context(), s.ID); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Somebody removes the cgroups in which the threads wait, or what they go to: it is an error, or repaired, but limits are
// never dropped in silence, and nothing is left.
func TestCgroupsAreRemovedByOthers(t *testing.T) {
	n := limited(t)
	if !n.Enforced().Memory {
		t.Logf("not enforced: %s", n.Enforced().Why)
		return
	}
	for i := range uint64(40) {
		s := spec(i, "cat /proc/self/cgroup")
		s.Limits.Memory = 64 << 20
		waiting, err := filepath.Glob("/sys/fs/cgroup/*/" + supervisorName(n.dir) + "/[0-9].*")
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range waiting {
			if err := unix.Rmdir(w); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
				t.Fatal(err)
			}
		}
		if err := n.Start(t.Context(), s); sys.Is(err, sys.Unavailable) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		n.await(s.ID)
		if out := n.read(s.ID, Stdout); !strings.Contains(out, supervisorName(n.dir)) {
			t.Errorf("it ran in %q", out)
		}
	}
}
