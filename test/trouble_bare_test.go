//go:build linux

package test

import (
	"errors"
	"os"
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
	gone := func(when string) {
		t.Helper()
		for _, line := range []string{"echo x >" + stray, "cp -r /etc/apt " + d.mount + "/", "cp -r /etc/apt " + d.mount, "mkdir -p " + stray, "echo x >" + d.mount} {
			if out, err := d.shell(line); err == nil {
				t.Errorf("%s: %s went through: %s", when, line, out)
			}
		}
	}
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
