package paxos

import "slices"

// This file is how a leader changes who is in the group.
//
// A change is an entry like any other. Chosen at slot s it governs from s+Alpha on; until there the old quorums decide,
// and no-ops take the leader there at once. Before it proposes in the first slot of the new configuration it has to hold
// a quorum of promises from there too, like any leader: phase 1 goes on for those voters who have not promised yet.
//
// What a lease says of other leaders (see updateLease) was worked out with the configurations known when it was counted.
// Once the last slot before the new configuration is chosen, a candidate that knows so asks the new voters only. So that
// slot is proposed only when a lease of the new voters reaches as far as any lease that was counted without them.

// ProposeConfig proposes that the group has these members from Alpha slots after the returned one on. It is in force when
// Status, or Ready.Configs, says so. A leader that is not among the new voters hands over and follows.
//
// A member that is new should come as a learner, and be promoted when PeerStatus.Lag has fallen below Alpha. Any number
// of members may come and go in one change. Returns what Configuration.Validate says, ErrNotLeader, ErrNoChange,
// ErrChangeInFlight, ErrUnconfirmed, ErrLagging, ErrNoQuorum, or ErrBusy when too much is in flight.
func (n *Node) ProposeConfig(now Time, c Configuration) (Slot, error) {
	n.advance(now)
	if err := c.Validate(); err != nil {
		return 0, err
	}
	if n.role != Leader {
		return 0, ErrNotLeader
	}
	c = c.sorted()
	l := &n.lead
	switch {
	case n.changing():
		return 0, ErrChangeInFlight
	case c.Equal(n.configs[0].Configuration):
		return 0, ErrNoChange
	case n.chosen < max(l.first, l.suffixEnd):
		if l.next == l.first && n.roomFor(l.next) {
			n.propose(Noop, nil)
		}
		return 0, ErrUnconfirmed
	case l.transferTo != 0 || !n.roomFor(l.next):
		return 0, ErrBusy
	}
	if err := n.fit(c); err != nil {
		return 0, err
	}
	return n.startChange(c), nil
}

// startChange proposes a configuration in the next slot, and the no-ops that lead to it as far as they may go.
func (n *Node) startChange(c Configuration) Slot {
	slot := n.lead.next
	n.tentative = append(n.tentative, config{ConfigAt: ConfigAt{From: slot + Slot(n.cfg.Alpha), Configuration: c}})
	n.configsChanged()
	n.membersChanged()
	n.propose(Configure, encodeConfigure(c, n.cfg.Alpha))
	n.proposeOwed()
	return slot
}

// fit checks that a new configuration could go on at once.
func (n *Node) fit(c Configuration) error {
	mask, alpha := uint64(0), Slot(n.cfg.Alpha)
	alive := 0
	for _, id := range c.Voters {
		i := n.index(id)
		lags := i < 0 || i != self && (n.peers[i].ackSeq == 0 || !n.reachable(i) || n.peers[i].chosen+alpha <= n.chosen)
		if lags && !slices.Contains(n.configs[0].Voters, id) {
			return ErrLagging
		}
		if i >= 0 && n.reachable(i) && mask&(1<<i) == 0 {
			mask |= 1 << i
			alive++
		}
	}
	if alive <= len(c.Voters)/2 {
		return ErrNoQuorum
	}
	return nil
}

// membersChanged is what a leader does when its configurations have changed.
func (n *Node) membersChanged() {
	if n.role != Leader {
		return
	}
	l := &n.lead
	l.leaseLent = max(l.leaseLent, l.leaseUntil)
	l.leaseUntil = 0
	l.wantRound = true
	n.updateLease()
	n.askNewcomers()
}

// proposable reports whether the configuration of a slot lets this leader propose in it.
func (n *Node) proposable(s Slot) bool {
	c := n.governing(s)
	if !n.elects(c) && !n.cfg.bugs.has(BugNoNewPrepare|BugOneConfigPhase1) {
		return false // phase 1 is not over there
	}
	if n.outsider(s) {
		return false
	}
	if !n.changing() || n.cfg.bugs.has(BugLeaseOldConfig) {
		return true
	}
	return n.governing(s+1) == c || n.lead.leaseUntil >= n.lead.leaseLent || n.now >= n.lead.leaseLent
}

