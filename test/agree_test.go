//go:build linux

package test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// secondMount mounts the cluster's tree a second time, in a process of its own.
func (d *dev) secondMount(name string) string {
	d.t.Helper()
	dir := filepath.Join(filepath.Dir(d.dir), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(filepath.Dir(d.dir), name+".log"))
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(koinonBinary(d.t), "--config", filepath.Join(d.dir, "client.toml"), "mount", dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			d.t.Errorf("ending %s: %v", name, err)
		}
		if err := cmd.Wait(); err != nil {
			d.t.Errorf("%s did not end well: %v", name, err)
		}
		if mounted(dir) {
			d.t.Errorf("%s is still mounted after its process ended", dir)
		}
		if err := log.Close(); err != nil {
			d.t.Error(err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); !mounted(dir); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			raw, err := os.ReadFile(log.Name())
			d.t.Fatalf("%s was not mounted within 20 s: %s %v", dir, raw, err)
		}
	}
	return dir
}

// TestMountsAgree lets two mounts see each other's changes with no pause in
// between: whatever has returned on one must be there on the other.
func TestMountsAgree(t *testing.T) {
	d := up(t, 3)
	other := d.secondMount("mnt2")
	mounts := []string{d.mount, other}
	for i := range 150 {
		here, there := mounts[i%2], mounts[(i+1)%2]
		name, moved := fmt.Sprintf("f%d", i%7), fmt.Sprintf("g%d", i%5)
		want := bytes.Repeat([]byte(fmt.Sprintf("round %d ", i)), 1+i*i%9000)
		if err := os.WriteFile(filepath.Join(here, name), want, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(there, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: written and closed on one mount, the other reads %d bytes instead of %d: %v", i, len(got), len(want), err)
		}
		if _, err := os.Stat(filepath.Join(here, moved)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(there, name), filepath.Join(there, moved)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(here, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("round %d: renamed away on one mount, the other still finds it: %v", i, err)
		}
		st, err := os.Stat(filepath.Join(here, moved))
		if err != nil || st.Size() != int64(len(want)) {
			t.Fatalf("round %d: renamed on one mount, the other says %v", i, err)
		}
		if err := os.Chmod(filepath.Join(here, moved), 0o600+fs.FileMode(i%2)*0o44); err != nil {
			t.Fatal(err)
		}
		if st, err = os.Stat(filepath.Join(there, moved)); err != nil || st.Mode().Perm() != 0o600+fs.FileMode(i%2)*0o44 {
			t.Fatalf("round %d: chmod on one mount, the other says %v, %v", i, st.Mode(), err)
		}
		if i%3 == 0 {
			if err := os.Remove(filepath.Join(here, moved)); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(there, moved)); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("round %d: removed on one mount, the other still finds it: %v", i, err)
			}
		}
	}
}

