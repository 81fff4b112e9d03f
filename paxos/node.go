package paxos

import (
	"fmt"
	"math/bits"
	"slices"
)

// Node is one replica's part of the protocol: proposer, acceptor and learner in one. It is driven from outside and
// not safe for concurrent use. See the package comment for how to drive it.
type Node struct {
	cfg  Config
	self int  // this node's index in cfg.Voters
	now  Time // the latest time this node was told

	// The acceptor. promised is durable when number promisedSeq is.
	promised    Ballot
	promisedSeq uint64
	barrier     Time // no promise to another node before this: a leader may hold a lease that we granted
	window      window

	// The learner. truncated <= applied <= emitted <= chosen; emitted is the last slot given out in Ready.Apply.
	truncated, applied, emitted, chosen Slot

	// The follower.
	role       Role
	leader     NodeID
	electionAt Time // campaign when nothing is heard until then
	jitter     Time // this role's random part of the election timeout
	reluctant  bool // lets others campaign first
	catchUp    catchUp
	repair     repair

	// The candidate and leader.
	ballot   Ballot // owned; meaningful unless Follower
	roundMax uint64 // the highest round seen anywhere
	retryAt  Time   // repeat questions to peers that have not answered
	votes    uint64 // pre-votes or promises received, one bit each in the order of cfg.Voters
	released Ballot // the leader's ballot that was given up for this campaign
	found    found
	peers    []peer // in the order of cfg.Voters
	lead     lead

	out outbox
}

// peer is what a node keeps about another voter, for as long as its role lasts.
type peer struct {
	heardAt  Time   // when it last answered at our ballot
	grantAt  Time   // our clock when we sent the newest heartbeat that it has answered: its lease counts from here
	ackSeq   uint64 // the newest heartbeat round that it has answered
	chosen   Slot
	resentAt Time
	page     Slot // next page of promises wanted; zero when complete
	stalled  bool // there was no room for the last page
	snapshot bool // the driver is sending it a snapshot
}

// view is what every Ready says of the node.
type view struct {
	leader  NodeID
	role    Role
	damaged bool
}

// outbox is what the next Ready will hold.
type outbox struct {
	seq       uint64 // number of the last Ready that had one
	durable   uint64 // Persisted up to here
	hard      bool
	viewed    view // what the last Ready said of the node
	accept    []Entry
	proposals []Entry // a leader's new entries: to be stored and sent to everyone
	send      []Message
	after     []Message
	reads     []Read
	snapshots []SnapshotRequest
	sizeHint  int // how many proposals the last Ready held
}

// New returns a node that continues from what was recovered. It panics when Config.Validate complains, or when rec
// cannot have been written by a node.
func New(cfg Config, rec Recovered, now Time) *Node {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	cfg = cfg.withDefaults()
	if rec.Truncated > rec.Applied {
		broken("recovered: truncated <= applied %d expected, found %d", rec.Applied, rec.Truncated)
	}
	n := &Node{
		cfg:       cfg,
		self:      slices.Index(cfg.Voters, cfg.ID),
		now:       now,
		promised:  rec.Promised,
		truncated: rec.Truncated,
		applied:   rec.Applied,
		emitted:   rec.Applied,
		chosen:    rec.Applied,
		roundMax:  rec.Promised.Round,
		peers:     make([]peer, len(cfg.Voters)),
	}
	n.repair.damaged = rec.Damaged && !cfg.bugs.has(BugDamagedVotes)
	n.out.viewed.damaged = rec.Damaged
	n.recoverEntries(rec)
	if !rec.Promised.IsZero() && !cfg.bugs.has(BugNoLeaseWait) {
		n.barrier = now + cfg.Lease // the leader of Promised may hold a lease granted before the restart
	}
	n.resetElection(now)
	if len(cfg.Voters) == 1 && !rec.Damaged {
		n.electionAt = now
	}
	return n
}

