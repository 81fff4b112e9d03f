package paxos

// This file is what a leader does: propose, count votes, keep its followers, hold its lease.

// readsMax bounds the ReadIndex requests that wait for an answer.
const readsMax = 1 << 16

// lead is a leader's own state. It starts anew with every election.
type lead struct {
	first     Slot // the first slot proposed at this ballot
	next      Slot // the next slot to propose
	ownNext   Slot // own votes are counted below it
	suffixEnd Slot // last slot that promises reported: reads wait for it to be applied, proposals for it to be proposed

	round      uint64 // number of the last heartbeat round
	roundAt    Time
	wantRound  bool // send a round with the next Ready
	announced  Slot // what followers have been told is chosen
	leaseUntil Time
	leaseLent  Time          // until when a lease was counted with fewer configurations than now
	reads      []pendingRead // ascending rounds

	transferTo NodeID
	transferAt Time
}

// pendingRead waits for a majority to answer a heartbeat round that was sent after the read came.
type pendingRead struct {
	id    uint64
	slot  Slot
	round uint64
}

// Propose gives the next slot to data, which must not be written to from then on, and returns where. It is chosen when
// the slot comes in Ready.Apply at the returned ballot. When the slot comes at another ballot a newer leader has decided
// what it holds: the same data or other.
// Returns ErrNotLeader, or ErrBusy when too much is in flight.
func (n *Node) Propose(now Time, data []byte) (Slot, Ballot, error) {
	n.advance(now)
	if n.role != Leader {
		return 0, Ballot{}, ErrNotLeader
	}
	l := &n.lead
	if l.transferTo != 0 || !n.roomFor(l.next) {
		return 0, Ballot{}, ErrBusy
	}
	n.propose(Command, data)
	return l.next - 1, n.ballot, nil
}

// roomFor reports whether something new may be proposed in the next slot s.
func (n *Node) roomFor(s Slot) bool {
	alpha := Slot(n.cfg.Alpha)
	return s > n.lead.suffixEnd && s <= n.chosen+alpha && s <= n.applied+3*alpha && n.proposable(s) &&
		(n.window.bytes <= 2*n.cfg.CacheBytes || s-1 <= n.applied)
}

func (n *Node) propose(kind EntryKind, data []byte) {
	e := Entry{Slot: n.lead.next, Ballot: n.ballot, Kind: kind, Data: data}
	if e.Slot > n.chosen+Slot(n.cfg.Alpha) {
		broken("proposed <= chosen+alpha %d expected, found %d", n.chosen+Slot(n.cfg.Alpha), e.Slot)
	}
	if n.promised != n.ballot {
		broken("a leader proposes at what it has promised: %v expected, found %v", n.promised, n.ballot)
	}
	n.store(e)
	if n.out.proposals == nil {
		n.out.proposals = make([]Entry, 0, n.out.sizeHint+1)
	}
	n.out.proposals = append(n.out.proposals, e)
	n.lead.next++
	if n.cfg.bugs.has(BugVoteBeforeSync) {
		n.window.at(e.Slot).votes |= 1 << self
		n.window.at(e.Slot).seq = 0
	}
}

// ownVotes counts this node's own acceptances that have become durable.
func (n *Node) ownVotes() {
	l := &n.lead
	for l.ownNext = max(l.ownNext, n.chosen+1); l.ownNext < l.next; l.ownNext++ {
		st := n.window.at(l.ownNext)
		if !st.held() {
			continue
		}
		if st.seq > n.out.durable {
			break
		}
		st.votes |= 1 << self
	}
	n.advanceChosen()
}

// countVotes notes that voter i has accepted [lo, hi) at this leader's ballot.
func (n *Node) countVotes(i int, lo, hi Slot) {
	hi = min(hi, n.lead.next)
	for s := max(lo, n.chosen+1); s < hi; s++ {
		if st := n.window.at(s); st != nil {
			st.votes |= 1 << i
		}
	}
	n.advanceChosen()
}

// advanceChosen moves chosen over every slot that has its quorum.
func (n *Node) advanceChosen() {
	before := n.chosen
	for n.chosen+1 < n.lead.next {
		st := n.window.at(n.chosen + 1)
		if !st.held() || st.entry.Ballot != n.ballot || !n.isQuorum(n.choosing(), st.votes) {
			break
		}
		n.choose(&st.entry)
	}
	if n.chosen > before && (n.lead.next <= n.lead.suffixEnd || n.changing()) {
		n.proposeOwed()
	}
}

