package paxos

// This file is how a node becomes leader: a pre-vote that disturbs nobody, then phase 1 of Paxos for all slots at once.

// found collects what promises report above the chosen slots.
type found struct {
	base    Slot    // slot of entries[0]
	entries []Entry // Kind zero where nothing was reported
}

// add keeps an entry if it is of a newer ballot than what is known of its slot.
func (f *found) add(e *Entry, anyWins bool) {
	if e.Slot < f.base {
		return
	}
	k := int(e.Slot - f.base)
	for len(f.entries) <= k {
		f.entries = append(f.entries, Entry{})
	}
	if old := &f.entries[k]; old.Kind == 0 || old.Ballot.Less(e.Ballot) && !anyWins {
		*old = *e
	}
}

// at returns what was reported of a slot, or nil.
func (f *found) at(s Slot) *Entry {
	if s < f.base || s >= f.base+Slot(len(f.entries)) || f.entries[s-f.base].Kind == 0 {
		return nil
	}
	return &f.entries[s-f.base]
}

// last returns the highest slot reported, or zero.
func (f *found) last() Slot {
	if len(f.entries) == 0 {
		return 0
	}
	return f.base + Slot(len(f.entries)) - 1
}

// startPreVote asks everybody whether a campaign would be welcome.
func (n *Node) startPreVote() {
	n.becomeFollower(0)
	n.resetElection(n.now)
	if n.repair.damaged {
		return
	}
	if !n.mayLead() || n.left {
		n.askAround()
		return
	}
	n.role = PreCandidate
	n.ballot = Ballot{Round: n.roundMax + 1, Node: n.cfg.ID}
	n.votes, n.mute = 1<<self, 0
	if n.elected() {
		n.campaign(Ballot{})
		return
	}
	n.askAgain()
}

// askAround is what a learner does that hears of no leader: the last thing chosen may be that it votes now, and those
// who had it chosen may be gone.
func (n *Node) askAround() {
	if n.left || !n.member(n.cfg.ID) {
		return
	}
	voters := n.electorate()
	for i := range n.peers {
		if voters&(1<<i) != 0 {
			n.send(Message{Kind: MsgCatchUp, To: n.peers[i].id, Ballot: n.promised, Slot: n.chosen + 1})
		}
	}
}

// askAgain sends the candidate's question to every peer that has not answered it.
func (n *Node) askAgain() {
	n.retryAt = n.now + n.cfg.Heartbeat
	voters := n.electorate()
	for i := range n.peers {
		switch {
		case voters&(1<<i) == 0 || i == self:
		case n.votes&(1<<i) != 0 && n.role == Candidate:
			// It has told everything. It is asked for nothing more, so that it does not campaign while others still tell.
			last := max(n.chosen, n.window.last(), n.found.last())
			n.send(Message{Kind: MsgPrepare, To: n.peers[i].id, Ballot: n.ballot, Released: n.released, Slot: last + 1, Seq: n.life})
		case n.votes&(1<<i) != 0:
		case n.role == PreCandidate:
			n.send(Message{Kind: MsgPreVote, To: n.peers[i].id, Ballot: n.ballot, Chosen: n.chosen})
		case n.role == Candidate:
			n.askPromise(i)
		}
	}
}

// onPreVote answers whether a Prepare would be promised, without promising.
func (n *Node) onPreVote(m *Message) {
	reply := Message{Kind: MsgPreVoteReply, To: m.From, Ballot: m.Ballot, Promised: n.promised, Chosen: n.chosen, Truncated: n.truncated}
	if len(n.configs) > 0 && m.Chosen+1 < n.configs[0].From && !n.member(m.From) {
		reply.Next = n.configs[0].From // it has left without noticing
	}
	reply.Reject = reply.Next != 0 || !n.promised.Less(m.Ballot) || n.holdsOff(m.From, Ballot{})
	reply.Mute = n.repair.damaged && !reply.Reject
	reply.Reject = reply.Reject || reply.Mute
	n.send(reply)
}

func (n *Node) onPreVoteReply(i int, m *Message) {
	if n.role != PreCandidate || m.Ballot != n.ballot {
		return
	}
	if last := &n.configs[len(n.configs)-1]; m.Next > last.From || m.Next == last.From && last.voters&(1<<self) == 0 {
		n.becomeFollower(0)
		n.left = true
		return
	}
	if m.Truncated > n.chosen {
		n.fetchFirst(m)
		return
	}
	switch {
	case m.Mute:
		n.mute |= 1 << i
	case m.Reject:
		return
	default:
		n.votes |= 1 << i
	}
	if n.elected() {
		n.campaign(Ballot{})
	}
}

