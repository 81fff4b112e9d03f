//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rolesAre waits until the nodes that run have so many voters and learners.
func (d *dev) rolesAre(voters, learners int) {
	d.t.Helper()
	var out string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		out, _ = d.try("status")
		v := strings.Count(out, " leader ") + strings.Count(out, " follower ")
		if v == voters && strings.Count(out, " learner ") == learners {
			return
		}
	}
	d.t.Fatalf("expected %d voters and %d learners, found:\n%s", voters, learners, out)
}

// TestClusterChangesUnderLoad adds nodes, takes the leader out, and replaces a
// node whose disk is lost, while programs write: none sees an error, nothing
// that was acknowledged is lost.
func TestClusterChangesUnderLoad(t *testing.T) {
	d := up(t, 3)
	running := startLoad(t, d.mount, 7, 4)

	d.koinon("dev", "add", "--dir", d.dir)
	d.rolesAre(3, 1)

	old := d.leader()
	d.koinon("dev", "rm", fmt.Sprint(old), "--dir", d.dir)
	d.rolesAre(3, 0)
	if _, err := os.Stat(filepath.Join(d.dir, fmt.Sprintf("n%d", old))); !os.IsNotExist(err) {
		t.Errorf("the directory of node %d after its removal: %v", old, err)
	}

	// A disk is lost: the node is gone for good, and the machine comes back as
	// another one.
	lost := 1
	for lost == old || lost == d.leader() {
		lost++
	}
	d.kill(lost)
	if err := os.RemoveAll(filepath.Join(d.dir, fmt.Sprintf("n%d", lost), "data")); err != nil {
		t.Fatal(err)
	}
	d.koinon("dev", "add", "--dir", d.dir)
	d.koinon("dev", "rm", fmt.Sprint(lost), "--dir", d.dir)
	d.rolesAre(3, 0)

	l := running.finish()
	t.Logf("%d operations, the slowest took %v, %d files to check", l.ops, l.slow.Round(time.Millisecond), len(l.files))
	if l.ops < 50 {
		t.Fatalf("%d operations prove nothing", l.ops)
	}
	dropCaches(t)
	l.check(t)
	d.fsck()
	d.koinon("dev", "stop", "--dir", d.dir)
	d.koinon("dev", "up", "--detach", "--dir", d.dir, "--mount", d.mount)
	l.check(t)
}

// TestRemovalGoesOn: a removal that was interrupted is finished by the next
// try, and two additions at once are both remembered.
func TestRemovalGoesOn(t *testing.T) {
	d := up(t, 3)
	done := make(chan string, 2)
	for range 2 {
		go func() {
			out, err := d.try("dev", "add", "--dir", d.dir)
			done <- fmt.Sprint(out, err)
		}()
	}
	t.Logf("%s\n%s", <-done, <-done)
	if n := len(d.status().Nodes); n != 5 {
		t.Fatalf("%d nodes are known after two additions at once, expected 5", n)
	}
	// Each of them can let others in, also without the first three.
	says(t, d.koinon("status"), "CA key   n1, n2, n3, n4, n5\n")
	d.koinon("node", "rm", "3") // as far as `dev rm` gets that ends before it has cleared up
	if out := d.koinon("node", "ls"); strings.Contains(out, "n3 ") {
		t.Errorf("a node that has left is listed:\n%s", out)
	}
	eventually(t, time.Minute, "a node that has left ends", func() bool { return d.status().Nodes[2].State == "down" })
	d.refused(20*time.Second, []string{"dev", "start", "3", "--dir", d.dir}, "node 3 did not come up", "node n3 was removed from cluster")
	d.koinon("dev", "rm", "3", "--dir", d.dir)
	d.koinon("dev", "rm", "1", "--dir", d.dir)
	d.koinon("dev", "stop", "--dir", d.dir)
	d.refused(20*time.Second, []string{"node", "ls"}, "no majority: no answer from ")
	// The directory can be moved: what was added has not made its paths absolute.
	moved := d.besides("moved")
	if err := os.Rename(d.dir, moved); err != nil {
		t.Fatal(err)
	}
	d.dir = moved
	says(t, d.koinon("dev", "up", "--detach", "--dir", d.dir, "--mount", d.mount), " kill 2 ")
	d.fsck()
}

// TestTwoOfFive kills two of five nodes at once: service goes on.
func TestTwoOfFive(t *testing.T) {
	d := up(t, 5)
	running := startLoad(t, d.mount, 5, 4)
	leader := d.leader()
	d.koinon("dev", "kill", strconv.Itoa(leader), strconv.Itoa(leader%5+1), "--dir", d.dir)
	writeFile(t, filepath.Join(d.mount, "after"), "the kill")
	d.koinon("dev", "start", strconv.Itoa(leader), strconv.Itoa(leader%5+1), "--dir", d.dir)
	l := running.finish()
	t.Logf("%d operations, the slowest took %v", l.ops, l.slow.Round(time.Millisecond))
	dropCaches(t)
	holds(t, filepath.Join(d.mount, "after"), "the kill")
	if err := os.Remove(filepath.Join(d.mount, "after")); err != nil {
		t.Fatal(err)
	}
	l.check(t)
	d.fsck()
}