func (n *Node) recoverEntries(rec Recovered) {
	n.window = newWindow(firstKept(rec))
	for i := range rec.Entries {
		e := rec.Entries[i]
		if i > 0 && rec.Entries[i-1].Slot >= e.Slot {
			broken("recovered: ascending slots expected, found %d at index %d", e.Slot, i)
		}
		if e.Slot < n.window.lo {
			continue
		}
		if e.Kind != Command && e.Kind != Noop {
			broken("recovered: a known kind expected at slot %d, found %v", e.Slot, e.Kind)
		}
		if rec.Promised.Less(e.Ballot) {
			broken("recovered: accepted <= promised %v expected at slot %d, found %v", rec.Promised, e.Slot, e.Ballot)
		}
		n.window.put(e, 0)
	}
	for n.chosen < rec.Chosen && n.window.at(n.chosen+1).held() {
		n.chosen++
	}
	n.evict()
}

// firstKept returns the first slot for the window: entries up to Applied are worth keeping only without a gap.
func firstKept(rec Recovered) Slot {
	first := rec.Applied + 1
	for i := len(rec.Entries) - 1; i >= 0; i-- {
		if s := rec.Entries[i].Slot; s+1 == first && s > rec.Truncated {
			first = s
		}
	}
	return first
}

// Step takes in a message. now is read after the message was received. An error says that the message makes no
// sense; it was ignored and the node goes on.
func (n *Node) Step(now Time, m Message) error {
	n.advance(now)
	i := n.index(m.From)
	if i < 0 || i == n.self || m.To != n.cfg.ID {
		return ErrUnknownPeer
	}
	if !wellFormed(&m) {
		return ErrBadMessage
	}
	if m.Kind != MsgPreVote && m.Kind != MsgPreVoteReply {
		n.sawRound(m.Ballot.Round) // a pre-vote only talks of its ballot, nobody has used it
	}
	n.sawRound(m.Promised.Round)
	switch m.Kind {
	case MsgPreVote:
		n.onPreVote(i, &m)
	case MsgPreVoteReply:
		n.onPreVoteReply(i, &m)
	case MsgPrepare:
		n.onPrepare(i, &m)
	case MsgPromise:
		n.onPromise(i, &m)
	case MsgAccept:
		n.onAccept(&m)
	case MsgAccepted:
		n.onAccepted(i, &m)
	case MsgHeartbeat:
		n.onHeartbeat(&m)
	case MsgHeartbeatReply:
		n.onHeartbeatReply(i, &m)
	case MsgCatchUp:
		n.onCatchUp(i, &m)
	case MsgLearn:
		n.onLearn(&m)
	case MsgTimeoutNow:
		n.onTimeoutNow(&m)
	case MsgRepair:
		n.onRepair(&m)
	case MsgRepairReply:
		n.onRepairReply(&m)
	}
	return nil
}

// wellFormed checks what every later step relies on.
func wellFormed(m *Message) bool {
	if m.Kind == 0 || m.Kind > MsgRepairReply {
		return false
	}
	owner := NodeID(0) // whose ballot the message must carry
	switch m.Kind {
	case MsgPreVote, MsgPrepare, MsgAccept, MsgHeartbeat, MsgTimeoutNow, MsgRepairReply:
		owner = m.From
	case MsgPreVoteReply, MsgPromise, MsgAccepted, MsgHeartbeatReply:
		owner = m.To
	}
	if owner != 0 && m.Ballot.Node != owner {
		return false
	}
	if (m.Kind == MsgPromise || m.Kind == MsgAccepted) && m.Next != 0 && m.Next <= m.Slot {
		return false
	}
	dense := m.Kind == MsgAccept || m.Kind == MsgLearn
	for i := range m.Entries {
		e := &m.Entries[i]
		switch {
		case e.Slot == 0, e.Kind != Command && e.Kind != Noop, e.Ballot.IsZero():
			return false
		case i > 0 && (e.Slot <= m.Entries[i-1].Slot || dense && e.Slot != m.Entries[i-1].Slot+1):
			return false
		case m.Kind == MsgAccept && e.Ballot != m.Ballot:
			return false
		case m.Kind == MsgPromise && (e.Slot < m.Slot || m.Next != 0 && e.Slot >= m.Next || m.Ballot.Less(e.Ballot)):
			return false
		}
	}
	return true
}

