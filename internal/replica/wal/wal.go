// Package wal is a write-ahead log that many groups of one node share.
//
// Records are appended to segment files that were filled with zeroes ahead of
// time, so that a sync neither moves the end of a file nor allocates: on ext4
// that saves the commit of its journal. One writer goroutine merges whatever
// waits into one write and one sync; there is no timer, as what arrives during
// a sync is the next batch.
//
// A batch is written only after the one before it is durable. So when a
// record is bad and everything valid behind it belongs to the same batch, the
// machine stopped during the last write, and the tail is cut: nobody was told
// that it is durable. When a later batch is valid, durable bytes were damaged,
// and Open reports that.
//
// The bytes are described in docs/formats/log.md.
package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

// Type tells records apart.
type Type uint8

// The types of records.
const (
	// Entry is a slot's entry. A later one for the same slot replaces it.
	Entry Type = 1
	// State is the small state of a group that must never be lost. The log
	// keeps the latest one of each group whatever is truncated.
	State Type = 2
	// Gap is never written: Open replays it where durable records are missing.
	Gap Type = 0xff
)

// Record is one unit of the log. Slot is 0 in a State. What is logged is Body
// followed by More, so that a large part need not be copied twice; a Record
// that is replayed has it all in Body.
type Record struct {
	Type  Type
	Group uint64
	Slot  uint64
	Body  []byte
	More  []byte
}

// Options say where the log is and how it is cut into files.
type Options struct {
	FS  envfs.FS
	Dir string
	// Sched runs the writer and the preparer. Default env.Goroutines.
	Sched env.Sched
	// SegmentBytes is the size of a segment file. Default 64 MiB, least 16 KiB.
	SegmentBytes int64
	Logger       *slog.Logger // default: discard
	// Synced is told how long each write and its sync took; it must be quick.
	// Default: nobody is told.
	Synced func(took time.Duration)
	// Exists says that the log must be there: that it is empty is damage.
	Exists bool
}

// Report says what Open found.
type Report struct {
	Records int
	// TornBytes is how much of an unfinished last write was cut.
	TornBytes int64
	// Damaged is not nil when records that had been durable are gone. What
	// could still be read has been replayed.
	Damaged error
}

// Stats are counters since Open.
type Stats struct {
	Syncs, Records, Bytes uint64
	Segments              int
	// SyncTime is the time spent in write and sync.
	SyncTime time.Duration
}

// Log is an open log. Its methods may be called concurrently.
type Log struct {
	opts Options

	mu       sync.Mutex
	pend     *batch // what waits for the writer
	spare    *batch
	closing  bool
	err      error // set once: the log is poisoned
	segs     []*segment
	index    map[uint64]*groupIndex
	next     *segment // prepared, nil when not ready
	free     []*segment
	prepErr  error // why next is not ready
	position int64 // where the next batch goes in the active segment

	wake     chan struct{} // to the writer
	prepWake chan struct{} // to the preparer
	ready    chan struct{} // from the preparer to the writer
	stop     chan struct{} // closed by Close, for the preparer
	written  chan struct{} // closed when the writer has ended
	prepared chan struct{} // and the preparer

	// Only the writer uses these.
	batchNo     uint64
	damageKnown bool // the next segment acknowledges damage
	states      map[uint64][]byte

	syncs, records, bytes, syncNs atomic.Uint64
}

// batch is what one write carries.
type batch struct {
	buf  []byte
	recs []pending
	done []func(error)
}

// pending is one record of a batch: where it starts in the buffer.
type pending struct {
	at, size int
	group    uint64
	slot     uint64
	kind     Type
}

func (b *batch) reset() {
	if cap(b.buf) > 8<<20 {
		b.buf = nil
	}
	b.buf, b.recs = b.buf[:0], b.recs[:0]
	clear(b.done)
	b.done = b.done[:0]
}

// ErrClosed is what Append answers after Close.
var ErrClosed = errors.New("wal: closed")

