// Package embedded keeps the tree in Koinon's own replicated store: typed rows
// as protobuf under short ordered keys, which docs/formats/tree.md lists.
//
// [Machine] runs the commands that the log agreed on, on every replica;
// [Read] answers queries from a consistent view.
package embedded

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
)

// Machine is the tree as one namespace, replica.NSMeta, of a group's state. The
// body of a command is a metapb.Command, its result a metapb.Result, and what
// goes to OnApply is an *Outcome. The zero Machine is ready.
type Machine struct{}

var (
	_ replica.Machine      = Machine{}
	_ replica.SessionEnder = Machine{}
)

// Outcome is what a command did, for the leases of those who cache.
type Outcome struct {
	// Inos are the inodes that the command changed: meta.Recorder.Inos.
	Inos []sys.Ino
	// Attrs are the attributes of Inos as the command left them, without
	// those it deleted. They are missing when it changed more than 16.
	Attrs []*metapb.Attr
	// Order is for whoever hears of the outcome first to pass on to those
	// who see it later. This package leaves it 0.
	Order uint64
}

// outcomeAttrsMax is the most inodes whose attributes an Outcome carries.
const outcomeAttrsMax = 16

// Apply runs one command at its stamp's time. What is not a command this
// version knows is refused, on every replica alike.
func (Machine) Apply(tx *replica.Tx, st replica.Stamp, body []byte) (result []byte, local any) {
	return apply(tx, st, body)
}

// SessionEnded queues the slices that the session reserved and never
// committed.
func (Machine) SessionEnded(tx *replica.Tx, st replica.Stamp, session sys.SessionID) {
	run(tx, st, &metapb.Command{Op: &metapb.Command_EndSession{
		EndSession: &metapb.EndSession{Session: uint64(session)},
	}})
}

func apply(store Store, st replica.Stamp, body []byte) (result []byte, local any) {
	cmd := &metapb.Command{}
	if err := proto.Unmarshal(body, cmd); err != nil {
		failure := &metapb.Failure{Kind: uint32(sys.Invalid), Op: "meta.Apply", Cause: "not a command"}
		return encode(&metapb.Result{Failure: failure}), nil
	}
	res, outcome := run(store, st, cmd)
	if res == nil {
		return nil, nil
	}
	return encode(res), outcome
}

// run runs a command. The result is nil when the store is in trouble, which
// the store itself keeps; its host stops.
func run(store Store, st replica.Stamp, cmd *metapb.Command) (*metapb.Result, *Outcome) {
	cmd.TimeNs = st.TimeNs
	tx := NewTx(store)
	touched := meta.Touched(tx)
	res, err := meta.Apply(touched, cmd)
	if err != nil {
		if tx.trouble == nil {
			panic(fmt.Sprintf("embedded: slot %d: expected sound rows, found %v", st.Slot, err))
		}
		return nil, nil
	}
	out := &Outcome{Inos: touched.Inos()}
	if len(out.Inos) <= outcomeAttrsMax {
		out.Attrs = touched.Attrs()
	}
	return res, out
}

func encode(res *metapb.Result) []byte {
	b, err := rowOptions.Marshal(res)
	if err != nil {
		panic(fmt.Sprintf("embedded: expected a result that encodes, found %v", err))
	}
	return b
}

// Read answers a query from a view of the tree. A refusal is in the Answer; an
// error is trouble of the store.
func Read(r Reader, q *metapb.Query) (*metapb.Answer, error) {
	return meta.Read(NewTx(readOnly{r}), q)
}
