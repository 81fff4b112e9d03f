package kv

import (
	"bytes"
	"slices"

	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/sys"
)

// txn makes all changes if all comparisons hold.
func (c *command) txn(txn *kvpb.Txn) *kvpb.Result {
	res := &kvpb.Result{}
	for _, cmp := range txn.Compares {
		if found, ok := c.compare(cmp); !ok {
			res.Mismatch = true
			res.Found = append(res.Found, found)
		}
	}
	if res.Mismatch {
		return res
	}
	ephemeral := 0
	for _, ch := range txn.Changes {
		if ch.GetPut().GetEphemeral() {
			ephemeral++
		}
	}
	if ephemeral > 0 {
		if err := c.mayBind(ephemeral); err != nil {
			return &kvpb.Result{Failure: failure(err)}
		}
	}
	for _, ch := range txn.Changes {
		var replaced uint64
		if put := ch.GetPut(); put != nil {
			replaced = c.put(ch.Key, put)
		} else {
			replaced = c.delete(ch.Key)
		}
		res.Replaced = append(res.Replaced, replaced)
	}
	return res
}

// compare says whether a condition holds, and what was found if not.
func (c *command) compare(cmp *kvpb.Compare) (*kvpb.KeyState, bool) {
	if want, ok := cmp.Want.(*kvpb.Compare_Fence); ok {
		var lock kvpb.Lock
		held := c.read(named(rowLock, cmp.Key), &lock)
		return &kvpb.KeyState{Key: cmp.Key, Fence: lock.Fence}, held && lock.Fence == want.Fence
	}
	k := c.key(cmp.Key)
	found := &kvpb.KeyState{Key: cmp.Key}
	if live(k) {
		found.ModRevision = k.ModRevision
	}
	if want, ok := cmp.Want.(*kvpb.Compare_Value); ok {
		if !live(k) || k.Size != uint64(len(want.Value)) {
			return found, false
		}
		var v kvpb.Version
		c.read(versionKey(cmp.Key, k.ModRevision), &v)
		return found, bytes.Equal(v.Value, want.Value)
	}
	return found, found.ModRevision == cmp.GetModRevision()
}

// key reads a key's row, nil when there is none.
func (c *command) key(key []byte) *kvpb.Key {
	k := &kvpb.Key{}
	if !c.read(named(rowKey, key), k) {
		return nil
	}
	return k
}

func live(k *kvpb.Key) bool { return k != nil && !k.Deleted }

func (c *command) put(key []byte, put *kvpb.Put) (replaced uint64) {
	old := c.key(key)
	k := &kvpb.Key{ModRevision: c.revision(), Version: 1, Size: uint64(len(put.Value))}
	k.CreateRevision = k.ModRevision
	if live(old) {
		replaced, k.CreateRevision, k.Version = old.ModRevision, old.CreateRevision, old.Version+1
	}
	if put.Ephemeral {
		k.Session = uint64(c.st.Session)
	}
	c.rebind(key, old, k.Session)
	c.set(versionKey(key, k.ModRevision), &kvpb.Version{Value: put.Value,
		CreateRevision: k.CreateRevision, Version: k.Version, Session: k.Session})
	c.step(key, old, k)
	return replaced
}

func (c *command) delete(key []byte) (replaced uint64) {
	old := c.key(key)
	if !live(old) {
		return 0
	}
	k := &kvpb.Key{ModRevision: c.revision(), Deleted: true}
	c.rebind(key, old, 0)
	c.set(versionKey(key, k.ModRevision), &kvpb.Version{Deleted: true, Session: old.Session})
	c.step(key, old, k)
	return old.ModRevision
}

// rebind moves a key from the session it was bound to, if any, to another one.
func (c *command) rebind(key []byte, old *kvpb.Key, session uint64) {
	was := uint64(0)
	if live(old) {
		was = old.Session
	}
	if was == session {
		return
	}
	if was != 0 {
		c.unbind(was, rowKey, key)
	}
	if session != 0 {
		c.bind(session, rowKey, key, nil)
	}
}

// step writes a key's new row, and the change into history.
func (c *command) step(key []byte, old, k *kvpb.Key) {
	step := &kvpb.Step{Key: key, Deleted: k.Deleted, Cost: stepCost + 2*uint64(len(key))}
	if live(old) {
		step.Replaced = old.ModRevision
		step.Cost += old.Size
	}
	c.set(named(rowKey, key), k)
	c.set(stepKey(k.ModRevision, c.steps), step)
	c.steps++
	c.state.bytes += step.Cost
	c.events = append(c.events, event{key: string(key)})
}

