//go:build linux

package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// patience bounds what must happen soon.
const patience = 30 * time.Second

// nobody is a user without rights.
const nobody = 65534

// The test binary is the supervisor, and the daemon that is killed, when its first argument says so.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 {
		switch os.Args[1] {
		case withCgroups:
			playSupervisor(os.Args[2], openGroups)
		case withoutCgroups:
			playSupervisor(os.Args[2], func(name string) (*groups, error) {
				return &groups{name: name, enforced: Enforced{Tracking: ByAttempt, Why: "the test wants none"}}, nil
			})
		case "daemon":
			playDaemon(os.Args[2])
		case "panic":
			playPanic(os.Args[2])
		}
	}
	os.Exit(m.Run())
}

// How the test binary plays the supervisor.
const (
	withCgroups    = "supervise"
	withoutCgroups = "supervise-without-cgroups"
)

// playSupervisor is one that also ends when who started it does, so that nothing is left of a test that panics.
func playSupervisor(dir string, open func(string) (*groups, error)) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	parent, err := daemon.Identify(os.Getppid())
	if err == nil {
		go func() {
			defer stop()
			if err := parent.Wait(ctx); err != nil && ctx.Err() == nil {
				panic(err)
			}
		}()
		err = supervise(ctx, dir, open)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

type node struct {
	*Executor
	t   testing.TB
	dir string
}

func options(dir string) Options { return Options{Command: []string{os.Args[0], withCgroups, dir}} }

// eachTracking runs a test with cgroups, where they can be had, and without.
func eachTracking(t *testing.T, test func(t *testing.T, n *node)) {
	for _, how := range []string{withCgroups, withoutCgroups} {
		t.Run(how, func(t *testing.T) {
			n := newNode(t, func(o *Options) { o.Command[1] = how })
			if how == withoutCgroups && n.Enforced().Tracking != ByAttempt {
				t.Fatalf("the node says %+v", n.Enforced())
			}
			test(t, n)
		})
	}
}

// newNode opens an executor with a lease in a directory of its own, and makes sure at the end that nothing is left.
func newNode(t testing.TB, change ...func(*Options)) *node {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "supervisor")
	opts := options(dir)
	for _, c := range change {
		c(&opts)
	}
	n := &node{t: t, dir: dir}
	n.open(opts)
	n.renew(time.Hour)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.Shutdown(ctx); err != nil {
			t.Errorf("shut down: %v\n%s", err, daemon.Tail(filepath.Join(dir, logName), 30))
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, dir)
		text, err := os.ReadFile(filepath.Join(dir, logName))
		if err != nil || len(text) > 0 && t.Failed() || bytes.Contains(text, []byte("DATA RACE")) || bytes.Contains(text, []byte("panic:")) {
			t.Errorf("the supervisor's log: %v\n%s", err, text)
		}
	})
	return n
}

func (n *node) open(opts Options) {
	n.t.Helper()
	x, err := Open(n.t.Context(), n.dir, opts)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Executor = x
}

func (n *node) renew(d time.Duration) {
	n.t.Helper()
	if err := n.Renew(n.t.Context(), env.System{}.Boot()+d); err != nil {
		n.t.Fatal(err)
	}
}

// nothingLeft fails when there are processes or cgroups of the supervisor of a directory.
func nothingLeft(t testing.TB, dir string) {
	t.Helper()
	name := supervisorName(dir)
	if pids := (family{marker: marker(name, ID{}), prefix: true}).pids(); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("cgroups %v are left", left)
	}
}

// spec runs a shell script as the user of the test.
func spec(job uint64, script string) Spec {
	return Spec{
		ID: ID{Job: job, Epoch: 1}, Argv: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: "/",
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), KillGrace: time.Second,
	}
}

func (n *node) start(s Spec) {
	n.t.Helper()
	if err := n.Start(n.t.Context(), s); err != nil {
		n.t.Fatalf("start %v: %v", s.Argv, err)
	}
}

// await returns the end of a process.
func (n *node) await(id ID) Status {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	for e := range n.Events(ctx, 0) {
		if e.ID == id && e.Status != nil {
			return *e.Status
		}
	}
	n.t.Fatalf("%v does not end\n%s", id, daemon.Tail(filepath.Join(n.dir, logName), 30))
	return Status{}
}

// run starts a process and returns its end.
func (n *node) run(s Spec) Status {
	n.t.Helper()
	n.start(s)
	return n.await(s.ID)
}

// read returns an output, from what is acknowledged on, once it is final.
func (n *node) read(id ID, stream Stream) string {
	n.t.Helper()
	o := n.Output(id, stream)
	var got bytes.Buffer
	for at := int64(0); ; {
		st, err := o.Wait(n.t.Context(), at)
		if err != nil {
			n.t.Fatal(err)
		}
		at = max(at, st.Acked)
		m, err := io.Copy(&got, io.NewSectionReader(o, at, st.Size-at))
		if err != nil {
			n.t.Fatal(err)
		}
		if at += m; st.Final && at == st.Size {
			return got.String()
		}
	}
}

