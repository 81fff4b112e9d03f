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
