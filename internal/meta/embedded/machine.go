// Package embedded keeps the tree in Koinon's own replicated store: typed rows
// as protobuf under short ordered keys, which docs/formats/tree.md lists.
//
// [Machine] runs the commands that the log agreed on, on every replica;
// [Read] answers queries from a consistent view.
package embedded

import (
	"fmt"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// Machine is the tree as one namespace, replica.NSMeta, of a group's state. The
// body of a command is a metapb.Command, its result a metapb.Result, and what
// goes to OnApply is an *Outcome. The zero Machine is ready.
type Machine struct{}

var (
	_ rsm.Machine      = Machine{}
	_ rsm.SessionEnder = Machine{}
)

// Outcome is what a command did.
type Outcome = meta.Outcome

// Apply runs one command at its stamp's time. What is not a command this
// version knows is refused, on every replica alike.
func (Machine) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) (result []byte, local any) {
	return apply(tx, st, body)
}

// Run runs a command as part of one of another namespace: tx is that of the
// tree. Nothing but the result says what it refused. The Outcome has been
// passed on to those who hear of changes of the tree.
func Run(tx rsm.Tx, st rsm.Stamp, cmd *metapb.Command) (*metapb.Result, *Outcome) {
	res, out := run(tx, st, cmd)
	if res == nil { // trouble of the store: its host stops, whatever follows
		res = &metapb.Result{Failure: &metapb.Failure{Kind: uint32(sys.Other), Op: "meta.Run", Cause: "the state cannot be read"}}
	}
	if out != nil {
		tx.Applied(st, out)
	}
	return res, out
}

// SessionEnded queues the slices that the session reserved and never
// committed.
func (Machine) SessionEnded(tx rsm.Tx, st rsm.Stamp, session sys.SessionID) {
	run(tx, st, &metapb.Command{Op: &metapb.Command_EndSession{
		EndSession: &metapb.EndSession{Session: uint64(session)},
	}})
}

func apply(store Store, st rsm.Stamp, body []byte) (result []byte, local any) {
	cmd := &metapb.Command{}
	if err := pb.Unmarshal(body, cmd); err != nil {
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
func run(store Store, st rsm.Stamp, cmd *metapb.Command) (*metapb.Result, *Outcome) {
	cmd.TimeNs = st.TimeNs
	tx := NewTx(store)
	res, out, err := meta.Run(tx, cmd)
	if err != nil {
		if tx.trouble == nil {
			panic(fmt.Sprintf("embedded: slot %d: expected sound rows, found %v", st.Slot, err))
		}
		return nil, nil
	}
	return res, out
}

func encode(res *metapb.Result) []byte {
	return pb.Marshal(res)
}

// Read answers a query from a view of the tree. A refusal is in the Answer; an
// error is trouble of the store.
func Read(r Reader, q *metapb.Query) (*metapb.Answer, error) {
	return meta.Read(NewTx(readOnly{r}), q)
}
