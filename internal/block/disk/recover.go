package disk

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/sys"
)

// Recovery says what Open found.
type Recovery struct {
	// Segments, Blocks and Deleted count what there is.
	Segments, Blocks, Deleted int
	// Scanned counts segments whose headers were walked, at least in part,
	// because their hint did not cover them; HintsIgnored the hints that were
	// damaged.
	Scanned, HintsIgnored int
	// TornBytes were written after the last whole record of a segment, as a
	// crash leaves them; DamagedBytes are no records where records should be.
	TornBytes, DamagedBytes int64
	// Dropped are blocks whose bytes a crash left incomplete. They had never
	// been synced.
	Dropped []sys.BlockKey
	// Unreadable are segments of which nothing could be told. They are left
	// where they are.
	Unreadable []string
	Took       time.Duration
}

// Recovery returns what Open found.
func (s *Store) Recovery() Recovery { return s.recovery }

// recover rebuilds the index from the files in the directory.
func (s *Store) recover() error {
	const op = sys.Op("disk.Open")
	began := s.opt.Clock.Boot()
	names, err := s.fs.List(s.dir)
	if err != nil {
		return ioError(op, sys.Subject(s.dir), err)
	}
	var ids []uint32
	hints := make(map[uint32]bool)
	for _, name := range names {
		switch id, ext, ok := parseName(name); {
		case strings.HasSuffix(name, ".tmp"):
			if err := s.fs.Remove(s.fs.PathJoin(s.dir, name)); err != nil {
				return ioError(op, sys.Subject(name), err)
			}
		case ok && ext == "seg":
			ids = append(ids, id)
		case ok && ext == "hint":
			hints[id] = true
		}
	}
	slices.Sort(ids)
	for i, id := range ids {
		if err := s.load(id, hints[id], i == len(ids)-1); err != nil {
			return err
		}
		delete(hints, id)
		s.lastID = id
	}
	for id := range hints {
		// The segment went by compaction and a crash came before its hint did.
		if err := s.fs.Remove(s.fs.PathJoin(s.dir, hintName(id))); err != nil {
			return ioError(op, sys.Subject(hintName(id)), err)
		}
	}
	r := &s.recovery
	r.Segments, r.Blocks, r.Deleted = len(s.segments), s.index.blocks, len(s.index.entries)-s.index.blocks
	r.Took = s.opt.Clock.Boot() - began
	if r.TornBytes > 0 || r.DamagedBytes > 0 || len(r.Dropped) > 0 || len(r.Unreadable) > 0 || r.HintsIgnored > 0 {
		s.log.Warn("block store was damaged or not shut down", "dir", s.dir, "torn_bytes", r.TornBytes,
			"damaged_bytes", r.DamagedBytes, "dropped_blocks", len(r.Dropped), "unreadable", r.Unreadable,
			"hints_ignored", r.HintsIgnored)
	}
	s.log.Info("block store opened", "dir", s.dir, "segments", r.Segments, "blocks", r.Blocks,
		"deleted", r.Deleted, "scanned", r.Scanned, "took", r.Took)
	return nil
}

// loading is what is learned of one segment.
type loading struct {
	g      *segment
	size   int64 // of the file
	places []place
	// clean: nothing but whole records up to the end of the file.
	clean bool
}

// load learns what one segment holds.
func (s *Store) load(id uint32, hinted, last bool) error {
	const op = sys.Op("disk.Open")
	path := s.fs.PathJoin(s.dir, segmentName(id))
	f, err := s.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return ioError(op, sys.Subject(path), err)
	}
	info, err := f.Stat()
	if err != nil {
		return ioError(op, sys.Subject(path), joinErrors(err, f.Close()))
	}
	l := &loading{g: &segment{id: id, file: f, direct: openDirect(f), inflight: make(map[int64]struct{})}, size: info.Size()}
	l.g.refs.Store(1)
	from := s.loadHint(l, hinted)
	if err := s.checkFormat(l); err != nil {
		l.g.direct.close()
		return joinErrors(err, f.Close())
	}
	if from == 0 {
		if from = s.loadHead(l); from == 0 {
			l.g.direct.close()
			if err := f.Close(); err != nil {
				return ioError(op, sys.Subject(path), err)
			}
			return s.loadNothing(l, path)
		}
	}
	covered := from >= alignUp(l.size)
	l.g.named = covered
	l.g.durable = from
	l.g.tail = from
	l.clean = true
	if !covered {
		s.recovery.Scanned++
		s.walk(l, from)
	}
	s.segments[id] = l.g
	s.apply(l)
	if last && l.clean && l.g.tail < s.opt.SegmentBytes {
		l.g.places = l.places
		s.active = l.g
		// What was scanned may never have been synced.
		l.g.dirty = !covered
		return nil
	}
	l.g.sealed = true
	l.g.hinted = hinted && covered
	if !l.g.hinted {
		l.g.places = l.places
		l.g.dirty = true
		wake(s.wakeSync)
	}
	return nil
}

// loadHint reads the hint and returns the offset that it covers, 0 when there
// is none that fits the segment.
func (s *Store) loadHint(l *loading, hinted bool) int64 {
	if !hinted {
		return 0
	}
	name := hintName(l.g.id)
	data, err := s.readFile(name)
	var salt uint64
	var end int64
	if err == nil {
		salt, end, err = decodeHint(data, l.g.id, func(p place) { l.places = append(l.places, p) })
	}
	if err == nil && end > alignUp(l.size) {
		err = fmt.Errorf("the segment ends at %d, its hint at %d", l.size, end)
	}
	if err != nil {
		s.recovery.HintsIgnored++
		s.log.Warn("hint is damaged: the segment is scanned instead", "file", name, "err", err)
		l.places = nil
		return 0
	}
	l.g.salt = salt
	return end
}

