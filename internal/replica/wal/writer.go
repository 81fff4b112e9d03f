package wal

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// maxWrite bounds the bytes of one write.
const maxWrite = 8 << 20

// write is the writer goroutine: it takes all that waits, writes and syncs it,
// and tells who waited.
func (l *Log) write() {
	defer close(l.written)
	for {
		l.mu.Lock()
		b, closing, err := l.pend, l.closing, l.err
		waiting := len(b.done) > 0
		if waiting {
			l.pend, l.spare = l.spare, nil
		}
		l.mu.Unlock()
		if !waiting {
			if closing {
				return
			}
			l.opts.Sched.Wait(nil, l.wake, nil, nil)
			continue
		}
		if err == nil {
			if err = l.writeBatch(b); err != nil {
				l.poison(err)
			}
		}
		for _, done := range b.done {
			done(err)
		}
		b.reset()
		l.mu.Lock()
		l.spare = b
		l.mu.Unlock()
	}
}

// poison makes every later append fail. What a failed write or sync left on
// disk cannot be known, so nothing may be acknowledged any more.
func (l *Log) poison(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.opts.Logger.Error("the write-ahead log failed and takes nothing more", "dir", l.opts.Dir, "err", err)
}

// writeBatch makes b durable, in as few writes as the segments and maxWrite
// allow.
func (l *Log) writeBatch(b *batch) error {
	for recs := b.recs; len(recs) > 0; {
		room := l.room()
		n, size := 0, int64(0)
		for n < len(recs) && size+int64(recs[n].size) <= room && (n == 0 || size < maxWrite) {
			size += int64(recs[n].size)
			n++
		}
		if n == 0 {
			if err := l.roll(); err != nil {
				return err
			}
			continue
		}
		if err := l.writeRun(b.buf[recs[0].at:recs[0].at+int(size)], recs[:n]); err != nil {
			return err
		}
		recs = recs[n:]
	}
	return nil
}

// room is how many bytes the active segment can still take.
func (l *Log) room() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segs) == 0 || l.damageKnown {
		return 0
	}
	return l.opts.SegmentBytes - l.position
}

// writeRun writes records that follow one another in buf to the active
// segment as one batch.
func (l *Log) writeRun(buf []byte, recs []pending) error {
	l.mu.Lock()
	seg, at := l.segs[len(l.segs)-1], l.position
	l.mu.Unlock()
	base := recs[0].at
	for i, r := range recs {
		seal(buf[r.at-base:], seg.id, l.batchNo, i == len(recs)-1)
	}
	if err := l.sync(seg, buf, at); err != nil {
		return err
	}
	l.batchNo++
	l.records.Add(uint64(len(recs)))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.position = at + int64(len(buf))
	for _, r := range recs {
		f := decodeFrame(buf[r.at-base:])
		switch r.kind {
		case Entry:
			l.indexEntry(seg, f, at+int64(r.at-base))
		case State:
			body := buf[r.at-base+recordHeader:]
			l.states[r.group] = append(l.states[r.group][:0], body[:f.length]...)
		}
	}
	return nil
}

// indexEntry notes where an entry lies. l.mu is held.
func (l *Log) indexEntry(seg *segment, f frame, at int64) {
	seg.top[f.group] = max(seg.top[f.group], f.slot)
	l.groupIndex(f.group).put(location{slot: f.slot, segment: seg.id, offset: uint32(at), length: f.length, crc: f.crc})
}

// sync writes buf at the offset and makes it durable.
func (l *Log) sync(seg *segment, buf []byte, at int64) error {
	start := time.Now()
	if _, err := seg.file.WriteAt(buf, at); err != nil {
		return sys.E(sys.Op("wal.write"), sys.Subject(segmentName(seg.id)), kindOf(err), err)
	}
	if err := seg.file.SyncData(); err != nil {
		return sys.E(sys.Op("wal.sync"), sys.Subject(segmentName(seg.id)), kindOf(err), err)
	}
	took := time.Since(start)
	l.syncNs.Add(uint64(took))
	if l.opts.Synced != nil {
		l.opts.Synced(took)
	}
	l.syncs.Add(1)
	l.bytes.Add(uint64(len(buf)))
	return nil
}

// roll makes the prepared segment the active one. Its first batch is the
// header and every group's latest State, so that older segments can go.
func (l *Log) roll() error {
	next, err := l.awaitNext()
	if err != nil {
		return err
	}
	h := header{segment: next.id, first: l.batchNo, size: uint32(l.opts.SegmentBytes)}
	l.mu.Lock()
	if n := len(l.segs); n > 0 {
		h.prev, h.prevEnd = l.segs[n-1].id, uint64(l.position)
	}
	l.mu.Unlock()
	if l.damageKnown {
		h.flags |= flagDamageKnown
	}
	buf := make([]byte, headerBytes)
	h.encode(buf)
	groups := slices.Sorted(maps.Keys(l.states))
	starts := make([]int, 0, len(groups))
	for _, g := range groups {
		starts = append(starts, len(buf))
		buf = appendRecord(buf, Record{Type: State, Group: g, Body: l.states[g]})
	}
	for i, at := range starts {
		seal(buf[at:], next.id, l.batchNo, i == len(starts)-1)
	}
	if err := l.sync(next, buf, 0); err != nil {
		return err
	}
	if len(starts) > 0 {
		l.batchNo++
	}
	l.damageKnown = false
	l.mu.Lock()
	l.segs = append(l.segs, next)
	l.next = nil
	l.position = int64(len(buf))
	l.mu.Unlock()
	signal(l.prepWake)
	return nil
}

// awaitNext waits until the next segment is prepared, on a full disk until
// there is space. A log that has written nothing yet does not: whoever opens it
// can still be told.
func (l *Log) awaitNext() (*segment, error) {
	for {
		l.mu.Lock()
		next, err := l.next, l.prepErr
		l.mu.Unlock()
		if next != nil {
			return next, nil
		}
		switch {
		case err == nil:
		case !sys.Is(err, sys.NoSpace):
			return nil, err
		case l.syncs.Load() == 0:
			return nil, sys.E(sys.Op("wal.write"), sys.NoSpace, sys.Subject(l.opts.Dir),
				fmt.Errorf("a segment of %d MiB is needed; make room and start again: %w", l.opts.SegmentBytes>>20, err))
		}
		if l.opts.Sched.Wait(nil, l.ready, l.stop, nil) == env.GotB {
			return nil, ErrClosed
		}
	}
}
