package replica

import (
	"errors"
	"fmt"

	"github.com/koinon/koinon/internal/sys"
)

// Namespace is one machine's part of a group's state.
type Namespace byte

// The namespaces. Numbers are part of the on-disk format.
const (
	NSSession Namespace = 0 // built in
	NSMeta    Namespace = 1
	NSCluster Namespace = 2
	NSKV      Namespace = 3
	NSProc    Namespace = 4
	// nsLocal holds what belongs to this replica and not to the state.
	nsLocal Namespace = 0xff
)

// Stamp says where and when a command was agreed. It is the same on every
// replica.
type Stamp struct {
	// Slot is the log position. Commands of one entry share it.
	Slot uint64
	// Index counts the commands within the slot's entry, from 0.
	Index uint32
	// TimeNs is the leader's wall clock when it proposed, in ns since the
	// epoch. It never falls from one command to the next.
	TimeNs  int64
	Session sys.SessionID
	Seq     uint64
}

// Command is one deterministic operation on a namespace.
type Command struct {
	// Session and Seq name the command; a command with the same names is
	// applied once and every try gets the first one's result. Session 0 means
	// that the caller does not retry. Seq starts at 1.
	Session sys.SessionID
	Seq     uint64
	// Ack says that the results of all of the session's commands up to and
	// including Ack have arrived; they may be forgotten. It is below Seq.
	Ack uint64
	NS  Namespace
	// Reserve says that the command frees space, or is little and must not
	// wait: it may use what a nearly full disk has left.
	Reserve bool
	// Body is what Machine.Apply gets. The caller must not change it until
	// Propose returns.
	Body []byte
}

// Machine is one namespace of the replicated state.
//
// Apply runs one command. It is called in log order, on every replica, by one
// goroutine per group, and must do the same on each: no clock, no randomness,
// no map order. A command that is refused must not have written anything; the
// refusal is in the result. The result is kept until the session acknowledges
// it. local goes to the OnApply hooks and to a proposer on this node; it is
// not kept, so a retried command's second answer has local nil.
// Trouble of the engine is kept by the Tx (its methods' errors): Apply may
// return anything then, as the host stops.
// body is valid only during the call.
type Machine interface {
	Apply(tx *Tx, st Stamp, body []byte) (result []byte, local any)
}

// SessionEnder is a Machine that wants to know when a session ended, so that
// it releases what the session held. SessionEnded runs as part of the command
// that ends the session, under the rules of Apply.
type SessionEnder interface {
	SessionEnded(tx *Tx, st Stamp, session sys.SessionID)
}

// Reader reads a consistent view of one namespace. Slices it hands out must
// not be changed; those of Scan are valid only during the callback, those of
// Get until the function that was given the Reader returns.
type Reader interface {
	// Get returns the key's value, nil when it is absent.
	Get(key []byte) ([]byte, error)
	// Scan calls fn for the keys in [lo, hi) in order until fn returns false.
	// hi nil means the end of the namespace.
	Scan(lo, hi []byte, fn func(key, value []byte) bool) error
}

// LeaderError is the cause of a sys.NotLeader error, and of a sys.Unavailable
// one that was caused by a change of leader.
type LeaderError struct {
	// Leader is who leads as far as this replica knows, 0 when nobody.
	Leader sys.NodeID
	// Proposed says that the command had been proposed: it may take effect.
	// Retrying it under its (Session, Seq) is safe.
	Proposed bool
}

// Error names the leader.
func (e *LeaderError) Error() string {
	switch {
	case e.Proposed:
		return fmt.Sprintf("leadership was lost before the outcome was known; the leader may be %v", e.Leader)
	case e.Leader == 0:
		return "no leader is known"
	}
	return fmt.Sprintf("the leader is %v", e.Leader)
}

// LeaderOf returns the leader that err points to. It is false when err has
// none or the leader is not known.
func LeaderOf(err error) (sys.NodeID, bool) {
	le, ok := errors.AsType[*LeaderError](err)
	if !ok || le.Leader == 0 {
		return 0, false
	}
	return le.Leader, true
}

func notLeader(op sys.Op, leader sys.NodeID) error {
	return sys.E(op, sys.NotLeader, &LeaderError{Leader: leader})
}
