package disk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// The sizes of the format, in bytes. Records begin at multiples of sectorSize,
// so that a disk that tears a sector cannot touch a neighbour.
const (
	sectorSize  = 4096
	pagesMax    = sys.BlockSize / sys.PageSize
	keySize     = 12
	hintHead    = 48
	hintEntry   = 20
	formatMajor = 1
)

// The magic numbers.
const (
	segmentMagic = "KOINSEG1"
	hintMagic    = "KOINHNT1"
	recordMagic  = 0x4b4c424b // "KBLK"
)

// kind tells records apart.
type kind uint8

const (
	kindBlock kind = 1
	// kindTombstones has keys as its payload: they are deleted for ever.
	kindTombstones kind = 2
)

// Where the fields of a record header are.
const (
	atKind    = 4
	atVersion = 5
	atSalt    = 8
	atOffset  = 16
	atSlice   = 24
	atIndex   = 32
	atLength  = 36
	atDurable = 40
	atSums    = 48
	atCRC     = sectorSize - 4
)

var errFormat = errors.New("not a record header")

// header is what stands before a payload.
type header struct {
	kind   kind
	salt   uint64
	offset int64
	key    sys.BlockKey
	length int
	// durable: everything below this offset of the segment was on stable
	// storage when the record was written.
	durable int64
	sums    block.Sums
}

// encode writes h into dst, which holds a sector.
func (h *header) encode(dst []byte) {
	le := binary.LittleEndian
	clear(dst[:sectorSize])
	le.PutUint32(dst, recordMagic)
	dst[atKind], dst[atVersion] = byte(h.kind), formatMajor
	le.PutUint64(dst[atSalt:], h.salt)
	le.PutUint64(dst[atOffset:], uint64(h.offset))
	le.PutUint64(dst[atSlice:], uint64(h.key.Slice))
	le.PutUint32(dst[atIndex:], h.key.Index)
	le.PutUint32(dst[atLength:], uint32(h.length))
	le.PutUint64(dst[atDurable:], uint64(h.durable))
	for i, sum := range h.sums {
		le.PutUint32(dst[atSums+4*i:], sum)
	}
	le.PutUint32(dst[atCRC:], block.Checksum(dst[:atCRC]))
}

// decode reads a record header that should stand at offset of the segment with
// salt. The salt and the offset keep bytes that a user stored, even a copy of
// a segment, from passing for records. h.sums is overwritten in place.
func (h *header) decode(src []byte, salt uint64, offset int64) error {
	le := binary.LittleEndian
	if len(src) < sectorSize || le.Uint32(src) != recordMagic || le.Uint64(src[atSalt:]) != salt ||
		le.Uint64(src[atOffset:]) != uint64(offset) {
		return errFormat
	}
	if le.Uint32(src[atCRC:]) != block.Checksum(src[:atCRC]) || src[atVersion] != formatMajor {
		return errFormat
	}
	h.kind, h.salt, h.offset = kind(src[atKind]), salt, offset
	h.key = sys.BlockKey{Slice: sys.SliceID(le.Uint64(src[atSlice:])), Index: le.Uint32(src[atIndex:])}
	length := le.Uint32(src[atLength:])
	durable := le.Uint64(src[atDurable:])
	if length < 1 || length > sys.BlockSize || durable > uint64(offset) {
		return errFormat
	}
	h.length, h.durable = int(length), int64(durable)
	switch h.kind {
	case kindBlock:
		if h.key.Slice == 0 {
			return errFormat
		}
	case kindTombstones:
		if length%keySize != 0 {
			return errFormat
		}
	default:
		return errFormat
	}
	h.sums = h.sums[:0]
	for i := range block.PageCount(h.length) {
		h.sums = append(h.sums, le.Uint32(src[atSums+4*i:]))
	}
	return nil
}

// recordSize returns what a record with a payload of length bytes occupies.
func recordSize(length int) int64 { return sectorSize + alignUp(int64(length)) }

// alignUp rounds n up to whole sectors.
func alignUp(n int64) int64 { return (n + sectorSize - 1) &^ (sectorSize - 1) }

// encodeSegmentHead returns the first sector of a segment.
func encodeSegmentHead(id uint32, salt uint64) []byte {
	dst := make([]byte, sectorSize)
	le := binary.LittleEndian
	copy(dst, segmentMagic)
	le.PutUint32(dst[8:], formatMajor)
	le.PutUint64(dst[16:], uint64(id))
	le.PutUint64(dst[24:], salt)
	le.PutUint32(dst[atCRC:], block.Checksum(dst[:atCRC]))
	return dst
}

