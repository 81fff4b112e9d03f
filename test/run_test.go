//go:build linux

package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runCommand is `koinon ARGS` in a directory of the mount, with pipes.
func (d *dev) runCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(koinonBinary(d.t), args...)
	cmd.Env = append(os.Environ(), "KOINON_CONFIG="+filepath.Join(d.dir, "client.toml"))
	cmd.Dir = d.mount
	return cmd
}

// TestRun runs programs on the nodes as people do: what they print, what they
// read, how they end, and what becomes of them when somebody interferes.
func TestRun(t *testing.T) {
	d := up(t, 3)
	for _, tc := range []struct {
		name, args, in string
		code           int
		out, err       string // that standard output is, and standard error holds
	}{
		{"output", `sh -c 'echo out; echo err >&2; pwd'`, "", 0, "out\n" + d.mount + "\n", "err\n"},
		{"input", `tr a-z A-Z`, "some words\n", 0, "SOME WORDS\n", ""},
		{"exit code", `sh -c 'exit 3'`, "", 3, "", ""},
		{"signal", `sh -c 'kill -SEGV $$'`, "", 139, "", ""},
		{"no such command", `nosuch`, "", 127, "", "command not found"},
		{"no command", `/etc/passwd`, "", 126, "", "permission denied"},
		{"too late", `--timeout 300ms -- sleep 60`, "", 143, "", "its time was over"},
		{"too large", `-c 1000 -- true`, "", 125, "", "largest node"},
		{"gang", `-n 3 -c 0.5 -- sh -c 'echo $KOINON_RANK of $KOINON_SIZE' | sort`, "", 0, "[0] 0 of 3\n[1] 1 of 3\n[2] 2 of 3\n", ""},
		{"timers", `cat /proc/self/timerslack_ns`, "", 0, "50000\n", ""}, // not those of a node
		{"timers with limits", `-c 0.5 -- cat /proc/self/timerslack_ns`, "", 0, "50000\n", ""},
		{"array", `--array 2-4 -- sh -c 'echo {}; exit $(({} % 3))' | sort`, "", 2, "[2] 2\n[3] 3\n[4] 4\n", "2 of 3 tasks"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := tc.args
			if !strings.Contains(args, "-- ") {
				args = "-- " + args
			}
			cmd := d.runCommand()
			cmd.Path, cmd.Args = "/bin/bash", []string{"bash", "-o", "pipefail", "-c", koinonBinary(t) + " run " + args}
			var out, errOut bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tc.in), &out, &errOut
			err := cmd.Run()
			if code(err) != tc.code || out.String() != tc.out || !strings.Contains(errOut.String(), tc.err) {
				t.Errorf("exit code %d, %q, %q; want %d, %q, %q", code(err), out.String(), errOut.String(), tc.code, tc.out, tc.err)
			}
		})
	}
	t.Run("much input and output", d.passesMuch)
	t.Run("interrupt", d.interrupts)
	t.Run("client killed", d.outlivesClient)
	t.Run("outputs", d.publishes)
	t.Run("no majority", d.runsWithoutMajority)
}

// waitLine reads the first line that a command prints.
func waitLine(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := pipe.Read(b)
	if err != nil {
		t.Fatalf("it has printed nothing: %v", err)
	}
	return string(b[:n])
}

// passesMuch sends more than any buffer holds through a process.
func (d *dev) passesMuch(t *testing.T) {
	in := strings.Repeat("0123456789abcdef\n", 200_000)
	cmd := d.runCommand("run", "--", "cat")
	cmd.Stdin = strings.NewReader(in)
	if out, err := cmd.Output(); err != nil || string(out) != in {
		t.Errorf("of %d bytes %d came back: %v", len(in), len(out), err)
	}
}

// interrupts sends what Ctrl-C sends: the process gets to end in order.
func (d *dev) interrupts(t *testing.T) {
	cmd := d.runCommand("run", "--", "sh", "-c", `trap 'echo asked > asked; exit 5' TERM; echo ready; while :; do sleep 0.1; done`)
	waitLine(t, cmd)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); code(err) != 5 {
		t.Errorf("exit code %d, want 5", code(err))
	}
	if got, err := os.ReadFile(filepath.Join(d.mount, "asked")); err != nil || string(got) != "asked\n" {
		t.Errorf("it was not asked to stop: %q, %v", got, err)
	}
}

// outlivesClient kills the command that started a job: it goes on, and its
// output and exit code are to be had.
func (d *dev) outlivesClient(t *testing.T) {
	cmd := d.runCommand("run", "--", "sh", "-c", `echo $KOINON_JOB; while [ ! -e go ]; do sleep 0.05; done; echo done; exit 9`)
	job := strings.TrimSpace(waitLine(t, cmd))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); code(err) != -1 {
		t.Errorf("the client ended with %v", err)
	}
	if err := os.WriteFile(filepath.Join(d.mount, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.runCommand("wait", job).Run(); code(err) != 9 {
		t.Errorf("exit code %d, want 9", code(err))
	}
	if got, want := d.koinon("logs", job), job+"\ndone\n"; got != want {
		t.Errorf("the output is %q, want %q", got, want)
	}
	if got, err := os.ReadFile(filepath.Join(d.mount, ".koinon/proc", job, "stdout")); err != nil || string(got) != job+"\ndone\n" {
		t.Errorf("the file of the output is %q, %v", got, err)
	}
}

// publishes looks at --out: there when the exit code is 0, else not.
func (d *dev) publishes(t *testing.T) {
	for _, tc := range []struct {
		code int
		want bool
	}{{0, true}, {4, false}} {
		dir := fmt.Sprint("out", tc.code)
		err := d.runCommand("run", "--out", dir, "--", "sh", "-c", fmt.Sprintf("echo result > $KOINON_OUT/r; exit %d", tc.code)).Run()
		got, rerr := os.ReadFile(filepath.Join(d.mount, dir, "r"))
		if code(err) != tc.code || (rerr == nil) != tc.want || tc.want && string(got) != "result\n" {
			t.Errorf("exit code %d: %q, %v", code(err), got, rerr)
		}
	}
}

// runsWithoutMajority ends with 125 and names who is missing, within the
// cluster's timeout.
func (d *dev) runsWithoutMajority(t *testing.T) {
	file := filepath.Join(d.dir, "client.toml")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(d.dir, "short.toml")
	if err := os.WriteFile(short, append([]byte("timeout = \"2s\"\n"), raw...), 0o600); err != nil {
		t.Fatal(err)
	}
	d.kill(1)
	d.kill(2)
	var errOut bytes.Buffer
	cmd := d.runCommand("run", "--config", short, "--", "true")
	cmd.Dir, cmd.Stderr = "/", &errOut
	began := time.Now()
	if err := cmd.Run(); code(err) != 125 || !strings.Contains(errOut.String(), "no majority") || !strings.Contains(errOut.String(), "koinon status") {
		t.Errorf("exit code %d, %q", code(err), errOut.String())
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("that took %v", took)
	}
	d.restart(1)
	d.restart(2)
	if err := syscall.Access(d.mount, 0); err != nil {
		t.Error(err)
	}
}