// awaitOutput returns an output when it ends with a line.
func (n *node) awaitLine(id ID) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	o := n.Output(id, Stdout)
	for size := int64(0); ; {
		st, err := o.Wait(ctx, size)
		if err != nil {
			n.t.Fatal(err)
		}
		buf := make([]byte, st.Size)
		if _, err := o.ReadAt(buf, 0); err != nil {
			n.t.Fatal(err)
		}
		if line, _, ok := strings.Cut(string(buf), "\n"); ok {
			return line
		}
		if size = st.Size; st.Final {
			n.t.Fatalf("%v printed %q and no line", id, buf)
		}
	}
}

func gone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := readStat(n); err == nil && !st.zombie {
		t.Errorf("process %d is still there", n)
	}
}

func TestExits(t *testing.T) {
	n := newNode(t)
	for i, tc := range []struct {
		script string
		cause  Cause
		code   int
		out    string
		err    string
	}{
		{"true", Exited, 0, "", ""},
		{"exit 3", Exited, 3, "", ""},
		{"echo out; echo err >&2; exit 255", Exited, 255, "out\n", "err\n"},
		{"kill -SEGV $$", Exited, 128 + 11, "", ""},
		{"kill -KILL $$", Exited, 128 + 9, "", ""},
		{"cat", Exited, 0, "", ""}, // its input is empty
		{"umask; pwd", Exited, 0, "0022\n/\n", ""},
		{"ls /proc/self/fd | wc -l", Exited, 0, "4\n", ""}, // three and the directory
		// But for 32 and 33, which are the C library's own: what make starts ignores them.
		{`for s in SigBlk SigIgn; do echo $s $((0x$(sed -n "s/^$s:\t//p" /proc/self/status) & 0x7fffffff)); done`, Exited, 0, "SigBlk 0\nSigIgn 0\n", ""},
		{"env | grep -v -e ^PWD -e ^SHLVL -e ^_= -e ^PATH | sed 's/=.*//'", Exited, 0, "KOINON_ATTEMPT\n", ""},
	} {
		s := spec(uint64(i), tc.script)
		st := n.run(s)
		if st.Cause != tc.cause || st.ExitCode() != tc.code {
			t.Errorf("%q ended as %+v, want %s and exit code %d", tc.script, st, tc.cause, tc.code)
		}
		if out, err := n.read(s.ID, Stdout), n.read(s.ID, Stderr); out != tc.out || err != tc.err {
			t.Errorf("%q printed %q and %q, want %q and %q", tc.script, out, err, tc.out, tc.err)
		}
		if st.Stdout != int64(len(tc.out)) || st.Stderr != int64(len(tc.err)) {
			t.Errorf("%q printed %d and %d bytes by its status", tc.script, st.Stdout, st.Stderr)
		}
	}
}

