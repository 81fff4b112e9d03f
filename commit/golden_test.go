package commit

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// The scripts under testdata tell the protocol's stories. Nothing happens that a script does not say: time stands
// still, the network keeps what is not delivered, a disk keeps what is not synced, the log what is not agreed. The commands:
//
//	new parties=n [window=n]
//	open                         a coordinator opens the next epoch; the earlier ones go on
//	begin c party...             coordinator c (by epoch) begins a transaction
//	vote party tx yes|no|read-only [reason]
//	sync party                   its pending writes become durable
//	agree [n=]                   the log agrees on the oldest proposals (default all)
//	deliver|drop|repeat [party=] [kind=] [n=] [to=c]
//	                             messages in flight arrive, are lost, or arrive and stay in flight
//	crash party / restart party  what was not synced is lost
//	lost c party                 coordinator c hears that the participant is gone for ever
//	abort c tx
//	wait ms=n                    time passes, and everybody notices
//	table / party p              what is recorded
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
	out       strings.Builder
	now       Time
	cfg       Config
	table     Table
	coords    map[int]*Coordinator // by epoch
	parties   []*goldenParty
	flight    []Message
	proposals []goldenProposal
}

type goldenProposal struct {
	by     int
	record Record
}

type goldenParty struct {
	id      Party
	p       *Participant // nil when crashed
	pending []ParticipantReady
	disk    Recovered
}

func (g *golden) printf(format string, args ...any) { fmt.Fprintf(&g.out, format+"\n", args...) }

func intArg(t *testing.T, d *datadriven.TestData, name string, otherwise int) int {
	t.Helper()
	d.MaybeScanArgs(t, name, &otherwise)
	return otherwise
}

// word is the i-th argument as a number.
func word(t *testing.T, d *datadriven.TestData, i int) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(d.CmdArgs[i].Key, &n); err != nil {
		d.Fatalf(t, "%v", err)
	}
	return n
}

func tx(t *testing.T, d *datadriven.TestData, i int) (x Tx) {
	t.Helper()
	if _, err := fmt.Sscanf(d.CmdArgs[i].Key, "%d.%d", &x.Epoch, &x.Seq); err != nil {
		d.Fatalf(t, "%v", err)
	}
	return x
}

func (g *golden) command(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	switch d.Cmd {
	case "new":
		g.cfg = Config{Window: intArg(t, d, "window", 0)}
		g.coords = map[int]*Coordinator{}
		for i := range intArg(t, d, "parties", 0) {
			id := Party(i + 1)
			g.parties = append(g.parties, &goldenParty{id: id, p: NewParticipant(g.cfg, id, Recovered{}, g.now)})
		}
	case "open":
		g.table.Apply(Record{Kind: RecordOpen})
		epoch := int(g.table.Epoch)
		g.coords[epoch] = NewCoordinator(g.cfg, g.table.Epoch, slices.Clone(g.table.Commits), g.now)
		g.drain(epoch)
	case "begin":
		var parts []Part
		for i := range d.CmdArgs[1:] {
			parts = append(parts, Part{Party: Party(word(t, d, i+1)), Payload: []byte("x")})
		}
		by := word(t, d, 0)
		if _, err := g.coords[by].Begin(g.now, parts); err != nil {
			g.printf("%v", err)
		}
		g.drain(by)
	case "abort":
		if err := g.coords[word(t, d, 0)].Abort(tx(t, d, 1), "no longer wanted"); err != nil {
			g.printf("%v", err)
		}
		g.drain(word(t, d, 0))
	case "lost":
		g.coords[word(t, d, 0)].Lost(Party(word(t, d, 1)))
		g.drain(word(t, d, 0))
	case "agree":
		g.agree(intArg(t, d, "n", len(g.proposals)))
	case "deliver", "drop", "repeat":
		g.carry(t, d)
	case "wait":
		g.wait(Time(intArg(t, d, "ms", 0)) * 1e6)
	case "table":
		g.printf("epoch %d, commits %v", g.table.Epoch, g.table.Commits)
	default:
		g.partyCommand(t, d, g.parties[word(t, d, 0)-1])
	}
}

func (g *golden) partyCommand(t *testing.T, d *datadriven.TestData, b *goldenParty) {
	t.Helper()
	switch d.Cmd {
	case "vote":
		votes := map[string]Vote{"yes": Yes, "no": No, "read-only": ReadOnly}
		reason := ""
		if len(d.CmdArgs) > 3 {
			reason = d.CmdArgs[3].Key
		}
		if err := b.p.Vote(g.now, tx(t, d, 1), votes[d.CmdArgs[2].Key], reason); err != nil {
			g.printf("%v", err)
		}
		g.drainParty(b)
	case "sync":
		g.sync(b)
	case "crash":
		b.p, b.pending = nil, nil
	case "restart":
		b.p = NewParticipant(g.cfg, b.id, b.disk, g.now)
		g.drainParty(b)
	case "party":
		g.printf("floor %v, records %v", b.disk.Floor, b.disk.Records)
	default:
		d.Fatalf(t, "unknown command %s", d.Cmd)
	}
}

