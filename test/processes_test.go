//go:build linux

package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestProcessOutlivesDaemon: a process goes on while its node's daemon is killed
// and started again. Its output is in the tree as it comes, each line once; its
// exit code is not lost; and after a stop nothing of the cluster runs.
func TestProcessOutlivesDaemon(t *testing.T) {
	d := up(t, 3)
	node := d.leader()%3 + 1
	gate := filepath.Join(d.mount, "gate")
	script := fmt.Sprintf("i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; [ $i = 250 ] && until [ -e %s ]; do sleep 0.05; done; done; exit 7", gate)
	job := strings.TrimSpace(d.koinon("run", "-d", "-q", "--on", fmt.Sprintf("n%d", node), "--", "sh", "-c", script))
	stdout := filepath.Join(d.mount, ".koinon/proc", job, "stdout")
	await(t, "half of the output", func() bool { return strings.HasSuffix(read(stdout), "line 250\n") })
	d.kill(node)
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d.restart(node)
	out, err := d.try("wait", job)
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 {
		t.Errorf("exit code 7 expected, found %v\n%s\n%s", err, out, d.koinon("inspect", job))
	}
	var want strings.Builder
	for i := range 500 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if got := read(stdout); got != want.String() {
		t.Errorf("the output has %d bytes, %d expected", len(got), want.Len())
	}
	if status := read(filepath.Join(filepath.Dir(stdout), "status")); !strings.Contains(status, `"exit_code":7`) || !strings.Contains(status, `"epoch":1,`) {
		t.Errorf("found %s", status)
	}
	drain(t, d, node)
	d.koinon("dev", "stop", "--dir", d.dir)
	await(t, "the end of all processes of the cluster", func() bool { return len(withArgument(t, d.dir)) == 0 })
}

// drain: that a node is being drained is told wherever people would look: in the lists of nodes, to who waits for that node, and
// to who waits for any when all are.
func drain(t *testing.T, d *dev, node int) {
	t.Helper()
	waits := func(why string, args ...string) {
		t.Helper()
		job := strings.TrimSpace(d.koinon(append(append([]string{"run", "-d", "-q"}, args...), "--", "true")...))
		await(t, "a job that waits because "+why, func() bool { return strings.Contains(d.koinon("ps"), "("+why+")") })
		d.koinon("kill", job)
	}
	name := fmt.Sprintf("n%d", node)
	d.koinon("node", "drain", name)
	await(t, "a drained node in the list", func() bool { return strings.Count(d.koinon("node", "ls"), "up, no processes") == 1 })
	if out := d.koinon("-o", "json", "status"); strings.Count(out, `"drained": true`) != 1 {
		t.Errorf("found %s", out)
	}
	waits(name+" is being drained", "--on", name)
	for k := range 3 {
		d.koinon("node", "drain", fmt.Sprint(k+1))
	}
	waits("all nodes are being drained")
	for k := range 3 {
		d.koinon("node", "undrain", fmt.Sprint(k+1))
	}
	other := node%3 + 1
	d.kill(other)
	job := strings.TrimSpace(d.koinon("run", "-d", "-q", "-n", "3", "-c", fmt.Sprint(runtime.NumCPU()), "--", "true"))
	await(t, "a gang that waits for a node that is down", func() bool {
		return strings.Contains(d.koinon("inspect", job), "is down") && strings.Contains(d.koinon("ps"), fmt.Sprintf("n%d is down", other))
	})
	d.koinon("kill", job)
	d.restart(other)
	await(t, "no drained node in the list", func() bool { return !strings.Contains(d.koinon("status"), "no processes") })
	d.koinon("run", "--on", name, "--", "true")
}

