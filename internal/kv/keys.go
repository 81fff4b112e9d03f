package kv

import "encoding/binary"

// The first byte of a row's key says what it is. Numbers are big-endian. A
// name in front of something else carries its length, so that no key of a row
// is the beginning of another's.
const (
	rowKey     = 'k' // key                                 -> kvpb.Key
	rowVersion = 'v' // length(2) key ^revision(8)          -> kvpb.Version
	rowStep    = 'h' // revision(8) index(4)                -> kvpb.Step
	rowState   = 'n' //                                     -> state
	rowLease   = 's' // session(8)                          -> kvpb.Lease
	rowBound   = 'b' // session(8), 'k' key or 'l' name     -> empty, or the place in the queue(8)
	rowLock    = 'l' // name                                -> kvpb.Lock
	rowWaiter  = 'q' // length(2) name revision(8)          -> kvpb.Waiter
)

func named(row byte, name []byte) []byte {
	return append(append(make([]byte, 0, 1+len(name)), row), name...)
}

func sized(row byte, name []byte) []byte {
	b := binary.BigEndian.AppendUint16(append(make([]byte, 0, 11+len(name)), row), uint16(len(name)))
	return append(b, name...)
}

// versionKey: newer versions come first, so that a scan from a revision finds
// the one that was current then.
func versionKey(key []byte, rev uint64) []byte {
	return binary.BigEndian.AppendUint64(sized(rowVersion, key), ^rev)
}

func stepKey(rev uint64, index uint32) []byte {
	return binary.BigEndian.AppendUint32(numbered(rowStep, rev), index)
}

func waiterKey(name []byte, rev uint64) []byte {
	return binary.BigEndian.AppendUint64(sized(rowWaiter, name), rev)
}

func numbered(row byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 13), row), n)
}

func boundKey(session uint64, kind byte, name []byte) []byte {
	return append(append(numbered(rowBound, session), kind), name...)
}

// after returns the first key behind all that begin with prefix, nil when
// there is none.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		end[i]++
		if end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// state is row 'n': revision(8) compacted(8) bytes(8).
type state struct {
	rev       uint64 // of the last change
	compacted uint64 // history begins behind it
	bytes     uint64 // that compacting all history would free, about
}

const stateBytes = 24

func (s state) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, stateBytes), s.rev)
	b = binary.BigEndian.AppendUint64(b, s.compacted)
	return binary.BigEndian.AppendUint64(b, s.bytes)
}

func decodeState(b []byte) state {
	if len(b) != stateBytes {
		return state{}
	}
	return state{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
}
