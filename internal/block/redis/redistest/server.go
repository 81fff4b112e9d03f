// Package redistest runs Redis servers, clusters and Sentinels for tests:
// processes of the test's own, on temporary directories and free ports.
package redistest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/ports"
)

// startWait is how long a server may take to start, and a cluster to form.
const startWait = 60 * time.Second

// Password is that of all servers.
const Password = "se:cr/et"

// Coded is Password as it stands in a URL.
const Coded = "se%3Acr%2Fet"

// Server is one redis-server. It is used by one goroutine.
type Server struct {
	Port  int
	tb    testing.TB
	dir   string
	args  []string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Start runs a server until the test ends. It appends to a file and syncs it
// before each answer, unless args, which come last, say otherwise.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	s := newServer(tb, append([]string{"--requirepass", Password, "--masterauth", Password}, args...)...)
	s.Restart()
	return s
}

// newServer makes a server that does not run yet.
func newServer(tb testing.TB, args ...string) *Server {
	tb.Helper()
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{Port: FreePort(tb), tb: tb, dir: dir, args: args}
	tb.Cleanup(func() {
		s.Kill()
		// A child of it that rewrites the file writes on until it has written all, which may be much.
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			err := os.RemoveAll(dir)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				tb.Error(err)
				return
			}
		}
	})
	return s
}

// FreePort returns a port of this machine that is free, and with it the one
// that a server of a cluster takes beside it, ten thousand higher.
func FreePort(tb testing.TB) int {
	tb.Helper()
	for range 5000 {
		free, err := ports.Free(1)
		if err != nil {
			tb.Fatal(err)
		}
		if bus := free[0] + 10000; bus < 32768 && ports.Check(ports.Loopback(bus)) == nil { // below the kernel's own
			return free[0]
		}
	}
	tb.Fatal("no two free ports")
	return 0
}

// Addr is host:port.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

// URL is that of a database.
func (s *Server) URL(db int) string { return fmt.Sprintf("redis://:%s@%s/%d", Coded, s.Addr(), db) }

// Socket is the server's unix socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "sock") }

// Dir is where the server keeps its files.
func (s *Server) Dir() string { return s.dir }

// Restart starts the server, which must not be running, on the same data and
// waits until it serves.
func (s *Server) Restart() {
	s.tb.Helper()
	s.launch()
	s.await("PONG", "PING")
}

// launch starts the server and does not wait for it.
func (s *Server) launch() {
	s.tb.Helper()
	args := []string{"--port", fmt.Sprint(s.Port), "--bind", "127.0.0.1", "--dir", s.dir, "--unixsocket", s.Socket(),
		"--logfile", filepath.Join(s.dir, "log"), "--daemonize", "no", "--appendonly", "yes", "--appendfsync", "always", "--save", ""}
	s.run(exec.Command("redis-server", append(args, s.args...)...))
}

func (s *Server) run(cmd *exec.Cmd) {
	s.tb.Helper()
	if err := cmd.Start(); err != nil {
		s.tb.Fatalf("redis-server: %v", err)
	}
	ended := make(chan struct{})
	s.cmd, s.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // how a killed server ends is no news
		close(ended)
	}()
}

// await polls until a command's answer holds a text: the server has no other
// way to tell.
func (s *Server) await(want string, args ...string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		out, err := s.try(args...)
		if err == nil && strings.Contains(out, want) {
			return
		}
		select {
		case <-poll.C:
		case <-s.ended:
			s.tb.Fatalf("redis-server ended: %s", s.Log())
		case <-ctx.Done():
			s.tb.Fatalf("%v: expected %q, found %q, %v\n%s", args, want, out, err, s.Log())
		}
	}
}

func (s *Server) try(args ...string) (string, error) {
	cmd := exec.Command("redis-cli", append([]string{"-p", fmt.Sprint(s.Port)}, args...)...)
	cmd.Env = append(os.Environ(), "REDISCLI_AUTH="+Password)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// CLI runs redis-cli and returns what it prints.
func (s *Server) CLI(args ...string) string {
	s.tb.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.tb.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
	return out
}

// Log returns what the server has logged.
func (s *Server) Log() string {
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Kill ends the server by SIGKILL, if it runs.
func (s *Server) Kill() {
	if s.cmd != nil {
		s.Signal(syscall.SIGKILL)
		<-s.ended
		s.cmd = nil
	}
}

// KillBesideChild kills the server while a child of it rewrites its file, and
// leaves the child until the test ends.
func (s *Server) KillBesideChild() {
	s.tb.Helper()
	s.await("aof_rewrite_in_progress:1", "INFO", "persistence")
	pid := s.cmd.Process.Pid
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		s.tb.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscan(string(raw), &child); err != nil {
		s.tb.Fatalf("expected a child of the server, found %q: %v", raw, err)
	}
	s.tb.Cleanup(func() {
		if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
			s.tb.Errorf("the child of redis-server: %v", err)
		}
	})
	s.Kill()
}

// Signal sends the server a signal. That it has ended is fine.
func (s *Server) Signal(sig os.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil && err != os.ErrProcessDone {
		s.tb.Errorf("redis-server: %v", err)
	}
}
