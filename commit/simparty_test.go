package commit

import (
	"maps"
	"slices"
)

// simCoordinator is an incarnation of the coordinator. Several may be alive at once.
type simCoordinator struct {
	w     *world
	c     *Coordinator // nil when crashed or discarded
	epoch uint64
	told  Time // when the last record's application will be known
}

// open has a new coordinator take over, whether or not the old one is dead.
func (w *world) open() {
	if w.opening {
		return
	}
	w.opening = true
	w.after(w.delay(), func() {
		w.table.Apply(Record{Kind: RecordOpen})
		w.stats.Epochs++
		epoch, commits := w.table.Epoch, slices.Clone(w.table.Commits)
		w.mark('o', epoch)
		w.after(w.delay(), func() {
			w.opening = false
			s := &simCoordinator{w: w, epoch: epoch, c: NewCoordinator(w.cfg, epoch, commits, w.now)}
			w.coords = append(w.coords, s)
			for _, p := range w.parties {
				if p.parted {
					s.c.Lost(p.id)
				}
			}
			s.drain()
		})
	})
}

// newest is the coordinator of the newest epoch that has opened, nil when it has crashed.
func (w *world) newest() *simCoordinator {
	if n := len(w.coords); n > 0 && w.coords[n-1].c != nil {
		return w.coords[n-1]
	}
	return nil
}

// anyCoordinator is mostly the newest, and sometimes one that does not know that it has been deposed.
func (w *world) anyCoordinator() *simCoordinator {
	if len(w.coords) > 1 && w.chance(0.3) {
		if c := w.coords[len(w.coords)-2]; c.c != nil {
			return c
		}
	}
	return w.newest()
}

// mayCrash reports whether a step was the last one of the party that took it.
func (w *world) mayCrash() bool {
	if !w.chance(w.crash) {
		return false
	}
	w.stats.Crashes++
	return true
}

func (s *simCoordinator) crash() {
	s.c = nil
	if s.w.newest() == nil {
		s.w.open()
	}
}

func (s *simCoordinator) drain() {
	for s.c != nil && s.c.HasReady() {
		r := s.c.Ready()
		for _, o := range r.Outcomes {
			s.w.outcome(o)
		}
		for _, k := range r.Agree {
			s.propose(k)
		}
		for _, m := range r.Send {
			if s.w.mayCrash() {
				s.crash()
				return
			}
			s.w.send(m, false)
		}
		if s.w.mayCrash() {
			s.crash()
		}
	}
}

// propose gives a record to the log. What a crashed coordinator has proposed may still be agreed. Sometimes it is agreed
// twice, as by a driver that tried again.
func (s *simCoordinator) propose(k Record) {
	w := s.w
	times := 1
	if w.chance(w.repeat / 4) {
		times = 2
	}
	alive := s.c
	for range times {
		w.after(w.delay(), func() {
			if s.c != alive && w.chance(0.5) {
				return
			}
			took := w.apply(k)
			s.told = max(s.told, w.now+w.delay()) // in the log's order
			w.after(s.told-w.now, func() {
				if s.c != nil {
					s.c.Agreed(w.now, k, took)
					s.drain()
				}
			})
		})
	}
}

// apply is the log: the one place where decisions are made, and where they are checked.
func (w *world) apply(k Record) bool {
	took := w.table.Apply(k)
	w.mark('a', uint64(k.Kind), k.Tx.Epoch, k.Tx.Seq)
	t := w.txs[k.Tx]
	switch {
	case k.Kind == RecordCommit && !took:
		w.stats.Fenced++
	case k.Kind == RecordCommit && !t.committed:
		t.committed, t.needs = true, k.Parties
		for _, id := range t.parts {
			switch {
			case w.parties[id-1].parted:
			case slices.Contains(k.Parties, id):
				if !t.prepared[id] || t.released[id] {
					w.fail("%v is committed, but %d is not prepared", k.Tx, id)
				}
			case !t.read[id]:
				w.fail("%v is committed without the vote of %d", k.Tx, id)
			}
		}
		if t.told != nil {
			w.fail("%v is committed after it was reported as %+v", k.Tx, *t.told)
		}
	case k.Kind == RecordForget && took:
		t.forgotten = true
		for _, id := range t.needs {
			if t.effects[id] == 0 && !w.parties[id-1].parted {
				w.fail("%v is forgotten before %d has made the change", k.Tx, id)
			}
		}
	}
	return took
}

