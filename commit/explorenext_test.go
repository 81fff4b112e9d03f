package commit

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"slices"
)

// explorer searches every state that can be reached.
type explorer struct {
	bugs Bug
	seen map[[16]byte]bool
	// idle are messages that change nothing, by what they meet. Most do, because they stay deliverable for ever.
	idle map[[16]byte]bool
}

// explore returns how many states there are, and the first trouble or nothing. A party that stops itself counts.
func explore(bugs Bug, crashes int) (states int, trouble string) {
	x := &explorer{bugs: bugs, seen: map[[16]byte]bool{}, idle: map[[16]byte]bool{}}
	defer func() {
		if p := recover(); p != nil {
			states, trouble = len(x.seen), fmt.Sprint(p)
		}
	}()
	layer := []*universe{newUniverse(bugs, crashes)}
	for len(layer) > 0 {
		var next []*universe
		for _, u := range layer {
			for _, v := range x.next(u) {
				if v.trouble != "" {
					return len(x.seen), v.trouble
				}
				if k := hash(v.key()); !x.seen[k] {
					x.seen[k] = true
					next = append(next, v)
				}
			}
		}
		layer = next
	}
	return len(x.seen), ""
}

func hash(b []byte) [16]byte {
	h := fnv.New128a()
	h.Write(b)
	return [16]byte(h.Sum(nil))
}

// next returns every state that one event leads to.
func (x *explorer) next(u *universe) []*universe {
	var out []*universe
	for i := range u.coords {
		u.nextOfCoordinator(i, func(do func(v *universe)) {
			v := u.own(i, -1)
			do(v)
			out = append(out, v)
		})
	}
	for i := range u.parties {
		out = x.deliver(out, u, i)
		u.nextOfParty(i, x.bugs, func(do func(v *universe)) {
			v := u.own(-1, i)
			do(v)
			out = append(out, v)
		})
	}
	for i := range u.proposals {
		v := u.own(-1, -1)
		v.table.Commits = slices.Clone(v.table.Commits)
		v.apply(i)
		out = append(out, v)
	}
	if u.coords[1].c == nil {
		v := u.own(-1, -1)
		v.table.Apply(Record{Kind: RecordOpen})
		v.coords[1].c = NewCoordinator(Config{bugs: x.bugs}, v.table.Epoch, slices.Clone(v.table.Commits), 0)
		v.drainCoordinator(1)
		out = append(out, v)
	}
	return out
}

// deliver adds the states to which the messages of one participant lead, those to it and those from it.
func (x *explorer) deliver(out []*universe, u *universe, i int) []*universe {
	const pendingMax = 2 // a participant that waits for its disk takes nothing in
	party := u.keyOfParty(i)
	if len(u.parties[i].pending) < pendingMax {
		for _, m := range u.parties[i].to {
			k := hash(append(slices.Clip(party), byte(m), byte(m>>8)))
			if x.idle[k] {
				continue
			}
			v := u.own(-1, i)
			if err := v.parties[i].p.Step(0, decode(m, Party(i+1))); err != nil {
				v.fail("%v", err)
			}
			v.drainParty(i)
			if v.trouble == "" && bytes.Equal(v.keyOfParty(i), party) {
				x.idle[k] = true
				continue
			}
			out = append(out, v)
		}
	}
	for c := range u.coords {
		if u.coords[c].c == nil {
			continue
		}
		coord := u.keyOfCoordinator(c)
		for _, m := range u.parties[i].from {
			k := hash(slices.Concat(coord, party, []byte{byte(m), byte(m >> 8), byte(c)}))
			if x.idle[k] {
				continue
			}
			v := u.own(c, -1)
			if err := v.coords[c].c.Step(0, decode(m, Party(i+1))); err != nil {
				v.fail("%v", err)
			}
			v.drainCoordinator(c)
			if v.trouble == "" && bytes.Equal(v.keyOfCoordinator(c), coord) && bytes.Equal(v.keyOfParty(i), party) {
				x.idle[k] = true
				continue
			}
			out = append(out, v)
		}
	}
	return out
}

func (u *universe) nextOfCoordinator(i int, step func(func(*universe))) {
	k := &u.coords[i]
	if k.c == nil {
		return
	}
	if len(k.untold) > 0 {
		step(func(v *universe) {
			k := &v.coords[i]
			pr := k.untold[0]
			k.untold = k.untold[1:]
			k.c.Agreed(0, pr.record, pr.took)
			v.drainCoordinator(i)
		})
	}
	if t := k.c.txs[exploreTx]; t != nil && t.phase < committing && !k.c.deposed {
		step(func(v *universe) {
			v.coords[i].c.nextAt = 0
			v.coords[i].c.Tick(k.c.cfg.PrepareTimeout)
			v.drainCoordinator(i)
		})
	}
}

func (u *universe) nextOfParty(i int, bugs Bug, step func(func(*universe))) {
	p := &u.parties[i]
	if r := p.p.records[exploreTx]; r != nil && r.state == 0 {
		for vote := Yes; vote <= ReadOnly; vote++ {
			step(func(v *universe) {
				if err := v.parties[i].p.Vote(0, exploreTx, vote, ""); err != nil {
					panic(err)
				}
				v.drainParty(i)
			})
		}
	}
	if len(p.pending) > 0 {
		step(func(v *universe) { v.persist(i) })
	}
	if u.crashes > 0 {
		step(func(v *universe) {
			v.crashes--
			p := &v.parties[i]
			p.pending = nil
			p.p = NewParticipant(p.p.cfg, Party(i+1), p.stored, 0)
			v.drainParty(i)
		})
	}
	// To ask again says nothing new, except where patience is a mistake.
	if bugs.has(BugExpire) && len(p.p.doubt) > 0 {
		step(func(v *universe) {
			p := v.parties[i].p
			p.nextAt, p.doubt[0].askAt, p.doubt[0].wait = 0, 0, p.cfg.ResendMax
			p.Tick(1)
			v.drainParty(i)
		})
	}
}

