package paxos

// This file is how a node that lags learns what has been chosen, and how a damaged one is repaired.

// catchUp is a follower's search for chosen entries.
type catchUp struct {
	from   NodeID
	to     Slot // known to be chosen somewhere
	sentAt Time // of the last request; zero: the next one may go at once

	stalled bool // there was no room for the next request's answer
}

// wantCatchUp notes that entries up to upTo are chosen, and asks for them unless it has just done so.
func (n *Node) wantCatchUp(from NodeID, upTo Slot) {
	n.catchUp.to = max(n.catchUp.to, upTo)
	n.catchUp.from = from
	if n.catchUp.sentAt == 0 || n.now-n.catchUp.sentAt >= 2*n.cfg.Heartbeat {
		n.sendCatchUp()
	}
}

func (n *Node) sendCatchUp() {
	if n.catchUp.from == n.cfg.ID || n.chosen >= n.catchUp.to {
		return
	}
	if n.catchUp.stalled = n.chosen >= n.slotLimit() || n.full(); n.catchUp.stalled {
		return
	}
	n.catchUp.sentAt = max(n.now, 1)
	first := n.chosen + 1
	if len(n.configs) == 0 {
		first = 0 // who decides the first slot is not in the log
	}
	n.send(Message{Kind: MsgCatchUp, To: n.catchUp.from, Ballot: n.promised, Slot: first})
}

// resumeStalled goes on with what waited for room in memory.
func (n *Node) resumeStalled() {
	if n.full() {
		return
	}
	if n.catchUp.stalled {
		n.sendCatchUp()
	}
	if n.role != Candidate {
		return
	}
	for i := range n.peers {
		if n.peers[i].stalled && n.peers[i].page != 0 {
			n.askPromise(i)
		}
	}
}

// tickCatchUp repeats a request that has found no answer, of the leader where there is one.
func (n *Node) tickCatchUp() {
	if n.catchUp.from == 0 || n.chosen >= n.catchUp.to {
		n.catchUp = catchUp{}
		return
	}
	if n.now-n.catchUp.sentAt < 2*n.cfg.Heartbeat || n.role == Leader {
		return
	}
	if n.leader != 0 {
		n.catchUp.from = n.leader
	}
	n.sendCatchUp()
}

// onCatchUp answers from memory or from the log, or has the driver send a snapshot where the log was cut. Who asks for what is
// not known here knows more: then it is asked.
func (n *Node) onCatchUp(m *Message) {
	if m.Slot > n.chosen {
		if m.Slot > n.chosen+1 && n.role != Leader {
			n.wantCatchUp(m.From, m.Slot-1)
		}
		return
	}
	if m.Slot <= n.truncated {
		n.wantSnapshot(m.From, max(n.truncated, min(n.applied, 1)))
		return
	}
	var entries []Entry
	if m.Slot < n.window.lo {
		if entries = n.readLog(m.Slot); len(entries) == 0 {
			n.wantSnapshot(m.From, m.Slot)
			return
		}
	} else {
		entries, _ = n.window.entries(nil, m.Slot, n.chosen+1, n.cfg.MaxMessageBytes, n.cfg.Alpha)
	}
	n.send(Message{Kind: MsgLearn, To: m.From, Ballot: n.promised, Slot: m.Slot, Chosen: n.chosen, Entries: entries})
}

// wantSnapshot has the driver send a member a snapshot that includes slot after, unless it is doing so.
func (n *Node) wantSnapshot(to NodeID, after Slot) {
	i := n.index(to)
	if i < 0 || after == 0 || n.peers[i].snapshot {
		return
	}
	n.peers[i].snapshot = true
	n.out.snapshots = append(n.out.snapshots, SnapshotRequest{To: to, After: after})
}

// onLearn takes in chosen entries, and asks for more where there are more.
func (n *Node) onLearn(m *Message) {
	if n.role == Leader {
		return // what is chosen beyond its knowledge a leader finds out by having it chosen again
	}
	before := n.chosen
	for k := range m.Entries {
		if !n.learn(&m.Entries[k]) {
			break
		}
	}
	n.checkRepaired()
	if n.chosen == before {
		return
	}
	n.catchUp.to = max(n.catchUp.to, m.Chosen)
	if n.catchUp.from == 0 {
		n.catchUp.from = m.From
	}
	if n.chosen < n.catchUp.to {
		n.sendCatchUp()
	}
}

// learn takes in a chosen entry. The ballot it carries is one at or above the ballot at which it was chosen, so
// that an own entry of that ballot or a newer one must say the same. It reports false when the slot is not the next
// one or there is no room.
func (n *Node) learn(e *Entry) bool {
	st := n.window.at(e.Slot)
	if e.Slot <= n.chosen {
		if st.held() && !sameValue(&st.entry, e) {
			broken("a chosen value never changes: slot %d holds %v, %v brings another", e.Slot, n.entryBallot(st), e.Ballot)
		}
		return true
	}
	if e.Slot != n.chosen+1 || e.Slot > n.slotLimit() || n.full() || len(n.configs) == 0 {
		return false
	}
	if st.held() && !st.entry.Ballot.Less(e.Ballot) {
		if !sameValue(&st.entry, e) {
			broken("chosen at %v or below: the value accepted at %v for slot %d must be the same", e.Ballot, st.entry.Ballot, e.Slot)
		}
	} else {
		n.raise(e.Ballot)
		n.store(*e)
		n.out.accept = append(n.out.accept, *e)
	}
	n.choose(e)
	return true
}

// repair is how a damaged replica finds out what it may have voted for. It knows its promise P, so that its lost votes
// are all at ballots up to P. It asks a leader of a ballot B >= P for the last slot L that B has proposed or found. Lost
// votes above L are below B, and nothing can be chosen by them any more, for a member of every quorum has promised B and
// did not report it, where B's promises are complete. So the replica may tell what it has accepted, and lead, once it
// holds the chosen value of every slot up to L. What it accepts meanwhile, at ballots of P and above, it remembers.
type repair struct {
	damaged bool
	known   bool
	target  Slot // L, when known
}

func (n *Node) askRepair(leader NodeID) {
	if n.repair.known {
		return
	}
	n.send(Message{Kind: MsgRepair, To: leader, Ballot: n.promised, Seq: n.life})
}

func (n *Node) onRepair(m *Message) {
	if n.role != Leader || n.ballot.Less(m.Ballot) || n.unpromised() != nil {
		return // with promises still to come the last slot is not known
	}
	n.send(Message{Kind: MsgRepairReply, To: m.From, Ballot: n.ballot, Seq: m.Seq, Slot: max(n.lead.next-1, n.lead.suffixEnd)})
}

func (n *Node) onRepairReply(m *Message) {
	if !n.repair.damaged || n.repair.known || m.Seq != n.life {
		return
	}
	if !n.follow(m, 0) {
		return
	}
	n.repair.known, n.repair.target = true, m.Slot
	n.checkRepaired()
}

func (n *Node) checkRepaired() {
	if n.repair.damaged && n.repair.known && n.chosen >= n.repair.target {
		n.repair = repair{}
		n.resetElection(n.now)
	}
}
