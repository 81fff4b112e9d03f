//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/ports"
)

// replaceDir puts a copy of one directory in another's place.
func replaceDir(t *testing.T, with, what string) {
	t.Helper()
	if err := os.RemoveAll(what); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", with, what).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// serveAlone runs a node beside the others.
func (d *dev) serveAlone(number int) *run {
	d.t.Helper()
	return d.background("serve", "--config", d.at("n"+itoa(number), "node.toml"), "--log-file", d.at("n"+itoa(number), "log"))
}

// ends stops nodes that run by themselves.
func ends(t *testing.T, rs ...*run) {
	t.Helper()
	for _, r := range rs {
		r.signal(syscall.SIGTERM)
		if err := r.end(20 * time.Second); err != nil {
			t.Error(err)
		}
	}
}

// only writes a client's configuration that names one node, and returns that node's address.
func (d *dev) only(number int, name string) (addr string) {
	d.t.Helper()
	addr = d.node(number).Address
	edit(d.t, d.at("client.toml"), func(s string) string { // a copy
		writeFile(d.t, d.at(name), regexp.MustCompile(`(?ms)^nodes = \[.*?\]`).ReplaceAllString(s, `nodes = ["`+addr+`"]`))
		return s
	})
	return addr
}

// allIn waits until nobody is joining any more.
func (d *dev) allIn() {
	d.t.Helper()
	eventually(d.t, 30*time.Second, "all have joined", func() bool {
		out, err := d.try("node", "ls")
		return err == nil && !strings.Contains(out, "joining")
	})
}

// returns waits until the first node has given its old copy up and is back, and checks that k is what a majority has acknowledged.
func (d *dev) returns(k string) {
	d.t.Helper()
	eventually(d.t, 30*time.Second, "the node gives its old copy up", func() bool {
		return strings.Contains(read(d.at("n1", "log")), "was an old copy and is kept")
	})
	d.rolesAre(3, 0)
	if got := d.koinon("kv", "get", "k"); strings.TrimSpace(got) != k {
		d.t.Errorf("the value that was acknowledged expected, found %q", got)
	}
	if _, err := os.Stat(d.at("n1", "data", "replica.old-1")); err != nil {
		d.t.Errorf("the old copy should be kept: %v", err)
	}
}

// withImages is a cluster of three that has grown from one, and images of the first node from when it was alone, and from when it had
// one learner.
func withImages(t *testing.T) (d *dev, images []string) {
	t.Helper()
	d = up(t, 1)
	writeFile(t, filepath.Join(d.mount, "first"), "of one")
	images = []string{d.besides("of-one"), d.besides("of-two")}
	for i, image := range images {
		d.stop()
		replaceDir(t, d.at("n1"), image)
		d.nodes = i + 1
		d.start()
		d.koinon("dev", "add", "--dir", d.dir)
		d.allIn()
	}
	d.nodes = 3
	d.rolesAre(3, 0)
	d.koinon("kv", "put", "k", "of three")
	return d, images
}

// TestOldImage: the machine of the first node goes back to an image of when it voted alone, its key, its mark and all. Whether
// the others run, or come when it has led for a while, it hears from them that it is old, keeps what it has, and returns from them.
func TestOldImage(t *testing.T) {
	d, images := withImages(t)
	writeFile(t, filepath.Join(d.mount, "second"), "of three")
	for _, image := range images {
		d.kill(1)
		replaceDir(t, image, d.at("n1"))
		d.restart(1)
		d.returns("of three")
	}
	for _, image := range images {
		d.stop()
		replaceDir(t, image, d.at("n1"))
		alone := d.serveAlone(1)
		d.koinon("kv", "put", "k", "of the old one alone")
		two, three := d.serveAlone(2), d.serveAlone(3)
		d.returns("of three")
		ends(t, alone, two, three)
		d.start()
	}
	d.rolesAre(3, 0)
	holds(t, filepath.Join(d.mount, "first"), "of one")
	holds(t, filepath.Join(d.mount, "second"), "of three")
	d.fsck()
}

// TestOldImageChangesMembers: the old one goes on alone, and takes out who does not answer. Its configuration is later than that of
// the others then; that these have members which it never had tells.
func TestOldImageChangesMembers(t *testing.T) {
	d, images := withImages(t)
	d.stop()
	replaceDir(t, images[1], d.at("n1"))
	alone := d.serveAlone(1)
	for range 100 { // so that the change is far behind
		d.koinon("kv", "put", "k", "of the old one alone")
	}
	d.koinon("node", "rm", "2")
	eventually(t, 20*time.Second, "the change is in force", func() bool {
		return strings.Contains(read(d.at("n1", "log")), `msg="members in force" group=0 members=[1]`)
	})
	two, three := d.serveAlone(2), d.serveAlone(3)
	d.returns("of three")
	ends(t, alone, two, three)
}

// TestOldImageBesideNoLeader: who is whole, and has no leader, tells the old one as well. It waits then for the third.
func TestOldImageBesideNoLeader(t *testing.T) {
	d, images := withImages(t)
	for number := range 3 {
		d.kill(number + 1)
	}
	d.timeout("5s")
	for _, image := range images {
		replaceDir(t, image, d.at("n1"))
		one, two := d.serveAlone(1), d.serveAlone(2)
		d.refused(30*time.Second, []string{"kv", "get", "k"}, "no answer from n3")
		three := d.serveAlone(3)
		d.returns("of three")
		ends(t, one, two, three)
	}
}

// TestOldImageOfTheOnlyVoter: nobody can give the only voter of two back what it has forgotten. It does not go on, the other is not
// harmed, and with the right directory all is there.
func TestOldImageOfTheOnlyVoter(t *testing.T) {
	d := up(t, 1)
	d.stop()
	images := []string{d.besides("of-one"), d.besides("of-two")}
	replaceDir(t, d.at("n1"), images[0])
	d.start()
	d.koinon("dev", "add", "--dir", d.dir)
	d.nodes = 2
	d.allIn()
	d.kill(1) // that it is not alone is in its log only
	d.restart(1)
	d.rolesAre(1, 1)
	d.stop()
	replaceDir(t, d.at("n1"), images[1])
	d.start()
	d.koinon("kv", "put", "k", "of two")
	d.kill(1)
	d.restart(1) // beside the learner, at once
	eventually(t, 30*time.Second, "the learner has everything", func() bool {
		var s struct{ Nodes []struct{ Applied uint64 } }
		out, err := d.try("status", "-o", "json")
		return err == nil && json.Unmarshal([]byte(out), &s) == nil && len(s.Nodes) == 2 && s.Nodes[0].Applied == s.Nodes[1].Applied
	})
	if log := read(d.at("n1", "log")); strings.Contains(log, "speaks to this") {
		t.Errorf("a member is taken for a stranger:\n%s", log)
	}
	d.kill(1)
	replaceDir(t, d.at("n1"), d.besides("newer"))
	for _, image := range images {
		replaceDir(t, image, d.at("n1"))
		r := d.serveAlone(1)
		if err := r.end(20 * time.Second); err == nil {
			t.Error("an old copy that nobody can mend ends as if all were well")
		}
		says(t, r.said(), "put the newer directory in its place")
	}
	replaceDir(t, d.besides("newer"), d.at("n1"))
	d.restart(1)
	d.rolesAre(1, 1)
	if got := d.koinon("kv", "get", "k"); strings.TrimSpace(got) != "of two" {
		t.Errorf("the value that was acknowledged expected, found %q", got)
	}
}

// TestReplacedWhileAway: a voter was away while all others were replaced. It knows nobody who is left, but they know where it is.
func TestReplacedWhileAway(t *testing.T) {
	d := up(t, 3)
	d.kill(2)
	d.koinon("dev", "add", "--dir", d.dir)
	d.koinon("dev", "add", "--dir", d.dir)
	for _, number := range []string{"1", "3"} {
		eventually(t, 30*time.Second, "others vote, so that it may go", func() bool {
			_, err := d.try("dev", "rm", number, "--dir", d.dir)
			return err == nil
		})
	}
	d.koinon("kv", "put", "k", "kept")
	d.restart(2)
	votes := func() {
		t.Helper()
		eventually(t, 30*time.Second, "the others have it vote again", func() bool {
			logs := read(d.at("n4", "log")) + read(d.at("n5", "log"))
			return strings.Contains(logs, `msg="members of the log" voters="[n2 n4 n5]" learners=[]`)
		})
	}
	votes()
	d.kill(5)
	d.koinon("kv", "put", "l", "with it")
	// Its disk is lost, and it asks the others, of which its file names none.
	d.restart(5)
	d.kill(2)
	if err := os.RemoveAll(d.at("n2", "data", "replica")); err != nil {
		t.Fatal(err)
	}
	d.restart(2)
	d.rolesAre(3, 0)
}

// TestOneOfTwoLost: of two nodes that are left of three the one that leads loses its disk, and then the other. Each returns from the
// other, and nothing is lost.
func TestOneOfTwoLost(t *testing.T) {
	d := up(t, 3)
	d.koinon("dev", "rm", "1", "--dir", d.dir)
	d.rolesAre(2, 0)
	for i, number := range []int{2, 3} {
		want := itoa(i)
		d.koinon("kv", "put", "k", want)
		d.kill(number)
		if err := os.RemoveAll(d.at("n"+itoa(number), "data", "replica")); err != nil {
			t.Fatal(err)
		}
		d.restart(number)
		if got := d.koinon("kv", "get", "k"); strings.TrimSpace(got) != want {
			t.Errorf("round %d: the value that was acknowledged expected, found %q", i, got)
		}
		d.rolesAre(2, 0)
		eventually(t, 30*time.Second, "it is whole again", func() bool {
			out, err := d.try("status")
			return err == nil && !strings.Contains(out, "promised") && !strings.Contains(out, "vote")
		})
	}
}

// TestOldImageLetsMachinesIn: the old one goes on alone while the others do not answer, and machines join through it, under numbers that
// two of the others have: one, which has nobody vote but the old one, or two, with which three vote. The second of the others may be known
// to the copy, too: then it is a member of both. When the others are back, the old one returns from them, nobody takes the newcomers for
// those, and these end and say how they come back.
func TestOldImageLetsMachinesIn(t *testing.T) {
	for _, c := range []struct{ image, newcomers int }{{0, 1}, {0, 2}, {1, 2}} {
		t.Run(fmt.Sprintf("%d and %d", 1+c.image, c.newcomers), func(t *testing.T) {
			newcomers := c.newcomers
			d, images := withImages(t)
			d.kill(1)
			for _, number := range []int{2, 3} {
				d.signal(number, syscall.SIGSTOP)
			}
			replaceDir(t, images[c.image], d.at("n1"))
			d.restart(1)
			addr := d.only(1, "one.toml")
			one := []string{"--config", d.at("one.toml")}
			free, err := ports.Free(newcomers)
			if err != nil {
				t.Fatal(err)
			}
			var others []*run
			for i, port := range free {
				token := strings.Fields(d.koinon(append(one, "node", "token")...))[0]
				dir := d.besides("newcomer" + itoa(i))
				r := d.background("serve", "--join", addr, "--token", token, "--dir", dir, "--listen", ports.Loopback(port))
				r.await(20*time.Second, "msg=serving")
				others = append(others, r)
			}
			eventually(t, 30*time.Second, "the newcomers are in", func() bool {
				out, err := d.try(append(one, "node", "ls")...)
				return err == nil && strings.Contains(out, "n"+itoa(1+c.image+newcomers)) && !strings.Contains(out, "joining")
			})
			if newcomers == 2 {
				three := regexp.MustCompile(`msg="members in force" group=0 members="\[1 \d \d\]`)
				eventually(t, 30*time.Second, "three vote", func() bool { return three.MatchString(read(d.at("n1", "log"))) })
				d.kill(1) // so that it has met nobody of the others since it is one of three
				d.restart(1)
			}
			d.koinon(append(one, "kv", "put", "k", "of the old one")...)
			for _, number := range []int{2, 3} {
				d.signal(number, syscall.SIGCONT)
			}
			d.returns("of three")
			for _, r := range others {
				if err := r.end(30 * time.Second); err == nil {
					t.Error("a newcomer ends as if all were well")
				}
				says(t, r.said(), "join")
			}
			for number := range 3 { // what they know holds from their start on, too
				d.kill(number + 1)
				d.restart(number + 1)
			}
			d.rolesAre(3, 0)
			if got := d.koinon("kv", "get", "k"); strings.TrimSpace(got) != "of three" {
				t.Errorf("the value that was acknowledged expected, found %q", got)
			}
			d.fsck()
		})
	}
}
