//go:build linux

package test

import (
	"bytes"
	"context"
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
)

// network is a cluster whose nodes are in network namespaces of their own, on
// one bridge in a further one, where the clients are.
type network struct {
	*dev
	prefix string // of the names of the namespaces
	served [5]*run
	// Of each namespace: the node in it, 0 when there is none, its
	// configuration, and the port it listens on.
	id     [5]int
	config [5]string
	port   [5]string
	// blocked counts who keeps a node from sending to another one.
	blocked [5][5]int
}

func (n *network) name(number int) string { return n.prefix + itoa(number) }
func (n *network) ip(args ...string)      { n.t.Helper(); n.must("ip", args...) }
func address(number int) string           { return fmt.Sprintf("10.231.77.%d", number) }

func (n *network) must(name string, args ...string) {
	n.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// inside runs a program in a namespace; hub is that of the clients.
func (n *network) inside(number int) []string {
	return []string{"nsenter", "--net=/run/netns/" + n.name(number), "--"}
}

const hub = 0

// overNetwork brings up three nodes in three namespaces, and a mount in the
// fourth.
func overNetwork(t *testing.T) *network {
	t.Helper()
	n := inNamespaces(t, "20s")
	m := n.wrapped(n.inside(hub), "mount", n.mount)
	t.Cleanup(func() { n.ends(m) })
	m.await(20*time.Second, "mounted on")
	return n
}

// serve starts a node. It is stopped in order when the test ends, unless it was
// started again since.
func (n *network) serve(number int) {
	n.t.Helper()
	n.keep(number, n.wrapped(n.inside(number), "serve", "--config", n.config[number]))
}

// keep takes over a node that was started.
func (n *network) keep(number int, r *run) {
	n.t.Helper()
	n.served[number] = r
	n.t.Cleanup(func() {
		if n.served[number] == r {
			n.ends(r)
		}
	})
}

// inNamespaces brings up three nodes in three namespaces. Clients wait for a
// majority for as long as timeout says.
func inNamespaces(t *testing.T, timeout string) *network {
	t.Helper()
	n := &network{dev: up(t, 3, "-q"), prefix: fmt.Sprintf("kt%d-", os.Getpid())}
	nodes := n.status().Nodes
	n.stop()
	move := func(s string) string {
		for _, node := range nodes {
			_, port, _ := strings.Cut(node.Address, ":")
			s = strings.ReplaceAll(s, node.Address, address(node.Number)+":"+port)
			n.id[node.Number], n.port[node.Number] = node.Number, port
		}
		return s
	}
	edit(t, n.at("client.toml"), move)
	n.timeout(timeout)
	n.namespace(hub)
	n.ip("-n", n.name(hub), "link", "add", "name", "bridge0", "type", "bridge")
	n.ip("-n", n.name(hub), "addr", "add", address(100)+"/24", "dev", "bridge0")
	n.ip("-n", n.name(hub), "link", "set", "dev", "bridge0", "up")
	for i := 1; i <= 3; i++ {
		// The addresses are in the cluster's map, so it has to begin anew, as if
		// nobody had served.
		for _, was := range []string{"data", "node.key.served"} {
			if err := os.RemoveAll(n.at("n"+itoa(i), was)); err != nil {
				t.Fatal(err)
			}
		}
		n.machine(i)
		n.config[i] = n.at("n"+itoa(i), "node.toml")
		edit(t, n.config[i], move)
		n.serve(i)
	}
	return n
}

// namespace makes a namespace.
func (n *network) namespace(number int) {
	n.t.Helper()
	n.ip("netns", "add", n.name(number))
	n.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", n.name(number)).CombinedOutput(); err != nil {
			n.t.Errorf("ip netns del: %v\n%s", err, out)
		}
	})
	n.ip("-n", n.name(number), "link", "set", "lo", "up")
}

// machine makes a namespace that is on the bridge.
func (n *network) machine(number int) {
	n.t.Helper()
	n.namespace(number)
	port := "p" + itoa(number)
	n.ip("-n", n.name(hub), "link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", n.name(number))
	n.ip("-n", n.name(hub), "link", "set", port, "master", "bridge0", "up")
	n.ip("-n", n.name(number), "addr", "add", address(number)+"/24", "dev", "eth0")
	n.ip("-n", n.name(number), "link", "set", "dev", "eth0", "up")
}

