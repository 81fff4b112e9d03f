package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/sys"
)

// replayer reads the segments in order when the log is opened.
type replayer struct {
	log    *Log
	fn     func(Record) error
	report Report

	prev    uint64 // the segment read before, 0 when none
	prevEnd int64  // where its records end
	batch   uint64 // of the last record
	whole   bool   // the last record was the last of its batch
	short   bool   // the segment that is being read has lost its end
}

// damaged keeps the first damage found and replays a Gap.
func (r *replayer) damaged(subject string, at int64, what string) error {
	if r.report.Damaged == nil {
		r.report.Damaged = sys.E(sys.Op("wal.replay"), sys.Corrupt, sys.Subject(subject),
			fmt.Sprintf("%s at byte %d: records that were durable are lost", what, at))
	}
	return r.fn(Record{Type: Gap})
}

// torn is the batch that a crash may have left unfinished.
func (r *replayer) torn() uint64 {
	if r.whole {
		return r.batch + 1
	}
	return r.batch
}

// run replays the whole log and leaves it ready for the writer.
func (r *replayer) run() error {
	l := r.log
	ids, err := r.list()
	if err != nil {
		return err
	}
	used, err := r.used(ids)
	if err != nil {
		return err
	}
	r.whole = true
	for i, id := range ids {
		if err := r.segment(id, i == len(ids)-1, i == used-1); err != nil {
			return err
		}
	}
	if l.opts.Exists && len(l.segs) == 0 {
		if err := r.damaged(l.opts.Dir, 0, "no segment is there"); err != nil {
			return err
		}
	}
	l.damageKnown = r.report.Damaged != nil
	l.batchNo = r.torn()
	if n := len(l.segs); n > 0 {
		l.position = r.prevEnd
		// What was read may be in the page cache only; nothing may be told to
		// others before it is durable.
		return errors.Join(l.segs[n-1].file.SyncData(), syncDir(l.opts.FS, l.opts.Dir))
	}
	return nil
}