// Tick lets time pass. Call it every few milliseconds.
func (n *Node) Tick(now Time) {
	n.advance(now)
	switch n.role {
	case Leader:
		n.tickLeader()
	case PreCandidate, Candidate:
		if n.now >= n.electionAt {
			n.startPreVote()
		} else if n.now >= n.retryAt {
			n.askAgain()
		}
	case Follower:
		at := n.electionAt
		if n.reluctant {
			at += 2 * n.cfg.ElectionTimeout
		}
		if n.now >= at {
			n.startPreVote()
		}
	}
	n.tickCatchUp()
}

// SetReluctant says whether this node is a poor leader for a while, because its disk is full for instance. It then
// campaigns only when no other node has become leader in the time in which each of them had its turn, and takes no
// leadership that is handed to it. It votes as ever.
func (n *Node) SetReluctant(reluctant bool) { n.reluctant = reluctant }

// Persisted says that everything up to Ready number seq is durable.
func (n *Node) Persisted(seq uint64) {
	if seq > n.out.seq {
		broken("persisted: a number up to %d expected, found %d", n.out.seq, seq)
	}
	if seq <= n.out.durable {
		return
	}
	n.out.durable = seq
	switch n.role {
	case Candidate:
		n.ownPromise()
	case Leader:
		n.ownVotes()
	}
}

// Applied says that the state machine has applied everything up to slot, not necessarily durably.
func (n *Node) Applied(slot Slot) {
	if slot > n.emitted {
		broken("applied: a slot up to %d expected, found %d", n.emitted, slot)
	}
	if slot > n.applied {
		n.applied = slot
		n.evict()
		n.resumeStalled()
	}
}

// Truncate says that the driver has cut its log up to and including upTo, which the state machine's durable state
// includes.
func (n *Node) Truncate(upTo Slot) {
	if upTo > n.applied {
		broken("truncate: a slot up to %d expected, found %d", n.applied, upTo)
	}
	if upTo > n.truncated {
		n.truncated = upTo
		n.window.dropTo(upTo)
	}
}

// InstalledSnapshot says that the state machine's durable state now includes everything up to slot, and that the log
// starts after it. The driver must have kept the log's entries after slot, and the promise: they are votes. A snapshot
// of nothing new is ignored. Entries up to slot that were given out in Ready.Apply need not be applied any more.
func (n *Node) InstalledSnapshot(slot Slot) {
	if slot <= n.applied {
		return
	}
	if n.role == Leader && slot >= n.lead.next {
		n.becomeFollower(0) // others have gone on without us
	}
	n.applied, n.truncated = slot, slot
	n.emitted = max(n.emitted, slot)
	n.chosen = max(n.chosen, slot)
	n.window.dropTo(slot)
	n.catchUp.sentAt = 0
	n.dropChosenAccepts()
	n.checkRepaired()
	if n.role == Leader {
		n.advanceChosen()
	}
}

// dropChosenAccepts takes entries that a snapshot has made superfluous out of the next Ready.
func (n *Node) dropChosenAccepts() {
	cut := func(e Entry) bool { return e.Slot <= n.truncated }
	n.out.accept = slices.DeleteFunc(n.out.accept, cut)
	n.out.proposals = slices.DeleteFunc(n.out.proposals, cut)
}

// SnapshotDone says that the sending of a snapshot to a peer has ended. slot and ok are for the record: the peer asks
// again by itself where it must.
func (n *Node) SnapshotDone(to NodeID, slot Slot, ok bool) {
	i := n.index(to)
	if i < 0 {
		return
	}
	n.peers[i].snapshot = false
	if ok {
		n.peers[i].chosen = max(n.peers[i].chosen, slot)
	}
}

