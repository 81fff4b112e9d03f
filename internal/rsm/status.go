package rsm

import (
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// Role is what a replica is in its group.
type Role uint8

// The roles.
const (
	Follower Role = iota
	Candidate
	Leader
)

// String returns the role in lower case.
func (r Role) String() string {
	switch r {
	case Follower:
		return "follower"
	case Candidate:
		return "candidate"
	case Leader:
		return "leader"
	}
	return "unknown"
}

// Status is what a replica says about itself and its group.
type Status struct {
	Group  sys.GroupID
	Self   sys.NodeID
	Role   Role
	Leader sys.NodeID // 0 when nobody is known
	// Ballot is the round of the highest ballot promised, and its proposer.
	BallotRound uint64
	BallotNode  sys.NodeID

	Chosen    uint64 // every slot up to it is chosen
	Applied   uint64 // every slot up to it is in the state
	Flushed   uint64 // every slot up to it is in the state on stable storage
	Truncated uint64 // every slot up to it is cut from the log

	// Lease is how much longer the leader may serve reads without asking; 0
	// when it may not.
	Lease time.Duration
	// Ready says that the leader has applied what its predecessors left.
	Ready bool
	// NoSpace says that new commands are refused because the disk is full.
	NoSpace bool
	// Damaged, when not empty, says that the replica does not vote and how to
	// repair it.
	Damaged string

	// Voters and Learners are the members in force, in ID order; none as long
	// as a node that joins knows nothing. NextVoters and NextLearners are those
	// of a change that is under way, none otherwise.
	Voters, Learners         []sys.NodeID
	NextVoters, NextLearners []sys.NodeID
	// Voter says that this node is one of Voters.
	Voter bool
	// Removed says that this node has been a member and is none any more: it
	// can be stopped.
	Removed bool

	Peers []PeerStatus // what the leader knows of the others, in ID order

	QueueCommands int // commands that wait to be proposed
	QueueBytes    int
	InFlight      int // entries proposed and not applied

	Proposals uint64 // commands taken from callers
	Entries   uint64 // entries proposed
	Applies   uint64 // commands applied
	Deduped   uint64 // commands that had been applied before
	Reads     uint64 // linearizable reads
	ReadIndex uint64 // of these, how many needed a round
	Elections uint64 // changes of leader seen

	// Batch is how many commands the entries carry that this replica proposed.
	Batch Spread
	// SyncTime is how long the log's writes take with their sync, in ns: of the
	// node's log, all groups.
	SyncTime Spread
	// Dropped counts messages that arrived faster than they were handled.
	Dropped uint64

	LogSyncs   uint64 // of the node's log, all groups
	LogBytes   uint64
	LogRecords uint64
	Snapshots  uint64 // sent
	Installs   uint64 // snapshots installed
	Sessions   int
}

// PeerStatus is what a leader knows of another member.
type PeerStatus struct {
	ID    sys.NodeID
	Voter bool // in force; otherwise a learner, or one that comes or goes
	// Reachable says that it has answered within an election timeout.
	Reachable bool
	// Snapshot says that a snapshot is on its way to it.
	Snapshot bool
	// Full says that its disk is full, as it says itself.
	Full bool
	// Match is the slot up to which the follower is known to have the log.
	Match uint64
	// Lag is how many chosen slots it may lack. Below 64 a learner can become a
	// voter.
	Lag uint64
	// LastSeen is how long ago it answered; negative when never.
	LastSeen time.Duration
}

// Spread sums up what a meter has seen since the process started.
type Spread struct {
	Count uint64
	Mean  float64
	// P50 and P99 are at most a quarter above the true value.
	P50, P99 uint64
	Max      uint64
	// Below[k] is how many were below 2 to the power of k.
	Below [65]uint64
}
