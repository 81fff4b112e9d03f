//go:build linux

package fusefs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eventually waits until ok holds; the mount table has no event for the
// disappearance of a single mount that every kernel supports.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func isMounted(t *testing.T, dir string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(table), " "+dir+" ")
}

// TestMountPoints: each mount point that will not do is refused with a word on
// what to do.
func TestMountPoints(t *testing.T) {
	dir := t.TempDir()
	file, full := filepath.Join(dir, "file"), filepath.Join(dir, "full")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.MkdirAll(filepath.Join(full, "x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	sh(t, dir, "mkdir other; mount -t tmpfs none other")
	t.Cleanup(func() { sh(t, dir, "umount other") })
	for _, c := range []struct{ dir, want string }{
		{filepath.Join(dir, "missing"), "mkdir -p"},
		{file, "is a directory"},
		{full, "empty directory"},
		{other, "type tmpfs"},
		{mounted(t), "koinon is mounted there already"},
	} {
		if _, line := tryServe(t, c.dir); !strings.Contains(line, c.want) {
			t.Errorf("%s: %q, expected it to speak of %q", c.dir, line, c.want)
		}
	}
}

// TestDeadMount: when a server dies, by a panic or by SIGKILL, whoever uses the
// mount gets an error, nothing gets into the directory below it, and the next
// mount there takes over.
func TestDeadMount(t *testing.T) {
	for _, way := range []string{"panic", "kill"} {
		t.Run(way, func(t *testing.T) {
			dir := t.TempDir()
			m, line := tryServe(t, dir)
			if line != "ready" {
				t.Fatal(line)
			}
			f, err := os.Create(filepath.Join(dir, "open"))
			if err != nil {
				t.Fatal(err)
			}
			if way == "panic" {
				fmt.Fprintln(m.stdin, "panic")
			} else if err := m.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the mount is dead", func() bool {
				var st unix.Statfs_t // which the kernel does not keep, as it does attributes
				return errors.Is(unix.Statfs(dir, &st), unix.ENOTCONN)
			})
			if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("a new file in a dead mount: %v", err)
			}
			if _, err := f.Write([]byte("x")); !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("a write to a file that was open: %v", err)
			}
			_ = f.Close() // its mount is gone
			if _, line := tryServe(t, dir); line != "ready" {
				t.Fatal(line)
			}
			sh(t, dir, "[ -z \"$(ls)\" ]; echo x >f; cat f")
		})
	}
}

