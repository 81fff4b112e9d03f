package paxos

// This file is the acceptor: promises, acceptances, and what a follower does when it hears a leader.

// holdsOff reports whether a ballot of node from must be refused because another leader may hold a lease that
// this node has granted. released is a leader's ballot that is known to hold none.
//
// A lease that this node granted and that still counts always belongs to the ballot it has promised: it promises
// another one only when the lease has run out, was given up, or is dead because a quorum elected somebody else.
func (n *Node) holdsOff(from NodeID, released Ballot) bool {
	switch {
	case n.now >= n.barrier, n.cfg.bugs.has(BugIgnoreBarrier):
		return false
	case from == n.promised.Node:
		return false // whoever campaigns has given up its own lease
	case !released.IsZero() && !released.Less(n.promised):
		return false
	}
	return true
}

func (n *Node) onPrepare(i int, m *Message) {
	if m.Ballot.Less(n.promised) || n.promised.Less(m.Ballot) && n.holdsOff(m.From, m.Released) {
		n.send(Message{Kind: MsgPromise, To: m.From, Ballot: m.Ballot, Slot: m.Slot, Promised: n.promised, Reject: true})
		return
	}
	if n.promised.Less(m.Ballot) {
		n.raise(m.Ballot)
		n.leader = 0
		n.resetElection(n.now)
	}
	n.postponeElection() // page by page a candidate may take its time
	reply := Message{Kind: MsgPromise, Slot: m.Slot, Promised: n.promised, Reject: true, Mute: true}
	if !n.repair.damaged {
		reply = n.promisePage(m.Slot)
	}
	reply.To, reply.Ballot, reply.Seq = m.From, m.Ballot, m.Seq
	n.sendAfter(reply)
}

// promisePage reports what this node has accepted from slot first on, as much as one message holds.
func (n *Node) promisePage(first Slot) Message {
	m := Message{Kind: MsgPromise, Slot: first, Chosen: n.chosen, Truncated: n.truncated}
	if first <= n.truncated || n.cfg.bugs.has(BugPromiseForgets) {
		return m
	}
	if first < n.window.lo {
		if m.Entries = n.readLog(first); len(m.Entries) == 0 {
			m.Truncated = n.window.lo - 1 // as good as cut: the candidate fetches a snapshot
			return m
		}
		m.Next = first + Slot(len(m.Entries))
		return m
	}
	var next Slot
	m.Entries, next = n.window.entries(nil, first, n.window.hi, n.cfg.MaxMessageBytes, n.cfg.Alpha)
	if next < n.window.hi {
		m.Next = next
	}
	return m
}

// readLog reads chosen entries from slot first on, which the window does not reach. It returns none when they cannot be
// read.
func (n *Node) readLog(first Slot) []Entry {
	entries, err := n.cfg.Log.Entries(first, n.window.lo, n.cfg.MaxMessageBytes)
	if err != nil || len(entries) == 0 {
		return nil
	}
	for i := range entries {
		if entries[i].Slot != first+Slot(i) {
			broken("log: slot %d expected, found %d", first+Slot(i), entries[i].Slot)
		}
	}
	if entries[len(entries)-1].Slot >= n.window.lo {
		broken("log: slots below %d expected, found %d", n.window.lo, entries[len(entries)-1].Slot)
	}
	return entries[:min(len(entries), n.cfg.Alpha)]
}

// follow is the common part of everything a leader says. It reports false, and has answered, when the leader is old.
func (n *Node) follow(m *Message, reply MessageKind) bool {
	if m.Ballot.Less(n.promised) && !n.cfg.bugs.has(BugAcceptOld) {
		if reply != 0 {
			n.send(Message{Kind: reply, To: m.From, Ballot: m.Ballot, Promised: n.promised, Reject: true})
		}
		return false
	}
	n.raise(m.Ballot)
	if n.role != Follower || n.leader != m.From {
		n.becomeFollower(m.From)
	}
	n.left = false
	n.postponeElection()
	n.barrier = max(n.barrier, n.now+n.cfg.Lease)
	return true
}