// TestStopAtAnyTime: a node that is asked to stop while it starts does so, whatever it is at.
func TestStopAtAnyTime(t *testing.T) {
	d := up(t, 1)
	d.koinon("dev", "stop", "--dir", d.dir)
	for after := time.Duration(0); after < 60*time.Millisecond; after += 3 * time.Millisecond {
		cmd := exec.Command(koinonBinary(t), "serve", "--config", filepath.Join(d.dir, "n1", "node.toml"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		time.Sleep(after)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("a node that was asked to stop %v after its start goes on", after)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-ended
		}
	}
	d.start()
}

// read returns what a file holds, nothing when there is none.
func read(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(raw)
}

// await polls until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// withArgument lists the command lines of processes that name a directory.
func withArgument(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, p := range paths {
		if line, err := os.ReadFile(p); err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// TestRemovedDirectory: nodes whose directories were removed or replaced end by themselves and say why, so that they cannot meddle with
// a new cluster at the same place, whose processes run and are heard.
func TestRemovedDirectory(t *testing.T) {
	d := up(t, 1)
	old := d.status().Nodes[0].PID
	logged := filepath.Join(filepath.Dir(d.dir), "log") // which the removal would take along
	if err := os.Link(filepath.Join(d.dir, "n1", "log"), logged); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.dir); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the node without a directory", func() bool { return syscall.Kill(old, 0) != nil })
	if text := read(logged); !strings.Contains(text, "was removed or replaced") {
		t.Errorf("the node's log: %s", text)
	}
	if err := syscall.Unmount(d.mount, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	d.start()
	for i := range 20 {
		if out := d.koinon("run", "--", "echo", fmt.Sprint(i)); out != fmt.Sprintln(i) {
			t.Errorf("process %d wrote %q", i, out)
		}
	}
}

// TestReplacedDirectory: a backup that is put in the place of a running node's directory stays as it is, and so does the directory that was
// moved away: the node ends without another write by a path, as by a crash, also when it is asked to stop at that moment.
func TestReplacedDirectory(t *testing.T) {
	for _, ask := range []bool{false, true} {
		t.Run(fmt.Sprintf("asked to stop %v", ask), func(t *testing.T) { replaceDirectory(t, ask) })
	}
}

func replaceDirectory(t *testing.T, ask bool) {
	d := up(t, 1)
	data, backup, moved := filepath.Join(d.dir, "n1", "data"), filepath.Join(d.dir, "backup"), filepath.Join(d.dir, "moved")
	copied := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	write := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := os.WriteFile(filepath.Join(d.mount, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 100_000), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	holds := func(files int) {
		t.Helper()
		for i := range files {
			if b, err := os.ReadFile(filepath.Join(d.mount, fmt.Sprint(i))); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, 100_000)) {
				t.Fatalf("file %d: %d bytes, %v", i, len(b), err)
			}
		}
		if names, err := os.ReadDir(d.mount); err != nil || len(names) != files {
			t.Fatalf("%d files are expected, found %d, %v", files, len(names), err)
		}
	}
	write(0, 20)
	d.koinon("dev", "stop", "--dir", d.dir)
	copied(data, backup)
	d.start()
	write(20, 40)
	node := d.status().Nodes[0].PID
	if err := os.Rename(data, moved); err != nil {
		t.Fatal(err)
	}
	copied(backup, data)
	if ask {
		if err := syscall.Kill(node, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the end of the node", func() bool { return syscall.Kill(node, 0) != nil })
	d.koinon("dev", "stop", "--dir", d.dir)
	d.start()
	holds(20)
	d.koinon("dev", "stop", "--dir", d.dir)
	if err := errors.Join(os.RemoveAll(data), os.Rename(moved, data)); err != nil {
		t.Fatal(err)
	}
	d.start()
	holds(40)
	if out := d.koinon("fsck"); !strings.Contains(out, "sound") {
		t.Error(out)
	}
}

// TestRemovedProgram: a node whose program's file was removed, or is something else by now, starts its supervisor again when that dies.
func TestRemovedProgram(t *testing.T) {
	d := up(t, 1)
	d.koinon("dev", "stop", "--dir", d.dir)
	program := filepath.Join(filepath.Dir(d.dir), "program")
	raw, err := os.ReadFile(koinonBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "dev", "up", "--detach", "--nodes", "1", "--dir", d.dir, "--mount", d.mount)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Dir(d.dir))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first := supervisor(t, program)
	if first == 0 {
		t.Fatal("there is no supervisor")
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho something else\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out := d.koinon("run", "--", "echo", "here"); out != "here\n" {
		t.Errorf("found %q", out)
	}
	if is, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", supervisor(t, program))); err != nil || is != program+" (deleted)" {
		t.Errorf("the supervisor runs %q, %v", is, err)
	}
	if log := read(filepath.Join(d.dir, "n1", "data", "proc", "executor", "log")); strings.Contains(log, "something else") {
		t.Errorf("another program was run: %s", log)
	}
}

// TestSupervisorDoesNotStart: why a node's processes cannot be looked after is in the status, and they can be again when that has passed.
func TestSupervisorDoesNotStart(t *testing.T) {
	d := up(t, 1)
	records := filepath.Join(d.dir, "n1", "data", "proc", "executor", "records")
	if err := errors.Join(os.Rename(records, records+".away"), os.Mkdir(records, 0o755), syscall.Kill(supervisor(t, d.dir), syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	await(t, "the reason", func() bool {
		out := d.koinon("status")
		return strings.Contains(out, "its processes cannot be reached") && strings.Contains(out, "is a directory")
	})
	if err := errors.Join(os.Remove(records), os.Rename(records+".away", records)); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the trouble", func() bool { return !strings.Contains(d.koinon("status"), "cannot be reached") })
	if out := d.koinon("run", "--", "echo", "here"); out != "here\n" {
		t.Errorf("found %q", out)
	}
}

// supervisor is the PID of the supervisor whose command line has some word in it; 0 when there is none.
func supervisor(t *testing.T, word string) int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if line := read(p); strings.Contains(line, "\x00supervise\x00") && strings.Contains(line, word) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}
