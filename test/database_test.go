//go:build linux

package test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
)

// inFile writes a URL to a file that only its owner may read, and returns the
// file as an engine's reference.
func inFile(t *testing.T, url string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(name, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return "@" + name
}

// TestTreeInDatabase keeps the metadata of one node's tree in MariaDB: programs
// and people find the same files, and what cannot work is refused.
func TestTreeInDatabase(t *testing.T) {
	s := mysqltest.Start(t)
	url := s.Create(t, "koinon")
	d := up(t, 1, "--meta", url)
	d.sh("echo hello > $M/file.txt && chown 1000:1000 $M/file.txt && mkdir $M/dir && cp -r /etc/ssl $M/dir && mv $M/dir/ssl $M/ssl && ln $M/file.txt $M/link")
	d.sh("diff -r --no-dereference /etc/ssl $M/ssl && test $(stat -c %h $M/file.txt) = 2")
	query := exec.Command("mariadb", "--no-defaults", "-S", s.Socket(), "-ukoinon", "-N", "-e",
		"SELECT name, size, owner_id, path FROM files WHERE name = 'file.txt'", "koinon")
	query.Env = append(os.Environ(), "MYSQL_PWD="+mysqltest.Password)
	out, err := query.CombinedOutput()
	if err != nil || string(out) != "file.txt\t6\t1000\t/file.txt\n" {
		t.Fatalf("expected the file, found %q, %v", out, err)
	}
	d.fsck()
	status := d.koinon("status")
	if want := "metadata " + strings.Replace(url, mysqltest.Coded, "***", 1) + "\n"; !strings.Contains(status, want) {
		t.Errorf("expected %q in the status, found\n%s", want, status)
	}
	d.tellsNobody(mysqltest.Password, mysqltest.Coded)
	d.koinon("dev", "stop", "--dir", d.dir)
	d.start()
	d.sh("test \"$(cat $M/link)\" = hello && rm -r $M/ssl && test $(ls $M | wc -l) = 3")
	d.fsck()

	// What the sessions that have ended left in the database goes.
	db, sessions := s.DB(t, "koinon"), 2
	for end := time.Now().Add(time.Minute); sessions > 1; time.Sleep(100 * time.Millisecond) {
		if err := db.QueryRow("SELECT COUNT(DISTINCT session) FROM results").Scan(&sessions); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("expected results of the mount's session alone, found those of %d", sessions)
		}
	}

	dir := filepath.Join(t.TempDir(), "c") // what was refused left nothing there
	for _, c := range []struct{ url, want string }{
		{"", "--meta is empty"},
		{url, "cluster"},
		{strings.Replace(url, mysqltest.Coded, "geheim", 1), "password"},
		{strings.TrimSuffix(url, "koinon") + "nowhere", "database"},
		{strings.Replace(url, "mysql:", "mongodb:", 1), "scheme"},
	} {
		out, err := d.try("dev", "up", "--detach", "--nodes", "1", "--dir", dir, "--no-mount", "--meta", c.url)
		if err == nil || !strings.Contains(out, c.want) || strings.Contains(out, "geheim") || strings.Contains(out, mysqltest.Password) {
			t.Errorf("%s: expected to be refused because of the %s, without the password, found %v\n%s", c.url, c.want, err, out)
		}
	}

	// With an empty database, or none, there is no tree, and nodes say so.
	for _, ref := range []string{inFile(t, s.Create(t, "empty")), ""} {
		d.engine(ref)
		if out := d.koinon("status"); !strings.Contains(out, "there is no tree here") {
			t.Errorf("with %q expected the status to say that there is no tree, found\n%s", ref, out)
		}
	}
	d.engine(inFile(t, url))
	if out := d.koinon("ls", "/"); !strings.Contains(out, "file.txt") {
		t.Errorf("expected the tree to be back, found\n%s", out)
	}
}

func (d *dev) signal(number int, sig syscall.Signal) {
	d.t.Helper()
	for _, n := range d.status().Nodes {
		if n.Number == number {
			if err := syscall.Kill(n.PID, sig); err != nil {
				d.t.Fatal(err)
			}
		}
	}
}

// TestCrashLoopInDatabase kills nodes and the database at random moments under
// a checksummed load, and then looks for every acknowledged byte.
func TestCrashLoopInDatabase(t *testing.T) {
	minutes := setting(t, "KOINON_CRASH_MINUTES", 0.4)
	seed := uint64(setting(t, "KOINON_CRASH_SEED", 1))
	t.Logf("seed %d, %.1f minutes", seed, minutes)
	s := mysqltest.Start(t)
	d := up(t, 3, "--meta", inFile(t, s.Create(t, "koinon")))
	running := startLoad(t, d.mount, seed, 4)
	rng := rand.New(rand.NewPCG(seed, 77))
	kills := map[string]int{}
	for end := time.Now().Add(time.Duration(minutes * float64(time.Minute))); time.Now().Before(end); {
		select {
		case <-running.ended:
			running.finish()
			t.Fatal("the load ended early")
		case <-time.After(time.Duration(500+rng.IntN(2000)) * time.Millisecond):
		}
		victim := 1 + rng.IntN(3)
		kind := []string{"database", "leader", "node", "both", "paused leader"}[rng.IntN(5)]
		kills[kind]++
		if kind == "leader" || kind == "both" || kind == "paused leader" {
			victim = d.leader()
		}
		if kind == "paused leader" { // for longer than another needs to be elected
			d.signal(victim, syscall.SIGSTOP)
			time.Sleep(1500 * time.Millisecond)
			d.signal(victim, syscall.SIGCONT)
			continue
		}
		if kind != "database" {
			d.kill(victim)
		}
		if kind == "database" || kind == "both" {
			s.Kill()
			time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
			s.Restart()
		}
		if kind != "database" {
			d.restart(victim)
		}
	}
	l := running.finish()
	t.Logf("%d operations, %v, the slowest operation took %v, %d files to check", l.ops, kills, l.slow.Round(time.Millisecond), len(l.files))
	if l.ops < 50 || len(kills) < 2 {
		t.Fatalf("%d operations and %v prove nothing", l.ops, kills)
	}
	dropCaches(t)
	l.check(t)
	d.fsck()
	var n int
	if err := s.DB(t, "koinon").QueryRow("SELECT COUNT(*) FROM files").Scan(&n); err != nil || n < len(l.files) {
		t.Fatalf("expected at least %d files in the view, found %d, %v", len(l.files), n, err)
	}
}

// TestTreeInGalera kills the server of a Galera cluster of three that the tree
// uses, under a checksummed load: the tree goes on at another one, and what was
// acknowledged is there.
func TestTreeInGalera(t *testing.T) {
	g := mysqltest.StartGalera(t)
	d := up(t, 1, "--meta", inFile(t, g.Create(t, "koinon")))
	running := startLoad(t, d.mount, 5, 4)
	time.Sleep(2 * time.Second) // of load
	g.Servers[0].Kill()         // the first that the URL names
	d.sh("for i in $(seq 20); do echo $i > $M/$i.txt; done")
	g.Servers[0].Restart() // filled by another one meanwhile
	g.Await(t)
	time.Sleep(time.Second) // of load
	l := running.finish()
	t.Logf("%d operations, the slowest took %v, %d files to check", l.ops, l.slow.Round(time.Millisecond), len(l.files))
	if l.slow > 20*time.Second {
		t.Errorf("expected to go on within seconds, found an operation of %v", l.slow)
	}
	dropCaches(t)
	l.check(t)
	d.sh("test $(cat $M/*.txt | wc -l) = 20")
	d.fsck()
}
