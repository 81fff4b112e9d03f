//go:build linux

package test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestBareMountPoint: where nothing is mounted, nothing can be written past the
// tree into a mount point that Koinon made: it leads nowhere then.
// One that the user gave stays.
func TestBareMountPoint(t *testing.T) {
	d := up(t, 1)
	d.stop()
	if info, err := os.Stat(d.mount); err != nil || !info.IsDir() {
		t.Fatalf("the user's own mount point after dev stop: %v", err)
	}
	d.mount = filepath.Join(d.besides("made"), "mnt")
	kept, stray := filepath.Join(d.mount, "kept"), filepath.Join(d.mount, "stray")
	gone := func(when string) { t.Helper(); d.leadsNowhere(when) }
	bare := func() {
		t.Helper()
		if err := errors.Join(os.Remove(d.mount), os.Mkdir(d.mount, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	d.start()
	writeFile(t, kept, "bytes")
	d.stop()
	gone("stopped")
	d.koinon("dev", "up", "--detach", "--no-mount", "--dir", d.dir)
	d.refused(60*time.Second, []string{"mount"}, d.mount, "rm "+d.mount)
	d.stop()

	// The mount was killed: what it left is taken away by stop and by up.
	for _, end := range []func(){d.stop, func() { d.start(); d.stop() }} {
		d.start()
		holds(t, kept, "bytes")
		if err := syscall.Kill(d.mountPID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 60*time.Second, "the mount is dead", func() bool {
			return errors.Is(os.WriteFile(stray, nil, 0o600), syscall.ENOTCONN)
		})
		end()
		gone("killed and stopped")
	}

	// As a reboot leaves it, bare: it goes at the next stop, up takes it over.
	bare()
	d.stop()
	gone("stopped again")
	bare()
	d.start()
	holds(t, kept, "bytes")
	d.stop()
	gone("after a bare one was taken over")

	// What somebody wrote there all the same is never deleted, nor hidden.
	bare()
	writeFile(t, stray, "mine")
	d.stop()
	holds(t, stray, "mine")
	d.refused(60*time.Second, []string{"dev", "up", "--detach", "--dir", d.dir}, d.mount, "empty it")
	holds(t, stray, "mine")
	if err := os.Remove(stray); err != nil {
		t.Fatal(err)
	}
	d.start()
	holds(t, kept, "bytes")
	d.koinon("dev", "reset", "--yes", "--dir", d.dir)
	if _, err := os.Lstat(d.mount); !os.IsNotExist(err) {
		t.Errorf("dev reset left the mount point: %v", err)
	}
	d.start()
}

// leadsNowhere shows that nothing can be put where the mount point was.
func (d *dev) leadsNowhere(when string) {
	d.t.Helper()
	stray := filepath.Join(d.mount, "stray")
	for _, line := range []string{"echo x >" + stray, "cp -r /etc/apt " + d.mount + "/", "cp -r /etc/apt " + d.mount, "mkdir -p " + stray, "echo x >" + d.mount} {
		if out, err := d.shell(line); err == nil {
			d.t.Errorf("%s: %s went through: %s", when, line, out)
		}
	}
}

// TestNotRoot: a user who is not root has a tree to write into, by the mount
// where fusermount3 is, else without.
func TestNotRoot(t *testing.T) {
	home, err := os.MkdirTemp("", "koinon-test-")
	if err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	binary := filepath.Join(home, "koinon")
	raw, err := os.ReadFile(koinonBinary(t))
	if err = errors.Join(err, os.WriteFile(binary, raw, 0o755), os.Chmod(home, 0o755), os.Chown(home, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	run := func(device, script string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c", device+` && exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c "$0"`,
			"set -e; trap 'koinon dev reset --yes' EXIT\n"+script)
		cmd.Env = []string{"HOME=" + home, "PATH=" + home + ":" + os.Getenv("PATH"), "M=" + home + "/.local/state/koinon/dev/mnt"}
		cmd.Dir = home
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return string(out)
	}
	const device = "mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse"
	const absent = device + " && touch /mnt/none && for f in fusermount3 fusermount; do p=$(command -v $f) || continue; mount --bind /mnt/none $p; done"
	out := run(device, "koinon dev up --detach --nodes 1; cp -r /etc/apt $M/; diff -r /etc/apt $M/apt; koinon ls -l /; koinon dev stop; "+
		"! cp -r /etc/apt $M/; koinon dev up --detach; diff -r /etc/apt $M/apt")
	says(t, out, "The tree is mounted", " apt", "deleted "+home)
	out = run(absent, "koinon dev up --detach --nodes 1; koinon cp -r /etc/apt koinon:/; koinon cp -r koinon:/apt back; diff -r /etc/apt back")
	says(t, out, "the tree is not mounted", "install the package fuse3", "koinon cp", "deleted "+home)
}