// choosing is the configuration whose votes choose the next slot.
func (n *Node) choosing() *config {
	switch {
	case n.cfg.bugs.has(BugActivateNow):
		return n.newest()
	case n.cfg.bugs.has(BugWrongQuorum):
		return &n.configs[len(n.configs)-1]
	}
	return &n.configs[0]
}

func (n *Node) onAccepted(i int, m *Message) {
	if n.role != Leader || m.Ballot != n.ballot {
		return
	}
	if m.Reject {
		n.onRejected(m)
		return
	}
	n.peers[i].heardAt = n.now
	n.countVotes(i, m.Slot, m.Next)
}

// onRejected handles a peer that has promised a newer ballot. As long as a quorum is heard nobody else can have been
// elected, and a ballot above the peer's wins it back; otherwise somebody else is about to lead.
func (n *Node) onRejected(m *Message) {
	if !n.ballot.Less(m.Promised) {
		return
	}
	mask := uint64(1) << self
	for i := range n.peers {
		if p := &n.peers[i]; p.ackSeq > 0 && n.now-p.grantAt < n.cfg.Lease {
			mask |= 1 << i
		}
	}
	if n.everyQuorum(mask) {
		n.campaign(Ballot{})
	} else {
		n.becomeFollower(0)
	}
}

func (n *Node) onHeartbeatReply(i int, m *Message) {
	if n.role != Leader || m.Ballot != n.ballot {
		return
	}
	if m.Reject {
		n.onRejected(m)
		return
	}
	if m.Seq > n.lead.round || m.At > n.now {
		return // cannot be an answer to this leader
	}
	p := &n.peers[i]
	p.heardAt = n.now
	p.chosen = max(p.chosen, m.Chosen)
	if m.Seq > p.ackSeq {
		p.ackSeq, p.grantAt = m.Seq, m.At
		if n.cfg.bugs.has(BugLeaseFromReceipt) {
			p.grantAt = n.now
		}
		n.updateLease()
		n.answerReads()
	}
	n.countVotes(i, n.chosen+1, m.Next)
	if m.Slot != 0 && n.peers[i].id == m.From {
		n.resend(i, m.Slot)
	}
	if n.changing() {
		n.proposeOwed() // the lease or the peer's slot may be what it waited for
	}
	n.maybeRetire()
}

// resend sends a peer again what it lacks, from slot first on.
func (n *Node) resend(i int, first Slot) {
	p := &n.peers[i]
	first = max(first, n.chosen+1)
	if first >= n.lead.next || n.now-p.resentAt < n.cfg.Heartbeat/2 && p.resentAt != 0 {
		return
	}
	// What waits for the next Ready is about to be sent anyway.
	end := n.lead.next - Slot(len(n.out.proposals))
	entries, _ := n.window.entries(nil, first, end, n.cfg.MaxMessageBytes, n.cfg.Alpha)
	if len(entries) == 0 {
		return
	}
	p.resentAt = n.now
	n.send(Message{Kind: MsgAccept, To: n.peers[i].id, Ballot: n.ballot, Chosen: n.chosen, Entries: entries})
}

// reachable reports whether a peer has answered within an election timeout.
func (n *Node) reachable(i int) bool {
	return i == self || n.now-n.peers[i].heardAt < n.cfg.ElectionTimeout
}

func (n *Node) tickLeader() {
	l := &n.lead
	if l.transferTo != 0 && n.now-l.transferAt >= n.cfg.ElectionTimeout {
		// The lease of this ballot is gone for good; only a new ballot can hold one again.
		n.campaign(Ballot{})
		return
	}
	mask := uint64(0)
	for i := range n.peers {
		if n.reachable(i) {
			mask |= 1 << i
		}
	}
	if !n.isQuorum(&n.configs[0], mask) {
		n.becomeFollower(0)
		return
	}
	if n.changing() || n.unpromised() != nil {
		if n.now >= n.retryAt {
			n.askNewcomers()
		}
		n.proposeOwed()
	}
	if n.now-l.roundAt >= n.cfg.Heartbeat || n.chosen > l.announced {
		l.wantRound = true
	}
}

