package wire

import (
	"io"
	"sync/atomic"
)

// growthFactor bounds how much more memory than has arrived a message may
// make us hold, once it is larger than one segment.
const growthFactor = 16

// message is a whole message as it came off the wire. Its bytes live in buf,
// which belongs to whom the message is given.
type message struct {
	frame
	refused bool // admit said no: there are no bytes
	buf     *buffer
}

func (m *message) header() []byte {
	if m.buf == nil {
		return nil
	}
	return m.buf.b[:m.headerLen:m.headerLen]
}

func (m *message) payload() []byte {
	if m.buf == nil {
		return nil
	}
	end := m.headerLen + m.total
	return m.buf.b[m.headerLen:end:end]
}

// decoder turns a stream of bytes into messages. It holds at most one message
// that has not fully arrived, and never more memory for it than first bytes, its
// first segment, or growthFactor times what has arrived.
type decoder struct {
	r    io.Reader
	pool *bufferPool
	// first is how much memory a message may get when its first segment
	// arrives: no more than a segment from peers who may send a great many,
	// the whole message where it saves moving it.
	first int
	// admit is asked when a message begins; the bytes of a refused one are
	// skipped.
	admit func(f frame) bool
	// idle is called before a read that may block.
	idle func()
	// max, when not 0, is the most bytes that a message may have.
	max int
	// reads counts the reads that brought bytes.
	reads atomic.Uint64

	in       []byte // what was read and not yet used is in[pos:end]
	pos, end int
	raw      [frameSize]byte // of the frame being read, here because it escapes

	part message // the message that is arriving in segments; kind 0 for none
	got  int     // payload bytes of it that have arrived
}

func newDecoder(r io.Reader, pool *bufferPool) *decoder {
	return &decoder{
		r:     r,
		pool:  pool,
		first: segmentSize + slack,
		admit: func(frame) bool { return true },
		idle:  func() {},
		in:    make([]byte, 16<<10), // one TLS record
	}
}

// close releases a message that arrived in part.
func (d *decoder) close() {
	d.part.buf.release()
	d.part = message{}
}

// next returns the next whole message. An error ends the stream: io.EOF
// between frames, a malformedError, or what the reader returned.
func (d *decoder) next() (message, error) {
	for {
		if err := d.fill(d.raw[:]); err != nil {
			return message{}, err
		}
		f, err := parseFrame(&d.raw)
		if err != nil {
			return message{}, err
		}
		if d.max != 0 && f.size() > d.max {
			return message{}, malformed("message of %d bytes of a peer without a certificate, which may send %d", f.size(), d.max)
		}
		m, whole, err := d.body(f)
		if err != nil || whole {
			return m, err
		}
	}
}

// body reads what follows the fixed part of a frame.
func (d *decoder) body(f frame) (m message, whole bool, err error) {
	if f.kind == kindData {
		return d.more(f)
	}
	m = message{frame: f}
	starts := f.kind == kindRequest || f.kind == kindReply || f.kind == kindError || f.kind == kindOneWay
	segmented := f.flags&flagMore != 0
	if segmented && d.part.kind != 0 {
		return m, false, malformed("message %d begins in segments within message %d", f.id, d.part.id)
	}
	n := int(f.headerLen + f.payloadLen)
	if starts && !d.admit(f) {
		m.refused = true
		if err := d.skip(n); err != nil {
			return m, false, err
		}
	} else {
		m.buf = d.pool.get(max(n, min(int(f.headerLen+f.total), d.first)))
		if n > 0 {
			if err := d.fill(m.buf.b[:n]); err != nil {
				m.buf.release()
				return message{}, false, noEOF(err)
			}
		}
	}
	if segmented {
		d.part, d.got = m, int(f.payloadLen)
		return message{}, false, nil
	}
	return m, true, nil
}

// more reads a further segment of the message that is arriving.
func (d *decoder) more(f frame) (m message, whole bool, err error) {
	p := &d.part
	if p.kind == 0 || f.id != p.id || f.total != p.total {
		return m, false, malformed("segment of message %d, which is not arriving", f.id)
	}
	if f.flags&flagAbort != 0 {
		if p.kind != kindRequest && p.kind != kindOneWay {
			return m, false, malformed("reply %d is given up", f.id)
		}
		m = *p
		m.buf.release()
		m.buf, m.flags = nil, flagAbort
		d.part = message{}
		return m, true, nil
	}
	n := int(f.payloadLen)
	last := f.flags&flagMore == 0
	if left := int(p.total) - d.got; n > left || last != (n == left) {
		return m, false, malformed("segment of %d bytes where %d are left, flags %#x", n, left, f.flags)
	}
	if p.refused {
		err = d.skip(n)
	} else {
		d.grow(n)
		at := int(p.headerLen) + d.got
		err = noEOF(d.fill(p.buf.b[at : at+n]))
	}
	if err != nil {
		return m, false, err
	}
	d.got += n
	if last {
		m, d.part = d.part, message{}
	}
	return m, last, nil
}

// grow makes room in the arriving message for n further bytes.
func (d *decoder) grow(n int) {
	p := &d.part
	have := int(p.headerLen) + d.got
	if have+n <= len(p.buf.b) {
		return
	}
	bigger := d.pool.get(min(int(p.headerLen+p.total), max(have*growthFactor, have+n)))
	copy(bigger.b, p.buf.b[:have])
	p.buf.release()
	p.buf = bigger
}

// fill reads exactly len(dst) bytes. Large runs go straight into dst.
func (d *decoder) fill(dst []byte) error {
	n := copy(dst, d.in[d.pos:d.end])
	d.pos += n
	started := n > 0
	for n < len(dst) {
		direct := len(dst)-n >= len(d.in)
		target := d.in
		if direct {
			target = dst[n:]
		}
		got, err := d.read(target)
		if got == 0 && err != nil {
			if started {
				return noEOF(err)
			}
			return err
		}
		started = started || got > 0
		if direct {
			n += got
			continue
		}
		d.pos, d.end = 0, got
		c := copy(dst[n:], d.in[:got])
		d.pos = c
		n += c
	}
	return nil
}

// skip reads and forgets n bytes.
func (d *decoder) skip(n int) error {
	for n > 0 {
		if d.pos == d.end {
			got, err := d.read(d.in)
			if got == 0 && err != nil {
				return noEOF(err)
			}
			d.pos, d.end = 0, got
		}
		c := min(n, d.end-d.pos)
		d.pos += c
		n -= c
	}
	return nil
}

func (d *decoder) read(b []byte) (int, error) {
	d.idle()
	n, err := d.r.Read(b)
	if n > 0 {
		d.reads.Add(1)
	}
	return n, err
}

// noEOF says that an end of the stream came too early.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
