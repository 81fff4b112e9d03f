package disk

import (
	"context"
	"sync"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// smallPayload is up to what size a payload is copied behind its header, so
// that the record takes one write instead of two.
const smallPayload = 64 << 10

// recordPool holds buffers for small records.
var recordPool = sync.Pool{New: func() any { return new([sectorSize + smallPayload]byte) }}

// Put implements block.Store; the sums are computed here.
func (s *Store) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	if err := block.CheckPut("disk.Put", key, data); err != nil {
		return err
	}
	return s.put(ctx, key, data, block.SumData(data), false)
}

// PutSums is Put with the sums that the writer computed. Bytes that do not
// match them are refused as Corrupt. data and sums are not used after return.
func (s *Store) PutSums(ctx context.Context, key sys.BlockKey, data []byte, sums block.Sums) error {
	const op = sys.Op("disk.Put")
	if err := block.CheckPut(op, key, data); err != nil {
		return err
	}
	if !sums.Match(data) {
		return sys.E(op, sys.Corrupt, block.Subject(key), "the bytes that arrived do not match the writer's checksums")
	}
	return s.put(ctx, key, data, sums, false)
}

// Replace is PutSums that gives a block whose stored bytes are damaged a new
// record. The caller vouches that data are the block's bytes.
func (s *Store) Replace(ctx context.Context, key sys.BlockKey, data []byte, sums block.Sums) error {
	const op = sys.Op("disk.Replace")
	if err := block.CheckPut(op, key, data); err != nil {
		return err
	}
	if !sums.Match(data) {
		return sys.E(op, sys.Corrupt, block.Subject(key), "the bytes that arrived do not match their checksums")
	}
	return s.put(ctx, key, data, sums, true)
}

// put writes a record and makes the index point to it.
func (s *Store) put(ctx context.Context, key sys.BlockKey, data []byte, sums block.Sums, replace bool) error {
	const op = sys.Op("disk.Put")
	done, old, err := s.begin(ctx, key, replace)
	if err != nil {
		return err
	}
	if done == nil {
		return s.same(key, old, data, sums)
	}
	defer func() {
		s.mu.Lock()
		delete(s.pending, key)
		s.mu.Unlock()
		close(done)
		s.writing.Done()
	}()
	if err := s.space.take(s, recordSize(len(data))); err != nil {
		return sys.E(op, block.Subject(key), err)
	}
	h := header{kind: kindBlock, key: key, length: len(data), sums: sums}
	g, err := s.write(&h, data)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	size := recordSize(len(data))
	s.wrote(g, &h)
	g.places = append(g.places, h.place())
	if cur, ok := s.index.entries[key]; ok && cur.deleted() {
		// The delete came while we wrote.
		return sys.E(op, sys.Stale, block.Subject(key), "deleted before")
	}
	g.live += size
	s.point(key, entry{segment: g.id, sector: uint32(h.offset / sectorSize), size: uint32(len(data))})
	return nil
}

// begin makes the caller the only one who puts key. done is nil when the block
// is there already; otherwise the caller closes it.
func (s *Store) begin(ctx context.Context, key sys.BlockKey, replace bool) (done chan struct{}, old entry, err error) {
	const op = sys.Op("disk.Put")
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, entry{}, errClosed(op)
		}
		if wait := s.pending[key]; wait != nil {
			s.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, entry{}, sys.E(op, sys.Interrupted, block.Subject(key), context.Cause(ctx))
			}
		}
		old, ok := s.index.entries[key]
		switch {
		case ok && old.deleted():
			err = sys.E(op, sys.Stale, block.Subject(key), "deleted before")
		case ok && !replace:
		default:
			if err = s.sync.failed(); err == nil {
				done = make(chan struct{})
				s.pending[key] = done
				s.writing.Add(1)
			}
		}
		s.mu.Unlock()
		return done, old, err
	}
}

// same compares a block that is there with one that is put again.
func (s *Store) same(key sys.BlockKey, old entry, data []byte, sums block.Sums) error {
	const op = sys.Op("disk.Put")
	if int(old.size) == len(data) {
		r, err := s.open(op, key)
		if err != nil {
			return err
		}
		defer r.segment.release()
		if r.h.sums.Equal(sums) {
			return nil
		}
	}
	return sys.E(op, sys.Exist, block.Subject(key), "holds other bytes")
}

