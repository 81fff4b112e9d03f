package wire

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
	"time"
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

// FuzzPass gives arbitrary bytes to who reads passes and tickets. A ticket that the issuer did not make is not told from its own
// before a proof is shown, but for its form, its issuer and its time.
func FuzzPass(f *testing.F) {
	i, now := newIssuer(), time.Unix(1_800_000_000, 0)
	mask := bytes.Repeat([]byte{0x5a}, 32)
	given := i.issue(Identity{Cluster: "alpha", Name: "ann"}, 7, now.Add(time.Hour), mask)
	kept := encodePass(Identity{Cluster: "alpha", Node: 3}, given, mask)
	f.Add(kept)
	f.Add(given)
	p, ok := decodePass(kept)
	if !ok || p.server != (Identity{Cluster: "alpha", Node: 3}) || !p.notAfter.Equal(now.Add(time.Hour)) || !bytes.Equal(p.secret, i.secret(p.ticket)) {
		f.Fatalf("the pass reads %+v, %v", p, ok)
	}
	f.Add(p.ticket)
	for at, want := range map[time.Time]bool{now: true, now.Add(time.Hour - 1): true, now.Add(time.Hour): false} {
		if peer, ok := i.read(p.ticket, 7, at); ok != want || ok && peer != (Identity{Cluster: "alpha", Name: "ann"}) {
			f.Fatalf("at %v the ticket reads %v, %v", at, peer, ok)
		}
	}
	if _, ok := i.read(p.ticket, 8, now); ok {
		f.Fatal("another user's ticket is taken")
	}
	if !PassIsValid(kept, now) || PassIsValid(kept, now.Add(time.Hour)) || PassIsValid(kept[:len(kept)/3], now) || PassIsValid(nil, now) {
		f.Fatal("which passes are of use is not told as it should be")
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		encodePass(Identity{}, in, mask) // whatever a server has sent
		if p, ok := decodePass(in); ok && !bytes.Equal(encodePass(p.server, in[len(in)-len(p.ticket)-len(p.secret)-8:], make([]byte, 32)), in) {
			t.Fatalf("%x reads %+v", in, p)
		}
		if peer, ok := i.read(in, 7, now); ok && (peer.Node != 0 || !bytes.Equal(in[1:1+issuerSize], i.id[:])) {
			t.Fatalf("%x reads %v", in, peer)
		}
	})
}
