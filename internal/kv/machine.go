package kv

import (
	"fmt"

	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// Machine is the coordination service as one namespace, replica.NSKV, of a
// group's state. The body of a command is a kvpb.Command, its result a
// kvpb.Result. A Server of the same process hears through it what changes.
type Machine struct{ hub *hub }

var (
	_ rsm.Machine      = (*Machine)(nil)
	_ rsm.SessionEnder = (*Machine)(nil)
)

// NewMachine returns the machine of one host.
func NewMachine() *Machine { return &Machine{hub: newHub()} }

// store is what a command reads and writes.
type store interface {
	rsm.Reader
	Set(key, value []byte)
	Delete(key []byte)
}

// Apply runs one command. What is not a command this version knows is refused,
// on every replica alike.
func (m *Machine) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) (result []byte, local any) {
	return m.apply(tx, st, body), nil
}

// SessionEnded deletes the session's ephemeral keys, and gives its locks to
// those who wait.
func (m *Machine) SessionEnded(tx rsm.Tx, st rsm.Stamp, session sys.SessionID) {
	m.ended(tx, st, session)
}

func (m *Machine) apply(tx store, st rsm.Stamp, body []byte) []byte {
	var cmd kvpb.Command
	err := pb.Unmarshal(body, &cmd)
	if err == nil {
		err = Check(&cmd)
	}
	if err != nil {
		return pb.Marshal(&kvpb.Result{Failure: failure(err)})
	}
	c := begin(tx, st)
	res := &kvpb.Result{}
	switch op := cmd.Op.(type) {
	case *kvpb.Command_Txn:
		res = c.txn(op.Txn)
	case *kvpb.Command_Open:
		res = c.open(op.Open)
	case *kvpb.Command_Acquire:
		res = c.acquire(op.Acquire)
	case *kvpb.Command_Release:
		res = c.release(op.Release)
	case *kvpb.Command_Compact:
		c.compact(op.Compact)
	}
	m.end(c)
	res.Revision = c.state.rev
	return pb.Marshal(res)
}

func (m *Machine) ended(tx store, st rsm.Stamp, session sys.SessionID) {
	c := begin(tx, st)
	c.endSession(uint64(session))
	m.end(c)
}

// end writes what a command made of the state, and tells the hub.
func (m *Machine) end(c *command) {
	if c.state != c.was {
		c.tx.Set([]byte{rowState}, c.state.encode())
		m.hub.publish(c.state, c.events)
	}
	if c.opened.ttlNs != 0 {
		m.hub.sessionOpened(c.opened)
	}
}

// command is one command while it runs.
type command struct {
	tx    store
	st    rsm.Stamp
	was   state
	state state
	steps uint32 // made at the new revision

	// For those who wait on this node.
	events []event
	opened openedSession
}

// openedSession tells of an Open.
type openedSession struct {
	id    sys.SessionID
	ttlNs int64
}

func begin(tx store, st rsm.Stamp) *command {
	c := &command{tx: tx, st: st}
	c.state = decodeState(c.get([]byte{rowState}))
	c.was = c.state
	return c
}

// revision is the command's own; asking for it makes it one that changes
// something.
func (c *command) revision() uint64 {
	if c.state.rev == c.was.rev {
		c.state.rev++
	}
	return c.state.rev
}

// get returns a row, nil when it is absent. Trouble of the engine is kept by
// the Tx, and the host stops: what the command does then does not count.
func (c *command) get(key []byte) []byte {
	v, err := c.tx.Get(key)
	if err != nil {
		return nil
	}
	return v
}

// scan is get for a range.
func (c *command) scan(lo, hi []byte, fn func(key, value []byte) bool) {
	if err := c.tx.Scan(lo, hi, fn); err != nil {
		return
	}
}

func (c *command) set(key []byte, row pb.Message) { c.tx.Set(key, pb.Marshal(row)) }

// read fills row from a key and says whether it is there.
func (c *command) read(key []byte, row pb.Message) bool {
	raw := c.get(key)
	if raw == nil {
		return false
	}
	decode(raw, row)
	return true
}

func decode(raw []byte, row pb.Message) {
	if err := pb.Unmarshal(raw, row); err != nil {
		panic(fmt.Sprintf("kv: expected a sound %T in the state, found %v", row, err))
	}
}