// apply agrees on a proposal, in any order, and checks what it means.
func (u *universe) apply(i int) {
	pr := u.proposals[i]
	u.proposals = slices.Delete(slices.Clone(u.proposals), i, i+1)
	pr.took = u.table.Apply(pr.record)
	k := &u.coords[pr.by]
	k.untold = append(slices.Clip(k.untold), pr)
	if !pr.took {
		return
	}
	for n := range u.parties {
		p := &u.parties[n]
		need := slices.Contains(pr.record.Parties, Party(n+1))
		switch {
		case pr.record.Kind == RecordForget:
			if slices.Contains(u.needs, Party(n+1)) && p.effects == 0 {
				u.fail("forgotten before %d has made the change", n+1)
			}
		case need && p.state() != Prepared, !need && p.state() != Read && !slices.Contains(p.from, code(Message{Kind: MsgVote, Vote: ReadOnly})):
			u.fail("committed although %d is %v", n+1, p.state())
		}
	}
	if pr.record.Kind == RecordCommit {
		u.committed, u.needs = true, pr.record.Parties
	}
}

// persist makes a participant's oldest write durable, and checks what it means.
func (u *universe) persist(i int) {
	p := &u.parties[i]
	r := p.pending[0]
	p.pending = p.pending[1:]
	if r.Floor != (Tx{}) {
		p.stored.Floor = r.Floor
	}
	for _, k := range r.Changes {
		was := p.state()
		p.stored.Records = nil
		if k.State != Gone {
			p.stored.Records = []Change{k}
		}
		switch {
		case k.State == Committed:
			if p.effects++; was != Prepared || !u.committed || p.effects > 1 {
				u.fail("%d makes the change for time %d, was %v, committed: %v", i+1, p.effects, was, u.committed)
			}
		case k.State == Prepared && p.effects > 0:
			u.fail("%d prepares what it has done", i+1)
		case k.State == Aborted && was == Prepared && slices.Contains(u.needs, Party(i+1)):
			u.fail("%d aborts what is committed", i+1)
		}
	}
	p.p.Persisted(r.Seq)
	p.send(r.SendAfter)
	u.drainParty(i)
}

// key tells states apart by what the future depends on. Participants are alike, so their order does not matter.
func (u *universe) key() []byte {
	var parts [exploreParties][]byte
	for i := range u.parties {
		parts[i] = u.keyOfParty(i)
	}
	slices.SortFunc(parts[:], bytes.Compare)
	b := bytes.Join(parts[:], []byte{255, 254})
	b = append(b, 253, byte(u.crashes), byte(u.table.Epoch), byte(len(u.table.Commits)))
	b = fmt.Append(b, u.committed)
	for i := range u.coords {
		b = append(append(b, '|'), u.keyOfCoordinator(i)...)
	}
	proposals := make([]byte, 0, 4)
	for _, pr := range u.proposals {
		proposals = append(proposals, byte(pr.by)<<4|byte(pr.record.Kind))
	}
	slices.Sort(proposals)
	return append(b, proposals...)
}

// keyOfCoordinator is without what it knows about single participants.
func (u *universe) keyOfCoordinator(i int) []byte {
	k := &u.coords[i]
	b := []byte(k.told)
	for _, pr := range k.untold {
		b = append(b, 'u', byte(pr.record.Kind))
		if pr.took {
			b = append(b, 't')
		}
	}
	if k.c == nil {
		return b
	}
	if b = append(b, '.'); k.c.deposed {
		b = append(b, 'd')
	}
	if t := k.c.txs[exploreTx]; t != nil {
		b = append(b, 't', byte(t.phase), byte(t.waiting))
	}
	return b
}

func (u *universe) keyOfParty(i int) []byte {
	p := &u.parties[i]
	b := make([]byte, 0, 96)
	flag := func(bits ...bool) {
		x := byte(0)
		for k, bit := range bits {
			if bit {
				x |= 1 << k
			}
		}
		b = append(b, x)
	}
	flag(slices.Contains(u.needs, Party(i+1)))
	b = append(b, byte(p.effects), byte(p.state()), byte(p.stored.Floor.Epoch), byte(p.stored.Floor.Seq), byte(p.p.floor.Epoch), byte(p.p.floor.Seq))
	if r := p.p.records[exploreTx]; r != nil {
		b = append(b, byte(r.state))
		flag(true, r.asked, r.seq > p.p.durable)
	}
	for _, k := range u.coords {
		if k.c == nil {
			continue
		}
		if t := k.c.txs[exploreTx]; t != nil {
			if n := t.find(Party(i + 1)); n >= 0 {
				flag(true, t.parts[n].answered, t.parts[n].readOnly)
			}
		}
		b = append(b, '/')
	}
	for _, r := range p.pending {
		b = append(b, 'w', byte(r.Floor.Epoch), byte(r.Floor.Seq))
		for _, k := range r.Changes {
			b = append(b, byte(k.State))
		}
		var after []uint16
		for _, m := range r.SendAfter {
			after = insert(after, code(m))
		}
		b = appendCodes(b, after)
	}
	b = appendCodes(append(b, '<'), p.to)
	return appendCodes(append(b, '>'), p.from)
}

func appendCodes(b []byte, ks []uint16) []byte {
	for _, k := range ks {
		b = append(b, byte(k), byte(k>>8))
	}
	return b
}
