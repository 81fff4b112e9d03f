package replica

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// snapHead says what a snapshot is: which one, and the state it holds.
type snapHead struct {
	stream  uint64 // random, not 0; 0: none
	applied appliedRow
	history paxos.History
}

// same reports whether two heads are of one snapshot. A peer that gives two the
// same name is not believed.
func (s *snapHead) same(o *snapHead) bool {
	return s.stream == o.stream && s.applied == o.applied && s.history.Equal(o.history)
}

// offer encodes the head.
func (s *snapHead) offer() *replicapb.SnapshotOffer {
	o := &replicapb.SnapshotOffer{Stream: s.stream, Members: s.history.Encode(),
		Applied: &replicapb.Applied{Slot: s.applied.slot, TimeNs: s.applied.timeNs, Digest: s.applied.digest}}
	o.Crc = checksumOffer(o)
	return o
}

// checksumOffer is the CRC-32C over the stream, the applied slot, time and
// digest, each as 8 bytes little endian, and the members.
func checksumOffer(o *replicapb.SnapshotOffer) uint32 {
	var b []byte
	for _, v := range []uint64{o.Stream, o.Applied.GetSlot(), uint64(o.Applied.GetTimeNs()), o.Applied.GetDigest()} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return crc32.Checksum(append(b, o.Members...), castagnoli)
}

// checksumRow continues the checksum of a chunk: the lengths of key and value, 4
// bytes little endian each, the key, the value.
func checksumRow(crc uint32, key, value []byte) uint32 {
	var n [8]byte
	binary.LittleEndian.PutUint32(n[:], uint32(len(key)))
	binary.LittleEndian.PutUint32(n[4:], uint32(len(value)))
	crc = crc32.Update(crc, castagnoli, n[:])
	crc = crc32.Update(crc, castagnoli, key)
	return crc32.Update(crc, castagnoli, value)
}

// checksumChunk ends the checksum of a chunk: behind the rows come stream,
// number and total, 8 bytes little endian each, and a byte that is 1 in the last
// chunk.
func checksumChunk(crc uint32, c *replicapb.SnapshotChunk) uint32 {
	var b [25]byte
	binary.LittleEndian.PutUint64(b[:], c.Stream)
	binary.LittleEndian.PutUint64(b[8:], c.Number)
	binary.LittleEndian.PutUint64(b[16:], c.Total)
	if c.Last {
		b[24] = 1
	}
	return crc32.Update(crc, castagnoli, b[:])
}

// readOffer checks and decodes a head.
func readOffer(o *replicapb.SnapshotOffer) (s snapHead, err error) {
	const op = sys.Op("replica.Snapshot")
	if sum := checksumOffer(o); o.Stream == 0 || o.Applied == nil || sum != o.Crc {
		return s, sys.E(op, sys.Corrupt, "the head of a snapshot does not match its checksum")
	}
	s.stream = o.Stream
	s.applied = appliedRow{o.Applied.Slot, o.Applied.TimeNs, o.Applied.Digest}
	s.history, err = paxos.DecodeHistory(o.Members)
	if err == nil && (len(s.history) == 0 || uint64(s.history[0].From) > s.applied.slot+1) {
		err = sys.E(op, sys.Corrupt, "the members of a snapshot are not those of its slot")
	}
	return s, err
}
