package disk

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// smallSegments is how many segments that are much smaller than they should
// be, as crashes leave them, are borne before they are joined.
const smallSegments = 4

// When the disk is full, segments are worth their while from a share of dead
// bytes on that is smaller by shortFactor, and the active one from shortDead on.
const (
	shortFactor = 4
	shortDead   = 1 << 20
)

// wakeIfDead wakes the compactor when a segment is worth its while. The caller
// holds the lock.
func (s *Store) wakeIfDead(g *segment) {
	if s.mostlyDead(g) || s.toSeal(g) {
		wake(s.wakeCompact)
	}
}

func (s *Store) mostlyDead(g *segment) bool {
	return g.sealed && g.hinted && !g.damaged && s.deadEnough(g)
}

func (s *Store) deadEnough(g *segment) bool {
	share := s.opt.CompactDead
	if s.space.short.Load() {
		share /= shortFactor
	}
	return float64(g.dead()) >= share*float64(g.tail-sectorSize)
}

// toSeal says that the active segment is ended before it is full, since the disk
// is, so that its dead bytes come back.
func (s *Store) toSeal(g *segment) bool {
	return g == s.active && s.space.short.Load() && g.dead() >= shortDead && s.deadEnough(g)
}

// compacting copies out segments that are mostly dead, one at a time.
func (s *Store) compacting(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wakeCompact:
		}
		s.mu.Lock()
		if s.active != nil && s.toSeal(s.active) {
			s.seal(s.active) // its hint, once written, wakes us again
		}
		s.mu.Unlock()
		for g := s.pick(); g != nil && ctx.Err() == nil; g = s.pick() {
			err := s.compact(ctx, g)
			g.release()
			if err != nil {
				if ctx.Err() == nil {
					s.log.Warn("segment cannot be compacted", "segment", segmentName(g.id), "err", err)
				}
				break
			}
		}
	}
}

// pick returns the segment that is most worth compacting, referenced, or nil.
// What is live in it must find room before it is removed.
func (s *Store) pick() *segment {
	spare := s.space.spare(s)
	s.mu.RLock()
	defer s.mu.RUnlock()
	var best, smallest *segment
	small := 0
	for _, g := range s.segments {
		if g.live > 0 && g.live > spare {
			continue
		}
		if s.mostlyDead(g) && (best == nil || g.dead() > best.dead()) {
			best = g
		}
		if g.sealed && g.hinted && !g.damaged && g.tail < s.opt.SegmentBytes/8 {
			if small++; smallest == nil || g.tail < smallest.tail {
				smallest = g
			}
		}
	}
	if best == nil && small >= smallSegments {
		best = smallest
	}
	if best != nil {
		best.acquire()
	}
	return best
}