// nodes lists the namespaces that have a node.
func (n *network) nodes() (numbers []int) {
	for i, id := range n.id {
		if id != 0 {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// ends stops a process in order.
func (n *network) ends(r *run) {
	n.t.Helper()
	select {
	case <-r.ended:
		n.t.Errorf("%v has ended: %v\n%s", r.cmd.Args, r.err, r.said())
		return
	default:
	}
	r.signal(syscall.SIGTERM)
	if err := r.end(20 * time.Second); err != nil {
		n.t.Errorf("%v ended with %v", r.cmd.Args, err)
	}
}

// client runs a command where the clients are.
func (n *network) client(args ...string) (string, error) {
	var out bytes.Buffer
	err := n.clientTo(&out, &out, args...)
	return out.String(), err
}

func (n *network) clientTo(stdout, stderr io.Writer, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	line := append(append(n.inside(hub), koinonBinary(n.t)), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), "KOINON_CONFIG="+n.at("client.toml"))
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd.Run()
}

// leads returns where the leader is, but not the one given.
func (n *network) leads(but int) int {
	n.t.Helper()
	found := 0
	eventually(n.t, 20*time.Second, "a leader", func() bool {
		out, _ := n.client("status") // exit code 1 says that there is no leader
		found = 0
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(line, "leader"); ok {
				id := 0
				_, _ = fmt.Sscanf(strings.TrimSpace(rest), "n%d", &id)
				found = max(0, slices.Index(n.id[1:], id)+1) * min(id, 1)
			}
		}
		return found != 0 && found != but
	})
	return found
}

// TestNetworkCut cuts the leader off, both ways and one way: the majority goes
// on, who still reaches the old leader reads nothing stale, and when the network
// is whole again all agree.
func TestNetworkCut(t *testing.T) {
	n := overNetwork(t)
	for _, cut := range []struct {
		name       string
		make, heal func(leader int)
	}{
		{"both ways", func(l int) { n.ip("-n", n.name(hub), "link", "set", "p"+itoa(l), "down") },
			func(l int) { n.ip("-n", n.name(hub), "link", "set", "p"+itoa(l), "up") }},
		{"from the others", func(l int) { n.routes("add", l) }, func(l int) { n.routes("del", l) }},
	} {
		leader := n.leads(0)
		path := filepath.Join(n.mount, "value")
		writeFile(t, path, "old")
		running := startLoad(t, filepath.Join(n.mount, "load"), uint64(leader), 2)
		time.Sleep(500 * time.Millisecond)
		cut.make(leader)
		next := n.leads(leader)
		writeFile(t, path, "new")

		// Ask the old leader first.
		alone := n.besides("alone.toml")
		edit(t, n.at("client.toml"), func(s string) string {
			if err := os.WriteFile(alone, []byte(n.only(s, leader)), 0o600); err != nil {
				t.Fatal(err)
			}
			return s
		})
		out, err := n.client("--config", alone, "cat", "/value")
		if err == nil && out != "new" {
			t.Errorf("%s: after the leader was cut off, %q is read instead of what was written since", cut.name, out)
		}
		t.Logf("%s: node %d took over from node %d; who knows that one only gets %q, %v", cut.name, next, leader, out, err)
		time.Sleep(2 * time.Second)
		cut.heal(leader)
		time.Sleep(time.Second)
		l := running.finish()
		t.Logf("%s: %d operations, the slowest took %v", cut.name, l.ops, l.slow)
		dropCaches(t)
		l.check(t)
		holds(t, path, "new")
		eventually(t, 20*time.Second, "all nodes are up and have everything", func() bool {
			_, err := n.client("fsck")
			return err == nil
		})
		if err := os.RemoveAll(filepath.Join(n.mount, "load")); err != nil {
			t.Error(err)
		}
	}
}

// only leaves one address of nodes in a client's configuration, and makes its
// paths absolute.
func (n *network) only(s string, number int) string {
	var out []string
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "nodes") {
			for _, word := range strings.Split(line, `"`) {
				if strings.HasPrefix(word, address(number)+":") {
					line = fmt.Sprintf("nodes = [%q]\n", word)
				}
			}
		}
		for _, name := range []string{"ca.crt", "client.crt", "client.key"} {
			line = strings.ReplaceAll(line, `"`+name+`"`, `"`+n.at(name)+`"`)
		}
		out = append(out, strings.ReplaceAll(line, `"20s"`, `"5s"`))
	}
	return strings.Join(out, "")
}

// routes makes a node unable to send to the other nodes, which still reach it,
// as the clients do.
func (n *network) routes(verb string, number int) {
	n.t.Helper()
	for i := 1; i <= 3; i++ {
		if i != number {
			n.route(verb, number, i)
		}
	}
}

// route makes one node unable to send to another one.
func (n *network) route(verb string, from, to int) {
	n.t.Helper()
	n.ip("-n", n.name(from), "route", verb, "blackhole", address(to)+"/32")
}