// Open opens the log in opts.Dir, makes it when it is not there, and calls
// replay for every record in order. A Record's Body is valid only during the
// call. The caller holds the lock of the directory.
//
// When the report says Damaged, the first Append marks the damage as known, so
// that it is not reported again: that batch must hold whatever the caller
// wants to remember of it.
func Open(opts Options, replay func(Record) error) (*Log, Report, error) {
	if opts.SegmentBytes == 0 {
		opts.SegmentBytes = 64 << 20
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Sched == nil {
		opts.Sched = env.Goroutines{}
	}
	if opts.SegmentBytes < 16<<10 || opts.SegmentBytes%headerBytes != 0 || opts.SegmentBytes > 1<<31 {
		return nil, Report{}, sys.E(sys.Op("wal.Open"), sys.Invalid,
			"SegmentBytes must be a multiple of 4096 from 16 KiB to 2 GiB")
	}
	l := &Log{
		opts: opts, pend: &batch{}, spare: &batch{},
		index:  map[uint64]*groupIndex{},
		states: map[uint64][]byte{},
		wake:   make(chan struct{}, 1), prepWake: make(chan struct{}, 1),
		ready: make(chan struct{}, 1), stop: make(chan struct{}),
		written: make(chan struct{}), prepared: make(chan struct{}),
	}
	if err := makeDir(opts.FS, opts.Dir); err != nil {
		return nil, Report{}, sys.E(sys.Op("wal.Open"), sys.Subject(opts.Dir), kindOf(err), err)
	}
	r := &replayer{log: l, fn: replay}
	if err := r.run(); err != nil {
		l.closeFiles()
		return nil, Report{}, sys.E(sys.Op("wal.Open"), sys.Subject(opts.Dir), kindOf(err), err)
	}
	opts.Sched.Go(l.write)
	opts.Sched.Go(l.prepare)
	return l, r.report, nil
}

// Append hands records to the writer and returns at once; their bodies have
// been copied. done is called by the writer goroutine when they are durable,
// or with the error that poisoned the log; it must not block. Appends are
// written, and their done called, in order.
//
// The log bounds what one write holds, not what waits: the caller does.
// Records larger than a segment are refused through done.
func (l *Log) Append(recs []Record, done func(error)) {
	for i := range recs {
		if size := recordSize(len(recs[i].Body) + len(recs[i].More)); size > l.opts.SegmentBytes/2 {
			done(sys.E(sys.Op("wal.Append"), sys.TooBig, fmt.Sprintf(
				"a record of %d bytes does not fit half a segment of %d", size, l.opts.SegmentBytes)))
			return
		}
	}
	l.mu.Lock()
	if l.err != nil || l.closing {
		err := l.err
		if err == nil {
			err = ErrClosed
		}
		l.mu.Unlock()
		done(err)
		return
	}
	b := l.pend
	for i := range recs {
		at := len(b.buf)
		b.buf = appendRecord(b.buf, recs[i])
		b.recs = append(b.recs, pending{at: at, size: len(b.buf) - at,
			group: recs[i].Group, slot: recs[i].Slot, kind: recs[i].Type})
	}
	b.done = append(b.done, done)
	l.mu.Unlock()
	signal(l.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Read calls fn for the retained entries of slots [lo, hi] of a group, in
// order, until fn returns false or maxBytes of bodies (at least one entry)
// have been read. It stops before the first slot that has no entry. The body
// is fn's own. Entries may be read before they are durable.
func (l *Log) Read(group, lo, hi uint64, maxBytes int, fn func(slot uint64, body []byte) bool) error {
	total := 0
	for slot := lo; slot <= hi; slot++ {
		l.mu.Lock()
		seg, loc, ok := l.locate(group, slot)
		l.mu.Unlock()
		if !ok || total > 0 && total+int(loc.length) > maxBytes {
			return nil
		}
		body, err := l.readRecord(seg, loc)
		seg.unref()
		if err != nil {
			return err
		}
		total += len(body)
		if !fn(slot, body) {
			return nil
		}
	}
	return nil
}

// Each calls fn for every retained entry of a group above after, in slot order
// and over gaps, until fn returns an error. The body is fn's own.
func (l *Log) Each(group, after uint64, fn func(slot uint64, body []byte) error) error {
	l.mu.Lock()
	var slots []uint64
	for _, loc := range l.groupIndex(group).locs {
		if loc.slot > after {
			slots = append(slots, loc.slot)
		}
	}
	l.mu.Unlock()
	var bad error
	for _, slot := range slots {
		err := l.Read(group, slot, slot, 0, func(slot uint64, body []byte) bool {
			bad = fn(slot, body)
			return true
		})
		if err = errors.Join(err, bad); err != nil {
			return err
		}
	}
	return nil
}

// readRecord reads one record back and checks it.
func (l *Log) readRecord(seg *segment, loc location) ([]byte, error) {
	buf := make([]byte, recordHeader+int(loc.length))
	if _, err := seg.file.ReadAt(buf, int64(loc.offset)); err != nil {
		return nil, sys.E(sys.Op("wal.Read"), sys.Subject(segmentName(seg.id)), err)
	}
	f := decodeFrame(buf)
	if f.crc != loc.crc || !f.valid(buf, seg.id) {
		return nil, sys.E(sys.Op("wal.Read"), sys.Corrupt, sys.Subject(segmentName(seg.id)),
			fmt.Sprintf("what is read at byte %d is not the record of slot %d", loc.offset, loc.slot))
	}
	return buf[recordHeader:], nil
}

// Truncate gives up a group's entries up to and including upTo. Segments that
// hold nothing else are recycled or removed in the background.
func (l *Log) Truncate(group, upTo uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.groupIndex(group).truncate(upTo)
	n := 0
	// Segments go from the oldest on, so that the chain stays whole; the
	// active one stays, as it holds every group's State.
	for n < len(l.segs)-1 && l.segs[n].obsolete(l.index) {
		n++
	}
	if n == 0 {
		return
	}
	l.free = append(l.free, l.segs[:n]...)
	l.segs = slices.Delete(l.segs, 0, n)
	signal(l.prepWake)
}

// Retained returns the bytes of a group's entries in the log.
func (l *Log) Retained(group uint64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groupIndex(group).bytes
}

// CutFor returns the slot up to which a group's log could be truncated so that
// at most tail bytes of entries stay.
func (l *Log) CutFor(group uint64, tail int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groupIndex(group).cutFor(tail)
}

// Holds reports whether the log has an entry for every slot of [lo, hi].
func (l *Log) Holds(group, lo, hi uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groupIndex(group)
	for slot := lo; slot <= hi; slot++ {
		if _, ok := g.get(slot); !ok {
			return false
		}
	}
	return true
}

// NoSpace reports that the disk is full and the log will soon be: the next
// segment cannot be made and less than a quarter of the active one is left.
func (l *Log) NoSpace() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.prepErr != nil && l.next == nil && l.position > l.opts.SegmentBytes*3/4
}

// Err returns what poisoned the log, nil while it is sound.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Stats returns the counters.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	n := len(l.segs)
	l.mu.Unlock()
	return Stats{Syncs: l.syncs.Load(), Records: l.records.Load(), Bytes: l.bytes.Load(),
		Segments: n, SyncTime: time.Duration(l.syncNs.Load())}
}

// Close writes what waits, as far as there is room for it, and closes the
// files.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return nil
	}
	l.closing = true
	l.mu.Unlock()
	close(l.stop)
	signal(l.wake)
	l.opts.Sched.Wait(nil, l.written, nil, nil)
	l.opts.Sched.Wait(nil, l.prepared, nil, nil)
	return l.closeFiles()
}

func (l *Log) closeFiles() error {
	var err error
	for _, s := range slices.Concat(l.segs, l.free, []*segment{l.next}) {
		if s != nil {
			err = errors.Join(err, s.unref())
		}
	}
	l.segs, l.free, l.next = nil, nil, nil
	return err
}

// kindOf tells a full disk from other trouble.
func kindOf(err error) sys.Kind {
	if k := sys.KindOf(err); k != sys.Other {
		return k
	}
	if vfs.IsNoSpaceError(err) {
		return sys.NoSpace
	}
	return sys.Other
}