// fetchFirst gives a campaign up: an acceptor has cut from its log what this node has yet to learn.
func (n *Node) fetchFirst(m *Message) {
	n.becomeFollower(0)
	n.catchUp.sentAt = 0
	n.wantCatchUp(m.From, max(m.Chosen, m.Truncated))
}

// campaign starts phase 1 at a new ballot. released is the ballot of a leader that gave its lease up for this, or zero.
func (n *Node) campaign(released Ballot) {
	n.becomeFollower(0)
	n.resetElection(n.now)
	if !n.mayLead() {
		return
	}
	if n.holdsOff(n.cfg.ID, released) {
		broken("campaign: no lease granted to another leader expected, found that of %v until %d, and it is %d", n.promised, n.barrier, n.now)
	}
	n.role = Candidate
	n.ballot = Ballot{Round: n.roundMax + 1, Node: n.cfg.ID}
	n.released = released
	n.votes, n.mute = 0, 0
	n.found = found{base: n.chosen + 1}
	for i := range n.peers {
		n.peers[i].page = 0
	}
	n.raise(n.ballot)
	n.retryAt = n.now + n.cfg.Heartbeat
	n.askEveryone()
}

// askEveryone asks the voters of every configuration that the candidate has come to know for their promises, and
// reports false when they are too many.
func (n *Node) askEveryone() bool {
	if !n.seekChanges() {
		n.becomeFollower(0) // it lags by many changes: others go first
		return false
	}
	voters := n.electorate()
	for i := range n.peers {
		if p := &n.peers[i]; voters&^n.votes&(1<<i) != 0 && p.page == 0 && i != self {
			p.page = n.chosen + 1
			n.askPromise(i)
		}
	}
	return true
}

// askPromise asks a peer for its promise, or for the next page of it. The ballot must be durable before anybody sees it:
// a node that forgot it could use it again for other values.
func (n *Node) askPromise(i int) {
	n.peers[i].stalled = false
	m := Message{Kind: MsgPrepare, To: n.peers[i].id, Ballot: n.ballot, Released: n.released, Slot: n.peers[i].page, Seq: n.life}
	if n.promisedSeq > n.out.durable && !n.cfg.bugs.has(BugReuseBallot) {
		n.sendAfter(m)
	} else {
		n.send(m)
	}
}

// ownPromise counts this node's promise, once it is durable.
func (n *Node) ownPromise() {
	if n.promisedSeq <= n.out.durable {
		n.votes |= 1 << self
		n.checkElected()
	}
}

func (n *Node) onPromise(i int, m *Message) {
	if n.role != Candidate && n.role != Leader || m.Ballot != n.ballot {
		return
	}
	if m.Reject && !m.Mute {
		if n.role == Leader {
			n.onRejected(m)
		} else if n.ballot.Less(m.Promised) {
			n.becomeFollower(0)
		}
		return
	}
	p := &n.peers[i]
	if p.page == 0 || m.Slot != p.page || m.Seq != n.life {
		return // repeated, or of an earlier life
	}
	if m.Mute { // asked again by and by: it may be repaired
		n.mute |= 1 << i
		n.counted()
		return
	}
	if m.Truncated >= m.Slot {
		if n.chosen < m.Truncated {
			n.fetchFirst(m)
			return
		}
		p.page = n.chosen + 1
		n.askPromise(i)
		return
	}
	if n.role == Leader {
		n.takeNewcomer(m)
	} else if !n.takePage(m) {
		return
	}
	if i = n.index(m.From); i < 0 || n.role == Follower {
		return // what was learned is that it has left, or more members than one node can ask
	}
	p = &n.peers[i]
	p.page = m.Next
	if m.Next != 0 {
		n.askPromise(i)
		return
	}
	n.votes |= 1 << i
	n.counted()
}

// counted goes on after another promise.
func (n *Node) counted() {
	if n.role == Leader {
		n.proposeOwed()
	} else {
		n.checkElected()
	}
}

