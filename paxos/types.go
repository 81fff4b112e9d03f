package paxos

import (
	"errors"
	"fmt"
	"math/rand/v2"
)

// NodeID names a replica of a group. Zero is nobody.
type NodeID uint64

// Slot is a position in the replicated log, counted from 1. Zero is before the first.
type Slot uint64

// Time is a reading of a node's own monotonic clock in nanoseconds. It must go on
// counting while the machine sleeps (CLOCK_BOOTTIME), and must never go back.
// Readings of different nodes are never compared.
type Time int64

// Ballot orders attempts to lead: by round first, by node second. Two nodes never own the same ballot.
type Ballot struct {
	Round uint64
	Node  NodeID
}

// Less reports whether b is older than o.
func (b Ballot) Less(o Ballot) bool {
	return b.Round < o.Round || b.Round == o.Round && b.Node < o.Node
}

// IsZero reports whether b is the ballot that nobody ever owned.
func (b Ballot) IsZero() bool { return b == Ballot{} }

// String is "round.node".
func (b Ballot) String() string { return fmt.Sprintf("%d.%d", b.Round, b.Node) }

// EntryKind tells what an entry holds.
type EntryKind uint8

// The kinds of entry. The zero kind is no entry at all.
const (
	Command   EntryKind = iota + 1 // bytes given to Propose
	Noop                           // fills a hole after an election, or the way to a configuration; Data is empty
	Configure                      // who is in the group Alpha slots later; see ProposeConfig
)

// String names the kind.
func (k EntryKind) String() string {
	switch k {
	case Command:
		return "command"
	case Noop:
		return "noop"
	case Configure:
		return "configure"
	}
	return fmt.Sprintf("EntryKind(%d)", uint8(k))
}

// Entry is the value accepted for a slot, and the ballot at which it was accepted.
// Data is immutable from the moment it is given to the core: core, messages, log and
// state machine share it.
type Entry struct {
	Slot   Slot
	Ballot Ballot
	Kind   EntryKind
	Data   []byte
}

// MessageKind tells what a message says.
type MessageKind uint8

// The kinds of message. The fields that count for each are listed; From, To and Ballot always do.
const (
	// MsgPreVote asks whether a Prepare at Ballot would be answered. Chosen is the candidate's.
	MsgPreVote MessageKind = iota + 1
	// MsgPreVoteReply answers it: Ballot as asked, Promised the answerer's own, Reject, Mute, Chosen, Truncated. Next is
	// the first slot of a configuration that the candidate is not in and has not heard of, or zero.
	MsgPreVoteReply
	// MsgPrepare asks for a promise that covers every slot from Slot on. Released is the ballot of a
	// leader that has given its lease up in favour of the candidate, or zero. Seq is the candidate's life.
	MsgPrepare
	// MsgPromise answers with a page: Entries accepted in [Slot, Next), Next zero when nothing follows.
	// Those up to Chosen are chosen. Truncated at or above Slot: the page is not there any more.
	// Reject: Promised is why; with Mute it has promised, and has no page. Seq as it came: a promise to another life
	// counts for nothing.
	MsgPromise
	// MsgAccept proposes Entries (ascending slots, all at Ballot); everything up to Chosen is chosen.
	MsgAccept
	// MsgAccepted says that [Slot, Next) is accepted at Ballot and durable. Reject: Promised is why.
	MsgAccepted
	// MsgHeartbeat keeps the followers; Chosen, Slot the last proposed slot, Seq the number of the round,
	// At the leader's clock when it was sent.
	MsgHeartbeat
	// MsgHeartbeatReply answers with Seq and At as they came, Chosen the follower's own, Slot the first slot
	// it misses (zero: none), Next the first slot not known accepted at Ballot and durable. Reject: Promised is why.
	MsgHeartbeatReply
	// MsgCatchUp asks for chosen entries from Slot on, with Slot zero for a snapshot.
	MsgCatchUp
	// MsgLearn gives them: Entries contiguous from Slot, every one chosen; Chosen is the sender's.
	MsgLearn
	// MsgTimeoutNow tells To to campaign at once: the leader of Ballot has given its lease up.
	MsgTimeoutNow
	// MsgRepair asks the leader, on behalf of a damaged replica, for its last proposed slot. Seq is the asker's life.
	MsgRepair
	// MsgRepairReply answers: Seq as it came, Slot the last slot that Ballot has proposed or must propose again.
	MsgRepairReply
)

