package paxos

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// The scripts under testdata tell the protocol's stories. Time stands still unless a script lets it pass, the network
// keeps what is not delivered, and a disk keeps what is not synced. The commands:
//
//	new nodes=3 [alpha=n] [page=bytes] [cache=bytes] [joining=n]
//	wait ms=n                           time passes for everybody, no node does anything
//	tick [id...]                        the nodes (default all) notice the time
//	timeout id                          the node's election timeout is over
//	propose id data...
//	sync id                             the node's pending writes become durable
//	deliver [from=] [to=] [kind=] [n=]  messages in flight arrive, and nothing more happens
//	drop [from=] [to=] [kind=] [n=]     messages in flight are lost
//	cut a->b... / join                  links lose everything from now on / no longer
//	settle [quietly]                    sync, apply and deliver until nothing happens
//	run ms=n                            settle every 10 ms
//	crash id / restart id [damaged]     what was not synced is lost
//	checkpoint id / truncate id slot=n
//	snapshot from= to=                  carry a snapshot over
//	transfer from= to=
//	read id n=
//	members id voters=(..) [learners=(..)]
//	status [id...] / lease id / log id / group [id...]
func TestGolden(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		g := &golden{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			g.out.Reset()
			g.command(t, d)
			if g.out.Len() == 0 {
				return "ok\n"
			}
			return g.out.String()
		})
	})
}

type golden struct {
	out    strings.Builder
	quiet  bool
	now    Time
	alpha  int
	page   int
	cache  int
	boxes  []*goldenNode
	flight []Message
	cut    map[[2]NodeID]bool
}

type goldenNode struct {
	id      NodeID
	node    *Node // nil when crashed
	pending []Ready
	disk    Recovered
	log     map[Slot]Entry
	apply   []Entry
	applied Slot
	configs History // belongs to applied
	joining bool
}

const ms = Time(1e6)

func (g *golden) printf(format string, args ...any) {
	if !g.quiet {
		fmt.Fprintf(&g.out, format+"\n", args...)
	}
}

func (g *golden) command(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	switch d.Cmd {
	case "new":
		g.create(t, d)
	case "wait":
		g.now += Time(argInt(t, d, "ms", 0)) * ms
	case "tick":
		for _, b := range g.named(t, d) {
			if b.node != nil {
				b.node.Tick(g.now)
				g.drain(b)
			}
		}
	case "timeout":
		b := g.named(t, d)[0]
		b.node.electionAt = g.now
		b.node.Tick(g.now)
		g.drain(b)
	case "propose":
		g.propose(t, d)
	case "sync":
		g.sync(g.named(t, d)[0])
	case "deliver":
		g.deliver(t, d)
	case "drop":
		g.take(t, d)
	case "cut":
		for _, a := range d.CmdArgs {
			var from, to NodeID
			if _, err := fmt.Sscanf(a.Key, "%d->%d", &from, &to); err != nil {
				d.Fatalf(t, "cut %s: %v", a.Key, err)
			}
			g.cut[[2]NodeID{from, to}] = true
		}
	case "join":
		clear(g.cut)
	case "settle":
		g.quiet = d.HasArg("quietly")
		g.settle()
		g.quiet = false
	case "run":
		g.run(Time(argInt(t, d, "ms", 0)) * ms)
	default:
		g.nodeCommand(t, d)
	}
}

