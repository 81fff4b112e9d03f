//go:build linux

package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBadMountPoint mounts where it cannot be done.
func TestBadMountPoint(t *testing.T) {
	d := up(t, 3)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	missing, file, full := d.besides("missing"), d.besides("file"), d.besides("full")
	writeFile(t, file, "a file")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(full, "mine"), "mine")
	inner := filepath.Join(d.mount, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}

	// Nobody answers at the address in this file: what is wrong with the mount
	// point must be told before anybody is asked.
	unreachable := d.besides("unreachable.toml")
	edit(t, d.at("client.toml"), func(s string) string {
		u := strings.ReplaceAll(s, d.node(1).Address, "127.0.0.1:1")
		u = strings.ReplaceAll(u, d.node(2).Address, "127.0.0.1:1")
		u = strings.ReplaceAll(u, d.node(3).Address, "127.0.0.1:1")
		for _, name := range []string{"ca.crt", "client.crt", "client.key"} {
			u = replaceOnce(t, u, `"`+name+`"`, `"`+d.at(name)+`"`)
		}
		if err := os.WriteFile(unreachable, []byte(u), 0o600); err != nil {
			t.Fatal(err)
		}
		return s
	})
	for _, how := range [][]string{{"mount"}, {"mount", "--detach"}, {"--config", unreachable, "mount"}} {
		d.refused(5*time.Second, append(how, missing), missing, "no such directory", "mkdir -p")
		d.refused(5*time.Second, append(how, file), file, "not a directory")
		d.refused(5*time.Second, append(how, full), full, "not empty", "choose an empty directory")
		d.refused(5*time.Second, append(how, d.mount), d.mount, "mounted there already")
		d.refused(5*time.Second, append(how, inner), "is in the tree that is mounted on "+d.mount)
	}
	d.refused(5*time.Second, []string{"dev", "up", "--dir", d.dir, "--mount", full}, "dev stop", "koinon mount")

	d.stop()
	d.refused(5*time.Second, []string{"dev", "up", "--dir", d.dir, "--mount", file}, file, "--mount")
	d.refused(5*time.Second, []string{"dev", "up", "--dir", d.dir, "--mount", full}, full, "not empty", "--mount")
	if err := syscall.Mount("none", full, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	d.refused(5*time.Second, []string{"dev", "up", "--dir", d.dir, "--mount", full}, full, "tmpfs", "umount", "--mount")
	d.refused(5*time.Second, []string{"--config", unreachable, "mount", full}, full, "tmpfs")
	if err := syscall.Unmount(full, 0); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(full, "mine"), "mine")
	other := d.besides("new")
	d.refused(5*time.Second, []string{"dev", "up", "--dir", other, "--mount", file}, file, "--mount")
	if _, err := os.Stat(filepath.Join(other, "dev.toml")); err == nil {
		t.Error("a cluster was made though its mount point was refused")
	}

	d.start()
	holds(t, filepath.Join(d.mount, "kept"), "bytes")
}

// TestNoFuse brings a cluster up where nothing can be mounted: the nodes serve,
// and the tree is there without a mount.
func TestNoFuse(t *testing.T) {
	d := up(t, 3)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	binary := koinonBinary(t)
	noDevice := "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec " + binary + " "
	for _, tc := range []struct {
		name, words string
		line        []string
	}{
		{"no device", "modprobe fuse", []string{"unshare", "-m", "sh", "-c", noDevice}},
		{"no right", "no right to mount", []string{"setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "sh", "-c", "exec " + binary + " "}},
	} {
		d.stop()
		script := len(tc.line) - 1
		line := append([]string{}, tc.line...)
		line[script] += "dev up --detach --dir " + d.dir
		out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: dev up: %v\n%s", tc.name, err, out)
		}
		says(t, string(out), "warning", "not mounted", tc.words, "koinon ls", "without a mount")
		says(t, d.koinon("ls", "/"), "kept")
		if mounted(d.mount) {
			t.Fatalf("%s: mounted all the same", tc.name)
		}
		line[script] = tc.line[script] + "--config " + d.at("client.toml") + " mount " + d.mount
		if out, err = exec.Command(line[0], line[1:]...).CombinedOutput(); err == nil {
			t.Errorf("%s: koinon mount went on", tc.name)
		}
		says(t, string(out), tc.words)
		for _, n := range d.status().Nodes {
			if n.State != "up" {
				t.Errorf("%s: node %d is %s", tc.name, n.Number, n.State)
			}
		}
		d.start() // where it can be mounted, it is
		holds(t, filepath.Join(d.mount, "kept"), "bytes")
	}
}

// TestStopBesideAWriter: what is written while the tree is unmounted is in the
// tree, or beside the mount point, or refused; and the tree can be mounted again.
func TestStopBesideAWriter(t *testing.T) {
	d := up(t, 1)
	d.stop()
	if err := os.Remove(d.mount); err != nil { // the mount point is made by koinon then
		t.Fatal(err)
	}
	d.start()
	writer := exec.Command("timeout", "20", "sh", "-c", `i=0; while echo x > "$0/ack.$i"; do i=$((i+1)); echo $i; done 2>/dev/null`, d.mount)
	var out bytes.Buffer
	writer.Stdout = &out
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the writer is at work", func() bool {
		_, err := os.Stat(filepath.Join(d.mount, "ack.50"))
		return err == nil
	})
	d.stop()
	if err := writer.Wait(); err != nil {
		t.Error(err)
	}
	acked := len(strings.Fields(out.String()))
	d.start()
	kept, err := filepath.Glob(d.mount + ".unmounted-*/*/ack.*")
	if err != nil {
		t.Fatal(err)
	}
	in := len(strings.Fields(d.sh("ls $M")))
	t.Logf("%d acknowledged, %d in the tree, %d beside it", acked, in, len(kept))
	if acked == 0 || in+len(kept) < acked {
		t.Errorf("expected %d files, found %d in the tree and %d beside it", acked, in, len(kept))
	}
}

