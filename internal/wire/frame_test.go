package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/sys"
)

// sink is a connection that keeps what is written to it. When gate is not nil,
// each write waits for it.
type sink struct {
	bytes.Buffer
	gate chan struct{}
	fail error
}

func (s *sink) Write(b []byte) (int, error) {
	if s.gate != nil {
		<-s.gate
	}
	if s.fail != nil {
		return 0, s.fail
	}
	return s.Buffer.Write(b)
}

// encodeMessage writes one message as the writer does.
func encodeMessage(t testing.TB, f frame, header, payload []byte) []byte {
	t.Helper()
	var s sink
	w := newWriter(&s, nil, func(error) {})
	var err error
	if len(header)+len(payload) <= smallMessage {
		err = w.small(&f, header, payload, writeSelf)
	} else {
		err = w.large(&outgoing{frame: f, header: header, payload: payload, done: func(bool) {}}, writeSelf)
		for err == nil && w.backlog() { // the rest is the flusher's
			<-w.kick
			w.turn(false)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.Bytes()
}

func TestFrameRoundTrip(t *testing.T) {
	for _, f := range []frame{
		{kind: kindRequest, method: 65535, id: 1<<64 - 1, timeoutUs: 1<<32 - 1},
		{kind: kindReply, id: 1},
		{kind: kindError, flags: flagNotExecuted, id: 7},
		{kind: kindOneWay, method: 3, id: 9},
	} {
		for _, h := range []int{0, 5, MaxHeader} {
			for _, p := range []int{0, 9, segmentSize, segmentSize + 1, MaxPayload} {
				if p == MaxPayload && h != MaxHeader {
					continue // the largest message, once for each kind
				}
				header, payload := bytes.Repeat([]byte{1}, h), bytes.Repeat([]byte{2}, p)
				d := newDecoder(bytes.NewReader(encodeMessage(t, f, header, payload)), &bufferPool{})
				m, err := d.next()
				if err != nil {
					t.Fatalf("%+v, header %d, payload %d: %v", f, h, p, err)
				}
				if m.kind != f.kind || m.method != f.method || m.id != f.id || m.timeoutUs != f.timeoutUs || m.flags&^flagMore != f.flags {
					t.Errorf("expected %+v, found %+v", f, m.frame)
				}
				if !bytes.Equal(m.header(), header) || !bytes.Equal(m.payload(), payload) {
					t.Errorf("%+v, header %d, payload %d: other bytes", f, h, p)
				}
				if _, err := d.next(); err != io.EOF {
					t.Errorf("expected io.EOF after the message, found %v", err)
				}
			}
		}
	}
}

// TestDecoderMemory claims large messages and sends few bytes of them.
func TestDecoderMemory(t *testing.T) {
	whole := encodeMessage(t, frame{kind: kindRequest, method: 1, id: 1}, nil, make([]byte, MaxPayload))
	for _, sent := range []int{0, 100, frameSize, frameSize + 1, segmentSize, 2 * segmentSize, 1 << 20, 5 << 20} {
		d := newDecoder(bytes.NewReader(whole[:sent]), &bufferPool{})
		_, err := d.next()
		if sent > 0 && err != io.ErrUnexpectedEOF || sent == 0 && err != io.EOF {
			t.Errorf("%d bytes: error %v", sent, err)
		}
		held := 0
		if d.part.buf != nil {
			held = len(d.part.buf.b)
		}
		// The classes of buffers round up, by less than four times.
		if limit := max(segmentSize+slack, 4*growthFactor*sent); held > limit {
			t.Errorf("%d bytes made the decoder hold %d, limit %d", sent, held, limit)
		}
		d.close()
	}
}

func TestBufferClasses(t *testing.T) {
	p := &bufferPool{}
	if p.get(0) != nil {
		t.Error("a buffer of 0 bytes is not nil")
	}
	for _, n := range []int{1, 512, 513, 4 << 20, 4<<20 + 1000, MaxFrame} {
		if b := p.get(n); len(b.b) < n {
			t.Errorf("asked for %d bytes, found %d", n, len(b.b))
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a buffer over MaxFrame was given out")
		}
	}()
	p.get(MaxFrame + 1)
}

// kinds reads a stream to its end and says what is in it.
func kinds(t *testing.T, b []byte) string {
	t.Helper()
	var out []string
	for len(b) > 0 {
		f, err := parseFrame((*[frameSize]byte)(b))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%d:%d", f.kind, f.id))
		b = b[frameSize+int(f.headerLen)+int(f.payloadLen):]
	}
	return strings.Join(out, " ")
}

// TestSmallMessagesOvertakeLargeOnes queues small messages while a large one
// is being written: they leave after the segment under way. One-way messages
// keep their own order.
func TestSmallMessagesOvertakeLargeOnes(t *testing.T) {
	s := &sink{gate: make(chan struct{})}
	w := newWriter(s, nil, func(error) {})
	ended := make(chan struct{})
	go func() { w.run(); close(ended) }()
	done := make(chan bool, 3)
	send := func(id uint64, size int) {
		f := frame{kind: kindOneWay, method: 1, id: id}
		if err := w.send(&f, nil, make([]byte, size), 100<<20); err != nil {
			t.Error(err)
		}
	}
	o := &outgoing{frame: frame{kind: kindRequest, method: 1, id: 100}, payload: make([]byte, 3*segmentSize), done: func(whole bool) { done <- whole }}
	if err := w.large(o, writeLater); err != nil {
		t.Fatal(err)
	}
	s.gate <- struct{}{} // its first frame; the segment waits
	if err := w.small(&frame{kind: kindPing, id: 200}, nil, nil, writeSelf); err != nil {
		t.Fatal(err)
	}
	send(1, 10)
	send(2, 2*segmentSize)
	send(3, 10) // must not overtake 2
	close(s.gate)
	if whole := <-done; !whole {
		t.Error("the large message was not written")
	}
	for w.backlog() {
		w.mu.Lock()
		if w.writing {
			w.room.Wait() // the owner wakes us after each batch
		}
		w.mu.Unlock()
	}
	w.fail(io.EOF)
	<-ended
	if got, want := kinds(t, s.Bytes()), "1:100 7:200 4:1 5:100 5:100 4:2 5:2 4:3"; got != want {
		t.Errorf("frames are %q, expected %q", got, want)
	}
}

func TestAbortOfALargeMessage(t *testing.T) {
	for _, segments := range []int{0, 1, 2} {
		s := &sink{gate: make(chan struct{})}
		w := newWriter(s, nil, func(error) {})
		done := make(chan bool, 1)
		o := &outgoing{frame: frame{kind: kindRequest, method: 1, id: 5}, payload: make([]byte, 2*segmentSize), done: func(whole bool) { done <- whole }}
		if err := w.large(o, writeLater); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		switch segments {
		case 0: // before anything was written
			w.abort(o)
		case 1: // while the first segment is written
			go func() { w.run(); close(ended) }()
			s.gate <- struct{}{}
			w.abort(o)
		case 2: // while the last one is: too late
			go func() { w.run(); close(ended) }()
			for range 3 {
				s.gate <- struct{}{}
			}
			w.abort(o)
		}
		close(s.gate)
		if segments == 0 {
			go func() { w.run(); close(ended) }()
		}
		if whole := <-done; whole != (segments == 2) {
			t.Errorf("abort after %d segments: whole is %v", segments, whole)
		}
		w.fail(io.EOF)
		<-ended
		if got, want := kinds(t, s.Bytes()), []string{"", "1:5 5:5", "1:5 5:5"}[segments]; got != want {
			t.Errorf("abort after %d segments: frames are %q, expected %q", segments, got, want)
		}
	}
}

func TestWriterFails(t *testing.T) {
	broken := errors.New("cable cut")
	told := make(chan error, 1)
	w := newWriter(&sink{fail: broken}, nil, func(err error) { told <- err })
	dropped := make(chan bool, 2)
	big := func() *outgoing {
		return &outgoing{frame: frame{kind: kindRequest, id: 1}, payload: make([]byte, 2*segmentSize), done: func(whole bool) { dropped <- whole }}
	}
	if err := w.large(big(), writeLater); err != nil {
		t.Fatal(err)
	}
	if err := w.large(big(), writeLater); err != nil {
		t.Fatal(err)
	}
	w.run() // ends by itself
	if err := <-told; err != broken {
		t.Errorf("told of %v", err)
	}
	for range 2 {
		if <-dropped {
			t.Error("a message that was not written is called whole")
		}
	}
	if err := w.small(&frame{kind: kindPing, id: 1}, nil, nil, writeSelf); err != broken {
		t.Errorf("small after the failure: %v", err)
	}
	if err := w.large(big(), writeSelf); err != broken {
		t.Errorf("large after the failure: %v", err)
	}
}

func TestErrorCodec(t *testing.T) {
	plain := errors.New("disk on fire")
	deep := sys.E(sys.Op("op"), sys.Busy, plain)
	for range 20 {
		deep = sys.E(sys.Op("op"), sys.Busy, deep)
	}
	for _, tc := range []struct {
		name string
		err  error
		text string
		kind sys.Kind
	}{
		{"plain", plain, "disk on fire", sys.Other},
		{"kind only", sys.E(sys.Stale), "stale file handle", sys.Stale},
		{"subject", sys.E(sys.Op("a.B"), sys.Exist, sys.Subject("/x")), "a.B /x: file exists", sys.Exist},
		{"chain", sys.E(sys.Op("a.B"), sys.E(sys.Op("c.D"), sys.NoSpace, plain)), "a.B: c.D: no space left: disk on fire", sys.NoSpace},
		{"wrapped", fmt.Errorf("while: %w", sys.E(sys.Op("c.D"), sys.NoSpace)), "while: c.D: no space left", sys.NoSpace},
		{"deadline", context.DeadlineExceeded, "unavailable: context deadline exceeded", sys.Unavailable},
		{"canceled", context.Canceled, "interrupted: context canceled", sys.Interrupted},
		{"no UTF-8", errors.New("name \xff"), "name ?", sys.Other},
		{"deep", deep, "", sys.Busy},
		{"long", errors.New(strings.Repeat("x", 1<<20)), strings.Repeat("x", maxErrorText), sys.Other},
	} {
		b := encodeError(tc.err)
		if len(b) > MaxHeader {
			t.Errorf("%s: %d bytes do not fit into a header", tc.name, len(b))
		}
		got := decodeError(b, nil, false)
		if tc.text != "" && got.Error() != tc.text {
			t.Errorf("%s: %q, expected %q", tc.name, got, tc.text)
		}
		if sys.KindOf(got) != tc.kind || IsUnsent(got) {
			t.Errorf("%s: kind %v, unsent %v", tc.name, sys.KindOf(got), IsUnsent(got))
		}
		if got = decodeError(b, []byte("d"), true); !IsUnsent(got) || sys.KindOf(got) != tc.kind {
			t.Errorf("%s, not executed: %v", tc.name, got)
		}
		if d, ok := DetailOf(Detail(tc.err, []byte("map"))); !ok || string(d) != "map" {
			t.Errorf("%s: detail %q, %v", tc.name, d, ok)
		}
	}
	if err := decodeError([]byte{0xff}, nil, false); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("an error frame of garbage: %v", err)
	}
}