func (g *golden) nodeCommand(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	switch d.Cmd {
	case "crash":
		b := g.named(t, d)[0]
		b.node, b.pending, b.apply = nil, nil, nil
	case "restart":
		b := g.named(t, d)[0]
		maps.DeleteFunc(b.log, func(s Slot, _ Entry) bool { return s >= Slot(argInt(t, d, "lost", math.MaxInt)) })
		g.start(b, d.HasArg("damaged"))
	case "checkpoint":
		b := g.named(t, d)[0]
		b.disk.Applied, b.disk.Configs = b.applied, b.configs
	case "truncate":
		b := g.named(t, d)[0]
		b.disk.Truncated = Slot(argInt(t, d, "slot", 0))
		b.node.Truncate(b.disk.Truncated)
	case "snapshot":
		from, to := g.boxes[argInt(t, d, "from", 0)-1], g.boxes[argInt(t, d, "to", 0)-1]
		to.applied, to.disk.Applied, to.disk.Truncated = from.applied, from.applied, from.applied
		to.configs, to.disk.Configs = from.configs, from.configs
		to.node.InstalledSnapshot(from.applied, from.configs)
		from.node.SnapshotDone(to.id, from.applied, true)
		g.printf("node %d has the state of node %d up to slot %d", to.id, from.id, from.applied)
		g.drain(to)
	case "transfer":
		b := g.boxes[argInt(t, d, "from", 0)-1]
		if err := b.node.Transfer(g.now, NodeID(argInt(t, d, "to", 0))); err != nil {
			g.printf("%v", err)
		}
		g.drain(b)
	case "read":
		b := g.named(t, d)[0]
		if err := b.node.ReadIndex(g.now, uint64(argInt(t, d, "n", 0))); err != nil {
			g.printf("%v", err)
		}
		g.drain(b)
	case "status":
		for _, b := range g.named(t, d) {
			g.status(b)
		}
	case "lease":
		g.lease(g.named(t, d)[0])
	case "members":
		b := g.named(t, d)[0]
		var c Configuration
		c.Voters, c.Learners = argIDs(t, d, "voters"), argIDs(t, d, "learners")
		if slot, err := b.node.ProposeConfig(g.now, c); err != nil {
			g.printf("%v", err)
		} else {
			g.printf("slot %d", slot)
		}
		g.drain(b)
	case "group":
		for _, b := range g.named(t, d) {
			g.group(b)
		}
	case "log":
		b := g.named(t, d)[0]
		for s := b.disk.Truncated + 1; ; s++ {
			e, ok := b.log[s]
			if !ok {
				break
			}
			g.printf("%v", e)
		}
	default:
		d.Fatalf(t, "unknown command %s", d.Cmd)
	}
}

func argIDs(t *testing.T, d *datadriven.TestData, name string) (ids []NodeID) {
	t.Helper()
	a, _ := d.Arg(name)
	for _, v := range a.Vals {
		id, err := strconv.Atoi(v)
		if err != nil {
			d.Fatalf(t, "%s: %v", name, err)
		}
		ids = append(ids, NodeID(id))
	}
	return ids
}

func argInt(t *testing.T, d *datadriven.TestData, name string, otherwise int) int {
	t.Helper()
	v := otherwise
	d.MaybeScanArgs(t, name, &v)
	return v
}

// named returns the nodes that a command's bare arguments name, or all.
func (g *golden) named(t *testing.T, d *datadriven.TestData) []*goldenNode {
	t.Helper()
	var out []*goldenNode
	for _, a := range d.CmdArgs {
		var id int
		if n, err := fmt.Sscanf(a.Key, "%d", &id); err == nil && n == 1 {
			out = append(out, g.boxes[id-1])
		}
	}
	if out == nil {
		return g.boxes
	}
	return out
}

func (g *golden) create(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	*g = golden{now: 1000 * ms, alpha: argInt(t, d, "alpha", 8), page: argInt(t, d, "page", 1<<20), cache: argInt(t, d, "cache", 1<<20), cut: map[[2]NodeID]bool{}}
	for id := 1; id <= argInt(t, d, "nodes", 3); id++ {
		g.boxes = append(g.boxes, &goldenNode{id: NodeID(id), log: map[Slot]Entry{}})
	}
	for id := 1; id <= argInt(t, d, "joining", 0); id++ {
		g.boxes = append(g.boxes, &goldenNode{id: NodeID(len(g.boxes) + 1), log: map[Slot]Entry{}, joining: true})
	}
	for _, b := range g.boxes {
		g.start(b, false)
	}
}

