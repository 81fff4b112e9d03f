//go:build linux

package test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// How many histories are taken and from which seed: `make histories`.
const (
	historiesEnv   = "KOINON_HISTORIES"
	historySeedEnv = "KOINON_HISTORY_SEED"
)

const (
	historyTime   = 4000 * time.Millisecond // of faults, in each
	historyKeys   = 3
	workersEach   = 2 // of each client process
	healedWithin  = 30 * time.Second
	clientTimeout = "3s"
)

// number reads a number of the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestHistories takes histories of the keys while nodes are killed, stopped and
// cut off, and looks for an order of the actions that explains each. A seed
// decides what clients ask and which faults come when.
func TestHistories(t *testing.T) {
	n := inNamespaces(t, clientTimeout)
	n.leads(0)
	count, seed := number(t, historiesEnv, 6), number(t, historySeedEnv, 1)
	var all tally
	for s := seed; s < seed+count; s++ {
		h := newHistory(n, s)
		h.take()
		all.add(h.tally)
		t.Logf("seed %d: %v", s, h.tally)
	}
	if !t.Failed() {
		t.Logf("%d histories, all linearizable: %v", count, all)
	}
	if count >= 6 && (all.kills == 0 || all.pauses == 0 || all.cuts == 0 || all.elections == 0 || all.unknown == 0) {
		t.Errorf("faults of all kinds, other leaders and unknown outcomes expected, found %v", all)
	}
	n.staleReadsAreSeen()
}

// tally counts what happened in histories.
type tally struct {
	operations, unknown           int
	kills, pauses, cuts, leaders  int // leaders: of those, how many hit the leader
	clientKills, clientPauses     int
	elections                     int // after which another node led
	failed, absent, mismatch, got int
}

func (a *tally) add(b tally) {
	a.operations, a.unknown = a.operations+b.operations, a.unknown+b.unknown
	a.kills, a.pauses, a.cuts, a.leaders = a.kills+b.kills, a.pauses+b.pauses, a.cuts+b.cuts, a.leaders+b.leaders
	a.clientKills, a.clientPauses, a.elections = a.clientKills+b.clientKills, a.clientPauses+b.clientPauses, a.elections+b.elections
	a.failed, a.absent, a.mismatch, a.got = a.failed+b.failed, a.absent+b.absent, a.mismatch+b.mismatch, a.got+b.got
}

// String is one line of a report.
func (a tally) String() string {
	return fmt.Sprintf("%d operations, %d of them of unknown outcome, %d reads, %d conditions that did not hold, %d keys not there, %d more had no effect; "+
		"%d kills, %d pauses, %d cuts of nodes, %d of these of the leader, %d other leaders; %d kills and %d pauses of clients",
		a.operations, a.unknown, a.got, a.mismatch, a.absent, a.failed, a.kills, a.pauses, a.cuts, a.leaders, a.elections, a.clientKills, a.clientPauses)
}

// history is one in the taking.
type history struct {
	tally
	n       *network
	seed    uint64
	rng     *rand.Rand
	clients []*historyClient // also those that were killed
	next    int              // number of the next worker
	leader  int              // as last asked
	notes   []porcupine.Annotation
	move    *turnover // nil: the members stay
}

func newHistory(n *network, seed uint64) *history {
	return &history{n: n, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6b6f696e6f6e))}
}

// historyClient is a client process.
type historyClient struct {
	n     *network
	where int // namespace
	cmd   *exec.Cmd
	stdin io.Closer
	out   string // its records
	ended chan struct{}
	err   error
	dead  bool // killed on purpose
}

// historian starts a client process in a namespace.
func (n *network) historian(where int, spec clientSpec) *historyClient {
	n.t.Helper()
	raw, err := json.Marshal(spec)
	if err != nil {
		n.t.Fatal(err)
	}
	c := &historyClient{n: n, where: where, ended: make(chan struct{}), out: n.besides(fmt.Sprintf("records%d.jsonl", runs.Add(1)))}
	line := append(n.inside(where), os.Args[0])
	c.cmd = exec.Command(line[0], line[1:]...)
	c.cmd.Env = append(os.Environ(), "KOINON_CONFIG="+n.at("client.toml"), clientEnv+"="+string(raw))
	out, err := os.Create(c.out)
	if err != nil {
		n.t.Fatal(err)
	}
	c.cmd.Stdout, c.cmd.Stderr = out, os.Stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		c.err = errors.Join(c.cmd.Wait(), out.Close())
		close(c.ended)
	}()
	n.t.Cleanup(c.kill)
	return c
}

