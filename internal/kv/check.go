package kv

import (
	"fmt"
	"time"

	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// Check refuses a command that can never succeed. Client, leader and machine
// all ask it: the first so that the error comes early, the last because the
// log must not depend on the others.
func Check(cmd *kvpb.Command) error {
	switch op := cmd.Op.(type) {
	case *kvpb.Command_Txn:
		return checkTxn(op.Txn)
	case *kvpb.Command_Open:
		if ttl := time.Duration(op.Open.TtlNs); ttl < TTLMin || ttl > TTLMax {
			return refuse(sys.Invalid, "a session's time to live is %v: choose one from %v to %v", ttl, TTLMin, TTLMax)
		}
		if len(op.Open.Owner) > KeyMax {
			return refuse(sys.NameTooLong, "the owner's name has %d bytes, more than %d", len(op.Open.Owner), KeyMax)
		}
	case *kvpb.Command_Acquire:
		return checkKey("lock name", op.Acquire.Name)
	case *kvpb.Command_Release:
		return checkKey("lock name", op.Release.Name)
	case *kvpb.Command_Compact, *kvpb.Command_Begin:
	default:
		return refuse(sys.NotSupported, "not a command this node knows: are all nodes of one version?")
	}
	return nil
}

func checkTxn(txn *kvpb.Txn) error {
	if len(txn.Changes) > ChangesMax || len(txn.Compares) > ChangesMax {
		return refuse(sys.TooBig, "%d comparisons and %d changes in one transaction, at most %d of each: make several", len(txn.Compares), len(txn.Changes), ChangesMax)
	}
	for _, c := range txn.Compares {
		if err := checkKey("key", c.GetKey()); err != nil {
			return err
		}
		if c.Want == nil {
			return refuse(sys.Invalid, "a comparison of key %q asks for nothing this node knows", c.Key)
		}
	}
	seen := make(map[string]struct{}, len(txn.Changes))
	for _, c := range txn.Changes {
		if err := checkKey("key", c.GetKey()); err != nil {
			return err
		}
		if _, twice := seen[string(c.Key)]; twice {
			return refuse(sys.Invalid, "key %q is changed twice in one transaction", c.Key)
		}
		seen[string(c.Key)] = struct{}{}
		switch op := c.Change.(type) {
		case *kvpb.Change_Put:
			if len(op.Put.GetValue()) > ValueMax {
				return refuse(sys.TooBig, "the value of key %q has %d bytes, at most %d: keep it in a file of the tree and the file's path here", c.Key, len(op.Put.GetValue()), ValueMax)
			}
		case *kvpb.Change_Delete:
		default:
			return refuse(sys.Invalid, "what to do with key %q is nothing this node knows", c.Key)
		}
	}
	if n := pb.Size(txn); n > TxnMax {
		return refuse(sys.TooBig, "the transaction has %d bytes, at most %d: make several", n, TxnMax)
	}
	return nil
}

func checkKey(what string, key []byte) error {
	switch {
	case len(key) == 0:
		return refuse(sys.Invalid, "the %s is empty", what)
	case len(key) > KeyMax:
		return refuse(sys.NameTooLong, "the %s has %d bytes, at most %d", what, len(key), KeyMax)
	}
	return nil
}

func refuse(kind sys.Kind, format string, args ...any) error {
	return sys.E(kind, fmt.Sprintf(format, args...))
}

// failure is err as it is kept in a Result.
func failure(err error) *kvpb.Failure {
	cause := err.Error()
	if e, ok := err.(*sys.Error); ok && e.Err != nil {
		cause = e.Err.Error()
	}
	return &kvpb.Failure{Kind: uint32(sys.KindOf(err)), Cause: cause}
}

// failed is the error that a Failure keeps, nil for none.
func failed(op sys.Op, f *kvpb.Failure) error {
	if f == nil {
		return nil
	}
	kind := sys.Kind(0)
	if f.Kind < 1<<8 {
		kind = sys.Kind(f.Kind)
	}
	return sys.E(op, kind, f.Cause)
}