// point makes e the entry of key and counts what it replaces as dead. The
// caller holds the lock and has counted the new bytes as live.
func (s *Store) point(key sys.BlockKey, e entry) {
	old, had := s.index.set(key, e)
	if !had || old.deleted() {
		return
	}
	if g := s.segments[old.segment]; g != nil {
		g.live -= recordSize(int(old.size))
		s.wakeIfDead(g)
	}
}

// reserve gives a record its place at the end of the active segment.
func (s *Store) reserve(h *header) (*segment, error) {
	size := recordSize(h.length)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active != nil && s.active.tail+size > s.opt.SegmentBytes && s.active.tail > sectorSize {
		s.seal(s.active)
	}
	if s.active == nil {
		if err := s.createSegment(); err != nil {
			return nil, err
		}
	}
	g := s.active
	h.salt, h.offset, h.durable = g.salt, g.tail, g.durable
	g.inflight[g.tail] = struct{}{}
	g.tail += size
	g.acquire()
	return g, nil
}

// write reserves and writes a record. On success the caller calls wrote under
// the lock; on failure the room is given back or left as a hole.
func (s *Store) write(h *header, payload []byte) (*segment, error) {
	g, err := s.reserve(h)
	if err != nil {
		return nil, err
	}
	if err := writeRecord(g, h, payload); err != nil {
		s.mu.Lock()
		delete(g.inflight, h.offset)
		if g.tail == h.offset+recordSize(h.length) {
			g.tail = h.offset
		}
		if g.sealed && len(g.inflight) == 0 {
			wake(s.wakeSync)
		}
		s.mu.Unlock()
		g.release()
		return nil, ioError("disk.Put", block.Subject(h.key), err)
	}
	return g, nil
}

// writeRecord writes a record to its place. The header of a large record comes
// last, so that a write that fails half-way leaves none; a direct transfer has
// it first, and the checksums tell whether all of it arrived.
func writeRecord(g *segment, h *header, payload []byte) error {
	if len(payload) > smallPayload {
		if done, err := g.direct.writeRecord(h, payload); done {
			return err
		}
	}
	buf := recordPool.Get().(*[sectorSize + smallPayload]byte)
	defer recordPool.Put(buf)
	h.encode(buf[:])
	if len(payload) <= smallPayload {
		n := copy(buf[sectorSize:], payload)
		_, err := g.file.WriteAt(buf[:sectorSize+n], h.offset)
		return err
	}
	if _, err := g.file.WriteAt(payload, h.offset+sectorSize); err != nil {
		return err
	}
	_, err := g.file.WriteAt(buf[:sectorSize], h.offset)
	return err
}

// wrote ends the reservation of a record that is written. The caller holds the
// lock.
func (s *Store) wrote(g *segment, h *header) {
	delete(g.inflight, h.offset)
	g.dirty = true
	if s.unsynced += recordSize(h.length); s.unsynced >= s.opt.SyncBytes || g.sealed && len(g.inflight) == 0 {
		wake(s.wakeSync)
	}
	g.release()
}

// Delete implements block.Store. It returns when the deletion is on stable
// storage: a block that came back after a crash would stay for ever.
func (s *Store) Delete(ctx context.Context, keys []sys.BlockKey) error {
	const op = sys.Op("disk.Delete")
	for len(keys) > 0 {
		n := min(len(keys), sys.BlockSize/keySize)
		if err := s.bury(op, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return s.syncAll(ctx)
}

// bury writes one tombstone record for those keys that have none. It may use
// the reserve: deleting is how space comes back.
func (s *Store) bury(op sys.Op, keys []sys.BlockKey) error {
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return errClosed(op)
	}
	s.writing.Add(1)
	defer s.writing.Done()
	fresh := make([]sys.BlockKey, 0, len(keys))
	for _, key := range keys {
		if e, ok := s.index.entries[key]; (!ok || !e.deleted()) && key.Slice != 0 {
			fresh = append(fresh, key)
		}
	}
	s.mu.RUnlock()
	if len(fresh) == 0 {
		return nil
	}
	if err := s.sync.failed(); err != nil {
		return err
	}
	payload := appendKeys(make([]byte, 0, len(fresh)*keySize), fresh)
	h := header{kind: kindTombstones, length: len(payload), sums: block.SumData(payload)}
	g, err := s.write(&h, payload)
	if err != nil {
		return sys.E(op, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote(g, &h)
	g.places = append(g.places, h.tombstones(payload)...)
	g.live += recordSize(h.length)
	for _, key := range fresh {
		s.point(key, entry{segment: g.id, sector: uint32(h.offset / sectorSize)})
	}
	return nil
}
