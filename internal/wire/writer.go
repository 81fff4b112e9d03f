package wire

import (
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/koinon/koinon/internal/sys"
)

// urgency says who writes a small frame when nobody is writing.
type urgency uint8

const (
	writeSelf  urgency = iota // the caller, now
	writeSoon                 // the caller, after others had a chance to add to it
	writeLater                // the flusher, so that the caller never blocks
	writeIdle                 // whoever calls flush, or the next one who writes
)

const (
	// maxPending is how many bytes of small frames may wait before waitRoom
	// makes a read loop wait, and before a spent buffer is not kept.
	maxPending = 1 << 20
	// idlePending is how many bytes writeIdle leaves for later.
	idlePending = 64 << 10
	// corkAbove is the number of bytes from which records are gathered: one
	// record gains nothing.
	corkAbove = 16 << 10
)

// outgoing is a large message on its way: its payload is written from where it
// is, segment by segment.
type outgoing struct {
	frame
	header, payload []byte
	off             int // payload bytes taken by the writer
	started         bool
	aborted         bool
	whole           bool // the writer took all of it
	// done is called once, without the writer's lock, when the writer no
	// longer uses header and payload. whole says that all was written.
	done func(whole bool)
}

// writer orders the frames of one connection. There is no fixed writing
// goroutine: who finds nobody writing owns the connection until it hands it
// over to the flusher. Small frames are copied into one buffer and leave
// together; between two segments of a large message, what is small goes first.
type writer struct {
	conn   io.Writer
	corker *corkConn     // may be nil
	kick   chan struct{} // hands ownership to the flusher
	closed chan struct{}
	// broken is called once when a write fails.
	broken func(error)
	// beat counts finished writes; busy says that one is under way.
	beat atomic.Uint64
	busy atomic.Bool

	bufs [2][]byte // of vec: the owner's
	vec  net.Buffers

	mu         sync.Mutex
	room       sync.Cond
	writing    bool
	pending    []byte
	spare      []byte
	big        []*outgoing
	oneWay     int // bytes of one-way messages that wait
	pendingOne int // of these, the bytes in pending
	bigOne     int // large one-way messages that wait
	err        error
}

func newWriter(conn io.Writer, corker *corkConn, broken func(error)) *writer {
	w := &writer{conn: conn, corker: corker, broken: broken, kick: make(chan struct{}, 1), closed: make(chan struct{})}
	w.room.L = &w.mu
	return w
}

// small sends a message of at most smallMessage bytes. header and payload are
// copied.
func (w *writer) small(f *frame, header, payload []byte, u urgency) error {
	f.headerLen, f.payloadLen, f.total = uint32(len(header)), uint32(len(payload)), uint32(len(payload))
	w.mu.Lock()
	if w.err != nil {
		defer w.mu.Unlock()
		return w.err
	}
	w.appendSmall(f, header, payload)
	w.start(u)
	return nil
}

func (w *writer) appendSmall(f *frame, header, payload []byte) {
	w.pending = f.append(w.pending)
	w.pending = append(w.pending, header...)
	w.pending = append(w.pending, payload...)
}

// start sees to it that what was queued gets written. It unlocks w.mu.
func (w *writer) start(u urgency) {
	if w.writing || u == writeIdle && len(w.pending) < idlePending {
		w.mu.Unlock()
		return
	}
	w.writing = true
	if u == writeLater {
		w.kick <- struct{}{} // has room: ownership is unique
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	if u == writeSoon {
		runtime.Gosched()
	}
	w.turn(true)
}

// large sends a message without copying its payload. o.done is called in any
// case, unless an error is returned.
func (w *writer) large(o *outgoing, u urgency) error {
	o.headerLen, o.total = uint32(len(o.header)), uint32(len(o.payload))
	w.mu.Lock()
	if w.err != nil {
		defer w.mu.Unlock()
		return w.err
	}
	w.big = append(w.big, o)
	w.start(u)
	return nil
}

// send queues a one-way message for the flusher and never blocks. One-way
// messages leave in the order of send, so a small one that follows a large one
// queues behind it.
func (w *writer) send(f *frame, header, payload []byte, limit int) error {
	size := frameSize + len(header) + len(payload)
	w.mu.Lock()
	if w.err != nil {
		defer w.mu.Unlock()
		return w.err
	}
	if w.oneWay+size > limit {
		defer w.mu.Unlock()
		return sys.E(sys.Busy, "the queue of one-way messages is full: the peer does not take them fast enough")
	}
	w.oneWay += size
	if w.bigOne == 0 && len(header)+len(payload) <= smallMessage {
		f.headerLen, f.payloadLen, f.total = uint32(len(header)), uint32(len(payload)), uint32(len(payload))
		w.pendingOne += size
		w.appendSmall(f, header, payload)
		w.start(writeLater)
		return nil
	}
	// The caller may reuse its memory at once.
	own := append(append(make([]byte, 0, len(header)+len(payload)), header...), payload...)
	o := &outgoing{frame: *f, header: own[:len(header)], payload: own[len(header):]}
	o.headerLen, o.total = uint32(len(header)), uint32(len(payload))
	o.done = func(bool) {
		w.mu.Lock()
		w.oneWay -= size
		w.bigOne--
		w.mu.Unlock()
	}
	w.bigOne++
	w.big = append(w.big, o)
	w.start(writeLater)
	return nil
}

// abort gives up a large message. When it returns, done has been called or
// will be as soon as the segment under way is written.
func (w *writer) abort(o *outgoing) {
	w.mu.Lock()
	if o.started {
		o.aborted = true
		w.mu.Unlock()
		return
	}
	for i, q := range w.big {
		if q == o {
			w.big = append(w.big[:i:i], w.big[i+1:]...)
			w.mu.Unlock()
			o.done(false)
			return
		}
	}
	w.mu.Unlock()
}

// flush writes what writeIdle left.
func (w *writer) flush() {
	w.mu.Lock()
	if len(w.pending) == 0 {
		w.mu.Unlock()
		return
	}
	w.start(writeSelf)
}

// waitRoom returns when not too many small frames wait, so that a peer that
// does not read its replies cannot pile them up here.
func (w *writer) waitRoom() {
	w.mu.Lock()
	for len(w.pending) > maxPending && w.writing && w.err == nil {
		w.room.Wait()
	}
	w.mu.Unlock()
}

// backlog reports whether anything waits or is being written.
func (w *writer) backlog() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writing || len(w.pending) > 0 || len(w.big) > 0
}