// TestMountKilled kills the process of a mount: those who use it get an error,
// nothing is written past it, and the next mount there takes over.
func TestMountKilled(t *testing.T) {
	d := up(t, 3)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	pid := d.mountPID()
	user := exec.Command("sh", "-c", "while cat kept >/dev/null 2>&1; do :; done")
	user.Dir = d.mount
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	freed := make(chan error, 1)
	go func() { freed <- user.Wait() }()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-freed: // it saw an error and ended
	case <-time.After(10 * time.Second):
		t.Error("a program that used the mount is stuck")
		if err := user.Process.Kill(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.mount, "lost"), nil, 0o600); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("a write into a dead mount: %v", err)
	}
	status := "" // programs hear of it before the process is gone
	for end := time.Now().Add(10 * time.Second); !strings.Contains(status, "its process died") && time.Now().Before(end); {
		status = d.koinon("dev", "status", "--dir", d.dir)
	}
	says(t, status, "its process died", "`koinon dev up --dir "+d.dir+"`")
	d.start()
	holds(t, filepath.Join(d.mount, "kept"), "bytes")
	if _, err := os.Stat(filepath.Join(d.mount, "lost")); !os.IsNotExist(err) {
		t.Errorf("what could not be written is there: %v", err)
	}
	if n := strings.Count(d.sh("cat /proc/self/mounts"), " "+d.mount+" fuse"); n != 1 {
		t.Errorf("%d mounts lie on %s", n, d.mount)
	}

	// Killed again, and stopped: nothing stays mounted.
	if err := syscall.Kill(d.mountPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.stop()
	if mounted(d.mount) {
		t.Errorf("%s is still mounted after dev stop", d.mount)
	}
	d.start()

	// The same for koinon mount on its own.
	dir := d.besides("second")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	first := d.background("mount", dir)
	first.await(20*time.Second, "mounted on")
	first.signal(syscall.SIGKILL)
	_ = first.end(5 * time.Second)
	second := d.background("mount", dir)
	second.await(20*time.Second, "mounted on")
	holds(t, filepath.Join(dir, "kept"), "bytes")
	second.signal(syscall.SIGINT)
	if err := second.end(10 * time.Second); err != nil {
		t.Errorf("koinon mount ended with %v after SIGINT", err)
	}
	if mounted(dir) {
		t.Errorf("%s is still mounted", dir)
	}
}

// mountPID is the process of the cluster's own mount.
func (d *dev) mountPID() int {
	d.t.Helper()
	var s struct {
		PID int `json:"mount_pid"`
	}
	out := d.koinon("dev", "status", "--dir", d.dir, "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.PID == 0 {
		d.t.Fatalf("no mount runs: %v\n%s", err, out)
	}
	return s.PID
}

