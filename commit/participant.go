package commit

import (
	"fmt"
	"slices"
)

// Change is what a participant records about a transaction, and at the same time what its driver does about it:
//
//   - Prepared: keep what was reserved, with Payload, through every crash.
//   - Committed: make the change. Where record and change are one atomic write it is made exactly once; where
//     they are not, the change has to be one that may be made again after a crash.
//   - Aborted, Read: release what was reserved, if anything was.
//   - Gone: delete the record.
type Change struct {
	Tx      Tx
	State   State
	Payload []byte // of Prepared
}

// Prepare asks the driver whether a participant can do its part. It answers by Participant.Vote.
type Prepare struct {
	Tx      Tx
	Payload []byte
}

// ParticipantReady is what the driver of a participant has to do next. The slices belong to the caller.
type ParticipantReady struct {
	// Seq, when not zero, numbers this step's durable part: Floor and Changes must be durable, as must those of all
	// earlier numbers, before Persisted(Seq) is called and SendAfter is sent. Numbers ascend. There may be nothing to
	// write: then a plain node has reached it as soon as its predecessors are. A replica of a group reaches it when
	// it has proved, by an entry, a lease or a read index, that it speaks for the group.
	Seq uint64
	// Floor, when not zero, replaces the recorded one, no later than the changes.
	Floor   Tx
	Changes []Change

	Send      []Message // may leave at once
	SendAfter []Message // may leave when Seq is durable
	// Prepare are questions to the driver.
	Prepare []Prepare
}

// Recovered is what a participant finds on its durable storage when it starts. A fresh one passes the zero value.
type Recovered struct {
	Floor   Tx
	Records []Change // the last of each transaction, those that are gone left out; ascending
}

// record is what a participant knows about a transaction. State zero: the driver has been asked to prepare.
type record struct {
	tx      Tx
	state   State
	seq     uint64 // the state is durable with this number
	payload []byte
	reason  string // of a no
	asked   bool   // voted no, and would again
	askAt   Time   // of Prepared
	wait    Time
}

// Participant is what a participant keeps in memory about the transactions of one coordinator's group. It is not safe
// for concurrent use. In a group of replicas the leader has one, made from what the group has agreed to record.
type Participant struct {
	cfg      Config
	party    Party
	floor    Tx // what is asked to be prepared below it is late
	recorded Tx // the floor as given out to be stored
	records  map[Tx]*record
	doubt    []*record // those that are Prepared, in order
	finished []*record // tombstones, in order
	seq      uint64
	durable  uint64
	nextAt   Time
	out      ParticipantReady
}

// NewParticipant makes a participant. One that was in doubt asks at once.
func NewParticipant(cfg Config, party Party, rec Recovered, now Time) *Participant {
	p := &Participant{cfg: cfg.withDefaults(), party: party, floor: rec.Floor, recorded: rec.Floor, records: map[Tx]*record{}}
	for _, k := range rec.Records {
		if k.State < Prepared || k.State > Read || p.records[k.Tx] != nil {
			broken("one record of each transaction expected, found %v %v", k.Tx, k.State)
		}
		if k.State == Prepared && p.cfg.bugs.has(BugForgetPrepared) {
			continue
		}
		r := &record{tx: k.Tx, state: k.State, payload: k.Payload}
		p.records[k.Tx] = r
		if k.State == Prepared {
			p.enterDoubt(now, r)
			p.vote(r, Yes)
		} else {
			p.finished = append(p.finished, r)
		}
	}
	return p
}

// Step takes in a message. It returns ErrBadMessage for one that is not for this participant.
func (p *Participant) Step(now Time, m Message) error {
	if m.Kind < MsgPrepare || m.Kind > MsgAck || m.Kind == MsgVote || m.Kind == MsgAck || m.Party != p.party ||
		m.Tx.Epoch == 0 || m.Tx.Seq == 0 || m.Epoch < m.Tx.Epoch {
		return fmt.Errorf("%w: %v", ErrBadMessage, m)
	}
	if f := (Tx{m.Epoch, m.Low}); p.floor.Less(f) {
		p.floor = f
	}
	r := p.records[m.Tx]
	switch m.Kind {
	case MsgPrepare:
		p.prepare(now, r, m)
	case MsgCommit:
		p.commit(r, m)
	case MsgAbort:
		p.abort(r, m)
	case MsgUnknown:
		if r != nil && r.state == Prepared {
			p.finish(r, Aborted)
		}
	}
	return nil
}

func (p *Participant) prepare(now Time, r *record, m Message) {
	if r == nil {
		if !m.Tx.Less(p.floor) || p.cfg.bugs.has(BugNoFloor) {
			p.records[m.Tx] = &record{tx: m.Tx, payload: m.Payload}
			p.out.Prepare = append(p.out.Prepare, Prepare{m.Tx, m.Payload})
		}
		return
	}
	switch r.state {
	case Prepared:
		p.enterDoubt(now, r)
		p.vote(r, Yes)
	case Committed:
		p.after(Message{Kind: MsgAck, Party: p.party, Tx: r.tx})
	case Aborted:
		if r.asked {
			p.vote(r, No)
		}
	case Read:
		p.vote(r, ReadOnly)
	}
}

// Vote is the driver's answer to a Prepare. What Yes needs is reserved, and may become durable together with the Change
// to Prepared that Ready will ask for. The reason of a No is for people. ErrNotAsked: release what was reserved.
func (p *Participant) Vote(now Time, tx Tx, v Vote, reason string) error {
	if v < Yes || v > ReadOnly {
		return fmt.Errorf("%w: %v", ErrBadMessage, v)
	}
	r := p.records[tx]
	if r == nil || r.state != 0 {
		return ErrNotAsked
	}
	switch v {
	case Yes:
		p.change(r, Prepared)
		p.enterDoubt(now, r)
	case No:
		r.reason, r.asked = reason, true
		p.finish(r, Aborted)
	case ReadOnly:
		p.finish(r, Read)
	}
	p.vote(r, v)
	return nil
}