func (s *Store) readFile(name string) ([]byte, error) {
	f, err := s.fs.Open(s.fs.PathJoin(s.dir, name))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(f)
	return data, joinErrors(err, f.Close())
}

// checkFormat refuses a segment of a newer format, also when its hint, which may
// be an older one's, covers it. A head that cannot be read matters only without
// a hint.
func (s *Store) checkFormat(l *loading) error {
	var head [sectorSize]byte
	if n, _ := l.g.file.ReadAt(head[:], 0); n < sectorSize {
		return nil
	}
	if _, err := decodeSegmentHead(head[:], l.g.id); sys.Is(err, sys.NotSupported) {
		return sys.E(sys.Op("disk.Open"), sys.Subject(segmentName(l.g.id)), err)
	}
	return nil
}

// loadHead learns the salt from the segment's first sector or, when that is
// damaged, from its first record. It returns where the records begin, 0 when
// neither can be read.
func (s *Store) loadHead(l *loading) int64 {
	var buf [2 * sectorSize]byte
	n, _ := l.g.file.ReadAt(buf[:], 0) // how much there is tells enough
	if n < sectorSize {
		return 0
	}
	salt, err := decodeSegmentHead(buf[:sectorSize], l.g.id)
	if err == nil {
		l.g.salt = salt
		return sectorSize
	}
	if n < len(buf) {
		return 0
	}
	var h header
	salt = saltOf(buf[sectorSize:])
	if h.decode(buf[sectorSize:], salt, sectorSize) != nil {
		return 0
	}
	l.g.salt = salt
	s.recovery.DamagedBytes += sectorSize
	return sectorSize
}

// loadNothing deals with a segment that says nothing: one that a crash caught
// before its first sync is removed, any other is left for people to look at.
func (s *Store) loadNothing(l *loading, path string) error {
	if l.size <= sectorSize {
		s.recovery.TornBytes += l.size
		if err := s.fs.Remove(path); err != nil {
			return ioError("disk.Open", sys.Subject(path), err)
		}
		return nil
	}
	s.recovery.DamagedBytes += l.size
	s.recovery.Unreadable = append(s.recovery.Unreadable, segmentName(l.g.id))
	return nil
}

// walk scans the records from an offset on, adds them to the places, and drops
// those that a crash cut.
func (s *Store) walk(l *loading, from int64) {
	g := l.g
	sc := newScanner(g.file, g.salt, from, l.size)
	skippedBefore := int64(0) // up to the last whole record
	first := len(l.places)
	for h := sc.next(); h != nil; h = sc.next() {
		g.durable = max(g.durable, h.durable)
		switch {
		case h.offset+sectorSize+int64(h.length) > l.size:
			s.recovery.TornBytes += l.size - h.offset
			l.clean = false
			if h.kind == kindBlock {
				s.recovery.Dropped = append(s.recovery.Dropped, h.key)
			}
		case h.kind == kindBlock:
			l.places = append(l.places, h.place())
		default:
			payload, err := readPayload(g.file, h, make([]byte, h.length))
			if err != nil {
				s.recovery.DamagedBytes += recordSize(h.length)
				l.clean = false
				continue
			}
			l.places = append(l.places, h.tombstones(payload)...)
		}
		skippedBefore = sc.skipped
	}
	s.recovery.DamagedBytes += skippedBefore
	s.recovery.TornBytes += sc.skipped - skippedBefore
	l.clean = l.clean && sc.skipped == 0
	g.tail = max(sc.end, from)
	if !l.clean {
		g.tail = max(g.tail, alignUp(l.size))
	}
	s.checkTail(l, first)
}

// checkTail reads those scanned blocks that may never have been synced and
// drops the ones whose bytes are not there.
func (s *Store) checkTail(l *loading, first int) {
	buf := make([]byte, sys.BlockSize)
	kept := l.places[:first]
	for _, p := range l.places[first:] {
		off := int64(p.sector) * sectorSize
		if p.size == 0 || off < l.g.durable || s.whole(l.g, off, buf) {
			kept = append(kept, p)
			continue
		}
		l.clean = false
		s.recovery.TornBytes += recordSize(int(p.size))
		s.recovery.Dropped = append(s.recovery.Dropped, p.key)
	}
	l.places = kept
}

// whole reports whether the record at off can be read and is what was put.
func (s *Store) whole(g *segment, off int64, buf []byte) bool {
	var head [sectorSize]byte
	var h header
	if readFull(g, head[:], off) != nil || h.decode(head[:], g.salt, off) != nil {
		return false
	}
	_, err := readPayload(g.file, &h, buf)
	return err == nil
}

// apply makes the index know the places of a segment. Segments are applied in
// the order in which they were made, so a later copy of a block replaces an
// earlier one; a deleted key stays deleted whatever the order.
func (s *Store) apply(l *loading) {
	buried, sector := 0, uint32(0)
	bury := func() {
		if buried > 0 {
			l.g.live += recordSize(buried * keySize)
		}
		buried = 0
	}
	for _, p := range l.places {
		e := entry{segment: l.g.id, sector: p.sector, size: p.size}
		cur, ok := s.index.entries[p.key]
		if p.size != 0 {
			if !ok || !cur.deleted() {
				l.g.live += recordSize(int(p.size))
				s.point(p.key, e)
			}
			continue
		}
		if p.sector != sector {
			bury()
			sector = p.sector
		}
		buried++
		if !ok || !cur.deleted() {
			s.point(p.key, e)
		}
	}
	bury()
}
