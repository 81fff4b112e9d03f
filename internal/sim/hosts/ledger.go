package hosts

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// nsLedger is the namespace of the machine that the clients use.
const nsLedger rsm.Namespace = 7

// position is where a command is in the order of all commands.
type position struct {
	slot  uint64
	index uint32
}

func (p position) less(o position) bool {
	return p.slot < o.slot || p.slot == o.slot && p.index < o.index
}

func (p position) String() string { return fmt.Sprintf("%d.%d", p.slot, p.index) }

// ledger is a machine of values, which keeps a digest of every command that it
// has run:
//
//	"last"         position (12 bytes) and digest (8) of the last command
//	"k" key        the value put last
//
// A command is an operation's number (8 bytes), a key (1 byte), and a value. Its
// result is its position.
type ledger struct{ l *life }

var lastKey = []byte("last")

// Apply implements replica.Machine.
func (m *ledger) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) ([]byte, any) {
	last, err := tx.Get(lastKey)
	if err != nil {
		return nil, nil
	}
	_, digest := decodeLast(last)
	at := position{st.Slot, st.Index}
	digest = digestOf(digest, at, &st, body)
	tx.Set(lastKey, encodeLast(at, digest))
	tx.Set([]byte{'k', body[8]}, bytes.Clone(body[9:]))
	m.l.n.c.history.applied(m.l, at, digest, binary.BigEndian.Uint64(body))
	return encodeLast(at, digest)[:12], nil
}

// SessionEnded implements replica.SessionEnder.
func (m *ledger) SessionEnded(tx rsm.Tx, st rsm.Stamp, id sys.SessionID) {
	tx.Set(fmt.Appendf(nil, "ended%d", uint64(id)), binary.BigEndian.AppendUint64(nil, st.Slot))
}

func encodeLast(at position, digest uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, at.slot)
	b = binary.BigEndian.AppendUint32(b, at.index)
	return binary.BigEndian.AppendUint64(b, digest)
}

func decodeLast(b []byte) (at position, digest uint64) {
	if len(b) < 20 {
		return position{}, 0
	}
	return position{binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])}, binary.BigEndian.Uint64(b[12:])
}

// digestOf folds a command into the digest of all before it.
func digestOf(before uint64, at position, st *rsm.Stamp, body []byte) uint64 {
	h := fnv.New64a()
	var head [44]byte
	for i, v := range []uint64{before, at.slot, uint64(st.TimeNs), uint64(st.Session), st.Seq} {
		binary.LittleEndian.PutUint64(head[8*i:], v)
	}
	binary.LittleEndian.PutUint32(head[40:], at.index)
	h.Write(head[:])
	h.Write(body)
	return h.Sum64()
}

// history is the truth, as far as anybody has seen it.
type history struct {
	c        *cluster
	digests  map[position]uint64
	last     position
	final    uint64              // the digest after last
	byOp     map[uint64]position // where an operation took effect
	acked    map[uint64]position // where its client was told that it did
	finished position            // the last one whose effect a client has seen
}

// applied checks that a replica runs the commands that all others run.
func (h *history) applied(l *life, at position, digest, op uint64) {
	n := l.n
	if n.life != l {
		return // its remains
	}
	if was, ok := h.digests[at]; ok {
		if was != digest {
			h.c.Fail("node %d: the history up to %v differs from what another replica has applied", n.id, at)
		}
		return
	}
	if at.less(h.last) {
		h.c.Fail("node %d applies a command at %v where no other replica has one", n.id, at)
	}
	if was, ok := h.byOp[op]; ok {
		h.c.Fail("operation %d takes effect twice, at %v and at %v", op, was, at)
	}
	h.c.Mark('a', at.slot, uint64(at.index), digest)
	h.c.Trace("node %d is the first to apply %v: operation %d", n.id, at, op)
	h.digests[at], h.byOp[op] = digest, at
	h.last, h.final = at, digest
	h.c.stats.Commands++
}

// saw records that a client has seen the state at a position.
func (h *history) saw(at position) {
	if h.finished.less(at) {
		h.finished = at
	}
}
