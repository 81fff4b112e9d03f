package wire_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/wire"
)

// rawFrame builds the fixed part of a frame by docs/formats/wire.md, without
// help from the package.
func rawFrame(kind, flags byte, method uint16, headerLen, payloadLen, total uint32, id uint64, timeout uint32) []byte {
	b := make([]byte, 32)
	b[0], b[1] = kind, flags
	binary.LittleEndian.PutUint16(b[2:], method)
	binary.LittleEndian.PutUint32(b[4:], headerLen)
	binary.LittleEndian.PutUint32(b[8:], payloadLen)
	binary.LittleEndian.PutUint32(b[12:], total)
	binary.LittleEndian.PutUint64(b[16:], id)
	binary.LittleEndian.PutUint32(b[24:], timeout)
	return b
}

func rawPreface(magic string, newest, oldest uint16) []byte {
	b := make([]byte, 24)
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[4:], newest)
	binary.LittleEndian.PutUint16(b[6:], oldest)
	return b
}

// rawConn connects to the server by hand and reads its preface.
func rawConn(t *testing.T, w *world, preface []byte) *tls.Conn {
	t.Helper()
	c := must[*tls.Conn](t)(tls.Dial("tcp", w.addr, nodeCreds(t, w.ca, 2).ClientTLS()))
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 24)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(preface); err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) awaitLog(text string) {
	w.t.Helper()
	limit := time.After(20 * time.Second)
	for !strings.Contains(w.log.String(), text) {
		select {
		case <-w.log.wrote:
		case <-limit:
			w.t.Fatalf("expected %q in the server's log, found:\n%s", text, w.log.String())
		}
	}
}

func TestMalformedFramesCloseTheConnection(t *testing.T) {
	join := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	seg := make([]byte, 256<<10)
	first := join(rawFrame(1, 1, 10, 0, 256<<10, 1<<20, 5, 0), seg)
	for _, tc := range []struct {
		name  string
		bytes []byte
		log   string
	}{
		{"unknown kind", rawFrame(77, 0, 1, 0, 0, 0, 1, 0), "unknown kind 77"},
		{"kind zero", make([]byte, 32), "unknown kind 0"},
		{"reserved bytes", append(rawFrame(1, 0, 1, 0, 0, 0, 1, 0)[:31], 1), "reserved"},
		{"unknown flag", rawFrame(1, 0x40, 1, 0, 0, 0, 1, 0), "flags 0x40"},
		{"request without ID", rawFrame(1, 0, 1, 0, 0, 0, 0, 0), "no ID"},
		{"header over the limit", rawFrame(1, 0, 1, 1<<16+1, 0, 0, 1, 0), "header of 65537"},
		{"header of 4 GiB", rawFrame(1, 0, 1, 1<<32-1, 0, 0, 1, 0), "header of 4294967295"},
		{"payload over the limit", rawFrame(1, 1, 1, 0, 1, 1<<24+1, 1, 0), "payload of 16777217"},
		{"payload of 4 GiB", rawFrame(1, 1, 1, 0, 1, 1<<32-1, 1, 0), "payload of 4294967295"},
		{"segment over the limit", rawFrame(1, 0, 1, 0, 256<<10+1, 256<<10+1, 1, 0), "segment of 262145"},
		{"more without data", rawFrame(1, 1, 1, 0, 0, 100, 1, 0), "first segment of 0"},
		{"whole but short", rawFrame(1, 0, 1, 0, 10, 100, 1, 0), "first segment of 10 bytes in a payload of 100"},
		{"data for nothing", rawFrame(5, 0, 0, 0, 1, 1, 9, 0), "which is not arriving"},
		{"data of another message", join(first, rawFrame(5, 1, 0, 0, 1, 1<<20, 6, 0)), "which is not arriving"},
		{"data of another size", join(first, rawFrame(5, 1, 0, 0, 1, 1<<19, 5, 0)), "which is not arriving"},
		{"data beyond the end", join(first, rawFrame(5, 1, 0, 0, 256<<10, 1<<20, 5, 0), seg, rawFrame(5, 1, 0, 0, 256<<10, 1<<20, 5, 0), seg,
			rawFrame(5, 1, 0, 0, 256<<10, 1<<20, 5, 0)), "are left"},
		{"end too early", join(first, rawFrame(5, 0, 0, 0, 10, 1<<20, 5, 0)), "are left"},
		{"empty data", join(first, rawFrame(5, 1, 0, 0, 0, 1<<20, 5, 0)), "segment of 0 bytes"},
		{"two segmented messages", join(first, rawFrame(1, 1, 10, 0, 1, 2, 6, 0)), "within message 5"},
		{"ping with a payload", rawFrame(7, 0, 0, 0, 5, 5, 1, 0), "carries data"},
		{"goaway with an ID", rawFrame(9, 0, 0, 0, 0, 0, 1, 0), "has ID 1"},
		{"reply to a server", rawFrame(2, 0, 0, 0, 0, 0, 1, 0), "a client sent kind 2"},
		{"goaway to a server", rawFrame(9, 0, 0, 0, 0, 0, 0, 0), "a client sent kind 9"},
		{"pass to a server", rawFrame(10, 0, 0, 0, 0, 0, 0, 0), "a client sent kind 10"},
		{"pass over the limit", rawFrame(10, 0, 0, 0, 1025, 1025, 0, 0), "a payload of 1025 of 1025 bytes"},
		{"one-way with a deadline", rawFrame(4, 0, 6, 0, 0, 0, 1, 9), "has a deadline"},
		{"ID in use", join(rawFrame(1, 0, 4, 0, 0, 0, 1, 0), rawFrame(1, 0, 4, 0, 0, 0, 1, 0)), "request ID 1 is in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := rawConn(t, w, rawPreface("KOIN", 1, 1))
			if _, err := c.Write(tc.bytes); err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, c); n != 0 {
				t.Errorf("the server answered %d bytes (%v)", n, err)
			}
			w.awaitLog("malformed frame")
			w.awaitLog(tc.log)
			if _, err := w.client(nil).Call(context.Background(), mEcho, nil, nil); err != nil {
				t.Errorf("the server does not work any more: %v", err)
			}
		})
	}
}