// kill ends the process if it runs.
func (c *historyClient) kill() {
	c.n.t.Helper()
	c.dead = true
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.n.t.Error(err)
	}
	<-c.ended
}

func (c *historyClient) signal(sig syscall.Signal) {
	c.n.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.n.t.Fatal(err)
	}
}

// wrote waits until the records so far are as wanted.
func (c *historyClient) wrote(what string, ok func(records []record, size int64) bool) {
	c.n.t.Helper()
	eventually(c.n.t, healedWithin, what, func() bool {
		select {
		case <-c.ended:
			c.n.t.Fatalf("a client ended: %v", c.err)
		default:
		}
		info, err := os.Stat(c.out)
		return err == nil && ok(c.records(), info.Size())
	})
}

func (c *historyClient) ready() {
	c.n.t.Helper()
	c.wrote("a client that is ready", func(_ []record, size int64) bool { return size > 0 })
}

func (c *historyClient) records() []record {
	c.n.t.Helper()
	records, err := readRecords(c.out)
	if err != nil {
		c.n.t.Fatal(err)
	}
	return records
}

// finish lets the process come to its end and returns its records.
func (c *historyClient) finish() []record {
	c.n.t.Helper()
	if !c.dead {
		if err := c.stdin.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			c.n.t.Error(err)
		}
		select {
		case <-c.ended:
			if c.err != nil {
				c.n.t.Errorf("a client ended with %v", c.err)
			}
		case <-time.After(time.Minute):
			c.n.t.Fatal("a client does not end: an action hangs")
		}
	}
	return c.records()
}

// prefix is of the keys, which are new in each history.
func (h *history) prefix() string { return fmt.Sprintf("history/%d-%d/", os.Getpid(), h.seed) }

func (h *history) start(where int) *historyClient {
	h.n.t.Helper()
	c := h.n.historian(where, clientSpec{Client: h.next, Workers: workersEach, Seed: h.seed, Prefix: h.prefix(), Keys: historyKeys, Restless: where == hub})
	h.next += workersEach
	h.clients = append(h.clients, c)
	return c
}

// take takes the history and checks it. One client process is beside the nodes,
// and one at each node: it stays there when the node is cut off.
func (h *history) take() {
	t := h.n.t
	t.Helper()
	for _, where := range append([]int{hub}, h.n.nodes()...) {
		h.start(where)
	}
	for _, c := range h.clients {
		c.ready()
	}
	h.leader = h.n.leads(0)
	h.trouble()
	h.lookUp()
	for _, c := range h.clients { // all at once
		if err := c.stdin.Close(); err != nil && !c.dead {
			t.Error(err)
		}
	}
	var records []record
	for _, c := range h.clients {
		records = append(records, c.finish()...)
	}
	h.count(records)
	slices.SortStableFunc(records, func(a, b record) int { return cmp.Compare(a.Time, b.Time) })
	if err := check(records, os.TempDir(), fmt.Sprintf("koinon-history-%d", h.seed), h.notes...); err != nil {
		t.Errorf("seed %d: %v", h.seed, err)
	}
	if h.operations-h.unknown-h.failed < 50 {
		t.Errorf("seed %d: %v: these few prove nothing", h.seed, h.tally)
	}
}

