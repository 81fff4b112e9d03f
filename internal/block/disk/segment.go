package disk

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/sys"
)

// segment is one file of records. What is not said to be otherwise is guarded
// by the store's lock.
type segment struct {
	id   uint32
	salt uint64
	file vfs.File
	// direct is for large transfers past the page cache; nil where there are
	// none.
	direct *directFile

	// refs counts the store itself and those who read or write the file right
	// now; the last to leave closes it. A removed file stays readable to them.
	refs atomic.Int32

	// tail is where the next record goes, live what of the bytes below is
	// still needed.
	tail, live int64
	// inflight are the offsets that are reserved and not written yet.
	inflight map[int64]struct{}
	// places are the lines of the hint to be, nil once it is written.
	places []place
	// sealed: no more records. hinted: the hint file is complete.
	sealed, hinted bool
	// dirty: holds bytes that no sync has covered. named: the directory entry
	// is on stable storage.
	dirty, named bool
	// durable: everything below is on stable storage.
	durable int64
	// damaged keeps compaction away after it met a block that it could not
	// copy.
	damaged bool
}

func (g *segment) acquire() { g.refs.Add(1) }

// release gives a reference back. Closing a file that was only read or is
// already synced has no error worth telling.
func (g *segment) release() {
	if n := g.refs.Add(-1); n == 0 {
		g.direct.close()
		_ = g.file.Close()
	} else if n < 0 {
		panic(fmt.Sprintf("disk: expected references of segment %d to stay above zero, found %d", g.id, n))
	}
}

// stable returns the offset below which all reserved records are written.
func (g *segment) stable() int64 {
	low := g.tail
	for off := range g.inflight {
		low = min(low, off)
	}
	return low
}

// dead returns how many bytes nobody needs.
func (g *segment) dead() int64 { return max(0, g.tail-sectorSize-g.live) }

func segmentName(id uint32) string { return fmt.Sprintf("%08x.seg", id) }
func hintName(id uint32) string    { return fmt.Sprintf("%08x.hint", id) }

// parseName reads a file name of ours.
func parseName(name string) (id uint32, ext string, ok bool) {
	stem, ext, found := strings.Cut(name, ".")
	if !found || len(stem) != 8 {
		return 0, "", false
	}
	n, err := strconv.ParseUint(stem, 16, 32)
	return uint32(n), ext, err == nil && bits.Len64(n) <= 32
}

// createSegment makes a new segment the active one. The caller holds the lock.
func (s *Store) createSegment() error {
	const op = sys.Op("disk.createSegment")
	id := s.lastID + 1
	path := s.fs.PathJoin(s.dir, segmentName(id))
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return ioError(op, sys.Subject(path), err)
	}
	g := &segment{id: id, salt: s.rand(), file: f, direct: openDirect(f), tail: sectorSize, inflight: make(map[int64]struct{}), dirty: true}
	g.refs.Store(1)
	if _, err := f.WriteAt(encodeSegmentHead(id, g.salt), 0); err != nil {
		g.direct.close()
		cerr := f.Close()
		rerr := s.fs.Remove(path)
		return ioError(op, sys.Subject(path), joinErrors(err, cerr, rerr))
	}
	s.lastID = id
	s.segments[id] = g
	s.active = g
	return nil
}
