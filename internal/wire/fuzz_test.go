package wire

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
)

// FuzzDecoder feeds arbitrary bytes to the decoder: it must not panic, must
// not hold more memory than the bytes justify, and what it accepts must
// survive being encoded again.
func FuzzDecoder(f *testing.F) {
	add := func(fr frame, h, p int) {
		f.Add(encodeMessage(f, fr, make([]byte, h), make([]byte, p)))
	}
	add(frame{kind: kindRequest, method: 1, id: 1, timeoutUs: 5}, 3, 4)
	add(frame{kind: kindReply, id: 2}, 0, 0)
	add(frame{kind: kindError, flags: flagNotExecuted, id: 3}, 10, 0)
	add(frame{kind: kindOneWay, method: 9, id: 4}, 0, 100)
	for _, k := range []frameKind{kindCancel, kindPing, kindPong} {
		fr := frame{kind: k, id: 1}
		f.Add(fr.append(nil))
	}
	goAway := frame{kind: kindGoAway}
	f.Add(goAway.append(nil))
	// A message in short segments with a ping in between, and one that is
	// given up.
	first := frame{kind: kindRequest, flags: flagMore, method: 1, id: 6, headerLen: 1, payloadLen: 1, total: 3}
	ping := frame{kind: kindPing, id: 1}
	more := frame{kind: kindData, flags: flagMore, id: 6, payloadLen: 1, total: 3}
	last := frame{kind: kindData, id: 6, payloadLen: 1, total: 3}
	abort := frame{kind: kindData, flags: flagAbort, id: 6, total: 3}
	b := append(first.append(nil), 'h', 'a')
	f.Add(abort.append(bytes.Clone(b)))
	b = ping.append(b)
	b = append(more.append(b), 'b')
	f.Add(append(last.append(b), 'c'))
	huge := frame{kind: kindRequest, flags: flagMore, method: 1, id: 6, payloadLen: segmentSize, total: MaxPayload}
	f.Add(huge.append(nil))

	f.Fuzz(func(t *testing.T, in []byte) {
		d := newDecoder(iotest.OneByteReader(bytes.NewReader(in)), &bufferPool{})
		if len(in) > 4096 {
			d = newDecoder(bytes.NewReader(in), &bufferPool{})
		}
		refused := false
		d.admit = func(fr frame) bool { refused = !refused && fr.id%5 == 0; return !refused }
		for {
			m, err := d.next()
			if held := d.part.buf; held != nil && len(held.b) > max(segmentSize+slack, 4*growthFactor*len(in)) {
				t.Fatalf("%d bytes made the decoder hold %d", len(in), len(held.b))
			}
			if err != nil {
				if err == io.EOF && d.part.kind == 0 && d.pos != d.end {
					t.Fatal("io.EOF with bytes left")
				}
				break
			}
			again(t, &m)
			m.buf.release()
		}
		d.close()
	})
}

// again encodes a decoded message and decodes it once more.
func again(t *testing.T, m *message) {
	t.Helper()
	if m.refused || m.flags&flagAbort != 0 || m.kind >= kindCancel {
		return
	}
	f := m.frame
	f.flags &^= flagMore
	d := newDecoder(bytes.NewReader(encodeMessage(t, f, m.header(), m.payload())), &bufferPool{})
	n, err := d.next()
	if err != nil {
		t.Fatalf("%+v does not survive being encoded: %v", f, err)
	}
	if n.kind != m.kind || n.method != m.method || n.id != m.id || n.timeoutUs != m.timeoutUs ||
		!bytes.Equal(n.header(), m.header()) || !bytes.Equal(n.payload(), m.payload()) {
		t.Fatalf("expected %+v, found %+v", m.frame, n.frame)
	}
}

// FuzzPreface checks that arbitrary prefaces are taken or refused, not more.
func FuzzPreface(f *testing.F) {
	p := preface{newest: versionNewest, oldest: versionOldest, class: ClassBulk, maxRequests: 7, maxBytes: 1 << 30}
	f.Add(p.encode())
	f.Add([]byte("KOIN"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readPreface(bytes.NewReader(in))
		if err != nil {
			return
		}
		second, err := readPreface(bytes.NewReader(got.encode()))
		if err != nil || second != got {
			t.Fatalf("expected %+v, found %+v, %v", got, second, err)
		}
	})
}

// FuzzError checks that the header of an error frame cannot do harm.
func FuzzError(f *testing.F) {
	f.Add(encodeError(io.EOF))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		err := decodeError(in, nil, false)
		if err == nil || err.Error() == "" {
			t.Fatal("an error frame became no error")
		}
		if n := len(encodeError(err)); n > MaxHeader {
			t.Fatalf("the error takes %d bytes", n)
		}
	})
}
