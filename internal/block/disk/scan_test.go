package disk

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/sys"
)

// image builds the bytes of a segment by hand.
func image(id uint32, salt uint64, sizes ...int) []byte {
	b := encodeSegmentHead(id, salt)
	for i, n := range sizes {
		key := blocktest.Key(uint64(i+1), 0, uint32(i))
		data := blocktest.Bytes(key, n)
		h := header{kind: kindBlock, salt: salt, offset: int64(len(b)), key: key, length: n, sums: block.SumData(data)}
		rec := make([]byte, recordSize(n))
		h.encode(rec)
		copy(rec[sectorSize:], data)
		b = append(b, rec...)
	}
	return b
}

// FuzzScan feeds the scanner arbitrary segments: it must end, stay within the
// file, and return only records whose header says where it stands.
func FuzzScan(f *testing.F) {
	f.Add(image(1, 42, 1, sectorSize, 5000), uint64(42))
	f.Add(image(1, 42, 70_000)[:600], uint64(42))
	f.Add(append(image(1, 42, 10), image(1, 42, 10)...), uint64(42))
	f.Add([]byte{}, uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, salt uint64) {
		size := int64(len(data))
		sc := newScanner(bytes.NewReader(data), salt, 0, size)
		last, records := int64(-1), int64(0)
		for h := sc.next(); h != nil; h = sc.next() {
			if h.offset <= last || h.offset%sectorSize != 0 || h.offset+sectorSize > size {
				t.Fatalf("record at %d after %d in %d bytes", h.offset, last, size)
			}
			if h.length < 1 || h.length > sys.BlockSize || len(h.sums) != block.PageCount(h.length) || h.durable > h.offset {
				t.Fatalf("bad header %+v", h)
			}
			last = h.offset
			records += recordSize(h.length)
			if payload, err := readPayload(bytes.NewReader(data), h, make([]byte, h.length)); err == nil && h.kind == kindTombstones {
				h.tombstones(payload)
			}
		}
		if sc.skipped+records < size {
			t.Fatalf("%d bytes of records and %d of damage in %d", records, sc.skipped, size)
		}
	})
}

// FuzzHint feeds the hint decoder arbitrary files.
func FuzzHint(f *testing.F) {
	f.Add(encodeHint(1, 2, 4096, []place{{key: blocktest.Key(1, 2, 3), sector: 1, size: 5}}))
	f.Add([]byte(hintMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		_, end, err := decodeHint(data, 1, func(place) { n++ })
		if err != nil && n > 0 || err == nil && (end < sectorSize || n != (len(data)-hintHead-4)/hintEntry) {
			t.Fatalf("%d lines, end %d, error %v", n, end, err)
		}
	})
}

func TestScannerFindsRecordsBetweenDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var sizes []int
		for range 1 + r.IntN(12) {
			sizes = append(sizes, 1+r.IntN(200_000)>>r.IntN(12))
		}
		b := image(3, 77, sizes...)
		lost, off := map[int]bool{}, int64(sectorSize)
		for i, n := range sizes {
			if r.IntN(4) == 0 {
				lost[i] = true
				b[off+int64(r.IntN(sectorSize))] ^= 1
			}
			off += recordSize(n)
		}
		sc := newScanner(bytes.NewReader(b), 77, sectorSize, int64(len(b)))
		found := map[int]bool{}
		for h := sc.next(); h != nil; h = sc.next() {
			found[int(h.key.Index)] = true
		}
		for i := range sizes {
			if found[i] == lost[i] {
				t.Fatalf("sizes %v, damaged %v: found %v", sizes, lost, found)
			}
		}
	}
}

// BenchmarkOpen500000Blocks is a start with hints; it should take well below a
// second.
func BenchmarkOpen500000Blocks(b *testing.B) {
	const blocks = 500_000
	places := make([]place, blocks)
	for i := range places {
		places[i] = place{key: blocktest.Key(uint64(i/16+1), sys.PG(i/16%256), uint32(i%16)), sector: uint32(i + 1), size: 1}
	}
	opt := quiet(nil)
	opt.Dir = b.TempDir()
	s := mustOpen(b, opt)
	mustPut(b, s, blocktest.Key(1<<40, 0, 0), 100)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	// The hint claims what the segment does not hold: only its reading is
	// measured, and it must not reach beyond the segment.
	g := image(1, 9, 100)
	f, err := s.fs.Create(s.fs.PathJoin(s.dir, segmentName(1)), "")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.Write(g); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	if err := s.writeFile(hintName(1), encodeHint(1, 9, int64(len(g)), places)); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		s, err := Open(opt)
		if err != nil || s.Recovery().Blocks != blocks || s.Recovery().Scanned != 0 {
			b.Fatalf("Open: %v, %+v", err, s.Recovery())
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