// compact copies what is live in g to the active segment, syncs it, and
// removes g. Readers that have the file open keep it. A block that cannot be
// read keeps the whole segment in place: a damaged copy may be the last one.
func (s *Store) compact(ctx context.Context, g *segment) error {
	c := &copier{s: s, g: g, buf: make([]byte, sys.BlockSize), pace: newPace(s.opt.CompactRate)}
	sc := newScanner(g.file, g.salt, sectorSize, g.tail)
	for h := sc.next(); h != nil; h = sc.next() {
		if err := c.record(ctx, h); err != nil {
			s.spoil(g, err)
			return err
		}
	}
	if err := c.flush(); err != nil {
		return err
	}
	if err := s.syncAll(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	if left := g.live - c.room; left != 0 {
		g.damaged = true
		s.mu.Unlock()
		return sys.E(sys.Op("disk.compact"), sys.Corrupt, "some live records have damaged headers: the segment is kept")
	}
	freed := g.tail
	delete(s.segments, g.id)
	s.mu.Unlock()
	g.release() // the store's own reference
	for _, name := range []string{segmentName(g.id), hintName(g.id)} {
		if err := s.fs.Remove(s.fs.PathJoin(s.dir, name)); err != nil {
			return ioError("disk.compact", sys.Subject(name), err)
		}
	}
	s.log.Info("segment compacted", "segment", segmentName(g.id), "bytes", freed, "copied_bytes", c.copied)
	return s.syncDir(s.dir)
}

// spoil keeps compaction away from a segment that holds a damaged block until
// the store is opened again or the block is repaired.
func (s *Store) spoil(g *segment, err error) {
	if sys.Is(err, sys.Corrupt) {
		s.mu.Lock()
		g.damaged = true
		s.mu.Unlock()
	}
}

// copier copies the live records of one segment.
type copier struct {
	s      *Store
	g      *segment
	buf    []byte
	pace   pace
	copied int64
	// buried are the keys of tombstones that wait to be written; room is what
	// all tombstone records met so far occupied.
	buried []sys.BlockKey
	room   int64
}

// record copies one record if it is live.
func (c *copier) record(ctx context.Context, h *header) error {
	if h.kind == kindTombstones {
		return c.tombstones(h)
	}
	if !c.live(h) {
		return nil
	}
	payload, err := readPayload(c.g.file, h, c.buf)
	if err != nil {
		return sys.E(sys.Op("disk.compact"), block.Subject(h.key), err)
	}
	from := entry{segment: c.g.id, sector: uint32(h.offset / sectorSize), size: uint32(h.length)}
	fresh := header{kind: kindBlock, key: h.key, length: h.length, sums: h.sums}
	g, err := c.s.write(&fresh, payload)
	if err != nil {
		return err
	}
	size := recordSize(h.length)
	c.copied += size
	c.s.mu.Lock()
	c.s.wrote(g, &fresh)
	g.places = append(g.places, fresh.place())
	if c.s.index.entries[h.key] == from {
		g.live += size
		c.s.point(h.key, entry{segment: g.id, sector: uint32(fresh.offset / sectorSize), size: from.size})
	}
	c.s.mu.Unlock()
	return c.pace.wait(ctx, size)
}

// live reports whether the index points to this record.
func (c *copier) live(h *header) bool {
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	e := c.s.index.entries[h.key]
	return e.segment == c.g.id && e.offset() == h.offset && !e.deleted()
}

// tombstones collects the keys of a tombstone record, so that many small
// records become few large ones.
func (c *copier) tombstones(h *header) error {
	payload, err := readPayload(c.g.file, h, c.buf)
	if sys.Is(err, sys.Corrupt) {
		return nil // as a crash leaves them; of live ones compact will miss the room
	}
	if err != nil {
		return sys.E(sys.Op("disk.compact"), err)
	}
	if len(c.buried)*keySize+len(payload) > sys.BlockSize {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.room += recordSize(h.length)
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	for _, key := range decodeKeys(payload) {
		// A key that another segment's tombstone speaks for is skipped.
		if e := c.s.index.entries[key]; e.segment == c.g.id && e.offset() == h.offset {
			c.buried = append(c.buried, key)
		}
	}
	return nil
}

// flush writes the tombstones collected so far.
func (c *copier) flush() error {
	s := c.s
	if len(c.buried) > 0 {
		payload := appendKeys(make([]byte, 0, len(c.buried)*keySize), c.buried)
		h := header{kind: kindTombstones, length: len(payload), sums: block.SumData(payload)}
		g, err := s.write(&h, payload)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.wrote(g, &h)
		g.places = append(g.places, h.tombstones(payload)...)
		g.live += recordSize(h.length)
		for _, key := range c.buried {
			s.index.set(key, entry{segment: g.id, sector: uint32(h.offset / sectorSize)})
		}
		s.mu.Unlock()
	}
	c.buried = nil
	return nil
}

// pace spreads work over time.
type pace struct {
	rate int64 // bytes per second
	due  time.Time
}

func newPace(rate int64) pace { return pace{rate: rate, due: time.Now()} }

// wait returns when n bytes more may be spent.
func (p *pace) wait(ctx context.Context, n int64) error {
	now := time.Now()
	if p.due.Before(now.Add(-time.Second)) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	ahead := p.due.Sub(now)
	if ahead < 10*time.Millisecond {
		return ctx.Err()
	}
	timer := time.NewTimer(ahead)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
