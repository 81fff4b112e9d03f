package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

const (
	// snapshotsAtOnce bounds the snapshots that a host sends at the same time.
	snapshotsAtOnce = 2
	// chunkBytes is about how much of the state one chunk carries.
	chunkBytes = 512 << 10
	// chunkTimeout is how long one chunk may take, chunkTries how often it is
	// tried: the receiver knows a repeated chunk by its number.
	chunkTimeout = 5 * time.Second
	chunkTries   = 5
	chunkRetry   = 200 * time.Millisecond
	// snapshotKeep is how long a snapshot is kept after its transfer broke off,
	// so that the next one goes on with it.
	snapshotKeep = time.Minute
)

// keeper holds the snapshot of a group that is being sent, or whose transfer
// broke off a short while ago. Several receivers share it.
type keeper struct {
	mu  sync.Mutex
	cur *outSnapshot
}

// outSnapshot is the group's state at a slot, with where its chunks end as far
// as they have been sent. That makes a chunk's number mean the same to all.
type outSnapshot struct {
	snapHead
	snap frozen

	// The keeper's.
	users int
	since time.Duration // when the last of them broke off

	mu   sync.Mutex
	ends []chunkEnd
}

type chunkEnd struct {
	key   []byte // the last one
	total uint64 // rows so far
}

// acquire returns a snapshot that includes slot after.
func (k *keeper) acquire(g *Group, after uint64) (*outSnapshot, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cur != nil && k.cur.applied.slot >= after {
		k.cur.users++
		return k.cur, nil
	}
	o := &outSnapshot{snap: g.freeze(), users: 1}
	o.stream = g.random()
	var err error
	if o.applied, err = readApplied(o.snap, appliedKey(g.id)); err == nil {
		var row membersRow
		row, err = readMembers(o.snap, membersKey(g.id))
		o.history = row.history
	}
	if err != nil {
		return nil, errors.Join(err, o.snap.Close())
	}
	if o.applied.slot < after {
		panic(fmt.Sprintf("replica: snapshot: the state at slot %d or later expected, found %d", after, o.applied.slot))
	}
	if old := k.cur; old != nil && old.users == 0 {
		err = old.snap.Close()
	}
	k.cur = o
	return o, err
}

// release ends a use. A snapshot whose transfer broke off is kept for a while.
func (k *keeper) release(o *outSnapshot, now time.Duration, keep bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	o.since = now
	if o.users--; o.users > 0 || keep && k.cur == o {
		return nil
	}
	if k.cur == o {
		k.cur = nil
	}
	return o.snap.Close()
}

// expire lets a snapshot go that nobody has come back for before a time.
func (k *keeper) expire(before time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.cur
	if o == nil || o.users > 0 || o.since >= before {
		return nil
	}
	k.cur = nil
	return o.snap.Close()
}

// close lets it go; nobody may use it any more.
func (k *keeper) close() error { return k.expire(1<<63 - 1) }

// tidySnapshots lets go what broke off long ago.
func (h *Host) tidySnapshots() {
	for _, g := range h.groups {
		g.incoming.tidy(g.applied.Load())
		if err := g.outSnap.expire(h.cfg.Clock.Boot() - snapshotKeep); err != nil {
			h.cfg.Logger.Warn("a snapshot cannot be closed", "group", g.id, "err", err)
		}
	}
}

// startSnapshot sends the group's state to a peer whose next slot is cut from
// the log, in a goroutine. The group goes on meanwhile.
func (h *Host) startSnapshot(g *Group, want paxos.SnapshotRequest) {
	h.spawn(func() {
		slot, err := h.sendSnapshot(g, want)
		if err != nil {
			h.cfg.Logger.Warn("a snapshot was not delivered", "group", g.id, "to", sys.NodeID(want.To), "err", err)
		} else {
			h.snapshotsSent.Add(1)
			h.cfg.Logger.Info("a snapshot was delivered", "group", g.id, "to", sys.NodeID(want.To), "slot", slot)
		}
		g.call(func(paxos.Time) { g.d.node.SnapshotDone(want.To, paxos.Slot(slot), err == nil) })
	})
}

func (h *Host) sendSnapshot(g *Group, want paxos.SnapshotRequest) (slot uint64, err error) {
	if h.cfg.Sched.Wait(nil, h.snapshots, h.stop, nil) == env.GotB {
		return 0, h.stopped("replica.Snapshot")
	}
	defer func() { h.snapshots <- struct{}{} }()
	if !h.use() {
		return 0, h.stopped("replica.Snapshot")
	}
	defer h.unuse()
	out, err := g.outSnap.acquire(g, uint64(want.After))
	if err != nil {
		return 0, err
	}
	s := &sender{h: h, g: g, to: sys.NodeID(want.To), out: out}
	err = s.run()
	if rerr := g.outSnap.release(out, h.cfg.Clock.Boot(), err != nil); err == nil {
		err = rerr
	}
	return out.applied.slot, err
}

