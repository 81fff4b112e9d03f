//go:build linux

package test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNoMajority kills two of three nodes: what needs a majority waits for as
// long as the configuration says and then fails, naming who is missing.
func TestNoMajority(t *testing.T) {
	d := up(t, 3)
	d.stop()
	d.timeout("3s")
	d.start()
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	second := d.besides("second")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	end := d.openInMount(second)
	addresses := []string{d.node(1).Address, d.node(2).Address, d.node(3).Address}
	d.kill(1)
	d.kill(2)
	end()

	const limit = 12 * time.Second
	type failed struct {
		err  error
		took time.Duration
	}
	inMount := make(chan failed, 1)
	go func() {
		began := time.Now()
		err := os.Mkdir(filepath.Join(d.mount, "refused"), 0o755)
		inMount <- failed{err, time.Since(began)}
	}()
	for _, args := range [][]string{{"mkdir", "/a"}, {"ls", "/"}, {"mount", second}} {
		began := time.Now()
		out := d.refused(limit, args, "no majority after 3s", addresses[0], addresses[1], "koinon status")
		if took := time.Since(began); took < 2500*time.Millisecond {
			t.Errorf("%v gave up after %v already", args, took)
		}
		if strings.Contains(out, addresses[2]) {
			t.Errorf("%v names the node that answers as missing:\n%s", args, out)
		}
	}
	d.exits(125, []string{"lock", "--timeout", "1s", "l", "--", "true"}, "the cluster has not answered within 1s") // nobody holds it
	select {
	case f := <-inMount:
		if !errors.Is(f.err, syscall.EIO) || f.took < 2500*time.Millisecond || f.took > limit {
			t.Errorf("mkdir in the mount: %v after %v, expected EIO after 3 s", f.err, f.took)
		}
	case <-time.After(limit):
		t.Error("mkdir in the mount hangs")
	}
	log, err := os.ReadFile(d.at("mount", "log"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(log), "no majority after 3s", addresses[0], addresses[1])
	says(t, d.refused(12*time.Second, []string{"status"}), "1 of 3 up", "none: writes wait until a majority",
		"no majority: no answer from n1 at "+addresses[0]+", n2 at "+addresses[1])

	d.restart(1)
	d.leader()
	writeFile(t, filepath.Join(d.mount, "after"), "again")
	holds(t, filepath.Join(d.mount, "kept"), "bytes")
	d.restart(2)
	holds(t, filepath.Join(d.mount, "after"), "again")
	d.fsck()
}

// openInMount mounts on dir and opens a file there. The function returned writes
// to it and ends the mount: it must end although nothing can be stored.
func (d *dev) openInMount(dir string) (end func()) {
	t := d.t
	t.Helper()
	m := d.background("mount", dir)
	m.await(20*time.Second, "mounted on")
	open, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		defer open.Close() // its mount is gone by then
		if _, err := open.WriteString("written and not closed"); err != nil {
			t.Fatal(err)
		}
		m.signal(syscall.SIGTERM)
		if err := m.end(20 * time.Second); err == nil {
			t.Error("koinon mount does not say that it could not store what was written")
		}
		if mounted(dir) {
			t.Errorf("%s is still mounted", dir)
		}
		says(t, m.said(), "written and not closed")
	}
}