func (g *golden) start(b *goldenNode, damaged bool) {
	cfg := Config{ID: b.id, Alpha: g.alpha, MaxMessageBytes: g.page, CacheBytes: g.cache, ElectionTimeout: 500 * ms, Heartbeat: 50 * ms,
		Lease: 400 * ms, MaxDriftPPM: 10_000, Rand: rand.New(rand.NewPCG(7, uint64(b.id))), Log: b}
	for _, o := range g.boxes {
		if !b.joining && !o.joining {
			cfg.Voters = append(cfg.Voters, o.id)
		}
	}
	rec := b.disk
	rec.Damaged = damaged
	rec.Entries = nil
	for s := rec.Applied + 1; s < rec.Applied+100; s++ {
		if e, ok := b.log[s]; ok {
			rec.Entries = append(rec.Entries, e)
		}
	}
	b.applied = rec.Applied
	b.node = New(cfg, rec, g.now)
	if b.configs = rec.Configs; len(b.configs) == 0 && !b.joining {
		b.configs = Initial(cfg.Voters)
	}
}

// Entries is Log.
func (b *goldenNode) Entries(lo, hi Slot, _ int) ([]Entry, error) {
	var out []Entry
	for s := lo; s < hi; s++ {
		e, ok := b.log[s]
		if !ok {
			break
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, errors.New("not in the log")
	}
	return out, nil
}

func (g *golden) propose(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	b := g.named(t, d)[0]
	for _, a := range d.CmdArgs[1:] {
		if _, _, err := b.node.Propose(g.now, []byte(a.Key)); err != nil {
			g.printf("%s: %v", a.Key, err)
		}
	}
	g.drain(b)
}

// drain prints and takes in what a node wants done.
func (g *golden) drain(b *goldenNode) {
	for b.node != nil && b.node.HasReady() {
		r := b.node.Ready()
		g.printf("node %d: %s", b.id, describeReady(&r))
		for _, m := range r.Send {
			g.printf("  %v", m)
			g.flight = append(g.flight, m)
		}
		for _, m := range r.SendAfter {
			g.printf("  after %d: %v", r.Seq, m)
		}
		if r.Seq != 0 {
			b.pending = append(b.pending, r)
		}
		b.apply = append(b.apply, r.Apply...)
	}
}

func describeReady(r *Ready) string {
	s := r.Role.String()
	if r.Leader != 0 {
		s += fmt.Sprintf(" of %d", r.Leader)
	}
	if r.Damaged {
		s += " damaged"
	}
	if r.Seq != 0 {
		s += fmt.Sprintf(", write %d", r.Seq)
	}
	if r.HardChanged {
		s += fmt.Sprintf(", promise %v", r.Promised)
	}
	if len(r.Accept) > 0 {
		s += fmt.Sprintf(", accept %v", r.Accept)
	}
	if len(r.Apply) > 0 {
		s += fmt.Sprintf(", apply %v", r.Apply)
	}
	for _, rr := range r.Reads {
		if rr.Lost {
			s += fmt.Sprintf(", read %d lost", rr.ID)
		} else {
			s += fmt.Sprintf(", read %d at slot %d", rr.ID, rr.Slot)
		}
	}
	for _, sr := range r.SnapshotTo {
		s += fmt.Sprintf(", snapshot after %d to %d", sr.After, sr.To)
	}
	return s
}

func (g *golden) sync(b *goldenNode) {
	if len(b.pending) == 0 || b.node == nil {
		return
	}
	last := b.pending[len(b.pending)-1].Seq
	g.printf("node %d: durable up to %d", b.id, last)
	for _, r := range b.pending {
		if r.HardChanged {
			b.disk.Promised = r.Promised
		}
		for _, e := range r.Accept {
			b.log[e.Slot] = e
		}
		b.disk.Chosen = r.Chosen
		g.flight = append(g.flight, r.SendAfter...)
	}
	b.pending = nil
	b.node.Persisted(last)
	g.drain(b)
}

func (g *golden) matches(t *testing.T, d *datadriven.TestData, m *Message) bool {
	t.Helper()
	from, to := argInt(t, d, "from", 0), argInt(t, d, "to", 0)
	kind := ""
	d.MaybeScanArgs(t, "kind", &kind)
	return (from == 0 || m.From == NodeID(from)) && (to == 0 || m.To == NodeID(to)) && (kind == "" || m.Kind.String() == kind)
}

// take removes from the flight what a command names.
func (g *golden) take(t *testing.T, d *datadriven.TestData) []Message {
	t.Helper()
	left := argInt(t, d, "n", len(g.flight))
	var taken []Message
	g.flight = slices.DeleteFunc(g.flight, func(m Message) bool {
		if left == 0 || !g.matches(t, d, &m) {
			return false
		}
		left--
		taken = append(taken, m)
		return true
	})
	return taken
}

func (g *golden) deliver(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	for _, m := range g.take(t, d) {
		g.arrive(m)
	}
}

func (g *golden) arrive(m Message) {
	b := g.boxes[m.To-1]
	switch {
	case g.cut[[2]NodeID{m.From, m.To}]:
		g.printf("lost: %v", m)
		return
	case b.node == nil:
		return
	}
	g.printf("arrived: %v", m)
	if err := b.node.Step(g.now, m); err != nil {
		g.printf("  %v", err)
	}
	g.drain(b)
}

// settle lets everything happen that can happen without time passing.
func (g *golden) settle() {
	for busy := true; busy; {
		busy = false
		for _, b := range g.boxes {
			if b.node == nil {
				continue
			}
			if len(b.pending) > 0 {
				busy = true
				g.sync(b)
			}
			for _, e := range b.apply {
				if e.Slot > b.applied {
					b.applied, b.configs = e.Slot, b.configs.Apply(&e)
				}
			}
			if len(b.apply) > 0 {
				b.apply = nil
				b.node.Applied(b.applied)
			}
			g.drain(b)
		}
		flight := g.flight
		g.flight = nil
		for _, m := range flight {
			busy = true
			g.arrive(m)
		}
	}
}

// run lets time pass with everything working, and prints who is what whenever that changes.
func (g *golden) run(d Time) {
	was := ""
	for end := g.now + d; g.now < end; {
		g.now += 10 * ms
		g.quiet = true
		for _, b := range g.boxes {
			if b.node != nil {
				b.node.Tick(g.now)
				g.drain(b)
			}
		}
		g.settle()
		g.quiet = false
		is := ""
		for _, b := range g.boxes {
			if b.node != nil {
				is += fmt.Sprintf(" %d:%v", b.id, b.node.role)
			}
		}
		if is != was {
			g.printf("%d ms:%s", g.now/ms, is)
		}
		was = is
	}
}

func (g *golden) status(b *goldenNode) {
	if b.node == nil {
		g.printf("%d: down", b.id)
		return
	}
	s := b.node.Status()
	marks := ""
	if s.Damaged {
		marks += " damaged"
	}
	if s.Left {
		marks += " left"
	}
	g.printf("%d: %v leader=%d promised=%v last=%d chosen=%d applied=%d truncated=%d%s", b.id, s.Role, s.Leader, s.Promised, s.Last, s.Chosen, s.Applied, s.Truncated, marks)
}

// group prints what a node knows of who is in the group.
func (g *golden) group(b *goldenNode) {
	if b.node == nil {
		g.printf("%d: down", b.id)
		return
	}
	s := b.node.Status()
	var out strings.Builder
	fmt.Fprintf(&out, "%d:", b.id)
	for _, c := range s.Configs {
		fmt.Fprintf(&out, " from %d %v", c.From, c.Configuration)
	}
	if s.Changing != nil {
		fmt.Fprintf(&out, " changing to %v", *s.Changing)
	}
	for _, p := range s.Peers {
		role := "learner"
		if p.Voter {
			role = "voter"
		}
		fmt.Fprintf(&out, "\n  %d %s lag=%d", p.ID, role, p.Lag)
	}
	g.printf("%s", out.String())
}

func (g *golden) lease(b *goldenNode) {
	switch until := b.node.LeaseUntil(); {
	case until == 0:
		g.printf("no lease")
	case until <= g.now:
		g.printf("lease over")
	default:
		g.printf("lease for %d ms", (until-g.now)/ms)
	}
}