// sender is one snapshot on its way to one receiver.
type sender struct {
	h   *Host
	g   *Group
	to  sys.NodeID
	out *outSnapshot

	number uint64
	rows   []*replicapb.Row
	bytes  int
	crc    uint32
	total  uint64
}

// run sends the group's rows of all replicated namespaces in key order, from
// where the receiver wants to go on.
func (s *sender) run() error {
	from, err := s.begin()
	if err != nil {
		return err
	}
	it, err := s.out.snap.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: namespacePrefix(s.g.id, nsLocal)})
	if err != nil {
		return err
	}
	for more := it.First(); more && err == nil; more = it.Next() {
		key := it.Key()[prefixBytes-1:]
		if rsm.Namespace(key[0]) == rsm.NSSession && s.h.cfg.bugs.has(BugSnapshotNoSessions) {
			continue
		}
		s.add(key, it.Value())
		if s.bytes >= chunkBytes {
			err = s.flush(false)
		}
	}
	if err == nil {
		err = it.Error()
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return s.flush(true)
}

// begin offers the snapshot, and returns the first key to send.
func (s *sender) begin() ([]byte, error) {
	reply, err := s.ask(&replicapb.Request{Op: &replicapb.Request_Offer{Offer: s.out.offer()}}, chunkTimeout)
	if err != nil {
		return nil, err
	}
	if reply.Next == 0 {
		return groupPrefix(s.g.id), nil
	}
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if reply.Next > uint64(len(s.out.ends)) {
		return nil, s.unexpected(uint64(len(s.out.ends)), reply.Next)
	}
	end := s.out.ends[reply.Next-1]
	s.number, s.total = reply.Next, end.total
	return append(append(groupPrefix(s.g.id), end.key...), 0), nil
}

func (s *sender) add(key, value []byte) {
	row := &replicapb.Row{Key: append([]byte(nil), key...), Value: append([]byte(nil), value...)}
	s.rows = append(s.rows, row)
	s.bytes += len(key) + len(value) + 16
	s.crc = checksumRow(s.crc, row.Key, row.Value)
	s.total++
}

// flush sends one chunk and waits until the receiver has it.
func (s *sender) flush(last bool) error {
	chunk := &replicapb.SnapshotChunk{Stream: s.out.stream, Number: s.number, Rows: s.rows, Last: last}
	timeout := chunkTimeout
	if last {
		chunk.Total = s.total
		timeout *= 6 // the receiver puts the state in place
	} else {
		s.noteEnd()
	}
	chunk.Crc = checksumChunk(s.crc, chunk)
	reply, err := s.ask(&replicapb.Request{Op: &replicapb.Request_Chunk{Chunk: chunk}}, timeout)
	if err != nil {
		return err
	}
	if reply.Next != s.number+1 {
		return s.unexpected(s.number+1, reply.Next)
	}
	s.number++
	s.rows, s.bytes, s.crc = s.rows[:0], 0, 0
	return nil
}

// noteEnd remembers where a chunk ends, before anybody has it.
func (s *sender) noteEnd() {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if s.number == uint64(len(s.out.ends)) {
		s.out.ends = append(s.out.ends, chunkEnd{s.rows[len(s.rows)-1].Key, s.total})
	}
}

func (s *sender) unexpected(want, found uint64) error {
	return sys.E(sys.Op("replica.Snapshot"), sys.Corrupt, sys.Subject(s.to.String()),
		fmt.Sprintf("chunk %d expected next, the receiver wants %d", want, found))
}

// ask sends a request until it is answered, and gives up after some tries.
func (s *sender) ask(r *replicapb.Request, timeout time.Duration) (*replicapb.Reply, error) {
	r.Group = uint64(s.g.id)
	req := pb.Marshal(r)
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(s.h.ctx, timeout)
		reply, err := s.h.call(ctx, s.to, req)
		cancel()
		switch {
		case err == nil && reply.Refused:
			return nil, sys.E(sys.Op("replica.Snapshot"), sys.Unavailable, sys.Subject(s.to.String()), reply.Reason)
		case err == nil:
			return reply, nil
		case try >= chunkTries:
			return nil, err
		}
		if s.h.cfg.Sched.Wait(s.h.cfg.Sched.NewTimer(chunkRetry), s.h.stop, nil, nil) != env.Fired {
			return nil, s.h.stopped("replica.Snapshot")
		}
	}
}
