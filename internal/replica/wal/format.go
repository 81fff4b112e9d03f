package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// The layout of a segment, described in docs/formats/log.md. All integers are
// little endian.
const (
	formatVersion = 1
	headerBytes   = 4096 // the segment header and its padding
	headerUsed    = 64   // bytes of the header that its checksum covers
	recordHeader  = 48   // bytes before a record's body
	alignment     = 8    // records start at multiples of it
)

var magic = [8]byte{'K', 'O', 'I', 'N', 'O', 'N', 'W', 'L'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Flags of a record.
const flagLast = 1 // the last record of its batch

// Flags of a segment header.
const flagDamageKnown = 1 // damage before this segment has been reported

// header is the first block of a segment.
type header struct {
	segment uint64
	// first is the number of the segment's first batch.
	first uint64
	// prev is the segment before it, 0 when there was none, and prevEnd where
	// its records end.
	prev, prevEnd uint64
	flags         uint32
	size          uint32 // of the file, in bytes; 0 in segments of older programs
}

func (h header) encode(b []byte) {
	clear(b[:headerBytes])
	copy(b, magic[:])
	binary.LittleEndian.PutUint32(b[12:], formatVersion)
	binary.LittleEndian.PutUint64(b[16:], h.segment)
	binary.LittleEndian.PutUint64(b[24:], h.first)
	binary.LittleEndian.PutUint64(b[32:], h.prev)
	binary.LittleEndian.PutUint64(b[40:], h.prevEnd)
	binary.LittleEndian.PutUint32(b[48:], h.flags)
	binary.LittleEndian.PutUint32(b[52:], h.size)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:headerUsed], castagnoli))
}

// decodeHeader returns false when b holds no header of any known kind, and
// the format's number when it is a newer one.
func decodeHeader(b []byte) (h header, version uint32, ok bool) {
	if len(b) < headerUsed || [8]byte(b[:8]) != magic {
		return h, 0, false
	}
	if binary.LittleEndian.Uint32(b[8:]) != crc32.Checksum(b[12:headerUsed], castagnoli) {
		return h, 0, false
	}
	version = binary.LittleEndian.Uint32(b[12:])
	h.segment = binary.LittleEndian.Uint64(b[16:])
	h.first = binary.LittleEndian.Uint64(b[24:])
	h.prev = binary.LittleEndian.Uint64(b[32:])
	h.prevEnd = binary.LittleEndian.Uint64(b[40:])
	h.flags = binary.LittleEndian.Uint32(b[48:])
	h.size = binary.LittleEndian.Uint32(b[52:])
	return h, version, true
}

// tag is what a segment's records carry of its ID: spread over 64 bits, so that
// other bytes are not taken for a record's header when a torn tail is searched.
func tag(segment uint64) uint64 { return (segment + 0x4b6f696e6f6e) * 0x9e3779b97f4a7c15 }

// frame is a record's header as it lies in a segment.
type frame struct {
	crc, length       uint32
	tag, batch, group uint64
	slot              uint64
	kind              Type
	flags             byte
}

func decodeFrame(b []byte) frame {
	return frame{
		crc:    binary.LittleEndian.Uint32(b),
		length: binary.LittleEndian.Uint32(b[4:]),
		tag:    binary.LittleEndian.Uint64(b[8:]),
		batch:  binary.LittleEndian.Uint64(b[16:]),
		group:  binary.LittleEndian.Uint64(b[24:]),
		slot:   binary.LittleEndian.Uint64(b[32:]),
		kind:   Type(b[40]),
		flags:  b[41],
	}
}

// size is how many bytes the record takes in its segment.
func (f frame) size() int64 { return recordSize(int(f.length)) }

func recordSize(body int) int64 {
	return (recordHeader + int64(body) + alignment - 1) &^ (alignment - 1)
}

// appendRecord appends r to b. What only the writer knows (segment, batch,
// flags, checksum) is left zero for seal.
func appendRecord(b []byte, r Record) []byte {
	at := len(b)
	b = append(b, make([]byte, recordHeader)...)
	binary.LittleEndian.PutUint32(b[at+4:], uint32(len(r.Body)+len(r.More)))
	binary.LittleEndian.PutUint64(b[at+24:], r.Group)
	binary.LittleEndian.PutUint64(b[at+32:], r.Slot)
	b[at+40] = byte(r.Type)
	b = append(append(b, r.Body...), r.More...)
	for len(b)%alignment != 0 {
		b = append(b, 0)
	}
	return b
}

// seal completes the record that starts at b[0].
func seal(b []byte, segment, batch uint64, last bool) {
	binary.LittleEndian.PutUint64(b[8:], tag(segment))
	binary.LittleEndian.PutUint64(b[16:], batch)
	b[41] = 0
	if last {
		b[41] = flagLast
	}
	n := recordHeader + int(binary.LittleEndian.Uint32(b[4:]))
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:n], castagnoli))
}

// valid reports whether b holds a whole record of the segment.
func (f frame) valid(b []byte, segment uint64) bool {
	if f.tag != tag(segment) || int64(len(b)) < recordHeader+int64(f.length) {
		return false
	}
	return f.crc == crc32.Checksum(b[4:recordHeader+int(f.length)], castagnoli)
}

func segmentName(id uint64) string { return fmt.Sprintf("%016x.log", id) }

func parseSegmentName(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, ".log")
	if !ok || len(hex) != 16 {
		return 0, false
	}
	id, err := strconv.ParseUint(hex, 16, 64)
	return id, err == nil && id > 0 && id < numberMax
}