var kindNames = [...]string{"", "PreVote", "PreVoteReply", "Prepare", "Promise", "Accept", "Accepted", "Heartbeat",
	"HeartbeatReply", "CatchUp", "Learn", "TimeoutNow", "Repair", "RepairReply"}

// String names the kind.
func (k MessageKind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("MessageKind(%d)", uint8(k))
	}
	return kindNames[k]
}

// Message is what nodes of a group say to each other. It is flat, so that any encoding will do;
// an unused field is zero. A message may be lost, delayed, repeated and reordered, but not altered.
// The entries are shared with the core and must not be written to.
type Message struct {
	Kind      MessageKind
	From, To  NodeID
	Ballot    Ballot
	Promised  Ballot // a newer ballot that the sender has promised, when it rejects
	Released  Ballot
	Slot      Slot
	Next      Slot
	Chosen    Slot
	Truncated Slot
	Seq       uint64
	At        Time
	Reject    bool
	Mute      bool // beside Reject: a damaged replica promises, or would, but cannot tell what it has accepted
	Entries   []Entry
}

// Role is what a node is within its group at the moment.
type Role uint8

// The roles.
const (
	Follower     Role = iota // hears a leader, or waits for one
	PreCandidate             // asks whether it could be elected
	Candidate                // collects promises
	Leader                   // proposes
)

