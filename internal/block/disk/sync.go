package disk

import (
	"context"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// syncGroup lets everybody who waits for stable storage share one fdatasync:
// those who come while one runs wait for the next.
type syncGroup struct {
	turn chan struct{} // holds a token while somebody syncs
	mu   sync.Mutex
	next *syncRound
	err  error // of the first sync that failed; it stays
}

type syncRound struct {
	done chan struct{}
	err  error
}

// failed returns why the store takes no more writes. After a failed fdatasync
// the kernel may have dropped what it could not write and call it clean, so a
// later success proves nothing: only opening the store again, which checks the
// records, does.
func (y *syncGroup) failed() error {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.err
}

// Sync implements block.Store. All slices share the segments, so it covers
// whatever was put or deleted before the call.
func (s *Store) Sync(ctx context.Context, slices []sys.SliceID) error {
	s.mu.RLock()
	closed := s.closed
	s.mu.RUnlock()
	if closed {
		return errClosed("disk.Sync")
	}
	return s.syncAll(ctx)
}

// syncAll joins a round of syncing and runs it when it is its turn.
func (s *Store) syncAll(ctx context.Context) error {
	y := &s.sync
	y.mu.Lock()
	if y.err != nil {
		defer y.mu.Unlock()
		return y.err
	}
	if y.next == nil {
		y.next = &syncRound{done: make(chan struct{})}
	}
	r := y.next
	y.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return sys.E(sys.Op("disk.Sync"), sys.Interrupted, context.Cause(ctx))
	case y.turn <- struct{}{}:
	}
	defer func() { <-y.turn }()
	select {
	case <-r.done:
		return r.err
	default:
	}
	y.mu.Lock()
	y.next = nil
	y.mu.Unlock()
	r.err = s.syncDirty()
	if r.err != nil {
		y.mu.Lock()
		y.err = r.err
		y.mu.Unlock()
		s.log.Error("syncing blocks failed: no more blocks are taken until the node is restarted", "dir", s.dir, "err", r.err)
	}
	close(r.done)
	return r.err
}

// syncDirty syncs every segment that has unsynced bytes.
func (s *Store) syncDirty() error {
	type work struct {
		g      *segment
		stable int64
	}
	var dirty []work
	s.mu.Lock()
	for _, g := range s.segments {
		if g.dirty {
			g.dirty = false
			g.acquire()
			dirty = append(dirty, work{g, g.stable()})
		}
	}
	s.unsynced = 0
	s.mu.Unlock()
	var err error
	unnamed := false
	for _, w := range dirty {
		if e := w.g.file.SyncData(); e != nil {
			err = joinErrors(err, ioError("disk.Sync", sys.Subject(segmentName(w.g.id)), e))
		}
		unnamed = unnamed || !w.g.named
	}
	if unnamed && err == nil {
		err = s.syncDir(s.dir)
	}
	s.mu.Lock()
	for _, w := range dirty {
		if err == nil {
			w.g.durable = max(w.g.durable, w.stable)
			w.g.named = true
		}
		w.g.release()
	}
	s.mu.Unlock()
	return err
}

// syncDir makes the names in a directory stable.
func (s *Store) syncDir(dir string) error {
	const op = sys.Op("disk.syncDir")
	d, err := s.fs.OpenDir(dir)
	if err != nil {
		return ioError(op, sys.Subject(dir), err)
	}
	err = d.Sync()
	if err := joinErrors(err, d.Close()); err != nil {
		return ioError(op, sys.Subject(dir), err)
	}
	return nil
}

// wake leaves a token for a worker.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// syncing syncs when enough has come together and writes hints of segments
// that are full.
func (s *Store) syncing(ctx context.Context) {
	tick := env.NewTicker(env.System{}, s.opt.SyncEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.wakeSync:
		}
		s.mu.RLock()
		work := s.unsynced > 0
		for _, g := range s.segments {
			work = work || g.sealed && !g.hinted
		}
		s.mu.RUnlock()
		if !work || s.syncAll(ctx) != nil {
			continue
		}
		if err := s.writeHints(func(g *segment) bool { return g.sealed }); err != nil {
			s.log.Warn("cannot write the hint of a segment: the next start will scan it", "dir", s.dir, "err", err)
		}
	}
}

// seal ends a segment. The caller holds the lock.
func (s *Store) seal(g *segment) {
	g.sealed = true
	if s.active == g {
		s.active = nil
	}
	if len(g.inflight) == 0 {
		wake(s.wakeSync)
	}
}

// checkpoint writes the hints of all segments that lack one, so that the next
// Open need not scan.
func (s *Store) checkpoint() error {
	return s.writeHints(func(*segment) bool { return true })
}

// writeHints writes the hints of the segments that want says, whose records
// are all on stable storage.
func (s *Store) writeHints(want func(*segment) bool) error {
	var err error
	s.mu.RLock()
	var todo []*segment
	for _, g := range s.segments {
		if want(g) && !g.hinted && len(g.inflight) == 0 && g.durable >= g.tail {
			g.acquire()
			todo = append(todo, g)
		}
	}
	s.mu.RUnlock()
	for _, g := range todo {
		// places and tail do not change any more: the segment is sealed, or
		// the store is closing.
		if e := s.writeFile(hintName(g.id), encodeHint(g.id, g.salt, g.tail, g.places)); e != nil {
			err = joinErrors(err, e)
		} else {
			s.mu.Lock()
			g.hinted, g.places = true, nil
			s.mu.Unlock()
			wake(s.wakeCompact)
		}
		g.release()
	}
	return err
}

// writeFile writes a whole file so that it is there completely or not at all.
func (s *Store) writeFile(name string, data []byte) error {
	const op = sys.Op("disk.writeFile")
	tmp, path := s.fs.PathJoin(s.dir, name+".tmp"), s.fs.PathJoin(s.dir, name)
	f, err := s.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return ioError(op, sys.Subject(tmp), err)
	}
	n, err := f.Write(data)
	if err == nil && n < len(data) {
		err = fmt.Errorf("%d of %d bytes written", n, len(data))
	}
	if err == nil {
		err = f.Sync()
	}
	if err := joinErrors(err, f.Close()); err != nil {
		return ioError(op, sys.Subject(tmp), joinErrors(err, s.fs.Remove(tmp)))
	}
	if err := s.fs.Rename(tmp, path); err != nil {
		return ioError(op, sys.Subject(path), err)
	}
	return s.syncDir(s.dir)
}
