package commit

import (
	"fmt"
	"slices"
	"testing"
)

// TestExplore goes through every order of events of one transaction: three participants that vote as they like, one
// of which may crash, a coordinator that gives up when it likes, and a second one that may take over at any moment while
// the first goes on or is never heard of again. A message may arrive at any time after it was sent, any number of
// times, or never, and an answer may reach either coordinator. The same search, without a crash, has to find mistakes.
func TestExplore(t *testing.T) {
	t.Run("sound", func(t *testing.T) {
		t.Parallel()
		states, trouble := explore(0, 1)
		t.Logf("%d states", states)
		if trouble != "" || states < 50000 {
			t.Fatalf("every state of a large space expected to be sound, found after %d: %s", states, trouble)
		}
	})
	for _, m := range mutations {
		if m.explore {
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				states, trouble := explore(m.bug, 0)
				t.Logf("%d states: %.80s", states, trouble)
				if trouble == "" {
					t.Error("not found")
				}
			})
		}
	}
}

const exploreParties = 3

var exploreTx = Tx{1, 1}

// universe is one state of everything. Messages are a set: what has been sent stays deliverable for ever.
type universe struct {
	table     Table
	committed bool
	needs     []Party
	coords    [2]exploreCoordinator
	proposals []proposal
	parties   [exploreParties]exploreParty
	crashes   int // participants' that may still happen
	trouble   string
}

type exploreCoordinator struct {
	c      *Coordinator
	untold []proposal // applied to the table, in order, but not reported yet
	told   string     // the outcome
}

type proposal struct {
	by     int
	record Record
	took   bool
}

type exploreParty struct {
	p       *Participant
	pending []ParticipantReady // being written
	stored  Recovered
	effects int
	to      []uint16 // messages to it, ascending codes
	from    []uint16 // and those that it has sent
}

// The messages of one transaction fit in a number.
func code(m Message) uint16 {
	return uint16(m.Kind) | uint16(m.Vote)<<4 | uint16(m.Epoch)<<8 | uint16(m.Low)<<12
}

func decode(k uint16, p Party) Message {
	return Message{Party: p, Tx: exploreTx, Kind: MessageKind(k & 15), Vote: Vote(k >> 4 & 15), Epoch: uint64(k >> 8 & 15), Low: uint64(k >> 12)}
}

func newUniverse(bugs Bug, crashes int) *universe {
	u := &universe{crashes: crashes}
	cfg := Config{}
	cfg.Sabotage(bugs)
	u.table.Sabotage(bugs)
	var parts []Part
	for i := range u.parties {
		u.parties[i].p = NewParticipant(cfg, Party(i+1), Recovered{}, 0)
		parts = append(parts, Part{Party: Party(i + 1)})
	}
	u.table.Apply(Record{Kind: RecordOpen})
	u.coords[0].c = NewCoordinator(cfg, 1, nil, 0)
	if _, err := u.coords[0].c.Begin(0, parts); err != nil {
		panic(err)
	}
	u.drainCoordinator(0)
	return u
}

// own makes a copy in which one coordinator or one participant may be changed, -1 for none. The rest is shared, and
// slices are replaced, not written to.
func (u *universe) own(coord, party int) *universe {
	v := *u
	if coord >= 0 {
		v.coords[coord].c = v.coords[coord].c.clone()
	}
	if party >= 0 {
		v.parties[party].p = v.parties[party].p.clone()
	}
	return &v
}

func (c *Coordinator) clone() *Coordinator {
	d := *c
	d.txs, d.order, d.lanes = map[Tx]*transaction{}, nil, map[Party]*lane{}
	for _, t := range c.order {
		if c.txs[t.tx] == t {
			k := *t
			k.parts = slices.Clone(t.parts)
			d.txs[k.tx] = &k
			d.order = append(d.order, &k)
		}
	}
	for p, l := range c.lanes {
		d.lanes[p] = &lane{slices.Clone(l.txs)}
	}
	return &d
}

func (p *Participant) clone() *Participant {
	q := *p
	q.records, q.doubt, q.finished = map[Tx]*record{}, nil, nil
	for tx, r := range p.records {
		k := *r
		q.records[tx] = &k
		switch {
		case slices.Contains(p.doubt, r):
			q.doubt = append(q.doubt, &k)
		case slices.Contains(p.finished, r):
			q.finished = append(q.finished, &k)
		}
	}
	return &q
}

func (u *universe) fail(format string, args ...any) {
	if u.trouble == "" {
		u.trouble = fmt.Sprintf(format, args...)
	}
}

func insert(set []uint16, k uint16) []uint16 {
	if at, found := slices.BinarySearch(set, k); !found {
		return slices.Insert(slices.Clip(set), at, k)
	}
	return set
}

func (u *universe) drainCoordinator(i int) {
	k := &u.coords[i]
	for k.c.HasReady() {
		r := k.c.Ready()
		for _, m := range r.Send {
			p := &u.parties[m.Party-1]
			p.to = insert(p.to, code(m))
		}
		for _, rec := range r.Agree {
			u.proposals = append(slices.Clip(u.proposals), proposal{by: i, record: rec})
		}
		for _, o := range r.Outcomes {
			told := fmt.Sprint(o.Committed)
			if k.told != "" {
				u.fail("the outcome is %s, then %s", k.told, told)
			}
			k.told = told
			if readOnly := len(u.needs) == 0 && o.Committed && len(k.c.txs) == 0; o.Committed != u.committed && !readOnly {
				u.fail("outcome %s, the log says committed: %v", told, u.committed)
			}
		}
	}
}

// drainParty takes in what a participant wants done. What needs no write waits only for the writes before it.
func (u *universe) drainParty(i int) {
	p := &u.parties[i]
	for p.p.HasReady() {
		r := p.p.Ready()
		p.send(r.Send)
		switch n := len(p.pending); {
		case len(r.Changes) > 0:
			p.pending = append(slices.Clip(p.pending), r)
		case n > 0:
			p.pending = slices.Clone(p.pending)
			last := &p.pending[n-1]
			last.Seq = r.Seq
			last.SendAfter = append(slices.Clone(last.SendAfter), r.SendAfter...)
		default:
			p.p.Persisted(r.Seq)
			p.send(r.SendAfter)
		}
	}
}

func (p *exploreParty) send(ms []Message) {
	for _, m := range ms {
		p.from = insert(p.from, code(m))
	}
}

func (p *exploreParty) state() State {
	for _, k := range p.stored.Records {
		return k.State
	}
	return 0
}
