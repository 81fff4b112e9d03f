//go:build linux

package test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
)

// TestDatabaseDiskFull fills the disk of the database: programs get ENOSPC, the
// log says why, and when there is space all goes on by itself. The server itself
// ends when it lacks the space for a row that is large: it is waited for, and
// nothing that was acknowledged is lost.
func TestDatabaseDiskFull(t *testing.T) {
	disk := smallDisk(t, "160m")
	s := mysqltest.StartIn(t, filepath.Join(disk, "server"))
	d := up(t, 1, "--meta", inFile(t, s.CreateFor(t, "tree", "koinon")))
	d.stop()
	d.timeout("8s")
	d.start()
	filler, large := filepath.Join(disk, "filler"), bytes.Repeat([]byte("large "), 10_000)
	d.mustPut("kept", large)
	allocate(t, disk)
	fillUp(t, filler)
	made, err := 0, error(nil)
	for ; err == nil; made++ { // until the space within the tables is used up
		err = os.Mkdir(filepath.Join(d.mount, "d"+itoa(made)), 0o755)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("with the database's disk full a program gets %v", err)
	}
	d.nodeSays(1, "the server's disk is full")
	holds(t, filepath.Join(d.mount, "kept"), string(large))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.mustPut("with space", large)

	fillUp(t, filler)
	writeFile(t, d.besides("large"), string(large))
	var stop atomic.Bool
	done := make(chan struct{})
	go func() { // by commands, which put up to 64 KiB into a row, and may fail
		defer close(done)
		for i := 0; !stop.Load(); i++ {
			if out, err := d.try("cp", d.besides("large"), "koinon:/z"+itoa(i)); err != nil {
				t.Logf("while the disk is full or the server gone: %v, %s", err, out)
			}
		}
	}()
	s.AwaitEnd()
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	d.mustPut("restarted", large)
	stop.Store(true)
	<-done
	dropCaches(t)
	for _, name := range []string{"kept", "with space", "restarted"} {
		holds(t, filepath.Join(d.mount, name), string(large))
	}
	d.fsck()
}