// decodeSegmentHead returns the salt in the first sector of segment id.
func decodeSegmentHead(src []byte, id uint32) (salt uint64, err error) {
	le := binary.LittleEndian
	switch {
	case len(src) < sectorSize || string(src[:8]) != segmentMagic:
		return 0, errors.New("no segment header")
	case le.Uint32(src[atCRC:]) != block.Checksum(src[:atCRC]):
		return 0, errors.New("segment header does not match its checksum")
	case le.Uint32(src[8:]) != formatMajor:
		return 0, sys.E(sys.NotSupported, fmt.Sprintf("segment format %d, this program reads %d: install the version that wrote it",
			le.Uint32(src[8:]), formatMajor))
	case le.Uint64(src[16:]) != uint64(id):
		return 0, fmt.Errorf("segment header says %d", le.Uint64(src[16:]))
	}
	return le.Uint64(src[24:]), nil
}

// appendKeys appends the payload of a tombstone record.
func appendKeys(dst []byte, keys []sys.BlockKey) []byte {
	for _, k := range keys {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(k.Slice))
		dst = binary.LittleEndian.AppendUint32(dst, k.Index)
	}
	return dst
}

// decodeKeys reads the payload of a tombstone record.
func decodeKeys(src []byte) []sys.BlockKey {
	keys := make([]sys.BlockKey, 0, len(src)/keySize)
	for ; len(src) >= keySize; src = src[keySize:] {
		keys = append(keys, decodeKey(src))
	}
	return keys
}

func decodeKey(src []byte) sys.BlockKey {
	return sys.BlockKey{Slice: sys.SliceID(binary.LittleEndian.Uint64(src)), Index: binary.LittleEndian.Uint32(src[8:])}
}

// place is one line of a hint: a key, and the sector of its record. A size of
// 0 means that the key is deleted.
type place struct {
	key    sys.BlockKey
	sector uint32
	size   uint32
}

// encodeHint returns the hint file of a segment: what a walk over its records
// below end would find.
func encodeHint(id uint32, salt uint64, end int64, places []place) []byte {
	le := binary.LittleEndian
	dst := make([]byte, hintHead, hintHead+len(places)*hintEntry+4)
	copy(dst, hintMagic)
	le.PutUint32(dst[8:], formatMajor)
	le.PutUint64(dst[16:], uint64(id))
	le.PutUint64(dst[24:], salt)
	le.PutUint64(dst[32:], uint64(end))
	le.PutUint64(dst[40:], uint64(len(places)))
	for _, p := range places {
		dst = le.AppendUint64(dst, uint64(p.key.Slice))
		dst = le.AppendUint32(dst, p.key.Index)
		dst = le.AppendUint32(dst, p.sector)
		dst = le.AppendUint32(dst, p.size)
	}
	return le.AppendUint32(dst, block.Checksum(dst))
}

// decodeHint reads a hint file; fn gets each of its lines. Nothing is passed
// to fn unless the whole file is sound.
func decodeHint(src []byte, id uint32, fn func(place)) (salt uint64, end int64, err error) {
	le := binary.LittleEndian
	if len(src) < hintHead+4 || string(src[:8]) != hintMagic {
		return 0, 0, errors.New("no hint header")
	}
	body, sum := src[:len(src)-4], le.Uint32(src[len(src)-4:])
	count := le.Uint64(src[40:])
	switch {
	case block.Checksum(body) != sum:
		return 0, 0, errors.New("hint does not match its checksum")
	case le.Uint32(src[8:]) != formatMajor || le.Uint64(src[16:]) != uint64(id):
		return 0, 0, errors.New("hint of another format or segment")
	case count != uint64(len(body)-hintHead)/hintEntry || (len(body)-hintHead)%hintEntry != 0:
		return 0, 0, errors.New("hint of another length")
	}
	salt, end = le.Uint64(src[24:]), int64(le.Uint64(src[32:]))
	if end < sectorSize || end%sectorSize != 0 {
		return 0, 0, fmt.Errorf("hint ends at %d", end)
	}
	for body = body[hintHead:]; len(body) > 0; body = body[hintEntry:] {
		fn(place{key: decodeKey(body), sector: le.Uint32(body[12:]), size: le.Uint32(body[16:])})
	}
	return salt, end, nil
}

// saltOf returns the salt that a record header claims.
func saltOf(src []byte) uint64 { return binary.LittleEndian.Uint64(src[atSalt:]) }