func (w *world) outcome(o Outcome) {
	t := w.txs[o.Tx]
	w.mark('d', o.Tx.Epoch, o.Tx.Seq)
	if t.told != nil {
		w.fail("%v is decided twice: %+v, %+v", o.Tx, *t.told, o)
	}
	t.told = &o
	readOnly := !slices.ContainsFunc(t.parts, func(id Party) bool { return !t.read[id] })
	switch {
	case o.Committed && readOnly:
		w.stats.ReadOnly++
	case o.Committed != t.committed:
		w.fail("%v is reported as %+v, the log says committed: %v", o.Tx, o, t.committed)
	case o.Committed:
		w.stats.Committed++
	default:
		w.stats.Aborted++
	}
}

// send starts a message on its way.
func (w *world) send(m Message, toCoordinator bool) {
	w.stats.Messages++
	w.mark('s', uint64(m.Kind), uint64(m.Party), m.Tx.Epoch, m.Tx.Seq, m.Low)
	if w.chance(w.loss) {
		w.stats.Lost++
		return
	}
	w.carry(m, toCoordinator)
	for w.chance(w.repeat) {
		w.stats.Repeated++
		w.carry(m, toCoordinator)
	}
}

func (w *world) carry(m Message, toCoordinator bool) {
	d := w.delay()
	if w.chance(w.repeat / 4) {
		d = Time(w.rng.Int64N(int64(1500 * simMs)))
	}
	w.after(d, func() {
		if !toCoordinator {
			w.parties[m.Party-1].receive(m)
			return
		}
		if c := w.anyCoordinator(); c != nil {
			if err := c.c.Step(w.now, m); err != nil {
				w.fail("%v", err)
			}
			c.drain()
		}
	})
}

// simParty is a participant: its durable state, and whoever speaks for it. The first three are plain nodes, the others
// groups of replicas, in which a deposed leader may go on talking.
type simParty struct {
	w        *world
	id       Party
	group    bool
	parted   bool
	floor    Tx
	records  map[Tx]Change
	replicas []*simReplica // the newest last
	fence    int
}

// simReplica is one incarnation of a participant.
type simReplica struct {
	party *simParty
	fence int
	p     *Participant
	dead  bool
	disk  Time // when the last write will be durable
}

func newSimParty(w *world, id Party) *simParty {
	p := &simParty{w: w, id: id, group: id > 3, records: map[Tx]Change{}}
	p.start()
	return p
}

func (p *simParty) recovered() Recovered {
	rec := Recovered{Floor: p.floor}
	for _, tx := range slices.SortedFunc(maps.Keys(p.records), Tx.Compare) {
		rec.Records = append(rec.Records, p.records[tx])
	}
	return rec
}

func (p *simParty) start() {
	p.fence++
	r := &simReplica{party: p, fence: p.fence, p: NewParticipant(p.w.cfg, p.id, p.recovered(), p.w.now)}
	p.replicas = append(p.replicas, r)
	r.drain()
}

func (p *simParty) newest() *simReplica { return p.replicas[len(p.replicas)-1] }

// takeOver elects another leader of a group while the old one goes on.
func (p *simParty) takeOver() {
	if p.group && !p.parted && len(p.replicas) < 3 {
		p.w.stats.Stale++
		p.start()
	}
}

// reap removes crashed replicas, and starts another one when it was the last.
func (p *simParty) reap() {
	if p.parted {
		return
	}
	newest := p.newest()
	if p.w.healed {
		for _, r := range p.replicas {
			r.dead = r.dead || r != newest
		}
	}
	p.replicas = slices.DeleteFunc(p.replicas, func(r *simReplica) bool { return r.dead })
	if newest.dead {
		p.start()
	}
}