// trouble makes faults for a while, up to two at a time, and heals them.
func (h *history) trouble() {
	h.n.t.Helper()
	var faults []lasting
	for end := time.Now().Add(historyTime); time.Now().Before(end); {
		if len(faults) == 2 || len(faults) == 1 && h.rng.IntN(3) > 0 {
			h.healed(faults[0])
			faults = faults[1:]
		} else if f, ok := h.strike(faults); ok {
			faults = append(faults, f)
		}
		pause := 50 + h.rng.IntN(700) // ms, for the fault to work
		if h.rng.IntN(3) == 0 || len(h.notes) == 1 {
			pause += 700 // for another leader to work
		}
		for over := time.Now().Add(time.Duration(pause) * time.Millisecond); time.Now().Before(over); {
			h.turned()
			time.Sleep(10 * time.Millisecond)
		}
		if len(faults) == 0 {
			h.lookUp()
		}
	}
	for _, f := range faults {
		h.healed(f)
	}
	eventually(h.n.t, healedWithin, "the members have changed", h.turned)
}

// lookUp asks who leads, when nothing is wrong.
func (h *history) lookUp() {
	h.n.t.Helper()
	if l := h.n.leads(0); l != h.leader {
		h.leader = l
		h.elections++
	}
}

func (h *history) count(records []record) {
	ended := map[string]int{}
	for _, r := range records {
		switch {
		case r.Begin != nil:
			h.operations++
		case r.End != nil:
			ended[r.End.Is]++
			if r.End.Version != 0 {
				h.got++
			}
		}
	}
	h.absent, h.mismatch, h.failed = ended[absent], ended[mismatch], ended[failed]
	h.unknown = h.operations - ended[done] - h.absent - h.mismatch - h.failed
}

// fault is a kind of fault.
type fault int

// The faults, of a node unless they say otherwise.
const (
	killed      fault = iota // by SIGKILL, and started again
	stopped                  // by SIGSTOP
	cutOff                   // from the other nodes and from the clients of these
	mute                     // the other nodes hear nothing of it
	deaf                     // it hears nothing of the other nodes
	parted                   // from one other node
	clientFault              // a client is killed, or stopped
)

var faultNames = [...]string{"killed", "stopped", "cut off", "mute", "deaf", "parted from another", "a client is killed or stopped"}

// faultDice has each fault as often as its share is.
var faultDice = []fault{killed, killed, killed, stopped, stopped, cutOff, mute, deaf, parted, clientFault}

// lasting is a fault that has been made and not healed.
type lasting struct {
	node int // 0 for clients
	heal func()
	note int // its place in notes
}

// strike makes a fault at a node that has none, or at a client. The first one of
// a history is at the leader, of each kind in turn.
func (h *history) strike(with []lasting) (lasting, bool) {
	all := h.victims()
	victim, kind := all[h.rng.IntN(len(all))], faultDice[h.rng.IntN(len(faultDice))]
	if h.rng.IntN(2) == 0 && slices.Contains(all, h.leader) {
		victim = h.leader
	}
	if len(h.notes) == 0 && h.move == nil {
		victim, kind = h.leader, fault(h.seed%uint64(clientFault))
	}
	if kind == clientFault {
		return h.strikeClient()
	}
	for _, f := range with {
		if f.node == victim {
			return lasting{}, false
		}
	}
	if victim == h.leader {
		h.leaders++
	}
	f := h.noted(victim, kind)
	r := h.n.served[victim]
	switch kind {
	case killed:
		h.kills++
		r.signal(syscall.SIGKILL)
		<-r.ended
		f.heal = func() { h.n.serve(victim) }
	case stopped:
		h.pauses++
		r.signal(syscall.SIGSTOP)
		f.heal = func() { r.signal(syscall.SIGCONT) }
	default:
		h.cuts++
		f.heal = h.cut(victim, kind)
	}
	return f, true
}

// noted writes a fault down for the picture of a history.
func (h *history) noted(node int, kind fault) lasting {
	text := faultNames[kind]
	if node != 0 {
		text = fmt.Sprintf("node %d is %s", node, text)
	}
	if node == h.leader {
		text += ", which led"
	}
	h.notes = append(h.notes, porcupine.Annotation{Tag: fmt.Sprintf("node %d", node), Start: monotonic(), Description: text})
	return lasting{node: node, note: len(h.notes) - 1}
}

func (h *history) healed(f lasting) {
	f.heal()
	h.notes[f.note].End = monotonic()
}

