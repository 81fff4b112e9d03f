package paxos

import (
	"cmp"
	"fmt"
	"slices"
)

// Node is one replica's part of the protocol: proposer, acceptor and learner in one. It is driven from outside and
// not safe for concurrent use. See the package comment for how to drive it.
type Node struct {
	cfg Config
	now Time // the latest time this node was told
	// life tells this run of the node from earlier ones. One whose disk was lost with others may use a ballot again that an
	// earlier one had promises for, from nodes that have lost them since.
	life uint64

	// The members. configs are chosen, the first one governs the slot after chosen. tentative are a candidate's or
	// leader's: those of Configure entries above chosen that it has found or proposed. peers begin with the node itself.
	configs, tentative []config
	peers              []peer
	left               bool // told that a later configuration is without us

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
	votes    uint64 // pre-votes or promises received, one bit for each of peers
	mute     uint64 // those of damaged replicas, likewise
	released Ballot // the leader's ballot that was given up for this campaign
	found    found
	lead     lead

	out outbox
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
	configs   bool // they have changed
	sizeHint  int  // how many proposals the last Ready held
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
		now:       now,
		promised:  rec.Promised,
		truncated: rec.Truncated,
		applied:   rec.Applied,
		emitted:   rec.Applied,
		chosen:    rec.Applied,
		roundMax:  rec.Promised.Round,
		peers:     []peer{{id: cfg.ID}},
		life:      cfg.Rand.Uint64() | 1,
	}
	switch {
	case len(rec.Configs) > 0 && rec.Configs[0].From > rec.Applied+1:
		broken("recovered: a configuration of slot %d expected, found those from %d on", rec.Applied+1, rec.Configs[0].From)
	case len(rec.Configs) > 0 && !cfg.bugs.has(BugRecoverOldConfig):
		n.setConfigs(rec.Configs)
	case len(cfg.Voters) > 0:
		n.setConfigs(Initial(cfg.Voters))
	}
	n.repair.damaged = rec.Damaged && !cfg.bugs.has(BugDamagedVotes)
	n.out.viewed.damaged = rec.Damaged
	n.recoverEntries(rec)
	if !rec.Promised.IsZero() && !cfg.bugs.has(BugNoLeaseWait) {
		n.barrier = now + cfg.Lease // the leader of Promised may hold a lease granted before the restart
	}
	n.resetElection(now)
	if len(n.configs) == 1 && n.configs[0].voters == 1<<self && !rec.Damaged {
		n.electionAt = now // nobody else can lead, but a leader that has left since may hold a lease
		if n.holdsOff(n.cfg.ID, Ballot{}) {
			n.electionAt = n.barrier
		}
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
		if err := n.checkEntry(&e); err != nil {
			broken("recovered: slot %d: %v", e.Slot, err)
		}
		if rec.Promised.Less(e.Ballot) {
			broken("recovered: accepted <= promised %v expected at slot %d, found %v", rec.Promised, e.Slot, e.Ballot)
		}
		n.window.put(e, 0)
	}
	for n.chosen < rec.Chosen && n.window.at(n.chosen+1).held() && len(n.configs) > 0 && !rec.Damaged {
		n.choose(&n.window.at(n.chosen + 1).entry)
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
	if m.From == 0 || m.From == n.cfg.ID || m.To != n.cfg.ID {
		return ErrUnknownPeer
	}
	if err := n.checkMessage(&m); err != nil {
		return err
	}
	// Whoever proposes is heard: a node that lags may not know yet that it is a member. Answers are the members'.
	i := n.index(m.From)
	if i < 0 && isAnswer(m.Kind) {
		return ErrUnknownPeer
	}
	if m.Kind != MsgPreVote && m.Kind != MsgPreVoteReply {
		n.sawRound(m.Ballot.Round) // a pre-vote only talks of its ballot, nobody has used it
	}
	n.sawRound(m.Promised.Round)
	switch m.Kind {
	case MsgPreVote:
		n.onPreVote(&m)
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
		n.onCatchUp(&m)
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
// configs is the history that came with the snapshot and belongs to slot.
func (n *Node) InstalledSnapshot(slot Slot, configs History) {
	if len(configs) == 0 || configs[0].From > slot+1 {
		broken("installed: the configurations of a state at slot %d expected, found %v", slot, configs)
	}
	if slot <= n.applied {
		return
	}
	if n.role == Leader {
		n.becomeFollower(0) // others have gone on without it, or what it has chosen is in its state before it was given out
	}
	news := len(n.configs) == 0 || slot > n.chosen && !n.cfg.bugs.has(BugSnapshotOldConfig)
	n.applied, n.truncated = slot, slot
	n.emitted = max(n.emitted, slot)
	n.chosen = max(n.chosen, slot)
	n.window.dropTo(slot)
	if news {
		before := n.history()
		n.setConfigs(configs)
		n.out.configs = n.out.configs || !before.Equal(n.history())
	}
	n.catchUp.sentAt = 0
	n.dropChosenAccepts()
	n.checkRepaired()
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
		Chosen: n.chosen, Applied: n.applied, Truncated: n.truncated, Damaged: n.repair.damaged, LeaseUntil: n.LeaseUntil(),
		Configs: n.history(), Voter: n.mayLead(), Left: n.left}
	if n.role == Candidate || n.role == Leader {
		s.Ballot = n.ballot
	}
	if n.role != Leader {
		return s
	}
	if k := len(n.tentative); k > 0 {
		s.Changing = &n.tentative[k-1].Configuration
	}
	voters := n.electorate()
	for i := range n.peers {
		p := n.peers[i]
		switch {
		case p.id == 0:
			continue
		case i == self:
			p.chosen, p.heardAt = n.chosen, n.now
		}
		s.Peers = append(s.Peers, PeerStatus{ID: p.id, Voter: voters&(1<<i) != 0, Chosen: p.chosen, Lag: n.chosen - min(p.chosen, n.chosen),
			HeardAt: p.heardAt, Snapshot: p.snapshot, Reachable: n.reachable(i)})
	}
	slices.SortFunc(s.Peers, func(a, b PeerStatus) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

// advance takes in a reading of the clock.
func (n *Node) advance(now Time) { n.now = max(n.now, now) }

func (n *Node) sawRound(r uint64) { n.roundMax = max(n.roundMax, r) }

// nextSeq is the number under which what is stored from now on becomes durable.
func (n *Node) nextSeq() uint64 { return n.out.seq + 1 }

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
		if len(n.tentative) > 0 {
			n.tentative = nil
			n.configsChanged()
		}
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