// sendRound queues a heartbeat to everybody.
func (n *Node) sendRound() {
	l := &n.lead
	l.wantRound = false
	l.round++
	l.roundAt = n.now
	l.announced = n.chosen
	for i := range n.peers {
		if id := n.peers[i].id; i != self && id != 0 {
			n.send(Message{Kind: MsgHeartbeat, To: id, Ballot: n.ballot, Slot: l.next - 1, Chosen: n.chosen, Seq: l.round, At: n.now})
		}
	}
	p := &n.peers[self]
	p.ackSeq, p.grantAt = l.round, n.now
	n.updateLease()
	n.answerReads()
}

// updateLease counts the lease from the latest round that a quorum has answered.
func (n *Node) updateLease() {
	start, held := Time(0), false
	for i := range n.peers {
		at := n.peers[i].grantAt
		if n.peers[i].ackSeq == 0 || held && at <= start {
			continue
		}
		mask := uint64(0)
		for k := range n.peers {
			if p := &n.peers[k]; p.ackSeq > 0 && p.grantAt >= at {
				mask |= 1 << k
			}
		}
		if n.everyQuorum(mask) || n.cfg.bugs.has(BugLeaseOldConfig) && n.isQuorum(&n.configs[0], mask) {
			start, held = at, true
		}
	}
	if held {
		n.lead.leaseUntil = max(n.lead.leaseUntil, start+n.cfg.leaseOfLeader())
		n.barrier = max(n.barrier, start+n.cfg.Lease)
	}
}

// LeaseUntil returns until when this node is sure to be the only leader, or zero. For reads use LeaseRead.
func (n *Node) LeaseUntil() Time {
	until, _ := n.LeaseRead()
	return until
}

// LeaseRead returns what a read needs that asks nobody: the time until when this node is sure to be the only leader, or zero,
// and the slot that such a read must have seen applied. Call it first, wait for the slot to be applied, read the
// state, then read the clock: when that is before until, what was read is linearizable.
//
// The slot is more than what this node has applied, because another replica may have applied, and shown to a reader with
// a read index, what this one knows to be chosen but has not applied yet.
func (n *Node) LeaseRead() (until Time, slot Slot) {
	switch {
	case n.role != Leader:
		return 0, 0
	case n.lead.transferTo != 0 && !n.cfg.bugs.has(BugTransferKeeps):
		return 0, 0
	case !n.mayLead():
		return 0, 0 // about to hand over
	case n.cfg.bugs.has(BugEarlyRead):
		return n.lead.leaseUntil, n.chosen
	case n.applied < n.lead.suffixEnd:
		return 0, 0
	}
	return n.lead.leaseUntil, max(n.chosen, n.lead.suffixEnd)
}

// ReadIndex asks for the slot that a linearizable read must have seen applied. The answer comes in Ready.Reads with the
// same id, once a majority has confirmed that this node still leads, or Lost. It needs no clock. Ids should be unique
// among those that wait. Returns ErrNotLeader or ErrBusy.
func (n *Node) ReadIndex(now Time, id uint64) error {
	n.advance(now)
	l := &n.lead
	if n.role != Leader {
		return ErrNotLeader
	}
	if len(l.reads)+len(n.out.reads) >= readsMax {
		return ErrBusy
	}
	slot := max(n.chosen, l.suffixEnd)
	if n.cfg.bugs.has(BugReadNoRound) {
		n.out.reads = append(n.out.reads, Read{ID: id, Slot: slot})
		return nil
	}
	l.reads = append(l.reads, pendingRead{id: id, slot: slot, round: l.round + 1})
	l.wantRound = true
	return nil
}

// answerReads answers the reads whose round a quorum has answered.
func (n *Node) answerReads() {
	l := &n.lead
	done := 0
	for done < len(l.reads) && n.confirmed(l.reads[done].round) {
		n.out.reads = append(n.out.reads, Read{ID: l.reads[done].id, Slot: l.reads[done].slot})
		done++
	}
	if done > 0 {
		l.reads = append(l.reads[:0], l.reads[done:]...)
	}
}

// confirmed reports whether a quorum has answered a round or a later one.
func (n *Node) confirmed(round uint64) bool {
	mask := uint64(0)
	for i := range n.peers {
		if n.peers[i].ackSeq >= round {
			mask |= 1 << i
		}
	}
	return n.everyQuorum(mask)
}

// failReads tells those who wait for a read index that there will be none.
func (n *Node) failReads() {
	for _, r := range n.lead.reads {
		n.out.reads = append(n.out.reads, Read{ID: r.id, Lost: true})
	}
	n.lead.reads = nil
}