// cut cuts a node off.
func (h *history) cut(victim int, kind fault) (heal func()) {
	n := h.n
	port := []string{"-n", n.name(hub), "link", "set", "p" + itoa(victim)}
	if kind == cutOff {
		n.ip(append(port, "down")...)
		return func() { n.ip(append(port, "up")...) }
	}
	var ways [][2]int // from, to
	for _, other := range n.nodes() {
		if other == victim || kind == parted && len(ways) > 0 {
			continue
		}
		if kind != deaf {
			ways = append(ways, [2]int{victim, other})
		}
		if kind != mute {
			ways = append(ways, [2]int{other, victim})
		}
	}
	for _, w := range ways {
		if n.blocked[w[0]][w[1]]++; n.blocked[w[0]][w[1]] == 1 {
			n.route("add", w[0], w[1])
		}
	}
	return func() {
		for _, w := range ways {
			if n.blocked[w[0]][w[1]]--; n.blocked[w[0]][w[1]] == 0 {
				n.route("del", w[0], w[1])
			}
		}
	}
}

// strikeClient kills a client, in whose place another one comes, or stops it.
func (h *history) strikeClient() (lasting, bool) {
	c := h.clients[h.rng.IntN(len(h.clients))]
	if c.dead {
		return lasting{}, false
	}
	f := h.noted(0, clientFault)
	if h.rng.IntN(2) == 0 {
		h.clientKills++
		c.kill()
		f.heal = func() { h.start(c.where) }
		return f, true
	}
	h.clientPauses++
	c.signal(syscall.SIGSTOP)
	f.heal = func() {
		if !c.dead {
			c.signal(syscall.SIGCONT)
		}
	}
	return f, true
}

// staleReadsAreSeen shows that the histories would tell of a stale read: those
// that a cut-off node answers on request, passed off as linearizable, have no
// order that explains them. Linearizable reads at the same place have no answer.
func (n *network) staleReadsAreSeen() {
	t := n.t
	t.Helper()
	apart := n.leads(0)
	spec := clientSpec{Workers: 1, Prefix: fmt.Sprintf("stale/%d/", os.Getpid()), Keys: 1, Reads: true, Stale: true}
	stale := n.historian(apart, spec)
	spec.Stale, spec.Client = false, 1
	honest := n.historian(apart, spec)
	for _, c := range []*historyClient{stale, honest} {
		c.wrote("reads", func(records []record, _ int64) bool { return len(records) > 2 })
	}
	n.ip("-n", n.name(hub), "link", "set", "p"+itoa(apart), "down")
	spec = clientSpec{Client: 2, Workers: 1, Prefix: spec.Prefix, Keys: 1, Seed: 1}
	writer := n.historian(hub, spec)
	writer.wrote("changes", func(records []record, _ int64) bool {
		return outcomes(records, 0)[done] > 20
	})
	records := writer.finish()
	since := monotonic()
	stale.wrote("stale reads", func(records []record, _ int64) bool {
		is := outcomes(records, since)
		return is[done]+is[absent] >= 2
	})
	honest.wrote("reads without an answer", func(records []record, _ int64) bool {
		return outcomes(records, since)[failed] >= 2
	})
	n.ip("-n", n.name(hub), "link", "set", "p"+itoa(apart), "up")
	n.leads(0)
	dir := t.TempDir()
	if err := check(append(slices.Clone(records), honest.finish()...), dir, "honest"); err != nil {
		t.Errorf("linearizable reads at a node that was cut off: %v", err)
	}
	err := check(append(slices.Clone(records), stale.finish()...), dir, "stale")
	if err == nil || !strings.Contains(err.Error(), "Illegal") {
		t.Errorf("stale reads pass for linearizable ones: %v", err)
	}
	for _, name := range []string{"stale.html", "stale.jsonl"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("the history that has no order was not written: %v", err)
		}
	}
}

// outcomes counts outcomes of actions that began after a time.
func outcomes(records []record, since int64) map[string]int {
	is := map[string]int{}
	began := map[int]int64{} // of each client's last action
	for _, r := range records {
		if r.Begin != nil {
			began[r.Client] = r.Time
		} else if began[r.Client] > since {
			is[r.End.Is]++
		}
	}
	return is
}