// TestUnmountInUse: a mount that is in use when its server ends is detached,
// and whoever used it is served to the end.
func TestUnmountInUse(t *testing.T) {
	dir := t.TempDir()
	m, line := tryServe(t, dir)
	if line != "ready" {
		t.Fatal(line)
	}
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mount is detached", func() bool { return !isMounted(t, dir) })
	if _, err := f.WriteString("still served"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	m.stop(t)
}

// TestForeignUnmount: a mount that somebody else unmounts ends its server's
// wait. Afterwards nothing is mounted.
func TestForeignUnmount(t *testing.T) {
	dir := t.TempDir()
	if _, line := tryServe(t, dir); line != "ready" {
		t.Fatal(line)
	}
	sh(t, "/", "umount "+dir)
	if isMounted(t, dir) {
		t.Error("still mounted")
	}
}

// TestMountsAgree: what one mount has closed, another sees at its next open or
// stat, also a file that it has open and whose pages it has cached.
func TestMountsAgree(t *testing.T) {
	dirs := mountedTwice(t, 2)
	a, b := dirs[0], dirs[1]
	for _, script := range []string{
		`echo one >A/f; [ "$(cat B/f)" = one ]; echo two! >B/f; [ "$(cat A/f)" = two! ]; [ "$(stat -c %s A/f)" = 5 ]`,
		`mkdir A/d; touch B/d/x; [ "$(ls A/d)" = x ]; mv A/d B/e 2>/dev/null || mv A/d A/e; [ -e B/e/x ]; [ ! -e B/d ]; rm -r B/e; [ ! -e A/e ]`,
		`for k in $(seq 50); do echo $k >A/n; [ "$(cat B/n)" = $k ]; echo -$k >B/n; [ "$(cat A/n)" = -$k ]; done`,
		`head -c 300000 /dev/zero >A/z; cat B/z >/dev/null; echo X | dd of=A/z bs=1 seek=200000 conv=notrunc status=none
			[ "$(dd if=B/z bs=1 skip=200000 count=1 status=none)" = X ]`,
		`exec 5<B/n; read l <&5; echo longer line >A/n; [ "$(tail -c +1 /proc/self/fd/5)" = "longer line" ]`,
		`for k in 1 2 3 4 5; do echo a$k >>A/log; echo b$k >>B/log; done; [ "$(wc -l <A/log)" = 10 ]; cmp A/log B/log`,
		`chmod 600 A/f; [ "$(stat -c %a B/f)" = 600 ]; rm A/f; [ ! -e B/f ]`,
	} {
		sh(t, "/", strings.NewReplacer("A/", a+"/", "B/", b+"/").Replace(script))
	}
}

// A directory that stays open is listed to its end, and what comes later is
// found when it is listed on, and in a listing from the start.
func TestListingGoesOn(t *testing.T) {
	dirs := mountedTwice(t, 2)
	f, err := os.Open(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	expect := func(want ...string) {
		t.Helper()
		got, err := f.Readdirnames(-1)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("expected %q, found %q, %v", want, got, err)
		}
	}
	expect()
	sh(t, dirs[1], "touch a b")
	expect("a", "b")
	expect()
	sh(t, dirs[1], "touch c")
	expect("c")
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	expect("a", "b", "c")
}

// TestOthers: the mount obeys modes, groups and the sticky bit for users who
// are not root, and what they make is theirs.
func TestOthers(t *testing.T) {
	dir := mounted(t)
	// The temporary directory is root's alone; others get in from below.
	for d := filepath.Dir(dir); strings.Contains(d, "Test"); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const user, member = `setpriv --reuid 4000 --regid 4000 --clear-groups`, `setpriv --reuid 4001 --regid 4001 --groups 77`
	for _, c := range []struct{ name, script string }{
		{"no entry", `mkdir -m 700 p; echo x >p/f; ! USER cat p/f 2>/dev/null; ! USER ls p 2>/dev/null`},
		{"no write", `echo x >r; chmod 644 r; USER cat r; ! USER sh -c 'echo y >r' 2>/dev/null; ! USER rm -f r 2>/dev/null; ! USER touch new 2>/dev/null`},
		{"own files", `mkdir -m 777 w; USER sh -c 'umask 022; echo mine >w/f; mkdir w/d; ln -s f w/l'
			[ "$(stat -c %u:%g:%a w/f w/d | tr '\n' ,)" = 4000:4000:644,4000:4000:755, ]; [ "$(stat -c %u w/l)" = 4000 ]
			USER chmod 600 w/f; ! USER chown 0 w/f 2>/dev/null; ! MEMBER cat w/f 2>/dev/null`},
		{"sticky", `mkdir -m 1777 s; USER touch s/f; ! MEMBER rm -f s/f 2>/dev/null; [ -e s/f ]; USER rm s/f`},
		{"supplementary group", `mkdir g; chgrp 77 g; chmod 2770 g; MEMBER sh -c 'umask 002; echo x >g/f; mkdir g/d'
			[ "$(stat -c %u:%g g/f)" = 4001:77 ]; [ "$(stat -c %g:%a g/d)" = 77:2775 ]; ! USER ls g 2>/dev/null; MEMBER rm -r g/f g/d`},
		{"setuid is lost by writing where its mode is known", `echo x >known; chown 4000 known; chmod 6755 known; stat -c %a known; USER sh -c 'echo q >>known'; [ "$(stat -c %a known)" = 755 ]`},
		{"setuid is lost by writing", `mkdir -m 777 u; cp /bin/true u/p; chmod 4777 u/p; USER sh -c 'echo >>u/p'; [ "$(stat -c %a u/p)" = 777 ]
			chmod 4777 u/p; USER truncate -s 1 u/p; [ "$(stat -c %a u/p)" = 777 ]
			chmod 6777 u/p; USER sh -c ': >u/p'; [ "$(stat -c %a u/p)" = 777 ]
			chmod 4777 u/p; echo root >u/p; [ "$(stat -c %a u/p)" = 4777 ]`},
		{"capability", `mkdir -m 700 c; setpriv --reuid 4000 --regid 4000 --clear-groups --inh-caps +dac_override --ambient-caps +dac_override sh -c 'echo x >c/f; cat c/f'
			[ "$(stat -c %u:%g c/f)" = 4000:4000 ]`},
		{"times", `touch t; chmod 666 t; USER touch t; ! USER touch -d @5 t 2>/dev/null`},
	} {
		t.Run(c.name, func(t *testing.T) {
			sh(t, dir, strings.NewReplacer("USER", user, "MEMBER", member).Replace(c.script))
		})
	}
}

// TestKilledWriter: a program that is killed while it writes leaves what it had
// written, and the mount goes on.
func TestKilledWriter(t *testing.T) {
	dir := mounted(t)
	cmd := exec.Command("dd", "if=/dev/zero", "of="+dir+"/f", "bs=64k", "count=100000", "status=none")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "some MiB are written", func() bool {
		info, err := os.Stat(dir + "/f")
		return err == nil && info.Size() > 5<<20
	})
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("dd was done already")
	}
	sh(t, dir, `s=$(stat -c %s f); [ $s -gt 5000000 ]; [ "$(wc -c <f)" = $s ]; [ "$(tr -d '\0' <f | wc -c)" = 0 ]; rm f`)
}

