package wal

import (
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// fillBytes is how much is zeroed between two syncs, so that preparing a
	// segment does not hold up the syncs of the active one for long.
	fillBytes = 1 << 20
	// prepareRetry is how long the preparer waits for space to come back.
	prepareRetry = 250 * time.Millisecond
	// category names the log in Pebble's statistics of disk writes.
	category vfs.DiskWriteCategory = "koinon-log"
)

// prepare is the goroutine that keeps one segment ready ahead of need, and
// removes the segments that were given up.
func (l *Log) prepare() {
	defer close(l.prepared)
	timer := l.opts.Sched.NewTimer(prepareRetry)
	defer timer.Stop()
	for {
		l.mu.Lock()
		needed, spares := l.next == nil, len(l.free)
		l.mu.Unlock()
		var err error
		switch {
		case needed:
			err = l.prepareNext()
		case spares > 1:
			// One is kept: the next preparation overwrites it.
			l.removeOldest()
			continue
		}
		var retry env.Timer
		if err != nil {
			timer.Reset(prepareRetry)
			retry = timer
		}
		if l.opts.Sched.Wait(retry, l.prepWake, l.stop, nil) == env.GotB {
			return
		}
	}
}

// prepareNext makes the segment after the active one. An error other than a
// full disk reaches the writer, which poisons the log.
func (l *Log) prepareNext() error {
	l.mu.Lock()
	id := uint64(1)
	if n := len(l.segs); n > 0 {
		id = l.segs[n-1].id + 1
	}
	var old *segment
	if len(l.free) > 0 {
		old = l.free[0]
		l.free = l.free[1:]
	}
	l.mu.Unlock()
	seg, err := l.makeSegment(id, old)
	if err != nil {
		err = sys.E(sys.Op("wal.prepare"), sys.Subject(segmentName(id)), kindOf(err), err)
		l.opts.Logger.Warn("the next log segment cannot be prepared", "err", err)
	}
	l.mu.Lock()
	l.next, l.prepErr = seg, err
	l.mu.Unlock()
	signal(l.ready)
	return err
}

// makeSegment returns a durable file of full size under the segment's name,
// made from old when that can be overwritten.
func (l *Log) makeSegment(id uint64, old *segment) (*segment, error) {
	fs, dir := l.opts.FS, l.opts.Dir
	name := fs.PathJoin(dir, segmentName(id))
	if old != nil {
		if old.refs.Load() == 1 {
			if err := old.unref(); err != nil {
				return nil, err
			}
			if err := fs.Rename(fs.PathJoin(dir, segmentName(old.id)), name); err != nil {
				return nil, err
			}
			f, err := fs.OpenReadWrite(name, category)
			if err != nil {
				return nil, err
			}
			return l.finishSegment(id, f, true)
		}
		if err := l.removeSegment(old); err != nil {
			return nil, err
		}
	}
	tmp := fs.PathJoin(dir, "next.tmp")
	f, err := fs.Create(tmp, category)
	if err != nil {
		return nil, err
	}
	if err := fill(f, 0, l.opts.SegmentBytes); err != nil {
		// The half-made file would keep the disk full.
		return nil, errors.Join(err, f.Close(), fs.Remove(tmp))
	}
	if err := fs.Rename(tmp, name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l.finishSegment(id, f, false)
}

// finishSegment makes the file's name durable, and its size full.
func (l *Log) finishSegment(id uint64, f vfs.File, reused bool) (*segment, error) {
	if reused {
		st, err := f.Stat()
		if err == nil && st.Size() < l.opts.SegmentBytes {
			err = fill(f, st.Size(), l.opts.SegmentBytes)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if err := syncDir(l.opts.FS, l.opts.Dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return newSegment(id, f), nil
}

// fill writes zeroes to [from, to) and syncs.
func fill(f vfs.File, from, to int64) error {
	zero := make([]byte, min(fillBytes, to-from))
	for at := from; at < to; {
		n := min(int64(len(zero)), to-at)
		if _, err := f.WriteAt(zero[:n], at); err != nil {
			return err
		}
		at += n
		if err := f.SyncData(); err != nil {
			return err
		}
	}
	return f.Sync()
}

// removeOldest removes the oldest segment that was given up.
func (l *Log) removeOldest() {
	l.mu.Lock()
	old := l.free[0]
	l.free = l.free[1:]
	l.mu.Unlock()
	if err := l.removeSegment(old); err != nil {
		l.opts.Logger.Warn("an old log segment cannot be removed", "segment", segmentName(old.id), "err", err)
	}
}

func (l *Log) removeSegment(s *segment) error {
	err := l.opts.FS.Remove(l.opts.FS.PathJoin(l.opts.Dir, segmentName(s.id)))
	return errors.Join(err, s.unref())
}