// takePage takes in a page of a promise. It reports false when the candidate cannot go on with the next one.
func (n *Node) takePage(m *Message) bool {
	before := n.chosen
	taken := n.takeReported(m)
	if taken || n.chosen > before {
		n.postponeElection()
	}
	if i := n.index(m.From); !taken && i >= 0 {
		n.peers[i].page, n.peers[i].stalled = n.chosen+1, true // asked for again when there is room, or by and by
	}
	return taken && n.role == Candidate // else a newer ballot was among what was learned
}

// takeReported takes in a page of a promise: values that the acceptor knows to be chosen are learned, others are
// collected. It reports false when there is no room for all of it.
func (n *Node) takeReported(m *Message) bool {
	for k := range m.Entries {
		e := &m.Entries[k]
		if e.Slot <= m.Chosen {
			if !n.learn(e) {
				return false
			}
			if n.role != Candidate {
				return true
			}
			continue
		}
		if e.Slot > max(n.chosen, n.found.last())+8*Slot(n.cfg.Alpha) {
			return false // no acceptor leaves such a hole
		}
		n.found.add(e, n.cfg.bugs.has(BugAnyReported))
	}
	return true
}

// checkElected turns the candidate into the leader when its promises are enough.
func (n *Node) checkElected() {
	if !n.askEveryone() || n.votes&(1<<self) == 0 || !n.mayLead() {
		return
	}
	if elected := n.elected() || n.cfg.bugs.has(BugOneConfigPhase1) && n.isQuorum(&n.configs[0], n.votes); !elected {
		return
	}
	n.role, n.leader = Leader, n.cfg.ID
	n.lead = lead{first: n.chosen + 1, next: n.chosen + 1, ownNext: n.chosen + 1,
		suffixEnd: max(n.chosen, n.window.last(), n.found.last()), wantRound: true}
	for i := range n.peers {
		n.peers[i] = peer{id: n.peers[i].id, heardAt: n.now, snapshot: n.peers[i].snapshot}
	}
	if n.cfg.bugs.has(BugForgetSuffix) {
		n.lead.suffixEnd = n.chosen
	}
	n.proposeOwed()
}

// reported returns the newest entry of a slot that this node has accepted or been told of, or nil.
func (n *Node) reported(s Slot) *Entry {
	e := n.found.at(s)
	if st := n.window.at(s); st.held() && (e == nil || e.Ballot.Less(st.entry.Ballot) || n.cfg.bugs.has(BugAnyReported)) {
		return &st.entry
	}
	return e
}

// proposeSuffix proposes again, at the own ballot, what may have been chosen before, and no-ops between. It goes on
// when slots have been chosen, for no more than Alpha may be in flight.
func (n *Node) proposeSuffix() {
	for n.lead.next <= n.lead.suffixEnd && n.lead.next <= n.chosen+Slot(n.cfg.Alpha) && n.proposable(n.lead.next) {
		reported := n.reported(n.lead.next)
		switch {
		case reported != nil:
			n.propose(reported.Kind, reported.Data)
		case n.cfg.bugs.has(BugForgetNoop):
			n.lead.next++
		default:
			n.propose(Noop, nil)
		}
	}
	if n.lead.next > n.lead.suffixEnd {
		n.found = found{}
	}
}

// onTimeoutNow campaigns at once: the leader has chosen this node to follow it.
func (n *Node) onTimeoutNow(m *Message) {
	if m.Ballot == n.promised && !n.repair.damaged && !n.reluctant && n.mayLead() && (n.role == Follower || n.role == PreCandidate) {
		n.campaign(m.Ballot)
	}
}

// Transfer hands leadership to another voter. The leader gives its lease up at once and proposes nothing more; when
// the other does not take over within an election timeout, this node campaigns again. Returns ErrNotLeader,
// ErrUnknownPeer, ErrBusy while another transfer is under way, ErrUnreachable when the other is not fit for it.
func (n *Node) Transfer(now Time, to NodeID) error {
	n.advance(now)
	i := n.index(to)
	switch {
	case n.role != Leader:
		return ErrNotLeader
	case i < 0 || n.newest().voters&(1<<i) == 0:
		return ErrUnknownPeer
	case i == self:
		return nil
	case n.lead.transferTo != 0:
		return ErrBusy
	case !n.reachable(i) || n.peers[i].chosen+2*Slot(n.cfg.Alpha) < n.chosen || n.peers[i].ackSeq == 0:
		return ErrUnreachable
	}
	n.lead.transferTo, n.lead.transferAt = to, n.now
	n.send(Message{Kind: MsgTimeoutNow, To: to, Ballot: n.ballot})
	return nil
}
