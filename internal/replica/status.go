package replica

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

	LogSyncs   uint64 // of the node's log, all groups
	LogBytes   uint64
	LogRecords uint64
	Snapshots  uint64 // sent
	Installs   uint64 // snapshots installed
	Sessions   int
}

// PeerStatus is what a leader knows of one follower.
type PeerStatus struct {
	ID sys.NodeID
	// Match is the slot up to which the follower is known to have the log.
	Match uint64
	// Lag is how many chosen slots the follower may lack.
	Lag uint64
	// LastSeen is how long ago it answered; negative when never.
	LastSeen time.Duration
}
