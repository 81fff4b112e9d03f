//go:build linux

package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/koinon/koinon/internal/program"
)

// said is what a program prints, both streams, and its exit code.
func said(t *testing.T, path string, env []string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env = append(env, "HOME=/nonexistent")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(bytes.ReplaceAll(out, []byte(path), []byte("koinon"))), cmd.ProcessState.ExitCode()
}

// TestTwoPrograms: the file with both programs says what the node's, which has all commands, says, whichever answers; and the client's
// alone has the client's commands, and tells what is missing.
func TestTwoPrograms(t *testing.T) {
	both := koinonBinary(t)
	parts := filepath.Join(filepath.Dir(both), "parts")
	client, node := filepath.Join(parts, "client"), filepath.Join(parts, "node")
	for _, command := range []string{"", "--version", "--help", "help", "help run", "nonsense", "-o", "--nonsense", "-o json nonsense", "completion bash", "__complete r",
		"init", "init x --nonsense", "serve --help", "mount --help", "dev --help", "dev status --dir /nonexistent", "supervise --help",
		"status", "run", "run --help", "ps --help", "run -- true", "-o json ps", "-q ls", "--config /nonexistent kv get x", "node ls --help", "bench --nonsense", "ls -z",
		"lock", "meta --help", "fsck --help", "blocks --help", "top -x", "cp a", "du --help"} {
		args := strings.Fields(command)
		want, code := said(t, node, nil, args...)
		for _, env := range [][]string{nil, {"A=1", "KOINON_PROGRAM=node"}, {"KOINON_PROGRAM=node"}, {"KOINON_PROGRAM="}} {
			if got, gotCode := said(t, both, env, args...); got != want || gotCode != code {
				t.Errorf("koinon %s with %q: exit code %d, not %d: %s\nnot %s", command, env, gotCode, code, got, want)
			}
		}
	}
	for _, name := range []string{"status", "run", "ps", "kv", "ls", "cp", "node", "lock", "bench"} {
		if out, code := said(t, client, nil, name, "--help"); code != 0 || !strings.Contains(out, "koinon "+name) {
			t.Errorf("the client's program does not know %s: exit code %d, %s", name, code, out)
		}
	}
	for _, name := range []string{"init", "serve", "mount", "dev", "nonsense", ""} {
		if out, code := said(t, client, nil, strings.Fields(name)...); code != 1 || !strings.Contains(out, "the client's program alone") {
			t.Errorf("the client's program alone, asked for %q: exit code %d, %s", name, code, out)
		}
	}
}

// TestWhichProgram: the client's commands are answered at once, the others by the node's program after it.
func TestWhichProgram(t *testing.T) {
	both := koinonBinary(t)
	for command, want := range map[string]int{"--version": 1, "run --help": 1, "-o json kv get x": 1, "ls --nonsense": 1, "init": 2, "--help": 2, "nonsense": 2} {
		trace := filepath.Join(t.TempDir(), "trace")
		out, _ := said(t, "strace", nil, append([]string{"-f", "-qq", "-e", "trace=execve", "-o", trace, both}, strings.Fields(command)...)...)
		calls, err := os.ReadFile(trace)
		if got := strings.Count(string(calls), "execve("); err != nil || got != want {
			t.Errorf("koinon %s: %d programs, not %d: %v, %s\n%s", command, got, want, err, calls, out)
		}
	}
}

// TestTimersOfANode: a node and its supervisor have the timers that the joined file asks for, and the node at least four of Go's processors.
func TestTimersOfANode(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	d := up(t, 1)
	d.koinon("dev", "stop", "--dir", d.dir)
	addr := freeAddress(t)
	cmd := exec.Command(koinonBinary(t), "serve", "--config", filepath.Join(d.dir, "n1", "node.toml"), "--metrics", addr)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}()
	metrics := ""
	await(t, "the node's metrics", func() bool {
		res, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			return false
		}
		raw, err := io.ReadAll(res.Body)
		metrics = string(raw)
		return errors.Join(err, res.Body.Close()) == nil
	})
	var processors int
	for line := range strings.Lines(metrics) {
		if n, ok := strings.CutPrefix(line, "go_sched_gomaxprocs_threads "); ok {
			processors, _ = strconv.Atoi(strings.TrimSpace(n)) // 0, which is too few
		}
	}
	if processors < 4 {
		t.Errorf("the node has %d of Go's processors", processors)
	}
	await(t, "the supervisor", func() bool { return supervisor(t, d.dir) != 0 })
	for what, pid := range map[string]int{"the node": cmd.Process.Pid, "its supervisor": supervisor(t, d.dir)} {
		if got := read(fmt.Sprintf("/proc/%d/timerslack_ns", pid)); got != fmt.Sprintln(program.TimerSlack) {
			t.Errorf("%s has a slack of %q", what, got)
		}
	}
}