// Status returns a view of the node.
func (n *Node) Status() Status {
	s := Status{ID: n.cfg.ID, Role: n.role, Leader: n.leader, Promised: n.promised, Last: max(n.window.last(), n.chosen),
		Chosen: n.chosen, Applied: n.applied, Truncated: n.truncated, Damaged: n.repair.damaged, LeaseUntil: n.LeaseUntil()}
	if n.role == Candidate || n.role == Leader {
		s.Ballot = n.ballot
	}
	if n.role != Leader {
		return s
	}
	for i, id := range n.cfg.Voters {
		p := &n.peers[i]
		ps := PeerStatus{ID: id, Chosen: p.chosen, HeardAt: p.heardAt, Snapshot: p.snapshot, Reachable: n.reachable(i)}
		if i == n.self {
			ps.Chosen, ps.HeardAt = n.chosen, n.now
		}
		s.Peers = append(s.Peers, ps)
	}
	return s
}

// advance takes in a reading of the clock.
func (n *Node) advance(now Time) { n.now = max(n.now, now) }

func (n *Node) sawRound(r uint64) { n.roundMax = max(n.roundMax, r) }

// index returns a voter's index, or -1.
func (n *Node) index(id NodeID) int { return slices.Index(n.cfg.Voters, id) }

// nextSeq is the number under which what is stored from now on becomes durable.
func (n *Node) nextSeq() uint64 { return n.out.seq + 1 }

// isQuorum reports whether the voters of mask are a quorum for a slot. Every decision about quorums is taken here.
func (n *Node) isQuorum(_ Slot, mask uint64) bool {
	count := bits.OnesCount64(mask)
	if n.cfg.bugs.has(BugMinorityQuorum) {
		return count >= len(n.cfg.Voters)/2
	}
	return count > len(n.cfg.Voters)/2
}

// resetElection puts the next campaign off by an election timeout or up to two.
func (n *Node) resetElection(now Time) {
	n.jitter = Time(n.cfg.Rand.Int64N(int64(n.cfg.ElectionTimeout)))
	n.electionAt = now + n.cfg.ElectionTimeout + n.jitter
}

// postponeElection starts the election timeout again, with the same random part.
func (n *Node) postponeElection() { n.electionAt = n.now + n.cfg.ElectionTimeout + n.jitter }

// becomeFollower gives up any other role. leader may be zero.
func (n *Node) becomeFollower(leader NodeID) {
	if n.role != Follower {
		n.failReads()
		// What was proposed is accepted here all the same, and before anything that a newer leader brings.
		n.out.accept = append(n.out.accept, n.out.proposals...)
		n.out.proposals = nil
		n.role = Follower
		n.lead = lead{}
		n.found = found{}
		n.released = Ballot{}
		n.resetElection(n.now)
	}
	n.leader = leader
}

// raise promises a ballot, if it is newer. It takes leadership away from an older one.
func (n *Node) raise(b Ballot) {
	if !n.promised.Less(b) {
		return
	}
	n.promised, n.promisedSeq, n.out.hard = b, n.nextSeq(), true
	n.sawRound(b.Round)
	if n.role != Follower && n.ballot != b {
		n.becomeFollower(0)
	}
	if n.leader != b.Node {
		n.leader = 0
	}
}

// store accepts an entry, durable with the next Ready.
func (n *Node) store(e Entry) {
	if n.promised.Less(e.Ballot) {
		broken("accepted <= promised %v expected at slot %d, found %v", n.promised, e.Slot, e.Ballot)
	}
	n.window.put(e, n.nextSeq())
}

// evict drops from memory what is durable and given out, as long as there is too much.
func (n *Node) evict() {
	keep := n.applied
	for n.window.bytes > n.cfg.CacheBytes && n.window.lo <= keep && n.window.lo < n.window.hi {
		n.window.dropFirst()
	}
}

// slotLimit is the last slot that may be held in memory.
func (n *Node) slotLimit() Slot {
	alpha := Slot(n.cfg.Alpha)
	return min(n.chosen, n.applied+2*alpha) + 2*alpha
}

// full reports whether so much waits to be applied that nothing more should be taken in.
func (n *Node) full() bool {
	return n.window.bytes > 2*n.cfg.CacheBytes && n.chosen > n.applied
}

// broken panics because an invariant does not hold. The checks stay on in production: a replica that has broken a rule
// must stop. They call broken only when they fail, so that they cost no allocation.
func broken(format string, args ...any) {
	panic("paxos: " + fmt.Sprintf(format, args...))
}