// TestResetWithSecondMount: a cluster is not deleted under the hands of those
// who use a further mount of it; an idle one is unmounted.
func TestResetWithSecondMount(t *testing.T) {
	d := up(t, 1)
	second := d.besides("second")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	d.koinon("mount", "--detach", second, "--log-file", d.besides("second.log"))
	used, err := os.Create(filepath.Join(second, "used"))
	if err != nil {
		t.Fatal(err)
	}
	d.refused(20*time.Second, []string{"dev", "reset", "--yes", "--dir", d.dir}, second, "nothing was deleted", "umount "+second)
	writeFile(t, filepath.Join(d.mount, "still"), "here")
	holds(t, filepath.Join(second, "still"), "here")
	if err := used.Close(); err != nil {
		t.Fatal(err)
	}
	d.koinon("dev", "reset", "--yes", "--dir", d.dir)
	if mounted(second) || mounted(d.mount) {
		t.Error("the tree of a deleted cluster is still mounted")
	}
	d.start()
	if names, err := os.ReadDir(d.mount); err != nil || len(names) > 0 {
		t.Errorf("a new cluster has %v, %v", names, err)
	}
}

// TestJobsWaitForTheMount: what could not start where the mount has died waits,
// also what was placed there before the node knew of it, and `inspect` says why;
// with the mount it goes on.
func TestJobsWaitForTheMount(t *testing.T) {
	d := up(t, 3)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	if err := syscall.Kill(d.mountPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the mount's process has ended", func() bool {
		return strings.Contains(d.koinon("dev", "status", "--dir", d.dir), "its process died")
	})
	var jobs []string
	for range 6 { // more than nodes: each finds out for itself
		jobs = append(jobs, strings.TrimSpace(d.koinon("run", "-d", "-q", "-c", "0.1", "--", "cat", "kept")))
	}
	eventually(t, 20*time.Second, "nodes refuse what could not start", func() bool {
		return strings.Contains(d.koinon("inspect", jobs[0]), "the tree does not answer on this node")
	})
	d.start()
	for _, job := range jobs {
		d.koinon("wait", job)
		says(t, d.koinon("logs", job), "bytes")
	}
}

// TestJobsUseALivingMount: what starts on a node uses the oldest mount of the tree
// that answers. Another one that comes, dies or hangs is in nobody's way, and where
// the oldest does, what was about to start in it goes on in another.
func TestJobsUseALivingMount(t *testing.T) {
	d := up(t, 1)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	uses := func(mount string) {
		t.Helper()
		out := d.koinon("run", "--", "sh", "-c", "cat kept; echo on $KOINON_TREE")
		says(t, out, "byteson "+mount+"\n")
	}
	uses(d.mount)
	secondDir := d.besides("second")
	if err := os.Mkdir(secondDir, 0o755); err != nil {
		t.Fatal(err)
	}
	second := d.background("mount", secondDir)
	second.await(20*time.Second, "mounted on")
	for range 3 {
		uses(d.mount)
	}

	usesSoon := func(mount string) {
		t.Helper()
		eventually(t, 30*time.Second, mount+" is the node's", func() bool {
			return strings.Contains(d.koinon("top", "-o", "json"), `"mount": "`+mount+`"`)
		})
		uses(mount)
	}
	first := d.mountPID()
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	within := d.koinon("run", "-d", "-q", "--", "cat", "kept") // begun in the one that hangs, or not
	asks := func(name string) *run { return d.background("run", "-C", filepath.Join(d.mount, name), "--", "true") }
	patient, stopped := asks("none"), asks("nothing") // of one name the kernel has the second wait for the first, unkillably
	time.Sleep(200 * time.Millisecond)                // it asks the mount by now, or hears the signal before
	stopped.signal(syscall.SIGTERM)
	if err := stopped.end(5 * time.Second); code(err) != 143 {
		t.Errorf("koinon run that waits for a mount ended with %v after SIGTERM", err)
	}
	usesSoon(secondDir)
	if err := patient.end(20 * time.Second); code(err) != 125 || !strings.Contains(patient.said(), "look for a mount that hangs") {
		t.Errorf("koinon run with a path in a mount that hangs ended with %v: %s", err, patient.said())
	}
	if err := syscall.Kill(first, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.koinon("wait", strings.TrimSpace(within))
	usesSoon(d.mount)

	second.signal(syscall.SIGKILL)
	_ = second.end(5 * time.Second)
	for range 3 {
		uses(d.mount)
	}
	second = d.background("mount", secondDir) // over the dead one
	second.await(20*time.Second, "mounted on")
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		uses(secondDir)
	}
	d.refused(20*time.Second, []string{"run", "-C", filepath.Join(d.mount, "none"), "--", "true"}, "leads into a mount that is dead")
	second.signal(syscall.SIGINT)
	if err := second.end(10 * time.Second); err != nil {
		t.Error(err)
	}
	d.start()
	uses(d.mount)
}