// outsider reports whether this node leaves a slot to a voter: it is none there, nor in the newest configuration.
func (n *Node) outsider(s Slot) bool {
	return (n.governing(s).voters|n.newest().voters)&(1<<self) == 0
}

// proposeOwed proposes what a leader owes the group: the suffix that it found, then no-ops up to the next configuration.
func (n *Node) proposeOwed() {
	n.proposeSuffix()
	l := &n.lead
	if !n.changing() || l.next <= l.suffixEnd {
		return
	}
	for n.governing(l.next) != n.newest() && l.next <= n.chosen+Slot(n.cfg.Alpha) && n.proposable(l.next) {
		n.propose(Noop, nil)
	}
}

// newest returns the configuration of the highest slots.
func (n *Node) newest() *config {
	if k := len(n.tentative); k > 0 {
		return &n.tentative[k-1]
	}
	return &n.configs[len(n.configs)-1]
}

// unpromised returns the first configuration whose promises of this node's ballot are not enough, or nil.
func (n *Node) unpromised() *config {
	for i := range n.configs {
		if !n.elects(&n.configs[i]) {
			return &n.configs[i]
		}
	}
	for i := range n.tentative {
		if !n.elects(&n.tentative[i]) {
			return &n.tentative[i]
		}
	}
	return nil
}

// askNewcomers asks the voters of a new configuration for their promises.
func (n *Node) askNewcomers() {
	c := n.unpromised()
	if c == nil {
		return
	}
	n.retryAt = n.now + n.cfg.Heartbeat
	for i := range n.peers {
		if c.voters&^n.votes&(1<<i) == 0 || i == self {
			continue
		}
		if n.peers[i].page == 0 {
			n.peers[i].page = n.chosen + 1
		}
		n.askPromise(i)
	}
}

// takeNewcomer takes in a page of a promise that came after the election. Of what it reports only slots of a
// configuration without its promises count, for in the others phase 1 is over.
func (n *Node) takeNewcomer(m *Message) {
	c := n.unpromised()
	if c == nil {
		return
	}
	if len(n.found.entries) == 0 {
		n.found.base = n.lead.next
	}
	for k := range m.Entries {
		e := &m.Entries[k]
		if e.Slot >= c.From && e.Slot <= max(n.chosen, n.found.last())+8*Slot(n.cfg.Alpha) {
			n.found.add(e, n.cfg.bugs.has(BugAnyReported))
		}
	}
	if len(n.found.entries) == 0 {
		return
	}
	n.lead.suffixEnd = max(n.lead.suffixEnd, n.found.last())
	if !n.seekChanges() {
		n.becomeFollower(0)
	}
	n.membersChanged()
}

// farewell tells those who leave that they have left.
func (n *Node) farewell() {
	for i := range n.peers {
		if id := n.peers[i].id; i != self && id != 0 && !n.member(id) {
			n.send(Message{Kind: MsgHeartbeat, To: id, Ballot: n.ballot, Slot: n.lead.next - 1, Chosen: n.chosen, Seq: n.lead.round, At: n.now})
		}
	}
}

// maybeRetire ends the leadership of a node that is no voter any more, once a majority of the voters knows so, also while
// a change that it has found is not decided. The voter that knows most is told to follow it at once. The lease is not
// used any more by then: see LeaseRead.
func (n *Node) maybeRetire() {
	if n.lead.next != n.chosen+1 || !n.outsider(n.lead.next) {
		return
	}
	c := &n.configs[0]
	mask, best := uint64(0), -1
	for i := range n.peers {
		p := &n.peers[i]
		if c.voters&(1<<i) == 0 || p.chosen+1 < c.From {
			continue
		}
		mask |= 1 << i
		if best < 0 || p.chosen > n.peers[best].chosen {
			best = i
		}
	}
	if n.isQuorum(c, mask) {
		n.send(Message{Kind: MsgTimeoutNow, To: n.peers[best].id, Ballot: n.ballot})
		n.becomeFollower(0)
	}
}
