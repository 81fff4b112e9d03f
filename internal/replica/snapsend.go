package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
	"google.golang.org/protobuf/proto"
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
)

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
	select {
	case h.snapshots <- struct{}{}:
		defer func() { <-h.snapshots }()
	case <-h.stop:
		return 0, h.stopped("replica.Snapshot")
	}
	if !h.use() {
		return 0, h.stopped("replica.Snapshot")
	}
	defer h.unuse()
	snap := h.db.NewSnapshot()
	defer func() {
		if cerr := snap.Close(); err == nil {
			err = cerr
		}
	}()
	row, err := readApplied(snap, appliedKey(g.id))
	if err != nil {
		return 0, err
	}
	if row.slot < uint64(want.After) {
		panic(fmt.Sprintf("replica: snapshot: the state at slot %d or later expected, found %d", want.After, row.slot))
	}
	s := &sender{h: h, g: g, to: sys.NodeID(want.To), stream: rand.Uint64() | 1, applied: row}
	return row.slot, s.run(snap)
}

// sender is one snapshot on its way out.
type sender struct {
	h       *Host
	g       *Group
	to      sys.NodeID
	stream  uint64
	applied appliedRow

	number uint64
	rows   []*replicapb.Row
	bytes  int
	crc    uint32
	total  uint64
}

// run sends the group's rows of all replicated namespaces in key order.
func (s *sender) run(snap *pebble.Snapshot) error {
	lo, _ := groupSpan(s.g.id)
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: namespacePrefix(s.g.id, nsLocal)})
	if err != nil {
		return err
	}
	for more := it.First(); more && err == nil; more = it.Next() {
		s.add(it.Key()[prefixBytes-1:], it.Value())
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

func (s *sender) add(key, value []byte) {
	row := &replicapb.Row{Key: append([]byte(nil), key...), Value: append([]byte(nil), value...)}
	s.rows = append(s.rows, row)
	s.bytes += len(key) + len(value) + 16
	s.crc = checksumRow(s.crc, row.Key, row.Value)
	s.total++
}

// flush sends one chunk and waits until the receiver has it.
func (s *sender) flush(last bool) error {
	chunk := &replicapb.SnapshotChunk{Stream: s.stream, Number: s.number, Rows: s.rows, Last: last, Crc: s.crc}
	if s.number == 0 {
		chunk.Applied = &replicapb.Applied{Slot: s.applied.slot, TimeNs: s.applied.timeNs, Digest: s.applied.digest}
	}
	if last {
		chunk.Total = s.total
	}
	req, err := proto.Marshal(&replicapb.Request{Group: uint64(s.g.id), Op: &replicapb.Request_Chunk{Chunk: chunk}})
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		timeout := chunkTimeout
		if last {
			timeout *= 6 // the receiver puts the state in place
		}
		ctx, cancel := context.WithTimeout(s.h.ctx, timeout)
		reply, err := s.h.call(ctx, s.to, req)
		cancel()
		switch {
		case err == nil && reply.Refused:
			return sys.E(sys.Op("replica.Snapshot"), sys.Unavailable, sys.Subject(s.to.String()), reply.Reason)
		case err == nil && reply.Next == s.number+1:
			s.number++
			s.rows, s.bytes, s.crc = s.rows[:0], 0, 0
			return nil
		case err == nil:
			return sys.E(sys.Op("replica.Snapshot"), sys.Corrupt, sys.Subject(s.to.String()),
				fmt.Sprintf("chunk %d expected next, the receiver wants %d", s.number+1, reply.Next))
		case try >= chunkTries:
			return err
		}
		select {
		case <-time.After(chunkRetry):
		case <-s.h.stop:
			return s.h.stopped("replica.Snapshot")
		}
	}
}
