//go:build linux

package test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDiskFull fills the disk of one node and then of all: with one, writes go
// on; with all, programs get ENOSPC and may read; when there is space again,
// service resumes by itself.
func TestDiskFull(t *testing.T) {
	d := up(t, 3)
	d.stop()
	for n := 1; n <= 3; n++ {
		d.onSmallDisk(n)
	}
	d.start()
	pids := d.pids()
	kept := bytes.Repeat([]byte("kept "), 400_000)
	d.mustPut("kept", kept)

	// The leader's disk: its log and its blocks.
	full := d.leader()
	d.fill(full)
	eventually(t, 15*time.Second, "a node with space leads", func() bool { return d.leader() != full })
	for i := range 20 {
		d.mustPut("one-small"+itoa(i), []byte("small"))
	}
	d.mustPut("one-large", kept)
	holds(t, filepath.Join(d.mount, "kept"), string(kept))

	d.fill(full%3 + 1)
	d.fill((full+1)%3 + 1)
	var err error
	eventually(t, 10*time.Second, "ENOSPC", func() bool {
		err = d.put("all-small", []byte("small"))
		return err != nil
	})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("with all disks full a program gets %v", err)
	}
	if err = d.put("all-large", kept); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("with all disks full a program that writes much gets %v", err)
	}
	d.refused(20*time.Second, []string{"mkdir", "/refused"}, "no space left")
	d.refused(20*time.Second, []string{"run", "--", "true"}, "no space left")
	says(t, d.koinon("status"), "the disk is full")
	dropCaches(t)
	holds(t, filepath.Join(d.mount, "kept"), string(kept))
	holds(t, filepath.Join(d.mount, "one-large"), string(kept))
	if entries, err := os.ReadDir(d.mount); err != nil || len(entries) < 20 {
		t.Errorf("listing with all disks full: %d entries, %v", len(entries), err)
	}
	says(t, d.koinon("ls", "/"), "one-small0") // a new client reads, too

	// One that is started on a full disk says so.
	d.kill(full)
	d.refused(20*time.Second, []string{"dev", "start", "--dir", d.dir, itoa(full)}, "no space left", "free at least 16 MiB", "start the node again")

	for n := 1; n <= 3; n++ {
		if err := os.Remove(d.filler(n)); err != nil {
			t.Fatal(err)
		}
	}
	d.restart(full)
	eventually(t, 15*time.Second, "service resumes", func() bool { return d.put("resumed", kept) == nil })
	holds(t, filepath.Join(d.mount, "resumed"), string(kept))
	for i := range 20 {
		holds(t, filepath.Join(d.mount, "one-small"+itoa(i)), "small")
	}
	if err := os.RemoveAll(filepath.Join(d.mount, "all-large")); err != nil {
		t.Error(err)
	}
	eventually(t, 30*time.Second, "the tree is sound and every copy is there", func() bool {
		_, err := d.try("fsck")
		return err == nil
	})
	pids[full-1] = d.node(full).PID // it was killed by the test
	d.unharmed(pids)
}

// put writes a file through the mount and syncs it.
func (d *dev) put(name string, data []byte) error {
	f, err := os.Create(filepath.Join(d.mount, name))
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (d *dev) mustPut(name string, data []byte) {
	d.t.Helper()
	began := time.Now()
	if err := d.put(name, data); err != nil {
		d.t.Fatalf("%s: %v", name, err)
	}
	if took := time.Since(began); took > 5*time.Second {
		d.t.Errorf("%s took %v", name, took)
	}
}

// onSmallDisk moves a stopped node's data to a small file system.
func (d *dev) onSmallDisk(number int) {
	t := d.t
	t.Helper()
	data := d.at("n"+itoa(number), "data")
	if err := os.Rename(data, data+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("koinon-test", data, "tmpfs", 0, "size=320m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.stop()
		if err := syscall.Unmount(data, 0); err != nil {
			t.Errorf("unmount %s: %v", data, err)
		}
	})
	d.sh("cp -a " + data + ".old/. " + data + " && rm -r " + data + ".old")
	edit(t, d.at("n"+itoa(number), "node.toml"), func(s string) string { return s + "\n[limits]\nmin_free = \"32MiB\"\n" })
}

func (d *dev) filler(number int) string { return d.at("n"+itoa(number), "data", "filler") }

// fill takes all space that a node's disk has left.
func (d *dev) fill(number int) {
	d.t.Helper()
	fillUp(d.t, d.filler(number))
}

// fillUp takes all space that a disk has left.
func fillUp(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for size := 16 << 20; size >= 4096 && err == nil; {
		if _, err = f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size, err = size/2, nil
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestSmallDiskIsTold: who begins on a disk with little room is told how little.
func TestSmallDiskIsTold(t *testing.T) {
	d := &dev{t: t}
	for size, told := range map[string]bool{"600m": true, "1500m": false} {
		dir := filepath.Join(smallDisk(t, size), "cluster")
		out := d.koinon("dev", "up", "--detach", "--nodes", "1", "--dir", dir, "--no-mount")
		if got := strings.Contains(out, "there is room for about"); got != told {
			t.Errorf("with %s: told is %v, expected %v:\n%s", size, got, told, out)
		}
		d.koinon("dev", "stop", "--dir", dir)
	}
}