// stepCost is about what a step costs beside key and value, in bytes.
const stepCost = 64

// compact forgets the oldest history: what each forgotten step had replaced is
// not needed any more to show any revision that is left.
func (c *command) compact(op *kvpb.Compact) {
	target := c.state.rev - min(c.state.rev, op.Revisions)
	type forgotten struct {
		rev  uint64
		row  []byte
		step *kvpb.Step
	}
	var gone []forgotten
	left, at := c.state.bytes, c.state.compacted
	all := true // what there is to forget
	c.scan(stepKey(at+1, 0), numbered(rowStep+1, 0)[:1], func(key, value []byte) bool {
		rev := beUint64(key[1:])
		if rev != at {
			if rev > target && left <= op.Bytes {
				return false
			}
			if uint64(len(gone)) >= op.EventsMax {
				all = false
				return false
			}
			at = rev
		}
		step := &kvpb.Step{}
		decode(value, step)
		left -= min(left, step.Cost)
		gone = append(gone, forgotten{rev, slices.Clone(key), step})
		return true
	})
	for _, g := range gone {
		c.tx.Delete(g.row)
		if g.step.Replaced != 0 {
			c.tx.Delete(versionKey(g.step.Key, g.step.Replaced))
		}
		if !g.step.Deleted {
			continue
		}
		c.tx.Delete(versionKey(g.step.Key, g.rev))
		if k := c.key(g.step.Key); k != nil && k.ModRevision == g.rev {
			c.tx.Delete(named(rowKey, g.step.Key))
		}
	}
	if all {
		at = max(at, target)
	}
	c.state.compacted, c.state.bytes = at, left
}

// open makes the command's session one that can be bound to.
func (c *command) open(op *kvpb.Open) *kvpb.Result {
	session := uint64(c.st.Session)
	if session == 0 {
		return &kvpb.Result{Failure: failure(refuse(sys.Invalid, "opened without a session"))}
	}
	row := numbered(rowLease, session)
	if c.get(row) != nil {
		return &kvpb.Result{Failure: failure(refuse(sys.Exist, "the session was opened before"))}
	}
	c.set(row, &kvpb.Lease{TtlNs: op.TtlNs, Owner: op.Owner})
	c.opened = openedSession{c.st.Session, op.TtlNs}
	return &kvpb.Result{}
}

// mayBind refuses what the command's session cannot hold as well.
func (c *command) mayBind(n int) error {
	var lease kvpb.Lease
	if !c.read(numbered(rowLease, uint64(c.st.Session)), &lease) {
		return refuse(sys.Invalid, "locks and ephemeral keys need a session that was opened for them")
	}
	if int(lease.Bound)+n > BoundMax {
		return refuse(sys.Busy, "the session has %d locks and ephemeral keys, at most %d: open another session", lease.Bound, BoundMax)
	}
	return nil
}

func (c *command) bind(session uint64, kind byte, name, value []byte) {
	c.tx.Set(boundKey(session, kind, name), value)
	c.countBound(session, 1)
}

func (c *command) unbind(session uint64, kind byte, name []byte) {
	c.tx.Delete(boundKey(session, kind, name))
	c.countBound(session, -1)
}

func (c *command) countBound(session uint64, by int32) {
	var lease kvpb.Lease
	row := numbered(rowLease, session)
	if c.read(row, &lease) {
		lease.Bound = uint32(int32(lease.Bound) + by)
		c.set(row, &lease)
	}
}

// endSession releases all that a session has, in one revision.
func (c *command) endSession(session uint64) {
	row := numbered(rowLease, session)
	if c.get(row) == nil {
		return // one that never held anything, such as a mount's
	}
	var bound [][]byte
	prefix := numbered(rowBound, session)
	c.scan(prefix, after(prefix), func(key, _ []byte) bool {
		bound = append(bound, slices.Clone(key[len(prefix):]))
		return true
	})
	for _, b := range bound {
		if kind, name := b[0], b[1:]; kind == rowKey {
			c.delete(name)
		} else {
			c.dropLock(session, name)
		}
	}
	c.tx.Delete(row)
}
