package disk

import (
	"errors"
	"io"

	"github.com/koinon/koinon/internal/sys"
)

// The scanner reads headers in windows: small ones while it hops over large
// payloads, large ones where records are small or bytes are damaged.
const (
	windowSmall = 4 << 10
	windowLarge = 256 << 10
	hopLarge    = 64 << 10
)

// scanner walks the record headers of a segment without reading payloads. What
// is no record header is skipped sector by sector and counted.
type scanner struct {
	r    io.ReaderAt
	salt uint64
	// pos is where the next header is expected, size where the file ends.
	pos, size int64
	// end is where the last record ends.
	end int64
	// skipped counts the bytes that are no records.
	skipped int64

	h      header
	window []byte
	at     int64 // offset of window in the file
	buf    []byte
	big    bool
}

func newScanner(r io.ReaderAt, salt uint64, from, size int64) *scanner {
	return &scanner{r: r, salt: salt, pos: from, end: from, size: size, buf: make([]byte, windowLarge)}
}

// next returns the next record header, nil at the end of the file. The header
// is valid until the next call. Sectors that cannot be read are skipped as
// damage.
func (s *scanner) next() *header {
	for s.pos+sectorSize <= s.size {
		if !s.fill() {
			bad := min(windowSmall, s.size-s.pos)
			s.pos += bad
			s.skipped += bad
			continue
		}
		if s.h.decode(s.window[s.pos-s.at:], s.salt, s.pos) == nil {
			hop := recordSize(s.h.length)
			s.pos += hop
			s.end = s.pos
			s.big = hop < hopLarge
			return &s.h
		}
		s.pos += sectorSize
		s.skipped += sectorSize
		s.big = true
	}
	if s.pos < s.size {
		s.skipped += s.size - s.pos
		s.pos = s.size
	}
	return nil
}

// fill makes the window hold the sector at pos.
func (s *scanner) fill() bool {
	if s.pos >= s.at && s.pos+sectorSize <= s.at+int64(len(s.window)) {
		return true
	}
	want := int64(windowSmall)
	if s.big {
		want = windowLarge
	}
	n, err := s.r.ReadAt(s.buf[:min(want, s.size-s.pos)], s.pos)
	s.window, s.at = s.buf[:n], s.pos
	return n >= sectorSize && (err == nil || errors.Is(err, io.EOF))
}

// readPayload reads the payload of h into buf, which must be large enough, and
// checks it. It is Corrupt when the bytes are not those that were put.
func readPayload(r io.ReaderAt, h *header, buf []byte) ([]byte, error) {
	buf = buf[:h.length]
	if n, err := r.ReadAt(buf, h.offset+sectorSize); n < len(buf) {
		if errors.Is(err, io.EOF) {
			return nil, sys.E(sys.Corrupt, "the segment ends within the block")
		}
		return nil, err
	}
	if !h.sums.Match(buf) {
		return nil, sys.E(sys.Corrupt, "bytes do not match their checksums")
	}
	return buf, nil
}

// place returns the line of a hint for a block record.
func (h *header) place() place {
	return place{key: h.key, sector: uint32(h.offset / sectorSize), size: uint32(h.length)}
}

// tombstones returns the lines of a hint for a tombstone record.
func (h *header) tombstones(payload []byte) []place {
	keys := decodeKeys(payload)
	places := make([]place, len(keys))
	for i, k := range keys {
		places[i] = place{key: k, sector: uint32(h.offset / sectorSize)}
	}
	return places
}