// TestDatabaseAway: while the database does not answer, programs get EIO after the
// stated time, whoever is told why hears of the database, and all goes on by itself.
func TestDatabaseAway(t *testing.T) {
	s := mysqltest.Start(t)
	d := up(t, 1, "--meta", inFile(t, s.Create(t, "koinon")))
	d.stop()
	d.timeout("3s")
	d.start()
	s.Kill()
	if err := os.Mkdir(filepath.Join(d.mount, "refused"), 0o755); !errors.Is(err, syscall.EIO) {
		t.Errorf("without the database a program gets %v", err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", s.Port)
	out := d.refused(12*time.Second, []string{"ls", "/"}, address, "the database does not answer", "koinon status")
	log, err := os.ReadFile(d.at("mount", "log"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(log), address, "the database does not answer")
	if strings.Contains(out+string(log), "no node leads") {
		t.Errorf("somebody is told that no node leads:\n%s\n%s", out, log)
	}
	s.Restart()
	if err := os.Mkdir(filepath.Join(d.mount, "again"), 0o755); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

// TestDatabaseHangs: a database that stands still, and does not even break its
// connections, is like one that is away: what waits for it ends in time with EIO,
// who asks is told of the database and not of nodes, and all goes on by itself.
func TestDatabaseHangs(t *testing.T) {
	s := mysqltest.Start(t)
	d := up(t, 3, "--meta", inFile(t, s.Create(t, "koinon")))
	d.stop()
	d.timeout("4s")
	d.start()
	d.mustPut("kept", []byte("kept"))
	s.Signal(syscall.SIGSTOP)
	began := time.Now()
	if err := os.Mkdir(filepath.Join(d.mount, "refused"), 0o755); !errors.Is(err, syscall.EIO) {
		t.Errorf("with a database that hangs a program gets %v", err)
	}
	if waited := time.Since(began); waited > 20*time.Second {
		t.Errorf("it waited for %v", waited)
	}
	address := fmt.Sprintf("127.0.0.1:%d", s.Port)
	out := d.refused(15*time.Second, []string{"ls", "/"}, address, "the database does not answer", "koinon status")
	log, err := os.ReadFile(d.at("mount", "log"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(log), address, "the database does not answer")
	if strings.Contains(out+string(log), "no majority") || strings.Contains(out+string(log), "no node leads") {
		t.Errorf("somebody is told of nodes:\n%s\n%s", out, log)
	}
	says(t, d.koinon("--config", d.at("client.toml"), "status"), "3 of 3 up", "the database does not answer")
	s.Signal(syscall.SIGCONT)
	d.mustPut("again", []byte("again"))
	holds(t, filepath.Join(d.mount, "kept"), "kept")
	d.fsck()
}

// smallDisk is a file system of its own until the test ends.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("koinon-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// allocate gives the files in a directory the space that they say they have: the
// server ends when it cannot write to its log, for which a disk has the space.
func allocate(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil && info.Size() > 0 {
			err = syscall.Fallocate(int(f.Fd()), 0, 0, info.Size())
		}
		return errors.Join(err, f.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// nodeSays fails the test unless a node has logged the words.
func (d *dev) nodeSays(number int, words string) {
	d.t.Helper()
	raw, err := os.ReadFile(d.at("n"+itoa(number), "log"))
	if err != nil {
		d.t.Fatal(err)
	}
	says(d.t, string(raw), words)
}

// tellsNobody fails the test when a password is in what ps shows, in a log, in
// what a command says, or in a dump.
func (d *dev) tellsNobody(secrets ...string) {
	d.t.Helper()
	d.koinon("meta", "dump", d.besides("secret.dump"))
	raw, err := os.ReadFile(d.besides("secret.dump"))
	if err != nil {
		d.t.Fatal(err)
	}
	texts := map[string]string{"the dump": string(raw), "ps": strings.Join(d.processes(), "\n")}
	if at := bytes.Index(raw, []byte{0x28, 0xb5, 0x2f, 0xfd}); at < 0 { // zstd's magic number
		d.t.Error("the dump is not compressed as expected")
	} else {
		z, err := zstd.NewReader(bytes.NewReader(raw[at:]))
		if err != nil {
			d.t.Fatal(err)
		}
		defer z.Close()
		// What follows the compressed part ends the reading with an error.
		plain, _ := io.ReadAll(z)
		if !bytes.Contains(plain, []byte("file.txt")) {
			d.t.Error("the dump does not read as expected")
		}
		texts["what is in the dump"] = string(plain)
	}
	for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"dev", "status", "--dir", d.dir}, {"status", "--help"}, {"fsck"}} {
		texts[strings.Join(args, " ")], _ = d.try(args...)
	}
	logs := 0
	err = filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !strings.Contains(e.Name(), "log") {
			return err
		}
		raw, err := os.ReadFile(path)
		texts[path] = string(raw)
		logs++
		return err
	})
	if err != nil || logs < 2 {
		d.t.Fatalf("expected logs, found %d, %v", logs, err)
	}
	for where, text := range texts {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				d.t.Errorf("the password is in %s", where)
			}
		}
	}
}

// TestLeaderPausedInTransaction stops the process that leads while it has a
// transaction open, has another one take office, and lets it go on: it writes
// nothing any more.
func TestLeaderPausedInTransaction(t *testing.T) {
	s := mysqltest.Start(t)
	d := up(t, 3, "--meta", inFile(t, s.Create(t, "koinon")))
	done := make(chan error, 1)
	go func() { // many at once, in directories of their own, and as much as rows hold, which is
		// an attribute: a transaction of them takes several round trips
		_, err := d.shell(`v=$(head -c 60000 /dev/zero | tr '\0' x); for w in $(seq 32); do (mkdir $M/$w; i=0; until [ -e stop ]; do i=$((i+1)); : > $M/$w/$i; setfattr -n user.v -v $v $M/$w/$i; echo $w/$i >> made; done) & done; wait`)
		done <- err
	}()
	t.Cleanup(func() { writeFile(t, d.besides("stop"), "") })
	db := s.DB(t, "koinon")
	epoch := func() (n uint64) {
		if err := db.QueryRow("SELECT epoch FROM fence").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	old, was := d.node(d.leader()), epoch()
	if err := stopInTransaction(t, db, old.PID); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "another leader in office", func() bool { return epoch() > was })
	files := func() string { return strings.TrimSpace(d.sh("wc -l < made")) }
	had := files()
	eventually(t, 20*time.Second, "writes under the other one", func() bool { return files() != had })
	next := epoch()
	if err := syscall.Kill(old.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	had = files()
	eventually(t, 20*time.Second, "writes with both there", func() bool { return files() != had })
	writeFile(t, d.besides("stop"), "")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := epoch(); got < next {
		t.Errorf("expected the fence at %d or above, found %d", next, got)
	}
	dropCaches(t)
	d.sh("for f in $(cat made); do test $(getfattr --only-values -n user.v $M/$f | tr -d x | wc -c) = 0; test $(getfattr --only-values -n user.v $M/$f | wc -c) = 60000; done")
	d.fsck()
}

// stopInTransaction stops a process by SIGSTOP at a moment at which it has a
// transaction open that has written and of which the server waits for more.
func stopInTransaction(t *testing.T, db *sql.DB, pid int) error {
	const open = "SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id " +
		"WHERE t.trx_rows_modified > 0 AND p.command = 'Sleep'"
	const busy = "SELECT COUNT(*) FROM information_schema.processlist WHERE command = 'Query' AND id <> CONNECTION_ID()"
	for tries := range 100 {
		lock, err := db.Begin()
		if err != nil {
			return err
		}
		if _, err := lock.Exec("SELECT 1 FROM fence FOR UPDATE"); err != nil {
			return errors.Join(err, lock.Rollback())
		}
		time.Sleep(200 * time.Millisecond) // in which commands come together
		if err := lock.Rollback(); err != nil {
			return err
		}
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		for n := 1; n > 0; { // until the server has done what it had been sent
			if err := db.QueryRow(busy).Scan(&n); err != nil {
				return err
			}
		}
		var n int
		if err := db.QueryRow(open).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			t.Logf("stopped in a transaction at try %d", tries+1)
			return nil
		}
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			return err
		}
	}
	return errors.New("the leader was never found in a transaction")
}