// String is for the scripts.
func (k Change) String() string { return fmt.Sprintf("%v %v", k.Tx, k.State) }

func (g *golden) agree(n int) {
	proposals := g.proposals[:n]
	g.proposals = g.proposals[n:]
	for _, p := range proposals {
		took := g.table.Apply(p.record)
		effect := ""
		if !took {
			effect = ", without effect"
		}
		g.printf("agreed: %v of c%d%s", p.record, p.by, effect)
		if c := g.coords[p.by]; c != nil {
			c.Agreed(g.now, p.record, took)
			g.drain(p.by)
		}
	}
}

func (g *golden) carry(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	party, kind, left := Party(intArg(t, d, "party", 0)), "", intArg(t, d, "n", len(g.flight))
	d.MaybeScanArgs(t, "kind", &kind)
	var taken, rest []Message
	for _, m := range g.flight {
		match := left > 0 && (party == 0 || m.Party == party) && (kind == "" || m.Kind.String() == kind)
		if match {
			left--
			taken = append(taken, m)
		}
		if !match || d.Cmd == "repeat" {
			rest = append(rest, m)
		}
	}
	g.flight = rest
	if d.Cmd == "drop" {
		return
	}
	for _, m := range taken {
		g.arrive(m, intArg(t, d, "to", int(g.table.Epoch)))
	}
}

func (g *golden) arrive(m Message, coord int) {
	var err error
	b := g.parties[m.Party-1]
	switch {
	case m.Kind == MsgVote || m.Kind == MsgAck:
		g.printf("c%d hears: %v", coord, m)
		err = g.coords[coord].Step(g.now, m)
		g.drain(coord)
	case b.p != nil:
		g.printf("%d hears: %v", b.id, m)
		err = b.p.Step(g.now, m)
		g.drainParty(b)
	}
	if err != nil {
		g.printf("  %v", err)
	}
}

func (g *golden) wait(d Time) {
	g.now += d
	for epoch := range int(g.table.Epoch) {
		if c := g.coords[epoch+1]; c != nil {
			c.Tick(g.now)
			g.drain(epoch + 1)
		}
	}
	for _, b := range g.parties {
		if b.p != nil {
			b.p.Tick(g.now)
			g.drainParty(b)
		}
	}
}

// drain prints and takes in what a coordinator wants done.
func (g *golden) drain(epoch int) {
	for c := g.coords[epoch]; c.HasReady(); {
		r := c.Ready()
		for _, o := range r.Outcomes {
			if o.Committed {
				g.printf("  c%d: %v is committed", epoch, o.Tx)
			} else {
				g.printf("  c%d: %v is aborted: by %d, %s", epoch, o.Tx, o.By, o.Reason)
			}
		}
		if r.Deposed {
			g.printf("  c%d: deposed", epoch)
		}
		for _, k := range r.Agree {
			g.printf("  c%d: propose %v", epoch, k)
			g.proposals = append(g.proposals, goldenProposal{epoch, k})
		}
		for _, m := range r.Send {
			g.printf("  %v", m)
		}
		g.flight = append(g.flight, r.Send...)
	}
}

func (g *golden) drainParty(b *goldenParty) {
	for b.p.HasReady() {
		r := b.p.Ready()
		if r.Floor != (Tx{}) {
			g.printf("  %d: write %d: floor %v", b.id, r.Seq, r.Floor)
		}
		for _, k := range r.Changes {
			g.printf("  %d: write %d: %v", b.id, r.Seq, k)
		}
		for _, m := range r.Send {
			g.printf("  %v", m)
		}
		for _, m := range r.SendAfter {
			g.printf("  after %d: %v", r.Seq, m)
		}
		for _, q := range r.Prepare {
			g.printf("  %d: can it do %v?", b.id, q.Tx)
		}
		g.flight = append(g.flight, r.Send...)
		if r.Seq != 0 {
			b.pending = append(b.pending, r)
		}
	}
}

func (g *golden) sync(b *goldenParty) {
	pending := b.pending
	b.pending = nil
	for _, r := range pending {
		if r.Floor != (Tx{}) {
			b.disk.Floor = r.Floor
		}
		for _, k := range r.Changes {
			b.disk.Records = slices.DeleteFunc(b.disk.Records, func(o Change) bool { return o.Tx == k.Tx })
			if k.State != Gone {
				b.disk.Records = append(b.disk.Records, k)
			}
		}
		g.flight = append(g.flight, r.SendAfter...)
		b.p.Persisted(r.Seq)
	}
	g.drainParty(b)
}
