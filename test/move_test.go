//go:build linux

package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/dump"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
)

// memoryMax is what no process may exceed, in bytes.
const memoryMax = 512 << 20

// measured runs koinon against the cluster and fails the test when the process
// needs too much memory.
func (d *dev) measured(args ...string) {
	d.t.Helper()
	cmd := exec.Command(koinonBinary(d.t), args...)
	cmd.Env = append(os.Environ(), "KOINON_CONFIG="+filepath.Join(d.dir, "client.toml"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	most := int64(0)
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for running := true; running; {
		select {
		case err := <-ended:
			if err != nil {
				d.t.Fatalf("koinon %s: %v\n%s", strings.Join(args, " "), err, out.String())
			}
			running = false
		case <-look.C: // the usage that wait4 tells begins with that of this process
			most = max(most, peak(cmd.Process.Pid))
		}
	}
	d.t.Logf("koinon %s: %d MiB at most; %s", strings.Join(args[:2], " "), most>>20, strings.TrimSpace(out.String()))
	if most == 0 || most > memoryMax {
		d.t.Errorf("koinon %s took %d MiB, expected some and at most 512", strings.Join(args[:2], " "), most>>20)
	}
}

// peak is the most memory that a process has had, in bytes; 0 when it has ended.
func peak(pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	var kib int64
	_, after, _ := strings.Cut(string(raw), "VmHWM:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		return 0
	}
	return kib << 10
}

// nodesMemory fails the test when a node takes too much memory.
func (d *dev) nodesMemory() {
	d.t.Helper()
	for _, n := range d.status().Nodes {
		mem := resident(d.t, n.PID)
		d.t.Logf("node %d (%s): %d MiB resident", n.Number, n.Role, mem>>20)
		if mem > memoryMax {
			d.t.Errorf("node %d takes %d MiB, more than 512", n.Number, mem>>20)
		}
	}
}

// metaSection is what a node's file says of the metadata.
var metaSection = regexp.MustCompile(`\n\[meta\]\n *url = .*\n`)

// engine stops the cluster and starts its nodes with the metadata elsewhere,
// without a mount: in the database with a URL, or, with "", in the log.
func (d *dev) engine(ref string) {
	d.t.Helper()
	d.koinon("dev", "stop", "--dir", d.dir)
	for n := 1; n <= d.nodes; n++ {
		name := filepath.Join(d.dir, fmt.Sprintf("n%d", n), "node.toml")
		raw, err := os.ReadFile(name)
		if err != nil {
			d.t.Fatal(err)
		}
		text := metaSection.ReplaceAllString(string(raw), "")
		if ref != "" {
			text += fmt.Sprintf("\n[meta]\nurl = %q\n", ref)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	d.koinon("dev", "up", "--detach", "--dir", d.dir, "--no-mount")
}

// refusedWith fails the test unless koinon fails and says so.
func (d *dev) refusedWith(want string, args ...string) {
	d.t.Helper()
	out, err := d.try(args...)
	if err == nil || !strings.Contains(out, want) {
		d.t.Fatalf("koinon %s: expected to be refused with %q, found %v\n%s", strings.Join(args, " "), want, err, out)
	}
}

// soundDump fails the test unless a dump is a sound tree.
func soundDump(t *testing.T, name string) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	tree := meta.NewMemory(meta.Unformatted())
	if _, err := dump.Load(context.Background(), bytes.NewReader(raw), inMemory{tree}, dump.Options{}); err != nil {
		t.Fatal(err)
	}
	r, err := meta.Check(context.Background(), tree, meta.CheckOptions{})
	if err != nil || len(r.Problems) > 0 {
		t.Fatalf("expected a sound tree, found %v, %v", r, err)
	}
	t.Logf("the dump of a tree in use: %d files, %d names", r.Files, r.Entries)
}

type inMemory struct{ *meta.Memory }

func (m inMemory) Load(ctx context.Context, l *metapb.Load) (*metapb.Result, error) {
	return m.Do(ctx, &metapb.Command{Op: &metapb.Command_Load{Load: l}})
}

// TestMoveBetweenEngines moves a tree from the cluster's own log to MariaDB and
// back, with the same blocks. `make move` does it with 200,000 files.
func TestMoveBetweenEngines(t *testing.T) {
	files := int(setting(t, "KOINON_MOVE_FILES", 500))
	s := mysqltest.Start(t)
	ref := inFile(t, s.Create(t, "koinon"))
	d := up(t, 3)
	d.makeFiles(files)
	d.sh("cp -r /etc/ssl $M/ssl && head -c 20000000 /dev/urandom > $M/big && ln $M/big $M/ssl/big && ln -s big $M/sym && " +
		"setfattr -n user.note -v hello $M/big && chown 1000:1000 $M/big && cp $M/big $M/gone && rm $M/gone && mkfifo $M/fifo")
	at := func(name string) string { return filepath.Join(filepath.Dir(d.dir), name) }

	// A dump of a tree in use is a tree as it was at one moment.
	d.sh("mkdir $M/busy")
	busy := startLoad(t, filepath.Join(d.mount, "busy"), 3, 4)
	d.koinon("meta", "dump", at("busy.dump"))
	busy.finish().check(t)
	soundDump(t, at("busy.dump"))

	const sums = "cd $M && find . -type f -print0 | sort -z | xargs -0 sha256sum"
	d.sh(sums + " > $HOME/sums; find $M -printf '%P %y %m %U %G %s %n %l %t\\n' | sort > $HOME/stats")
	same := func() {
		d.sh(sums + " | cmp - $HOME/sums; find $M -printf '%P %y %m %U %G %s %n %l %t\\n' | sort | diff - $HOME/stats; test $(getfattr --only-values -n user.note $M/big) = hello")
		d.fsck()
	}

	d.measured("meta", "dump", at("log.dump"))
	d.nodesMemory()
	d.refusedWith("clients are connected", "meta", "load", at("log.dump"))
	d.engine(ref)
	d.refusedWith("own log", "ls", "/")
	d.sh("mkdir $HOME/elsewhere")
	d.refusedWith("own log", "mount", "--detach", d.besides("elsewhere"))
	if out := d.koinon("status"); !strings.Contains(out, "own log") {
		t.Errorf("expected the status to say where the tree is, found\n%s", out)
	}
	d.damaged(at("log.dump"))
	d.interrupted(at("log.dump"), "own log")
	d.measured("meta", "load", at("log.dump"))
	d.start()
	same()
	d.nodesMemory()

	d.sh("echo new > $M/new && rm $M/sym && head -c 9000000 /dev/urandom > $M/big2")
	d.sh(sums + " > $HOME/sums; find $M -printf '%P %y %m %U %G %s %n %l %t\\n' | sort > $HOME/stats")
	d.measured("meta", "dump", at("database.dump"))
	d.engine("")
	d.refusedWith("there is no tree here", "ls", "/")
	d.refusedWith("there is no tree here", "mount", "--detach", d.besides("elsewhere"))
	d.interrupted(at("database.dump"), "there is no tree here")
	d.measured("meta", "load", at("database.dump"))
	d.start()
	same()
	d.nodesMemory()

	// The database has the tree of before, which nobody gets to see again.
	d.engine(ref)
	d.refusedWith("own log", "ls", "/")
	d.refusedWith("name an empty one", "meta", "load", at("database.dump"))
	d.engine("")
	d.refusedWith("nothing was changed", "meta", "load", at("database.dump"))
	d.start()
	same()

	d.leaveAgain(s, at)
}

// leaveAgain has the tree leave the log for the second time. Then the log does not
// say that a load was interrupted, unless one was and may be gone on with, and in
// no case that alone.
func (d *dev) leaveAgain(s *mysqltest.Server, at func(string) string) {
	d.t.Helper()
	t := d.t
	d.refusedWith("not a file", "meta", "dump", at("mnt/fifo"))
	if err := os.Symlink(at("nowhere"), at("dangling")); err != nil {
		t.Fatal(err)
	}
	d.refusedWith("leads nowhere", "meta", "dump", at("dangling"))
	d.koinon("meta", "dump", at("again.dump"))
	database := inFile(t, s.Create(t, "koinon2"))
	d.engine(database)
	d.koinon("meta", "load", at("again.dump"))
	d.engine("")
	d.inDatabaseOnly()
	// After a load that was cut off, and is not gone on with, both may be so.
	if _, err := d.shell(fmt.Sprintf("head -c -100 %s | KOINON_CONFIG=%s/client.toml %s meta load -", at("log.dump"), d.dir, koinonBinary(t))); err == nil {
		t.Error("expected the missing end to be noticed")
	}
	if out := d.koinon("status"); !strings.Contains(out, "start the nodes with --meta") || !strings.Contains(out, "interrupted") {
		t.Errorf("expected the status to say both, found\n%s", out)
	}
	// Once the nodes have gone on with the database, the load was given up.
	d.engine(database)
	d.koinon("ls", "/")
	d.engine("")
	d.inDatabaseOnly()
}

// inDatabaseOnly fails the test unless nodes without their database say that the
// tree is there, and nothing of a load.
func (d *dev) inDatabaseOnly() {
	d.t.Helper()
	if out := d.koinon("status"); !strings.Contains(out, "in a database") || strings.Contains(out, "interrupted") {
		d.t.Errorf("expected the status to say where the tree is, found\n%s", out)
	}
}

// damaged fails the test unless damaged dumps are refused and change nothing.
func (d *dev) damaged(name string) {
	d.t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		d.t.Fatal(err)
	}
	altered := bytes.Clone(raw)
	altered[len(raw)/2] ^= 1
	for what, bad := range map[string][]byte{"cut": raw[:len(raw)-20], "altered": altered, "longer": append(bytes.Clone(raw), 'x'), "empty": nil} {
		file := filepath.Join(filepath.Dir(name), what)
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			d.t.Fatal(err)
		}
		d.refusedWith("nothing was changed", "meta", "load", file)
	}
}

// interrupted loads a dump without its end from a pipe, and fails the test unless
// the cluster says so. refusal is what a client hears meanwhile.
func (d *dev) interrupted(name, refusal string) {
	d.t.Helper()
	out, err := d.shell(fmt.Sprintf("head -c -100 %[1]s | KOINON_CONFIG=%[2]s/client.toml %[3]s meta load -", name, d.dir, koinonBinary(d.t)))
	if err == nil || !strings.Contains(out, "cut off") {
		d.t.Fatalf("expected the missing end to be noticed, found %v\n%s", err, out)
	}
	if out := d.koinon("status"); !strings.Contains(out, "interrupted") {
		d.t.Fatalf("expected the status to say that a load was interrupted, found\n%s", out)
	}
	d.refusedWith(refusal, "ls", "/")
}