func (p *simParty) receive(m Message) {
	if p.parted {
		return
	}
	r := p.newest()
	if len(p.replicas) > 1 && p.w.chance(0.4) {
		r = p.replicas[p.w.rng.IntN(len(p.replicas))]
	}
	if !r.dead {
		if err := r.p.Step(p.w.now, m); err != nil {
			p.w.fail("%v", err)
		}
		r.drain()
	}
	p.reap()
}

func (r *simReplica) drain() {
	w := r.party.w
	for !r.dead && r.p.HasReady() {
		rd := r.p.Ready()
		w.stats.TombstonesMax = max(w.stats.TombstonesMax, r.p.Tombstones())
		for _, m := range rd.Send {
			w.send(m, true)
		}
		for _, k := range rd.Prepare {
			w.after(w.delay()/4, func() { r.answer(k) })
		}
		if w.mayCrash() {
			r.dead = true
			return
		}
		if rd.Seq != 0 {
			r.disk = max(r.disk, w.now+w.delay()/2)
			w.after(r.disk-w.now, func() { r.persist(rd) })
		}
	}
}

// answer is the driver's, who has found out whether the thing can be done.
func (r *simReplica) answer(k Prepare) {
	if r.dead || r.party.parted {
		return
	}
	v := Yes
	switch dice := r.party.w.rng.IntN(20); {
	case k.Payload[0] == 0 || dice == 0:
		v = No
	case k.Payload[0] == 1 || dice == 1:
		v = ReadOnly
	}
	_ = r.p.Vote(r.party.w.now, k.Tx, v, "no room") // aborted meanwhile is fine
	r.drain()
	r.party.reap()
}

// persist is when a write has become durable, or a replica without anything to write has proved that it leads.
func (r *simReplica) persist(rd ParticipantReady) {
	p := r.party
	if r.dead || p.parted {
		return
	}
	if r.fence != p.fence {
		if len(rd.Changes) > 0 {
			r.dead = true // the group has not agreed: now it knows
		}
		return
	}
	if rd.Floor != (Tx{}) {
		p.floor = rd.Floor
	}
	for _, k := range rd.Changes {
		p.change(k)
	}
	if p.w.mayCrash() {
		r.dead = true
		p.reap()
		return
	}
	r.p.Persisted(rd.Seq)
	for _, m := range rd.SendAfter {
		p.w.send(m, true)
	}
	r.drain()
	p.reap()
}

// change makes one change durable together with what it means.
func (p *simParty) change(k Change) {
	w, t, was := p.w, p.w.txs[k.Tx], p.records[k.Tx].State
	w.mark('c', uint64(p.id), k.Tx.Epoch, k.Tx.Seq, uint64(k.State))
	switch k.State {
	case Prepared:
		if t.effects[p.id] > 0 {
			w.fail("%d prepares %v again after it has made the change", p.id, k.Tx)
		}
		t.prepared[p.id], t.released[p.id] = true, false
	case Committed:
		t.effects[p.id]++
		if was != Prepared || !t.committed || t.effects[p.id] > 1 {
			w.fail("%d makes the change of %v: it was %v, the log says committed: %v, times: %d", p.id, k.Tx, was, t.committed, t.effects[p.id])
		}
	case Aborted:
		if was == Committed || was == Prepared && t.committed && slices.Contains(t.needs, p.id) {
			w.fail("%d aborts %v, which is committed", p.id, k.Tx)
		}
		t.released[p.id] = t.prepared[p.id]
	case Read:
		t.read[p.id] = true
	case Gone:
		delete(p.records, k.Tx)
		return
	}
	p.records[k.Tx] = k
	tombstones := 0
	for _, k := range p.records {
		if k.State != Prepared {
			tombstones++
		}
	}
	if tombstones > simWindow+1 {
		w.fail("at most %d tombstones expected at %d, found %d", simWindow, p.id, tombstones)
	}
}