func TestWhatCannotBeStarted(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("echo no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(dir, "orphan")
	if err := os.WriteFile(orphan, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, tc := range []struct {
		name   string
		change func(*Spec)
		want   error
		code   int
	}{
		{"no such name", func(s *Spec) { s.Argv = []string{"no-such-command"} }, ErrNotFound, 127},
		{"no such path", func(s *Spec) { s.Argv = []string{"/no/such/command"} }, ErrNotFound, 127},
		{"no such path below the directory", func(s *Spec) { s.Argv = []string{"./nothing"}; s.Dir = dir }, ErrNotFound, 127},
		{"no execute permission", func(s *Spec) { s.Argv = []string{plain} }, ErrNotExecutable, 126},
		{"none in PATH", func(s *Spec) { s.Argv = []string{"plain"}; s.Env = []string{"PATH=" + dir} }, ErrNotExecutable, 126},
		{"a directory", func(s *Spec) { s.Argv = []string{dir} }, ErrNotExecutable, 126},
		{"no interpreter", func(s *Spec) { s.Argv = []string{orphan} }, ErrNotExecutable, 126},
		{"too long", func(s *Spec) { s.Argv = append(s.Argv, strings.Repeat("x", 1<<20)) }, ErrNotExecutable, 126},
		{"no such directory", func(s *Spec) { s.Dir = "/no/such/directory" }, ErrNoDirectory, 125},
		{"a file as directory", func(s *Spec) { s.Dir = plain }, ErrNoDirectory, 125},
		{"no such user", func(s *Spec) { s.UID = ^uint32(0) }, ErrNoUser, 125},
		{"no command", func(s *Spec) { s.Argv = nil }, nil, 125},
		{"a NUL", func(s *Spec) { s.Argv = []string{"a\x00b"} }, nil, 125},
		{"a relative directory", func(s *Spec) { s.Dir = "here" }, nil, 125},
		{"a negative limit", func(s *Spec) { s.Limits.CPU = -1 }, nil, 125},
	} {
		s := spec(uint64(i), "true")
		tc.change(&s)
		err := n.Start(t.Context(), s)
		if err == nil || ExitCode(err) != tc.code || tc.want != nil && !errors.Is(err, tc.want) || tc.want == nil && !sys.Is(err, sys.Invalid) {
			t.Errorf("%s: got %v with exit code %d, want %v and %d", tc.name, err, ExitCode(err), tc.want, tc.code)
		}
	}
	if list, err := n.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v are known after starts that failed", list, err)
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("echo \"$1\"\nexit 4\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := spec(100, "")
	s.Argv = []string{script, "not \xff UTF-8"}
	if st := n.run(s); st.Code != 4 || n.read(s.ID, Stdout) != "not \xff UTF-8\n" {
		t.Errorf("a script without #! ended as %+v and printed %q", st, n.read(s.ID, Stdout))
	}
}

func TestStartOfTheSameAttempt(t *testing.T) {
	n := newNode(t)
	file := filepath.Join(t.TempDir(), "file")
	s := spec(1, "echo x >>"+file)
	for range 3 {
		n.start(s)
	}
	n.await(s.ID)
	n.start(s)
	if text, err := os.ReadFile(file); err != nil || string(text) != "x\n" {
		t.Errorf("it ran to %q, %v", text, err)
	}
	s.Argv[2] = "sleep 1000"
	s.ID.Epoch = 3
	n.start(s)
	for _, tc := range []struct {
		epoch uint64
		want  sys.Kind
	}{{4, sys.Busy}, {2, sys.StaleEpoch}} {
		later := s
		later.ID.Epoch = tc.epoch
		if err := n.Start(t.Context(), later); !sys.Is(err, tc.want) {
			t.Errorf("epoch %d beside a running 3: %v, want %v", tc.epoch, err, tc.want)
		}
	}
	if err := n.Fence(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), spec(2, "true")); !sys.Is(err, sys.StaleEpoch) {
		t.Errorf("a start below the fence: %v", err)
	}
	if err := n.Forget(t.Context(), s.ID); !sys.Is(err, sys.Busy) {
		t.Errorf("forget a running process: %v", err)
	}
	if err := n.Sweep(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if st := n.await(s.ID); st.Cause != Fenced || st.Signal != syscall.SIGKILL {
		t.Errorf("what was swept ended as %+v", st)
	}
	s.ID.Epoch, s.Argv[2] = 5, "true"
	if st := n.run(s); st.ExitCode() != 0 {
		t.Errorf("an attempt at the fence ended as %+v", st)
	}
	if err := n.Forget(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(n.dir, spoolDir, "1.0.5.*"))
	if err != nil || len(left) != 0 {
		t.Errorf("files %v, %v are left of what was forgotten", left, err)
	}
}

func TestSignals(t *testing.T) {
	n := newNode(t)
	s := spec(1, "trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.01; done")
	n.start(s)
	n.awaitLine(s.ID)
	if err := n.Signal(t.Context(), s.ID, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if st := n.await(s.ID); st.Code != 7 || st.Cause != Exited || !strings.HasSuffix(n.read(s.ID, Stdout), "got\n") {
		t.Errorf("ended as %+v", st)
	}
	if err := n.Signal(t.Context(), s.ID, syscall.SIGUSR1); !sys.Is(err, sys.NotExist) {
		t.Errorf("a signal after the end: %v", err)
	}
	s = spec(2, "")
	s.Argv = []string{"sleep", "1000"} // a shell that has not begun to wait yet takes SIGINT for itself, and goes on
	n.start(s)
	if err := n.Signal(t.Context(), s.ID, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if st := n.await(s.ID); st.Cause != Signaled || st.ExitCode() != 130 {
		t.Errorf("ended as %+v", st)
	}
	if err := n.Signal(t.Context(), s.ID, 99); !sys.Is(err, sys.Invalid) {
		t.Errorf("signal 99: %v", err)
	}
}

func TestStop(t *testing.T) { eachTracking(t, testStop) }

func testStop(t *testing.T, n *node) {
	for i, tc := range []struct {
		name, script string
		grace        time.Duration
		signal       syscall.Signal
		code         int
	}{
		{"ends on TERM", "echo $$; exec sleep 1000", time.Hour, syscall.SIGTERM, 0},
		{"handles TERM", "trap 'exit 5' TERM; echo $$; while :; do sleep 0.01; done", time.Hour, 0, 5},
		{"ignores TERM", "trap '' TERM; echo $$; while :; do sleep 0.01; done", 50 * time.Millisecond, syscall.SIGKILL, 0},
		{"is stopped", "trap 'exit 6' TERM; echo $$; kill -STOP $$; sleep 1000", time.Hour, 0, 6},
		{"at once", "trap '' TERM; echo $$; while :; do sleep 0.01; done", 0, syscall.SIGKILL, 0},
	} {
		s := spec(uint64(i), tc.script)
		n.start(s)
		n.awaitLine(s.ID)
		if err := n.Stop(t.Context(), s.ID, tc.grace); err != nil {
			t.Fatal(err)
		}
		if st := n.await(s.ID); st.Cause != Stopped || st.Signal != tc.signal || st.Code != tc.code {
			t.Errorf("%s: ended as %+v", tc.name, st)
		}
		if err := n.Stop(t.Context(), s.ID, 0); err != nil {
			t.Errorf("stop what has ended: %v", err)
		}
	}
	s := spec(100, "trap '' TERM; echo $$; while :; do sleep 0.01; done")
	s.Timeout, s.KillGrace = 50*time.Millisecond, 50*time.Millisecond
	if st := n.run(s); st.Cause != TimedOut || st.Signal != syscall.SIGKILL {
		t.Errorf("after its timeout it ended as %+v", st)
	}
}

// forksAway leaves behind a process in a session of its own, whose parent has died, with nothing in its environment, and
// prints its PID.
const forksAway = "(setsid env -i PATH=$PATH sh -c 'echo $$; trap \"\" TERM HUP; exec sleep 1000' &) "

func TestWhatForksAwayIsKilled(t *testing.T) { eachTracking(t, testWhatForksAwayIsKilled) }

func testWhatForksAwayIsKilled(t *testing.T, n *node) {
	for i, tc := range []struct {
		name, script string
		stop         bool
	}{
		{"after its end", forksAway + "; read line; exit 0", false},
		{"by stop", forksAway + "; sleep 1000", true},
	} {
		s := spec(uint64(i), tc.script)
		s.Stdin = !tc.stop
		n.start(s)
		pid := n.awaitLine(s.ID)
		if tc.stop {
			if err := n.Stop(t.Context(), s.ID, time.Second); err != nil {
				t.Fatal(err)
			}
		} else {
			in, err := n.Stdin(t.Context(), s.ID)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(in, "go\n"); err != nil {
				t.Fatal(err)
			}
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
		}
		n.await(s.ID)
		gone(t, pid)
	}
}

func TestStdin(t *testing.T) {
	n := newNode(t)
	s := spec(1, "wc -c; cat /dev/stdin")
	s.Stdin = true
	n.start(s)
	in, err := n.Stdin(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	if _, err := in.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if st := n.await(s.ID); st.ExitCode() != 0 || n.read(s.ID, Stdout) != fmt.Sprintln(size) {
		t.Errorf("ended as %+v and printed %q, %q", st, n.read(s.ID, Stdout), n.read(s.ID, Stderr))
	}
	if _, err := n.Stdin(t.Context(), s.ID); !sys.Is(err, sys.NotExist) {
		t.Errorf("the input of what has ended: %v", err)
	}
	// A write that nobody reads ends with its context.
	s = spec(2, "sleep 1000")
	s.Stdin = true
	n.start(s)
	ctx, cancel := context.WithCancel(t.Context())
	if in, err = n.Stdin(ctx, s.ID); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := in.Write(make([]byte, size)); err == nil {
		t.Error("a write that nobody read ended well")
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
}

// TestOtherDirectory: an executor whose directory was removed has nothing to do with what is at its path by now, and says so at once.
func TestOtherDirectory(t *testing.T) {
	second := newNode(t)
	first := &node{t: t, dir: second.dir}
	if err := second.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.open(options(first.dir))
	if err := first.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(second.Close(), os.RemoveAll(second.dir)); err != nil {
		t.Fatal(err)
	}
	second.open(options(second.dir))
	second.renew(time.Hour)
	if done := second.run(spec(1, "exit 3")); done.Code != 3 {
		t.Fatalf("found %+v", done)
	}
	list, err := first.List(t.Context())
	if !sys.Is(err, sys.NotExist) || !strings.Contains(err.Error(), "removed or replaced") {
		t.Errorf("a list without the directory: %v, %v", list, err)
	}
	if err := first.Start(t.Context(), spec(2, "true")); !sys.Is(err, sys.NotExist) {
		t.Errorf("a start without the directory: %v", err)
	}
	if err := first.Forget(t.Context(), second.list()[ID{Job: 1, Epoch: 1}].ID); !sys.Is(err, sys.NotExist) || len(second.list()) != 1 {
		t.Errorf("after %v the other one has %v", err, second.list())
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}