// TestFrozenLeader stops the leader for a while under load. The others go on,
// and what it does when it wakes up harms nobody.
func TestFrozenLeader(t *testing.T) {
	d := up(t, 3)
	running := startLoad(t, filepath.Join(d.mount, "load"), 11, 3)
	time.Sleep(time.Second)
	frozen := d.node(d.leader())
	if err := syscall.Kill(frozen.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 4*time.Second, "another leader", func() bool {
		for _, n := range d.status().Nodes {
			if n.Role == "leader" && n.Number != frozen.Number {
				return true
			}
		}
		return false
	})
	time.Sleep(3500 * time.Millisecond)
	if err := syscall.Kill(frozen.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	l := running.finish()
	t.Logf("%d operations, the slowest took %v", l.ops, l.slow)
	if l.slow > 5*time.Second {
		t.Errorf("an operation took %v", l.slow)
	}
	dropCaches(t)
	l.check(t)
	eventually(t, 10*time.Second, "the frozen node follows", func() bool {
		n := d.node(frozen.Number)
		return n.State == "up" && n.PID == frozen.PID
	})
	d.fsck()
}

// TestSignals ends what runs in the foreground, during a load of writes, by the
// signals that a terminal and a service manager send.
func TestSignals(t *testing.T) {
	d := up(t, 3)
	d.stop()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		front := d.background("dev", "up", "--dir", d.dir, "--mount", d.mount)
		eventually(t, 20*time.Second, "mounted", func() bool { return mounted(d.mount) })
		front.await(10*time.Second, "Ctrl-C")
		written := d.writeUntilError(d.mount, sig.String())
		time.Sleep(700 * time.Millisecond)
		front.signal(sig)
		if err := front.end(20 * time.Second); err != nil {
			t.Errorf("dev up ended with %v after %v", err, sig)
		}
		d.nothingLeft()
		files := written()
		d.start()
		d.found(files)
		d.fsck()
		d.stop()
		d.nothingLeft()
	}

	d.start()
	dir := d.besides("second")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		m := d.background("mount", dir)
		m.await(20*time.Second, "mounted on")
		written := d.writeUntilError(dir, "mount-"+sig.String())
		time.Sleep(700 * time.Millisecond)
		m.signal(sig)
		if err := m.end(20 * time.Second); err != nil {
			t.Errorf("koinon mount ended with %v after %v", err, sig)
		}
		if mounted(dir) {
			t.Errorf("%s is still mounted after %v", dir, sig)
		}
		d.found(written())
	}

	// A node: the others take over and programs see nothing of it.
	for i, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		running := startLoad(t, filepath.Join(d.mount, "load"), uint64(20+i), 2)
		time.Sleep(500 * time.Millisecond)
		n := d.node(d.leader())
		if err := syscall.Kill(n.PID, sig); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the node ends", func() bool { return d.node(n.Number).PID == 0 })
		time.Sleep(500 * time.Millisecond)
		d.restart(n.Number)
		l := running.finish()
		l.check(t)
		if err := os.RemoveAll(filepath.Join(d.mount, "load")); err != nil {
			t.Error(err)
		}
	}
	d.fsck()
}

// writeUntilError writes and closes files until it cannot any more. The
// function returned waits for that and tells which were closed.
func (d *dev) writeUntilError(dir, name string) func() map[string]version {
	d.t.Helper()
	where := filepath.Join(dir, name)
	if err := os.Mkdir(where, 0o755); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan map[string]version, 1)
	go func() {
		files := map[string]version{}
		defer func() { done <- files }()
		for n := range 100000 {
			v := version{uint64(n), (n * 7919) % (300 << 10)}
			path := filepath.Join(where, "f"+itoa(n))
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return
			}
			_, err = f.Write(content(filepath.Join(name, "f"+itoa(n)), v))
			if err = errors.Join(err, f.Close()); err != nil {
				return
			}
			files[filepath.Join(name, "f"+itoa(n))] = v
		}
	}()
	return func() map[string]version {
		d.t.Helper()
		select {
		case files := <-done:
			if len(files) < 3 {
				d.t.Errorf("%d files prove nothing", len(files))
			}
			d.t.Logf("%s: %d files were closed", name, len(files))
			return files
		case <-time.After(20 * time.Second):
			d.t.Fatal("a writer is stuck")
			return nil
		}
	}
}

// found checks that the files are there, whole, in the cluster's own mount.
func (d *dev) found(files map[string]version) {
	d.t.Helper()
	for name, v := range files {
		got, err := os.ReadFile(filepath.Join(d.mount, name))
		if err != nil || string(got) != string(content(name, v)) {
			d.t.Errorf("closed and lost: %s: %d bytes of %d, %v", name, len(got), v.Size, err)
		}
	}
}