// String names the role.
func (r Role) String() string {
	switch r {
	case Follower:
		return "follower"
	case PreCandidate:
		return "pre-candidate"
	case Candidate:
		return "candidate"
	case Leader:
		return "leader"
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// Log reads back entries that were given out in Ready.Accept and have been made durable.
type Log interface {
	// Entries returns accepted entries of the slots [lo, hi), ascending and without a gap from lo on, at most
	// about maxBytes of data but at least one entry when there is one. The core asks only for slots that it
	// knows to be chosen, that are not truncated, and that it no longer holds in memory. On an error, or without
	// any entry, whoever needs them is sent a snapshot instead.
	Entries(lo, hi Slot, maxBytes int) ([]Entry, error)
}

// Config is the shape of a node. Times are durations in nanoseconds.
type Config struct {
	ID NodeID
	// Voters are the voters of a group that begins, this node among them. It counts only where Recovered has no
	// configuration. Without either the node waits until the leader of a group that it was added to speaks to it.
	Voters []NodeID

	// Alpha is how many slots may be proposed beyond the last one known chosen, and how many slots after its own
	// a Configure takes effect: at least 2, the same on every node and for all time; default 1024.
	Alpha           int
	MaxMessageBytes int // entry data in one message, exceeded only by a single larger entry; default 1 MiB
	CacheBytes      int // entry data kept in memory for followers that lag; default 16 MiB

	ElectionTimeout Time // silence after which a follower campaigns, up to twice that at random; default 500 ms
	Heartbeat       Time // default 50 ms
	Lease           Time // at most ElectionTimeout; default 400 ms
	MaxDriftPPM     int  // how much any clock's rate may be off, in parts per million; default 1000

	Rand *rand.Rand // source of all randomness; required
	Log  Log        // required

	bugs Bug // planted by Sabotage
}

// Recovered is what a node finds on its stable storage when it starts. A fresh node passes the zero value.
type Recovered struct {
	Promised Ballot // the last promised ballot that was made durable
	Chosen   Slot   // the last Ready.Chosen that was made durable; may be old
	// Truncated is the last slot cut from the log, Applied the last slot that the state machine's own durable
	// state includes. Truncated <= Applied.
	Truncated, Applied Slot
	// Configs is the history that belongs to the state at Applied. None: Config.Voters.
	Configs History
	// Entries are the accepted entries above Applied, the newest of each slot, in ascending order, with gaps
	// where nothing was accepted. Older entries may be given too; they save reads of the log.
	Entries []Entry
	// Damaged says that accepted entries above Applied which had been durable have been lost, but that Promised is right. Chosen
	// counts for nothing then: what is left of a slot may be an older entry than the one that was chosen.
	// The node then accepts and promises, but tells no candidate what it has accepted and does not lead, until it holds
	// everything it may have voted for. A replica that cannot be sure of Promised must come back under a new identity.
	Damaged bool
}

// Ready is what a driver has to do next. The slices belong to the caller; entry data is shared and read only.
type Ready struct {
	// Seq, when not zero, numbers this step's durable part: hard state and Accept must be on stable storage, as must
	// those of all earlier numbers, before Persisted(Seq) is called and SendAfter is sent. Numbers ascend. There may
	// be nothing to write: then it is reached as soon as its predecessors are. Zero: nothing to write or to wait for.
	Seq uint64

	// HardChanged says that Promised must be made durable with Seq. Chosen may be written with it, or with any
	// other write, or not at all: it saves work after a restart, never before entries of this step and earlier. It
	// should be written when Configs is set.
	HardChanged bool
	Promised    Ballot
	Chosen      Slot

	Accept    []Entry   // to append to the log; a later one for the same slot replaces an earlier one
	Send      []Message // may leave at once
	SendAfter []Message // may leave when Seq is durable
	// Apply are chosen entries, contiguous and in order, already durable in this node's log.
	Apply []Entry
	Reads []Read
	// SnapshotTo are peers that need the state. The driver must call SnapshotDone for each, sooner or later.
	SnapshotTo []SnapshotRequest

	// Configs, when not nil, says that the configurations that this node knows to be chosen have changed, for whoever
	// connects the members. What has to be stored with the state is History.Apply of the entries in Apply. Chosen, once
	// durable here and there, spares the group the voters of before: who knows that theirs are over asks them no more.
	Configs History

	Leader  NodeID // zero when none is known
	Role    Role
	Damaged bool // turns false when a damaged replica has been repaired and the driver may forget that it was
}

// Read answers a ReadIndex.
type Read struct {
	ID   uint64
	Slot Slot // state applied up to Slot or beyond is fit to answer
	Lost bool // leadership was lost first: there is no answer, ask the next leader
}

// SnapshotRequest asks for state to be sent to a peer whose next slot this node has cut from its log.
type SnapshotRequest struct {
	To    NodeID
	After Slot // the snapshot must include this slot at least
}

// Status is a view of a node for people and metrics.
type Status struct {
	ID         NodeID
	Role       Role
	Leader     NodeID
	Promised   Ballot
	Ballot     Ballot // owned, when candidate or leader
	Last       Slot   // the highest slot with an accepted entry
	Chosen     Slot
	Applied    Slot
	Truncated  Slot
	Damaged    bool
	LeaseUntil Time
	Configs    History        // in force for the next slot, then those known to be chosen for later ones
	Changing   *Configuration // proposed by this leader and not known to be chosen yet, or nil
	Voter      bool           // this node is a voter of one of Configs
	Left       bool           // a member has said that a later configuration is without this node: it no longer campaigns
	Peers      []PeerStatus   // in the order of IDs, with this node; a leader's only
}

// PeerStatus is what a leader knows about a member.
type PeerStatus struct {
	ID        NodeID
	Voter     bool // of one of the configurations known, and not just a learner
	Chosen    Slot // known chosen by the peer; for the leader itself its own
	Lag       Slot // slots that it may lack; a learner can be promoted when it is below Alpha
	HeardAt   Time // leader's clock when the peer last answered; zero when never
	Snapshot  bool // a snapshot for it is under way
	Reachable bool // answered within an election timeout
}

// Errors of Propose, ReadIndex, Transfer and Step. They are returned as they are.
var (
	ErrNotLeader   = errors.New("paxos: this node does not lead")
	ErrBusy        = errors.New("paxos: too much is in flight; try again when entries have been applied")
	ErrUnknownPeer = errors.New("paxos: message of or for a node that is not a member here")
	ErrBadMessage  = errors.New("paxos: malformed message")
	ErrAlpha       = errors.New("paxos: the group counts with another Config.Alpha than this node")
	ErrUnreachable = errors.New("paxos: the peer has not answered lately or lags too far behind")
)

// Errors of ProposeConfig, beside ErrNotLeader, ErrBusy and what Configuration.Validate says.
var (
	ErrChangeInFlight = errors.New("paxos: another change of members is not in force yet; try again when it is")
	ErrNoChange       = errors.New("paxos: these are the members already")
	ErrUnconfirmed    = errors.New("paxos: this leader has nothing chosen yet, so that a change of its predecessor may be on its way; try again soon")
	ErrLagging        = errors.New("paxos: a new voter must have been a learner, answer, and lag by less than Alpha slots; try again when it has caught up")
	ErrNoQuorum       = errors.New("paxos: no majority of the new voters answers, so that the group would stop; bring them up first")
)