// TestRemovalRefused: what would leave no majority changes nothing.
func TestRemovalRefused(t *testing.T) {
	d := up(t, 3)
	d.kill(3)
	d.refused(20*time.Second, []string{"node", "rm", "2"}, "no majority", "n3 is down", "start n3")
	d.refused(20*time.Second, []string{"node", "rm", "9"}, "no such node")
	d.refused(20*time.Second, []string{"dev", "rm", "9", "--dir", d.dir}, "there is no node 9")
	d.rolesAre(2, 0)
	writeFile(t, filepath.Join(d.mount, "still"), "served")

	// An addition that fails leaves no token that would let somebody in.
	if err := os.Mkdir(filepath.Join(d.dir, "joining"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(d.dir, "joining", "old"), "not a node's")
	d.refused(20*time.Second, []string{"dev", "add", "--dir", d.dir}, "joining")
	if out := d.koinon("node", "token", "ls"); strings.Contains(out, "open") {
		t.Errorf("tokens after an addition that failed:\n%s", out)
	}
}

// TestEmptiedVoters: a voter that is started on an empty directory learns what the others know before it votes, by itself; the
// founder, whose file names nobody else, is refused until it does.
func TestEmptiedVoters(t *testing.T) {
	d := up(t, 1)
	writeFile(t, filepath.Join(d.mount, "first"), "of one")
	d.koinon("dev", "add", "--dir", d.dir)
	d.koinon("dev", "add", "--dir", d.dir)
	d.rolesAre(3, 0)
	empty := func(number int) {
		t.Helper()
		d.kill(number)
		if err := os.RemoveAll(d.at("n"+itoa(number), "data", "replica")); err != nil {
			t.Fatal(err)
		}
	}
	d.koinon("kv", "put", "k", "of three")
	d.timeout("10s")

	// It has noted the others, without which it knows of nobody.
	empty(1)
	noted := d.at("n1", "node.key.peers")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(noted, noted+".away")
	d.refused(time.Minute, []string{"dev", "start", "1", "--dir", d.dir}, "seeds in place of the voters")
	says(t, d.koinon("kv", "get", "k"), "of three")
	move(noted+".away", noted)
	d.restart(1)
	d.rolesAre(3, 0)
	// With the state alone lost, its file names it as the only voter.
	d.kill(1)
	move(d.at("n1", "data", "replica", "state"), d.at("state.away"))
	d.restart(1)
	d.rolesAre(3, 0)

	// Written with 3 dead, known by 1 and 2: when 2 has lost it and 1 is dead, nobody may vote without it.
	d.kill(3)
	d.koinon("kv", "put", "k", "of two")
	d.kill(1)
	empty(2)
	two, three := d.background("serve", "--config", d.at("n2", "node.toml")), d.background("serve", "--config", d.at("n3", "node.toml"))
	d.refused(30*time.Second, []string{"kv", "get", "k"}, "no majority")
	says(t, d.koinon("kv", "get", "--stale", "k"), "of three") // by node 3, node 2 has nothing
	for _, r := range []*run{two, three} {
		r.signal(syscall.SIGTERM)
		if err := r.end(20 * time.Second); err != nil {
			t.Error(err)
		}
	}
	began := time.Now()
	d.koinon("dev", "up", "--detach", "--dir", d.dir, "--mount", d.mount)
	if took := time.Since(began); took > 40*time.Second { // the mount waits for a minute
		t.Errorf("to start the nodes under a mount took %v", took)
	}
	d.rolesAre(3, 0)
	if got := d.koinon("kv", "get", "k"); strings.TrimSpace(got) != "of two" {
		t.Errorf("the value that was acknowledged expected, found %q", got)
	}
	dropCaches(t)
	holds(t, filepath.Join(d.mount, "first"), "of one")
	d.fsck()
}

// TestEmptiedVoterOutlivesItsSeeds: a voter that has lost its data finds the
// others although all nodes have left by which it once joined.
func TestEmptiedVoterOutlivesItsSeeds(t *testing.T) {
	d := up(t, 1)
	for range 3 {
		d.koinon("dev", "add", "--dir", d.dir)
	}
	d.rolesAre(3, 1)
	d.koinon("kv", "put", "k", "kept")
	first := d.status().Nodes[0].Address
	d.koinon("dev", "rm", "1", "--dir", d.dir)
	d.rolesAre(3, 0)
	raw, err := os.ReadFile(d.at("n2", "node.toml"))
	if err != nil || !strings.Contains(string(raw), fmt.Sprintf("seeds = [%q]", first)) {
		t.Fatalf("node 2 should have joined by the first one alone: %v\n%s", err, raw)
	}
	d.kill(2)
	if err := os.RemoveAll(d.at("n2", "data")); err != nil {
		t.Fatal(err)
	}
	d.restart(2)
	d.rolesAre(3, 0)
	d.kill(3) // which would be the majority's end if node 2 did not count
	if got := d.koinon("kv", "get", "k"); strings.TrimSpace(got) != "kept" {
		t.Errorf("the value that was acknowledged expected, found %q", got)
	}
	d.restart(3)
	d.fsck()
}