// vote says what has been decided here. A no binds nobody, so it need not wait.
func (p *Participant) vote(r *record, v Vote) {
	m := Message{Kind: MsgVote, Party: p.party, Tx: r.tx, Vote: v, Reason: r.reason}
	if v == No || p.cfg.bugs.has(BugVoteBeforeDurable) {
		p.out.Send = append(p.out.Send, m)
		return
	}
	p.after(m)
}

func (p *Participant) after(m Message) { p.out.SendAfter = append(p.out.SendAfter, m) }

func (p *Participant) commit(r *record, m Message) {
	ack := Message{Kind: MsgAck, Party: p.party, Tx: m.Tx}
	switch {
	case r == nil:
		// It was prepared here, and durably so; hence it has been finished here.
		if p.cfg.bugs.has(BugAckUnproved) {
			p.out.Send = append(p.out.Send, ack)
			return
		}
	case r.state == Committed:
	case r.seq > p.durable || r.state == 0:
		return // this replica has been deposed: somebody else has voted
	case r.state == Prepared:
		p.finish(r, Committed)
		if p.cfg.bugs.has(BugAckBeforeDurable) {
			p.out.Send = append(p.out.Send, ack)
			return
		}
	default:
		broken("%v expected prepared when it is committed, found %v", r.tx, r.state)
	}
	p.after(ack)
}

func (p *Participant) abort(r *record, m Message) {
	switch {
	case r == nil:
		if !m.Tx.Less(p.floor) {
			r = &record{tx: m.Tx}
			p.records[m.Tx] = r
			p.finish(r, Aborted)
		}
	case r.state == 0 || r.state == Prepared:
		p.finish(r, Aborted)
	case r.state == Committed && r.seq <= p.durable:
		broken("%v expected not to be committed when it is aborted", r.tx)
	}
}

// change records a state, to be durable with the next Ready.
func (p *Participant) change(r *record, s State) {
	r.state, r.seq = s, p.seq+1
	k := Change{Tx: r.tx, State: s}
	if s == Prepared {
		k.Payload = r.payload
	}
	p.out.Changes = append(p.out.Changes, k)
}

// finish leaves a tombstone.
func (p *Participant) finish(r *record, s State) {
	if r.state == Prepared {
		p.doubt = slices.DeleteFunc(p.doubt, func(d *record) bool { return d == r })
	}
	p.change(r, s)
	r.payload = nil
	p.finished = append(p.finished, r)
}

// prune deletes the tombstones that the floor has made needless. It rides on writes that are made anyway.
func (p *Participant) prune() {
	p.finished = slices.DeleteFunc(p.finished, func(r *record) bool {
		if !r.tx.Less(p.floor) && !p.cfg.bugs.has(BugNoTombstone) {
			return false
		}
		delete(p.records, r.tx)
		p.out.Changes = append(p.out.Changes, Change{Tx: r.tx, State: Gone})
		return true
	})
}

// enterDoubt plans when to ask again, from the first interval on.
func (p *Participant) enterDoubt(now Time, r *record) {
	if !slices.Contains(p.doubt, r) {
		p.doubt = append(p.doubt, r)
	}
	r.wait = p.cfg.Resend
	r.askAt = now + r.wait
	p.nextAt = min(p.nextAt, r.askAt)
}

// Tick lets time pass: what is in doubt is asked about.
func (p *Participant) Tick(now Time) {
	if now < p.nextAt || len(p.doubt) == 0 {
		return
	}
	p.nextAt = now + p.cfg.ResendMax
	for _, r := range slices.Clone(p.doubt) {
		if now >= r.askAt {
			if r.wait = min(2*r.wait, p.cfg.ResendMax); p.cfg.bugs.has(BugExpire) && r.wait > 8*p.cfg.Resend {
				p.finish(r, Aborted)
				continue
			}
			r.askAt = now + r.wait
			p.vote(r, Yes)
		}
		p.nextAt = min(p.nextAt, r.askAt)
	}
}

// Persisted says that everything up to a Ready's Seq is durable.
func (p *Participant) Persisted(seq uint64) {
	if seq > p.seq {
		broken("a number up to %d expected to be durable, found %d", p.seq, seq)
	}
	p.durable = max(p.durable, seq)
}

// InDoubt returns the transactions that are prepared here and not known to be decided, the longest-standing first.
func (p *Participant) InDoubt() []Tx {
	var txs []Tx
	for _, r := range p.doubt {
		txs = append(txs, r.tx)
	}
	return txs
}

// Tombstones is how many finished transactions are remembered.
func (p *Participant) Tombstones() int { return len(p.finished) }

// HasReady reports whether Ready has anything to say.
func (p *Participant) HasReady() bool {
	o := &p.out
	return len(o.Changes) > 0 || len(o.Send) > 0 || len(o.SendAfter) > 0 || len(o.Prepare) > 0
}

// Ready returns what the driver has to do next. It must be called only to do it: what it returns is not returned again.
func (p *Participant) Ready() ParticipantReady {
	o := &p.out
	if len(o.Changes) > 0 {
		p.prune()
		if p.recorded.Less(p.floor) {
			p.recorded, o.Floor = p.floor, p.floor
		}
	}
	if len(o.Changes) > 0 || len(o.SendAfter) > 0 {
		p.seq++
		o.Seq = p.seq
	}
	r := p.out
	p.out = ParticipantReady{}
	return r
}