func TestStrangersAtTheServer(t *testing.T) {
	for _, tc := range []struct {
		name    string
		preface []byte
		log     string
	}{
		{"other protocol", rawPreface("GET ", 1, 1), "does not speak Koinon's protocol"},
		{"newer version", rawPreface("KOIN", 9, 7), "upgrade this side"},
		{"older version", rawPreface("KOIN", 0, 0), "upgrade the peer"},
		{"senseless version", rawPreface("KOIN", 1, 3), "speaks versions 3 to 1"},
		{"short", []byte("KOI"), "closed the connection"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := rawConn(t, w, tc.preface)
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			w.awaitLog(tc.log)
		})
	}
	t.Run("no TLS", func(t *testing.T) {
		w := newWorld(t, nil)
		c := must[net.Conn](t)(net.Dial("tcp", w.addr))
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		w.awaitLog("no plaintext mode")
	})
	t.Run("silence", func(t *testing.T) {
		w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.HandshakeTimeout = 50 * time.Millisecond })
		c := must[net.Conn](t)(net.Dial("tcp", w.addr))
		defer func() { _ = c.Close() }()
		w.awaitLog("connection refused")
	})
}

// TestServerRefusesWhatExceedsItsLimits sends more requests than the server
// announced, as a client of ours never would.
func TestServerRefusesWhatExceedsItsLimits(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.MaxInFlight = 1 })
	c := rawConn(t, w, rawPreface("KOIN", 1, 1))
	b := rawFrame(1, 0, uint16(mHang), 0, 0, 0, 1, 0)
	b = append(b, rawFrame(1, 1, uint16(mHang), 0, 256<<10, 256<<10+1, 2, 0)...)
	b = append(b, make([]byte, 256<<10)...)
	b = append(b, rawFrame(5, 0, 0, 0, 1, 256<<10+1, 2, 0)...)
	b = append(b, 0)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	var f [32]byte
	if _, err := io.ReadFull(c, f[:]); err != nil {
		t.Fatal(err)
	}
	if id := binary.LittleEndian.Uint64(f[16:]); f[0] != 3 || f[1] != 4 || id != 2 {
		t.Errorf("answer has kind %d, flags %d, ID %d; expected an error, not executed, to request 2", f[0], f[1], id)
	}
}

// TestUnknownOneWayIsDropped sends what a newer build may know: nothing else
// on the connection suffers.
func TestUnknownOneWayIsDropped(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	for range 3 {
		if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
			t.Fatal(err)
		}
		for _, m := range []wire.Method{mEcho, 99} {
			if err := c.Send(m, nil, nil); err != nil {
				t.Error(err)
			}
		}
	}
	w.awaitLog("one-way messages dropped")
}

// TestAbortedRequestIsForgotten gives up a request between two segments.
func TestAbortedRequestIsForgotten(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.MaxInFlight = 1 })
	c := rawConn(t, w, rawPreface("KOIN", 1, 1))
	b := rawFrame(1, 1, uint16(mHang), 0, 1, 2, 1, 0)
	b = append(b, 0)
	b = append(b, rawFrame(5, 2, 0, 0, 0, 2, 1, 0)...)
	b = append(b, rawFrame(1, 0, uint16(mEcho), 0, 0, 0, 2, 0)...)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	var f [32]byte
	if _, err := io.ReadFull(c, f[:]); err != nil {
		t.Fatal(err)
	}
	if id := binary.LittleEndian.Uint64(f[16:]); f[0] != 2 || id != 2 {
		t.Errorf("answer has kind %d, ID %d; expected the reply to request 2", f[0], id)
	}
}

// TestClientThatDoesNotRead asks for replies and never reads them: the server
// must bound what it keeps for it, go on serving others, and give it up.
func TestClientThatDoesNotRead(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.StallTimeout = 300 * time.Millisecond })
	c := rawConn(t, w, rawPreface("KOIN", 1, 1))
	go func() {
		var b []byte
		for id := range uint64(2000) {
			b = append(b, rawFrame(1, 0, uint16(mZero), 0, 0, 0, id+1, 0)...)
		}
		_, _ = c.Write(b) // ends when the server gives up
	}()
	good := w.client(nil)
	for range 50 {
		if _, err := good.Call(context.Background(), mEcho, nil, nil); err != nil {
			t.Errorf("another client's call: %v", err)
		}
	}
	w.awaitLog("took no bytes")
}

func TestSilentClientIsGivenUp(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.IdleTimeout = 100 * time.Millisecond })
	rawConn(t, w, rawPreface("KOIN", 1, 1))
	w.awaitLog("sent nothing")
}