// fail ends all writing; what waits is given up. The connection must be closed
// as well, to end a write under way.
func (w *writer) fail(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = err
	close(w.closed)
	w.room.Broadcast()
	if w.writing {
		w.mu.Unlock() // the owner gives up what waits
		return
	}
	w.giveUp()
}

// giveUp drops what waits. It unlocks w.mu, which the caller holds.
func (w *writer) giveUp() {
	big := w.big
	w.big, w.pending, w.spare, w.writing = nil, nil, nil, false
	w.mu.Unlock()
	for _, o := range big {
		o.done(false)
	}
}

// run is the flusher's goroutine: it writes what others hand over, until fail.
func (w *writer) run() {
	for {
		select {
		case <-w.kick:
			w.turn(false)
		case <-w.closed:
			select {
			case <-w.kick: // ownership that was handed over before fail
				w.turn(false)
			default:
			}
			return
		}
	}
}

// turn writes, as the owner. With once, it writes one batch and hands the rest
// over to the flusher, so that a caller does not work for others forever.
func (w *writer) turn(once bool) {
	w.mu.Lock()
	for {
		if w.err != nil {
			w.giveUp()
			return
		}
		buf, seg, finished := w.batch()
		if len(buf) == 0 && finished == nil {
			w.writing = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()

		err := w.write(buf, seg)
		if finished != nil {
			finished.done(err == nil && finished.whole)
		}

		w.mu.Lock()
		if cap(buf) <= maxPending {
			w.spare = buf[:0]
		}
		w.room.Broadcast()
		if err != nil && w.err == nil {
			w.err = err
			close(w.closed)
			w.mu.Unlock()
			w.broken(err)
			w.mu.Lock()
		}
		if once && w.err == nil && (len(w.pending) > 0 || len(w.big) > 0) {
			w.kick <- struct{}{}
			w.mu.Unlock()
			return
		}
	}
}

// batch takes what is to be written next: all small frames, the fixed part of
// the next segment of the first large message, and that segment. finished is
// the large message that ends with it.
func (w *writer) batch() (buf, seg []byte, finished *outgoing) {
	buf = w.pending
	w.pending, w.spare = w.spare, nil
	w.oneWay -= w.pendingOne
	w.pendingOne = 0
	if len(w.big) == 0 {
		return buf, nil, nil
	}
	o := w.big[0]
	pop := func(whole bool) {
		o.whole = whole
		w.big[0] = nil
		w.big = w.big[1:]
		finished = o
	}
	if o.aborted {
		f := frame{kind: kindData, flags: flagAbort, id: o.id, total: o.total}
		pop(false)
		return f.append(buf), nil, finished
	}
	n := min(len(o.payload)-o.off, segmentSize)
	f := frame{kind: kindData, id: o.id, payloadLen: uint32(n), total: o.total}
	if !o.started {
		f = o.frame
		f.payloadLen = uint32(n)
	}
	if o.off+n < len(o.payload) {
		f.flags |= flagMore
	}
	buf = f.append(buf)
	if !o.started {
		buf = append(buf, o.header...)
	}
	seg = o.payload[o.off : o.off+n]
	o.started = true
	o.off += n
	if o.off == len(o.payload) {
		pop(true)
	}
	return buf, seg, finished
}

// write writes one batch.
func (w *writer) write(buf, seg []byte) error {
	w.busy.Store(true)
	cork := w.corker != nil && (len(seg) > 0 || len(buf) > corkAbove)
	if cork {
		w.corker.cork()
	}
	var err error
	if w.corker == nil && len(seg) > 0 {
		w.vec = append(w.bufs[:0], buf, seg) // one writev(2)
		_, err = w.vec.WriteTo(w.conn)
	} else if _, err = w.conn.Write(buf); err == nil && len(seg) > 0 {
		_, err = w.conn.Write(seg)
	}
	if cork {
		if uerr := w.corker.uncork(); err == nil {
			err = uerr
		}
	}
	w.beat.Add(1)
	w.busy.Store(false)
	return err
}