// TestExclusiveCreate lets both mounts race to make the same names: each is
// made by exactly one of them.
func TestExclusiveCreate(t *testing.T) {
	d := up(t, 3)
	mounts := []string{d.mount, d.secondMount("mnt2")}
	const names = 200
	var made [2][names]bool
	var wg sync.WaitGroup
	for m, dir := range mounts {
		wg.Go(func() {
			for i := range names {
				f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("x%d", i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
				switch {
				case err == nil:
					made[m][i] = true
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				case !errors.Is(err, fs.ErrExist):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range names {
		if made[0][i] == made[1][i] {
			t.Errorf("x%d was made by %v and %v", i, made[0][i], made[1][i])
		}
	}
	d.fsck()
}

// TestOpenFilesAreSeen: a file that one mount has made and not closed, which the
// tree may not know of yet, is there for the other one, whatever it asks, and
// whoever leads meanwhile.
func TestOpenFilesAreSeen(t *testing.T) {
	d := up(t, 3)
	mounts := []string{d.mount, d.secondMount("mnt2")}
	asks := map[string]func(dir string) error{
		"stat": func(dir string) error { _, err := os.Stat(filepath.Join(dir, "f")); return err },
		"list": func(dir string) error {
			entries, err := os.ReadDir(dir)
			if err == nil && len(entries) != 1 {
				err = fmt.Errorf("%d entries", len(entries))
			}
			return err
		},
		"create": func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, "f"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err == nil {
				return errors.Join(errors.New("was made twice"), f.Close())
			}
			return only(err, syscall.EEXIST)
		},
		"open":  func(dir string) error { f, err := os.Open(filepath.Join(dir, "f")); return errors.Join(err, f.Close()) },
		"rmdir": func(dir string) error { return only(os.Remove(dir), syscall.ENOTEMPTY) },
		"rename": func(dir string) error {
			err := os.Mkdir(dir+".other", 0o755)
			return errors.Join(err, only(syscall.Rename(dir+".other", dir), syscall.ENOTEMPTY))
		},
		"mkdir":  func(dir string) error { return only(os.Mkdir(filepath.Join(dir, "f"), 0o755), syscall.EEXIST) },
		"unlink": func(dir string) error { return os.Remove(filepath.Join(dir, "f")) },
		"link":   func(dir string) error { return os.Link(filepath.Join(dir, "f"), dir+".link") },
	}
	for i := range 4 {
		for name, ask := range asks {
			here, there := mounts[i%2], mounts[(i+1)%2]
			dir := fmt.Sprintf("%s.%d", name, i)
			f := openedIn(t, here, there, dir, i%2 == 1)
			killed := 0
			if i == 3 && (name == "stat" || name == "create" || name == "rmdir") {
				killed = d.leader()
				d.kill(killed)
			}
			if err := ask(filepath.Join(there, dir)); err != nil {
				t.Errorf("made and not closed on one mount, %s on the other one: %v", name, err)
			}
			if err := f.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
			if got, err := os.ReadFile(filepath.Join(there, dir, "f")); name != "unlink" && (err != nil || string(got) != "some bytes") {
				t.Errorf("%s: after the close the other mount reads %q, %v", name, got, err)
			}
			if killed != 0 {
				d.restart(killed)
			}
		}
	}
	d.fsck()
}

// openedIn makes a directory on one mount and a file with some bytes in it,
// which stays open. When known is set the other mount has seen the directory.
func openedIn(t *testing.T, here, there, dir string, known bool) *os.File {
	t.Helper()
	err := os.Mkdir(filepath.Join(here, dir), 0o755)
	if known {
		_, seen := os.Stat(filepath.Join(there, dir))
		g := filepath.Join(here, dir, "g")
		err = errors.Join(err, seen, os.WriteFile(g, nil, 0o644), os.Remove(g))
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(here, dir, "f"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString("some bytes")
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// only is nil when err is the one expected.
func only(err, want error) error {
	if errors.Is(err, want) {
		return nil
	}
	return fmt.Errorf("%v, expected %v", err, want)
}

// TestExclusiveCreateInNewDirectories is TestExclusiveCreate where one mount
// has the directory to itself at first, and holds its files open, and where
// leaders die meanwhile.
func TestExclusiveCreateInNewDirectories(t *testing.T) {
	d := up(t, 3)
	mounts := []string{d.mount, d.secondMount("mnt2")}
	for round := range 60 {
		dir := fmt.Sprintf("d%d", round)
		if err := os.Mkdir(filepath.Join(mounts[round%2], dir), 0o755); err != nil {
			t.Fatal(err)
		}
		const names = 6
		var made [2][names]bool
		var wg sync.WaitGroup
		killed := 0
		if round%20 == 19 {
			killed = d.leader()
			wg.Go(func() { d.kill(killed) })
		}
		for m, mount := range mounts {
			wg.Go(func() {
				for i := range names {
					f, err := os.OpenFile(filepath.Join(mount, dir, fmt.Sprintf("x%d", i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
					switch {
					case err == nil:
						made[m][i] = true
						defer func() {
							if err := f.Close(); err != nil {
								t.Errorf("close: %v", err)
							}
						}()
					case !errors.Is(err, fs.ErrExist):
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for i := range names {
			if made[0][i] == made[1][i] {
				t.Errorf("%s/x%d was made by %v and %v", dir, i, made[0][i], made[1][i])
			}
		}
		if killed != 0 {
			d.restart(killed)
		}
	}
	d.fsck()
}

// TestSetuidIsLostAtOnce asks for nothing but the mode, which the kernel takes for known for as long as a lease says.
func TestSetuidIsLostAtOnce(t *testing.T) {
	d := up(t, 1)
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", `echo x >su; chown 4000 su; chmod 6755 su; stat -c %a su
		setpriv --reuid 4000 --regid 4000 --clear-groups sh -c 'echo y >>su'; stat -c %a su`)
	cmd.Dir = d.mount
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "6755\n755\n" {
		t.Errorf("set-id bits before and after a write by their owner: %q, %v", out, err)
	}
}