// list returns the segments' IDs in order and removes an unfinished file.
func (r *replayer) list() ([]uint64, error) {
	fs, dir := r.log.opts.FS, r.log.opts.Dir
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, name := range names {
		if name == "next.tmp" {
			if err := fs.Remove(fs.PathJoin(dir, name)); err != nil {
				return nil, err
			}
		}
		if id, ok := parseSegmentName(name); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// used returns how many of the segments there are up to the last one with a
// header of its own: behind it is the one that was prepared ahead.
func (r *replayer) used(ids []uint64) (int, error) {
	fs := r.log.opts.FS
	for n := len(ids); n > 0; n-- {
		f, err := fs.Open(fs.PathJoin(r.log.opts.Dir, segmentName(ids[n-1])))
		if err != nil {
			return 0, err
		}
		b := make([]byte, headerUsed)
		_, err = f.ReadAt(b, 0)
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		if h, _, ok := decodeHeader(b); ok && h.segment == ids[n-1] && h.first < numberMax {
			return n, nil
		}
	}
	return 0, nil
}

// segment replays one file. last says that no file follows, active that no
// segment in use follows.
func (r *replayer) segment(id uint64, last, active bool) error {
	l := r.log
	f, err := l.opts.FS.OpenReadWrite(l.opts.FS.PathJoin(l.opts.Dir, segmentName(id)), category)
	if err != nil {
		return err
	}
	s := newSegment(id, f)
	w := &window{file: f}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.size = min(st.Size(), l.opts.SegmentBytes)
	if st.Size() > l.opts.SegmentBytes {
		w.size = min(st.Size(), 1<<32-1)
	}
	used, err := r.header(s, w, st.Size())
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if !used {
		return r.unused(s, w, last)
	}
	l.segs = append(l.segs, s)
	return r.records(s, w, active)
}

// header reads a segment's header and checks that the segment before it ended
// where the header says. It is false when the segment was not in use. size is
// the file's.
func (r *replayer) header(s *segment, w *window, size int64) (used bool, err error) {
	b, err := w.at(0, headerUsed)
	if err != nil {
		return false, err
	}
	h, version, ok := decodeHeader(b)
	if !ok || h.segment != s.id || h.first >= numberMax {
		return false, nil
	}
	if version != formatVersion {
		return false, otherFormat(s.id, version)
	}
	if h.flags&flagDamageKnown != 0 {
		r.report.Damaged = nil
	} else if r.prev != 0 && (h.prev != r.prev || h.prevEnd != uint64(r.prevEnd)) {
		err := r.damaged(segmentName(r.prev), r.prevEnd, fmt.Sprintf(
			"segment %d follows segment %d from byte %d, but records end", s.id, h.prev, h.prevEnd))
		if err != nil {
			return false, err
		}
	}
	r.short = size < int64(h.size)
	if h.first > r.batch {
		r.batch, r.whole = h.first-1, true
	}
	return true, nil
}

// unused deals with a file that has no header of its own: the segment that was
// prepared ahead, or a damaged one.
func (r *replayer) unused(s *segment, w *window, last bool) error {
	l := r.log
	switch {
	case last && r.prev != 0 && s.id > r.prev+1:
		err := r.damaged(segmentName(r.prev+1), 0, "the segment is missing")
		if err != nil {
			return errors.Join(err, s.file.Close())
		}
	case last && w.size < headerBytes: // no file gets its name before it is full
		if err := r.damaged(segmentName(s.id), w.size, "the file was cut short"); err != nil {
			return errors.Join(err, s.file.Close())
		}
	}
	extent, batch, err := r.scan(s.id, w, headerBytes)
	if err != nil {
		return errors.Join(err, s.file.Close())
	}
	if !last || batch > r.torn() {
		if err := r.damaged(segmentName(s.id), 0, "the header is unreadable"); err != nil {
			return errors.Join(err, s.file.Close())
		}
		l.segs = append(l.segs, s)
		return r.records(s, w, last)
	}
	if extent > 0 {
		r.report.TornBytes += extent - headerBytes
		if err := wipe(s.file, headerBytes, extent); err != nil {
			return errors.Join(err, s.file.Close())
		}
	}
	if last && w.size >= l.opts.SegmentBytes {
		l.next = s
		return nil
	}
	return errors.Join(s.file.Close(), l.opts.FS.Remove(l.opts.FS.PathJoin(l.opts.Dir, segmentName(s.id))))
}

// records replays a segment's records up to the first bad one, and decides
// whether that is the end, a torn tail or damage.
func (r *replayer) records(s *segment, w *window, active bool) error {
	at := int64(headerBytes)
	for {
		end, err := r.contiguous(s, w, at)
		if err != nil {
			return err
		}
		at = end
		extent, batch, err := r.scan(s.id, w, at)
		if err != nil {
			return err
		}
		r.prev, r.prevEnd = s.id, at
		if batch <= r.torn() {
			// Of the last segment this is its end, or a torn tail. Of another one it
			// may be the rest of a tail that was torn earlier, or damage: its
			// successor's header says where it ended.
			switch {
			case !active:
				return nil
			case r.short: // what was behind nobody can tell
				return r.damaged(segmentName(s.id), at, "the file was cut short")
			case extent == 0:
				return nil
			}
			r.report.TornBytes += extent - at
			return wipe(s.file, at, extent)
		}
		if err := r.damaged(segmentName(s.id), at, "unreadable record"); err != nil {
			return err
		}
		next, err := r.nextValid(s.id, w, at)
		if err != nil {
			return err
		}
		at = next
	}
}

// contiguous replays valid records that follow one another, from at, and returns
// where they end.
func (r *replayer) contiguous(s *segment, w *window, at int64) (int64, error) {
	l := r.log
	for {
		f, b, err := w.record(at)
		if err != nil {
			return at, err
		}
		if b == nil || !f.valid(b, s.id) || f.batch < r.batch {
			return at, nil
		}
		rec := Record{Type: f.kind, Group: f.group, Slot: f.slot,
			Body: b[recordHeader : recordHeader+int(f.length)]}
		switch f.kind {
		case Entry:
			l.indexEntry(s, f, at)
		case State:
			l.states[f.group] = slices.Clone(rec.Body)
		}
		if err := r.fn(rec); err != nil {
			return at, err
		}
		r.report.Records++
		r.batch, r.whole = f.batch, f.flags&flagLast != 0
		at += f.size()
	}
}

// scan looks for what else of this segment lies behind from: extent is where
// the last record header ends (0: none), batch the highest number in a valid
// record.
func (r *replayer) scan(id uint64, w *window, from int64) (extent int64, batch uint64, err error) {
	err = w.each(id, from, func(at int64, f frame) (bool, error) {
		extent = max(extent, min(at+f.size(), w.size))
		if f.batch <= batch {
			return true, nil
		}
		f, b, err := w.record(at)
		if b != nil && f.valid(b, id) {
			batch = f.batch
		}
		return true, err
	})
	return extent, batch, err
}

// nextValid returns where the first valid record behind from starts.
func (r *replayer) nextValid(id uint64, w *window, from int64) (int64, error) {
	found := w.size
	err := w.each(id, from+alignment, func(at int64, _ frame) (bool, error) {
		f, b, err := w.record(at)
		if b == nil || !f.valid(b, id) || f.batch < r.batch {
			return true, err
		}
		found = at
		return false, err
	})
	return found, err
}

// wipe zeroes [from, to) durably, so that what was torn is not taken for
// records later.
func wipe(f vfs.File, from, to int64) error { return fill(f, from, to) }

// window reads a segment through a buffer that moves over it.
type window struct {
	file  vfs.File
	size  int64
	start int64
	buf   []byte
}

const windowBytes = 1 << 20

// numberMax is above every number of a batch or segment that a log can reach:
// a higher one is not ours, and must not make the count overflow.
const numberMax = 1 << 62

// at returns up to n bytes from offset on, fewer at the end of the file. They
// are valid until the next call.
func (w *window) at(offset int64, n int) ([]byte, error) {
	if offset >= w.size {
		return nil, nil
	}
	end := min(offset+int64(n), w.size)
	if offset < w.start || end > w.start+int64(len(w.buf)) {
		want := int(min(max(int64(n), windowBytes), w.size-offset))
		w.buf = slices.Grow(w.buf[:0], want)[:want]
		got, err := w.file.ReadAt(w.buf, offset)
		if err != nil && err != io.EOF {
			w.buf = w.buf[:0]
			return nil, err
		}
		w.start, w.buf = offset, w.buf[:got]
		end = min(end, offset+int64(got))
	}
	return w.buf[offset-w.start : end-w.start], nil
}

// record returns the record at an offset; its bytes are nil when it cannot
// be one.
func (w *window) record(at int64) (frame, []byte, error) {
	b, err := w.at(at, recordHeader)
	if err != nil || len(b) < recordHeader {
		return frame{}, nil, err
	}
	f := decodeFrame(b)
	if f.batch == 0 || f.batch >= numberMax || at+f.size() > w.size {
		return f, nil, nil
	}
	b, err = w.at(at, recordHeader+int(f.length))
	return f, b, err
}

// each calls fn for every place behind from that may be the header of a record
// of the segment, until fn returns false.
func (w *window) each(id uint64, from int64, fn func(at int64, f frame) (bool, error)) error {
	want := tag(id)
	for at := from; at+recordHeader <= w.size; {
		b, err := w.at(at, windowBytes)
		if err != nil {
			return err
		}
		n := len(b)
		i := 0
		for ; i+recordHeader <= n; i += alignment {
			if binary.LittleEndian.Uint64(b[i+8:]) != want {
				continue
			}
			f := decodeFrame(b[i:])
			more, err := fn(at+int64(i), f)
			if err != nil || !more {
				return err
			}
			// fn may have moved the window.
			if b, err = w.at(at, n); err != nil {
				return err
			}
			if len(b) != n {
				return io.ErrUnexpectedEOF
			}
		}
		if i == 0 {
			return nil
		}
		at += int64(i)
	}
	return nil
}
