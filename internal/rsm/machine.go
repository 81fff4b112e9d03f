package rsm

import "github.com/koinon/koinon/internal/sys"

// Namespace is one machine's part of a group's state.
type Namespace byte

// The namespaces. Numbers are part of the on-disk format.
const (
	NSSession Namespace = 0 // built in
	NSMeta    Namespace = 1
	NSCluster Namespace = 2
	NSKV      Namespace = 3
	NSProc    Namespace = 4
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
	Apply(tx Tx, st Stamp, body []byte) (result []byte, local any)
}

// SessionEnder is a Machine that wants to know when a session ended, so that
// it releases what the session held. SessionEnded runs as part of the command
// that ends the session, under the rules of Apply.
type SessionEnder interface {
	SessionEnded(tx Tx, st Stamp, session sys.SessionID)
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

// Tx reads and writes one namespace within one command. It sees the writes of
// the commands before it in the same entry. It must not be used after Apply
// returned. Slices from Get are valid until Apply returns, those of Scan
// during the callback; neither may be changed. A key with an empty value gives
// an empty slice that is not nil. The function that is given to Scan may write;
// whether Scan then sees it is not said.
type Tx interface {
	Reader
	// Set writes a row. The value belongs to the Tx from then on, the key does not.
	Set(key, value []byte)
	// Delete removes a row; that there is none is fine.
	Delete(key []byte)
	// In returns the Tx of another namespace of the group, for a command that
	// changes more than its own: all of it becomes visible in one step. What it did
	// there it has to tell by Applied.
	In(ns Namespace) Tx
	// Applied has the OnApply hooks of the Tx's namespace called for a change that a
	// command of another namespace has made in it.
	Applied(st Stamp, local any)
}
