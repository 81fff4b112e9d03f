//go:build linux

package fusefs_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/fusefs"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// serveEnv names the directories that a child of the test binary mounts, both
// on the same tree, instead of running tests. A process that uses its own
// mount can block, so each mount is another process's.
const serveEnv = "KOINON_TEST_SERVE"

func TestMain(m *testing.M) {
	if dirs := os.Getenv(serveEnv); dirs != "" {
		os.Exit(serve(strings.Split(dirs, ":")))
	}
	os.Exit(m.Run())
}

// serve mounts dirs until standard input ends. A line "panic" makes it panic.
func serve(dirs []string) int {
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	tree, store := meta.NewMemory(meta.WithRetention(time.Hour)), blocktest.Poison(block.NewMemory())
	var servers []*fusefs.Server
	var trees []*vfs.FS
	keep := func(sys.Ino) time.Duration { // a mount that has the tree to itself keeps what it knows, as under a lease
		return time.Minute * time.Duration(max(0, 2-len(dirs)))
	}
	for _, dir := range dirs {
		fs := vfs.New(tree, store, vfs.Options{PGs: 16, Logger: logger})
		s, err := fusefs.Mount(dir, fs, fusefs.Options{Logger: logger, AttrTTL: keep, Debug: os.Getenv("KOINON_TEST_DEBUG") != ""})
		if err != nil {
			fmt.Fprintln(os.Stdout, "error:", err)
			return 1
		}
		servers, trees = append(servers, s), append(trees, fs)
	}
	fmt.Fprintln(os.Stdout, "ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "panic" {
			panic("asked to")
		}
	}
	for k, s := range servers {
		if err := s.Unmount(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		s.Wait()
		if err := trees[k].Close(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return 0
}

// A mount is one or more directories served by a child.
type mount struct {
	dirs    []string
	mounted bool
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	log     *bytes.Buffer
}

// tryServe starts a child that mounts dirs and returns its first line.
func tryServe(t testing.TB, dirs ...string) (*mount, string) {
	t.Helper()
	m := &mount{dirs: dirs, cmd: exec.Command(os.Args[0]), log: &bytes.Buffer{}}
	m.cmd.Env = append(os.Environ(), serveEnv+"="+strings.Join(dirs, ":"))
	m.cmd.Stderr = m.log
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.stop(t) })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the server said nothing: %v\n%s", err, m.log)
	}
	line = strings.TrimSpace(line)
	m.mounted = line == "ready"
	return m, line
}

// stop ends the child and makes sure that nothing stays mounted.
func (m *mount) stop(t testing.TB) {
	if m.cmd == nil {
		return
	}
	_ = m.stdin.Close()
	ended := make(chan error, 1)
	go func() { ended <- m.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Errorf("the server does not end")
		_ = m.cmd.Process.Signal(syscall.SIGQUIT)
		<-ended
	}
	for _, dir := range m.dirs {
		if !m.mounted {
			break
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH) // EINVAL when it is not mounted
	}
	if m.log.Len() > 0 {
		t.Logf("server: %s", m.log)
	}
	m.cmd = nil
}

// mounted returns a fresh mount's directory.
func mounted(t testing.TB) string {
	t.Helper()
	return mountedTwice(t, 1)[0]
}

// mountedTwice returns n mounts of one tree.
func mountedTwice(t testing.TB, n int) []string {
	t.Helper()
	var dirs []string
	for range n {
		dirs = append(dirs, t.TempDir())
	}
	if _, line := tryServe(t, dirs...); line != "ready" {
		t.Fatalf("mount: %s", line)
	}
	return dirs
}

// sh runs a script in dir and fails the test with its output when it fails.
func sh(t testing.TB, dir, script string) string {
	t.Helper()
	cmd := exec.Command("/bin/bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}