// TestHolesTakeNoSpace: the blocks of a sparse file are those that hold bytes.
func TestHolesTakeNoSpace(t *testing.T) {
	dir := mounted(t)
	for _, script := range []string{
		`truncate -s 1G s; [ "$(stat -c %b:%s s)" = 0:1073741824 ]; [ "$(du -k s | cut -f1)" = 0 ]`,
		`dd if=/dev/urandom of=s bs=4k count=1 seek=1000 conv=notrunc status=none; [ "$(stat -c %b s)" = 8 ]`,
		`dd if=/dev/urandom of=s bs=1M count=3 seek=100 conv=notrunc status=none; [ "$(stat -c %b s)" = 6152 ]; [ "$(du -k s | cut -f1)" = 3076 ]`,
		`dd if=/dev/urandom of=s bs=1M count=1 seek=101 conv=notrunc status=none; [ "$(stat -c %b s)" = 6152 ]`,
		`fallocate -p -o 101M -l 1M s; [ "$(stat -c %b s)" = 4104 ]`,
		`cp s copy; [ "$(stat -c %b:%s copy)" = 4104:1073741824 ]; cmp s copy`,
		`exec 5<>w; dd if=/dev/zero bs=4k count=3 status=none >&5; [ "$(stat -c %b w)" = 24 ]; exec 5>&-; [ "$(stat -c %b w)" = 24 ]`,
		`echo small >f; [ "$(stat -c %b f)" = 1 ]; ln -s f l; [ "$(stat -c %b l)" = 0 ]`,
	} {
		sh(t, dir, script)
	}
}

// TestAppendsOfManyPrograms: programs on one mount that append to one file do
// not write over each other's lines, whether they keep it open or not.
func TestAppendsOfManyPrograms(t *testing.T) {
	dir := mounted(t)
	sh(t, dir, `for p in 1 2 3 4; do (exec >>log; for k in $(seq 200); do echo "open $p $k"; done) & done
		for p in 5 6; do (for k in $(seq 100); do echo "closed $p $k" >>log; done) & done; wait
		[ "$(wc -l <log)" = 1000 ]; [ "$(sort -u log | grep -cE '^(open|closed) [1-6] [0-9]+$')" = 1000 ]
		for p in 1 2 3 4; do grep "^open $p " log | cut -d' ' -f3 | sort -nc; done`)
}
