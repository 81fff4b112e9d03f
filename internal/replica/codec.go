package replica

import (
	"fmt"

	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
	"google.golang.org/protobuf/encoding/protowire"
)

// The messages of the hot path are encoded by hand: the same protobuf as
// replicapb, without its reflection and its allocations. Decoded byte slices
// are part of the input.

// groupMessage is a Message of the wire: a paxos message or a digest.
type groupMessage struct {
	group  sys.GroupID
	msg    paxos.Message
	digest digestAt // compared when its slot is not 0
	full   bool     // the sender has no space on its disk
}

// digestAt is the rolling digest after a slot.
type digestAt struct {
	slot uint64
	sum  uint64
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

func appendFixed64(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, v)
}

func sizeUint(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func sizeBytes(field protowire.Number, n int) int {
	if n == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

// field is one decoded field.
type field struct {
	num   protowire.Number
	value uint64 // of varint and fixed types
	bytes []byte
}

// eachField calls fn for every field of a message.
func eachField(b []byte, fn func(f field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		f := field{num: num}
		switch typ {
		case protowire.VarintType:
			f.value, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			f.value, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func sizeEntry(e *paxos.Entry) int {
	return sizeUint(1, uint64(e.Slot)) + sizeUint(2, e.Ballot.Round) + sizeUint(3, uint64(e.Ballot.Node)) +
		sizeUint(4, uint64(e.Kind)) + sizeBytes(5, len(e.Data))
}

func appendEntry(b []byte, e *paxos.Entry) []byte {
	return append(appendEntryHead(b, e), e.Data...)
}

// appendEntryHead appends an entry up to its data, which must follow.
func appendEntryHead(b []byte, e *paxos.Entry) []byte {
	b = appendUint(b, 1, uint64(e.Slot))
	b = appendUint(b, 2, e.Ballot.Round)
	b = appendUint(b, 3, uint64(e.Ballot.Node))
	b = appendUint(b, 4, uint64(e.Kind))
	if len(e.Data) == 0 {
		return b
	}
	b = protowire.AppendTag(b, 5, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(len(e.Data)))
}

func decodeEntry(b []byte) (e paxos.Entry, err error) {
	err = eachField(b, func(f field) error {
		switch f.num {
		case 1:
			e.Slot = paxos.Slot(f.value)
		case 2:
			e.Ballot.Round = f.value
		case 3:
			e.Ballot.Node = paxos.NodeID(f.value)
		case 4:
			e.Kind = paxos.EntryKind(f.value)
		case 5:
			e.Data = f.bytes
		}
		return nil
	})
	return e, err
}

func appendBallot(b []byte, num protowire.Number, v paxos.Ballot) []byte {
	if v.IsZero() {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeUint(1, v.Round)+sizeUint(2, uint64(v.Node))))
	b = appendUint(b, 1, v.Round)
	return appendUint(b, 2, uint64(v.Node))
}

func decodeBallot(b []byte) (v paxos.Ballot, err error) {
	err = eachField(b, func(f field) error {
		switch f.num {
		case 1:
			v.Round = f.value
		case 2:
			v.Node = paxos.NodeID(f.value)
		}
		return nil
	})
	return v, err
}

// appendMessage appends a Message as field 1 of a Frame. scratch is used for
// the parts in front of the entries and returned for the next call.
func appendMessage(b []byte, g *groupMessage, scratch []byte) (out, reuse []byte) {
	m := &g.msg
	s := appendUint(scratch[:0], 1, uint64(g.group))
	s = appendUint(s, 2, uint64(m.Kind))
	s = appendUint(s, 3, uint64(m.From))
	s = appendUint(s, 4, uint64(m.To))
	s = appendBallot(s, 5, m.Ballot)
	s = appendBallot(s, 6, m.Promised)
	s = appendBallot(s, 7, m.Released)
	s = appendUint(s, 8, uint64(m.Slot))
	s = appendUint(s, 9, uint64(m.Next))
	s = appendUint(s, 10, uint64(m.Chosen))
	s = appendUint(s, 11, uint64(m.Truncated))
	s = appendUint(s, 12, m.Seq)
	s = appendUint(s, 13, protowire.EncodeZigZag(int64(m.At)))
	if m.Reject {
		s = appendUint(s, 14, 1)
	}
	if g.digest.slot != 0 {
		d := appendUint(nil, 1, g.digest.slot)
		s = appendBytes(s, 16, appendFixed64(d, 2, g.digest.sum))
	}
	if g.full {
		s = appendUint(s, 17, 1)
	}
	if m.Mute {
		s = appendUint(s, 18, 1)
	}
	size := len(s)
	for i := range m.Entries {
		size += sizeBytesAlways(15, sizeEntry(&m.Entries[i]))
	}
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = append(b, s...)
	for i := range m.Entries {
		b = protowire.AppendTag(b, 15, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(sizeEntry(&m.Entries[i])))
		b = appendEntry(b, &m.Entries[i])
	}
	return b, s
}

func sizeBytesAlways(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

// decodeFrame calls fn for every message of a frame.
func decodeFrame(b []byte, fn func(g groupMessage)) error {
	return eachField(b, func(f field) error {
		if f.num != 1 {
			return nil
		}
		g, err := decodeMessage(f.bytes)
		if err == nil {
			fn(g)
		}
		return err
	})
}

func decodeMessage(b []byte) (g groupMessage, err error) {
	m := &g.msg
	err = eachField(b, func(f field) (err error) {
		switch f.num {
		case 1:
			g.group = sys.GroupID(f.value)
		case 2:
			if f.value > 255 {
				return fmt.Errorf("message kind %d", f.value)
			}
			m.Kind = paxos.MessageKind(f.value)
		case 3:
			m.From = paxos.NodeID(f.value)
		case 4:
			m.To = paxos.NodeID(f.value)
		case 5:
			m.Ballot, err = decodeBallot(f.bytes)
		case 6:
			m.Promised, err = decodeBallot(f.bytes)
		case 7:
			m.Released, err = decodeBallot(f.bytes)
		case 8:
			m.Slot = paxos.Slot(f.value)
		case 9:
			m.Next = paxos.Slot(f.value)
		case 10:
			m.Chosen = paxos.Slot(f.value)
		case 11:
			m.Truncated = paxos.Slot(f.value)
		case 12:
			m.Seq = f.value
		case 13:
			m.At = paxos.Time(protowire.DecodeZigZag(f.value))
		case 14:
			m.Reject = f.value != 0
		case 15:
			var e paxos.Entry
			e, err = decodeEntry(f.bytes)
			m.Entries = append(m.Entries, e)
		case 16:
			g.digest, err = decodeDigest(f.bytes)
		case 17:
			g.full = f.value != 0
		case 18:
			m.Mute = f.value != 0
		}
		return err
	})
	return g, err
}

func decodeDigest(b []byte) (d digestAt, err error) {
	err = eachField(b, func(f field) error {
		switch f.num {
		case 1:
			d.slot = f.value
		case 2:
			d.sum = f.value
		}
		return nil
	})
	return d, err
}

// sizeCommand is the encoded size of a command within an EntryBatch.
func sizeCommand(c *rsm.Command) int {
	return sizeBytesAlways(3, commandBody(c))
}

func commandBody(c *rsm.Command) int {
	return sizeUint(1, uint64(c.Session)) + sizeUint(2, c.Seq) + sizeUint(3, c.Ack) +
		sizeUint(4, uint64(c.NS)) + sizeBytes(5, len(c.Body))
}

// appendCommand appends a command to an EntryBatch.
func appendCommand(b []byte, c *rsm.Command) []byte {
	b = protowire.AppendTag(b, 3, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(commandBody(c)))
	b = appendUint(b, 1, uint64(c.Session))
	b = appendUint(b, 2, c.Seq)
	b = appendUint(b, 3, c.Ack)
	b = appendUint(b, 4, uint64(c.NS))
	return appendBytes(b, 5, c.Body)
}

// entryBatch is a decoded EntryBatch. Its slices are reused by the next decode.
type entryBatch struct {
	origin   uint64
	timeNs   int64
	commands []rsm.Command
}

func (e *entryBatch) decode(b []byte) error {
	e.origin, e.timeNs, e.commands = 0, 0, e.commands[:0]
	return eachField(b, func(f field) error {
		switch f.num {
		case 1:
			e.origin = f.value
		case 2:
			e.timeNs = int64(f.value)
		case 3:
			c, err := decodeCommand(f.bytes)
			if err != nil {
				return err
			}
			e.commands = append(e.commands, c)
		}
		return nil
	})
}

func decodeCommand(b []byte) (c rsm.Command, err error) {
	err = eachField(b, func(f field) error {
		switch f.num {
		case 1:
			c.Session = sys.SessionID(f.value)
		case 2:
			c.Seq = f.value
		case 3:
			c.Ack = f.value
		case 4:
			if f.value > 255 {
				return fmt.Errorf("namespace %d", f.value)
			}
			c.NS = rsm.Namespace(f.value)
		case 5:
			c.Body = f.bytes
		}
		return nil
	})
	return c, err
}

// logState is replicapb.LogState.
type logState struct {
	promised          paxos.Ballot
	chosen, truncated uint64
	placing           uint64 // slot of the snapshot that comes in the state's place
	damaged, lost     bool
}

func (s logState) encode() []byte {
	b := appendBallot(make([]byte, 0, 48), 1, s.promised)
	b = appendUint(b, 2, s.chosen)
	b = appendUint(b, 3, s.truncated)
	if s.damaged {
		b = appendUint(b, 4, 1)
	}
	if s.lost {
		b = appendUint(b, 5, 1)
	}
	if s.placing > 0 {
		b = appendUint(b, 6, s.placing)
	}
	return b
}

func decodeLogState(b []byte) (s logState, err error) {
	err = eachField(b, func(f field) (err error) {
		switch f.num {
		case 1:
			s.promised, err = decodeBallot(f.bytes)
		case 2:
			s.chosen = f.value
		case 3:
			s.truncated = f.value
		case 4:
			s.damaged = f.value != 0
		case 5:
			s.lost = f.value != 0
		case 6:
			s.placing = f.value
		}
		return err
	})
	return s, err
}
