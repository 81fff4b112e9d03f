package kv

import (
	"encoding/binary"

	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/sys"
)

func beUint64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// acquire takes a free lock; of one that is held it takes a place in the queue,
// unless it only tries. A lock is only free when nobody waits for it.
func (c *command) acquire(op *kvpb.Acquire) *kvpb.Result {
	session := uint64(c.st.Session)
	if err := c.mayBind(1); err != nil {
		return &kvpb.Result{Failure: failure(err)}
	}
	var lock kvpb.Lock
	if !c.read(named(rowLock, op.Name), &lock) {
		c.bind(session, rowLock, op.Name, nil)
		return &kvpb.Result{Fence: c.grant(op.Name, session)}
	}
	if lock.Session == session {
		return &kvpb.Result{Failure: failure(refuse(sys.Busy, "this session holds lock %q already", op.Name))}
	}
	res := &kvpb.Result{Holder: c.describe(&lock), Mismatch: op.Try}
	if op.Try || c.get(boundKey(session, rowLock, op.Name)) != nil {
		return res
	}
	rev := c.revision()
	c.set(waiterKey(op.Name, rev), &kvpb.Waiter{Session: session, SinceNs: c.st.TimeNs})
	c.bind(session, rowLock, op.Name, binary.BigEndian.AppendUint64(nil, rev))
	return res
}

// grant gives a lock to a session that is bound to it. The token is the
// command's revision, so it is higher than any the lock had.
func (c *command) grant(name []byte, session uint64) (fence uint64) {
	fence = c.revision()
	c.set(named(rowLock, name), &kvpb.Lock{Session: session, Fence: fence, SinceNs: c.st.TimeNs})
	return fence
}

func (c *command) release(op *kvpb.Release) *kvpb.Result {
	if !c.dropLock(uint64(c.st.Session), op.Name) {
		return &kvpb.Result{Failure: failure(refuse(sys.NotExist, "this session neither holds lock %q nor waits for it", op.Name))}
	}
	return &kvpb.Result{}
}

// dropLock takes a lock, or a place in its queue, from a session. A lock goes
// to the one who waits longest.
func (c *command) dropLock(session uint64, name []byte) bool {
	place := c.get(boundKey(session, rowLock, name))
	if place == nil {
		return false
	}
	c.revision()
	c.unbind(session, rowLock, name)
	if len(place) == 8 {
		c.tx.Delete(waiterKey(name, beUint64(place)))
		return true
	}
	var next kvpb.Waiter
	var row []byte
	prefix := sized(rowWaiter, name)
	c.scan(prefix, after(prefix), func(key, value []byte) bool {
		row = append(row, key...)
		decode(value, &next)
		return false
	})
	if row == nil {
		c.tx.Delete(named(rowLock, name))
		return true
	}
	c.tx.Delete(row)
	c.tx.Set(boundKey(next.Session, rowLock, name), nil)
	c.grant(name, next.Session)
	c.events = append(c.events, event{lock: true, key: lockEvent(next.Session, name)})
	return true
}

// describe tells people who holds a lock.
func (c *command) describe(lock *kvpb.Lock) *kvpb.Lock {
	var lease kvpb.Lease
	c.read(numbered(rowLease, lock.Session), &lease)
	return &kvpb.Lock{Session: lock.Session, Fence: lock.Fence, SinceNs: lock.SinceNs, Owner: lease.Owner}
}

// lockEvent names what a session waits for in a lock's queue.
func lockEvent(session uint64, name []byte) string { return string(boundKey(session, rowLock, name)) }
