//go:build linux

package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds what must happen soon.
const patience = 20 * time.Second

// child starts this test binary as a program that plays the given role.
func child(t *testing.T, role string, ready bool) *Daemon {
	t.Helper()
	t.Setenv("KOINON_DAEMON_TEST", role)
	d, err := Start(Spec{Path: os.Args[0], Args: []string{"an argument"}, Log: filepath.Join(t.TempDir(), "log"), Ready: ready})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		wait(t, d.Process)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func wait(t *testing.T, p Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Error(err)
	}
}

func alive(t *testing.T, p Process) bool {
	t.Helper()
	is, err := p.Alive()
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func TestMain(m *testing.M) {
	switch os.Getenv("KOINON_DAEMON_TEST") {
	case "":
		os.Exit(m.Run())
	case "ready":
		if err := TellReady(ReadyFD, "here I am"); err != nil {
			panic(err)
		}
		block()
	case "mute":
		block()
	case "listen":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			err = TellReady(ReadyFD, l.Addr().String())
		}
		if err != nil {
			panic(err)
		}
		block()
	case "fail":
		os.Exit(3)
	}
}

// block waits for a signal that ends the process.
func block() {
	_, err := io.Copy(io.Discard, blockingPipe())
	panic(err)
}

func blockingPipe() io.Reader {
	r, _, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	return r
}

func TestReady(t *testing.T) {
	d := child(t, "ready", true)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	line, err := d.AwaitReady(ctx)
	if err != nil || line != "here I am" {
		t.Fatalf("got %q, %v", line, err)
	}
	if !alive(t, d.Process) {
		t.Error("a running process is not alive")
	}
	if sid, err := unix.Getsid(d.PID); err != nil || sid != d.PID {
		t.Errorf("its session is %d, %v, want its own, %d", sid, err, d.PID)
	}
}

func TestReadyOfAProcessThatFails(t *testing.T) {
	d := child(t, "fail", true)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if line, err := d.AwaitReady(ctx); !errors.Is(err, ErrGone) {
		t.Fatalf("got %q, %v, want %v", line, err, ErrGone)
	}
}

func TestReadyEndsWithItsContext(t *testing.T) {
	d := child(t, "mute", true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.AwaitReady(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestSignalAndWait(t *testing.T) {
	d := child(t, "mute", false)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("waiting for a running process: %v", err)
	}
	if err := d.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, d.Process)
	if alive(t, d.Process) {
		t.Error("alive after SIGKILL")
	}
	if err := d.Signal(unix.SIGTERM); !errors.Is(err, ErrGone) {
		t.Errorf("signal to the dead: %v, want %v", err, ErrGone)
	}
}

// An ended child that nobody has waited for is dead, and reaped when found.
func TestZombieIsDead(t *testing.T) {
	d := child(t, "fail", true)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := d.AwaitReady(ctx); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
	wait(t, d.Process)
	if alive(t, d.Process) {
		t.Error("taken for alive")
	}
	if id, err := Identify(d.PID); !errors.Is(err, ErrGone) {
		t.Errorf("not reaped: %+v, %v", id, err)
	}
}

// Once a killed process is found dead, its ports are free. Its first thread
// may end before the others.
func TestDeadHoldsNothing(t *testing.T) {
	for range 50 {
		d := child(t, "listen", true)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		addr, err := d.AwaitReady(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for alive(t, d.Process) {
			runtime.Gosched()
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A PID that another process has now is never signalled.
func TestRecycledPID(t *testing.T) {
	d := child(t, "mute", false)
	for name, change := range map[string]func(*Process){
		"earlier start": func(p *Process) { p.Start-- },
		"earlier boot":  func(p *Process) { p.Boot = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			old := d.Process
			change(&old)
			if alive(t, old) {
				t.Error("taken for alive")
			}
			if err := old.Signal(unix.SIGKILL); !errors.Is(err, ErrGone) {
				t.Errorf("signal: %v, want %v", err, ErrGone)
			}
			wait(t, old)
			if !alive(t, d.Process) {
				t.Fatal("the process that has the PID now was hit")
			}
		})
	}
	thread, end := make(chan int), make(chan struct{})
	defer close(end)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		thread <- unix.Gettid()
		<-end
	}()
	for _, pid := range []int{0, -1, <-thread} {
		if err := (Process{PID: pid}).Signal(unix.SIGKILL); !errors.Is(err, ErrGone) {
			t.Errorf("signal to %d: %v", pid, err)
		}
	}
}

func TestPIDFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	if _, err := ReadPID(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a file: %v", err)
	}
	me, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := WritePID(path, me); err != nil {
		t.Fatal(err)
	}
	got, err := ReadPID(path)
	if err != nil || got != me || !alive(t, got) {
		t.Errorf("got %+v, %v, want %+v alive", got, err, me)
	}
	if err := os.WriteFile(path, []byte("123\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPID(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file with a PID alone: %v", err)
	}
}

func TestParseStart(t *testing.T) {
	rest := " S 7 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 4242 1 1"
	for _, name := range []string{"sh", "a b", "a) b (c", ") S 1 (", "()"} {
		start, err := parseStart("12 (" + name + ")" + rest)
		if err != nil || start != 4242 {
			t.Errorf("%q: %d, %v", name, start, err)
		}
	}
	for _, bad := range []string{"", "12 sh S", "12 (sh) S 7 1", "12 (sh) S" + strings.Repeat(" x", 30)} {
		if start, err := parseStart(bad); err == nil {
			t.Errorf("%q is read as %d", bad, start)
		}
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := Tail(path, 3); got != "" {
		t.Errorf("of no file: %q", got)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range 20000 {
		if _, err := w.WriteString("line " + strconv.Itoa(i) + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if got, want := Tail(path, 2), "line 19998\nline 19999"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEnding(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, x := range []struct{ text, want string }{
		{"", "its log " + path + " is empty"},
		{"koinon: an old one\nstarting\nkoinon: no right to mount\n", "no right to mount (its log: " + path + ")"},
		{"one\ntwo\nthree\n", "the end of its log " + path + ":\ntwo\nthree"},
	} {
		if err := os.WriteFile(path, []byte(x.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := Ending(path, 2); got != x.want {
			t.Errorf("%q: expected %q, found %q", x.text, x.want, got)
		}
	}
}