func (n *Node) onAccept(m *Message) {
	if !n.follow(m, MsgAccepted) {
		return
	}
	if len(m.Entries) > 0 {
		first := m.Entries[0].Slot
		next := first
		for k := range m.Entries {
			if !n.acceptOne(&m.Entries[k]) {
				break
			}
			next++
		}
		if next > first {
			n.sendAfter(Message{Kind: MsgAccepted, To: m.From, Ballot: m.Ballot, Slot: first, Next: next})
		}
	}
	n.learnChosen(m.Ballot, m.Chosen)
}

// acceptOne accepts an entry at the promised ballot. It reports false when there is no room.
func (n *Node) acceptOne(e *Entry) bool {
	st := n.window.at(e.Slot)
	if e.Slot <= n.chosen {
		// Chosen already: to keep the chosen value is to accept it again.
		if st.held() && !sameValue(&st.entry, e) {
			broken("a chosen value never changes: slot %d holds %v, %v brings another", e.Slot, n.entryBallot(st), e.Ballot)
		}
		return true
	}
	if e.Slot > n.slotLimit() || n.full() {
		return false
	}
	if st.held() && st.entry.Ballot == e.Ballot {
		if !sameValue(&st.entry, e) {
			broken("one value per slot and ballot: two found for slot %d at %v", e.Slot, e.Ballot)
		}
		return true
	}
	if st.held() && !st.entry.Ballot.Less(e.Ballot) {
		broken("accepted ballots of slot %d never fall: above %v expected, found %v", e.Slot, n.entryBallot(st), e.Ballot)
	}
	n.store(*e)
	n.out.accept = append(n.out.accept, *e)
	return true
}

func (n *Node) entryBallot(st *slotState) Ballot {
	if !st.held() {
		return Ballot{}
	}
	return st.entry.Ballot
}

// learnChosen takes in that the leader of ballot b knows everything up to upTo to be chosen. This node's own entries
// are those values only where it accepted them at b; for others the values themselves have to be fetched.
func (n *Node) learnChosen(b Ballot, upTo Slot) {
	for n.chosen < upTo && len(n.configs) > 0 {
		st := n.window.at(n.chosen + 1)
		if !st.held() || st.entry.Ballot != b && !n.cfg.bugs.has(BugOldBallot) {
			break
		}
		n.choose(&st.entry)
	}
	if n.chosen < upTo {
		n.wantCatchUp(b.Node, upTo)
	}
	n.checkRepaired()
}

func (n *Node) onHeartbeat(m *Message) {
	if !n.follow(m, MsgHeartbeatReply) {
		return
	}
	n.learnChosen(m.Ballot, m.Chosen)
	if n.repair.damaged {
		n.askRepair(m.From)
	}
	reply := Message{Kind: MsgHeartbeatReply, To: m.From, Ballot: m.Ballot, Seq: m.Seq, At: m.At, Chosen: n.chosen,
		Slot: n.firstMissing(m), Next: n.firstUnaccepted(m.Ballot)}
	if n.promisedSeq > n.out.durable {
		n.sendAfter(reply) // the lease it grants is bound to the promise
	} else {
		n.send(reply)
	}
}

// firstMissing returns the first slot that the leader has proposed, does not know chosen, and this node lacks.
func (n *Node) firstMissing(m *Message) Slot {
	for s := max(n.chosen, m.Chosen) + 1; s <= m.Slot && s <= n.slotLimit(); s++ {
		if st := n.window.at(s); !st.held() || st.entry.Ballot != m.Ballot {
			return s
		}
	}
	return 0
}

// firstUnaccepted returns the first slot that is neither chosen nor durably accepted at ballot b.
func (n *Node) firstUnaccepted(b Ballot) Slot {
	s := n.chosen + 1
	for ; s < n.window.hi; s++ {
		if st := n.window.at(s); !st.held() || st.entry.Ballot != b || st.seq > n.out.durable {
			break
		}
	}
	return s
}

// send queues a message that depends on nothing durable.
func (n *Node) send(m Message) {
	m.From = n.cfg.ID
	n.out.send = append(n.out.send, m)
}

// sendAfter queues a message that may leave only when everything stored so far is durable.
func (n *Node) sendAfter(m Message) {
	m.From = n.cfg.ID
	n.out.after = append(n.out.after, m)
}
