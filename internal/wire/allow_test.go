package wire_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// guarded is a server that lets strangers call mEcho, nodes all but mError,
// and node 9 nothing.
func guarded(t *testing.T) *world {
	w := newWorld(t, func(cfg *wire.ServerConfig) {
		cfg.Identify = func(cs tls.ConnectionState) (wire.Identity, error) {
			if len(cs.PeerCertificates) == 0 {
				return wire.Identity{}, nil
			}
			return identify(cs)
		}
		cfg.Allow = func(peer wire.Identity, m wire.Method) error {
			switch {
			case peer == wire.Identity{} && m != mEcho:
				return sys.E(sys.Access, "join first")
			case peer.Node == 9:
				return sys.E(sys.Access, "node n9 was removed")
			case peer.Node != 0 && m == mError:
				return sys.E(sys.Permission, "not for nodes")
			}
			return nil
		}
	})
	return w
}

// strangerTLS is that of a client with a token and no certificate.
func strangerTLS(t *testing.T, w *world) *tls.Config {
	return must[auth.Token](t)(auth.NewToken(nodeCreds(t, w.ca, 1))).ClientTLS()
}

// TestStrangersMayOnlyJoin: who has no certificate can call the one method that
// is allowed to it and no other, of all kinds of methods.
func TestStrangersMayOnlyJoin(t *testing.T) {
	w := guarded(t)
	stranger := w.client(func(cfg *wire.ClientConfig) { cfg.TLS = strangerTLS(t, w) })
	for m := wire.Method(1); m < 500; m++ {
		r, err := stranger.Call(t.Context(), m, []byte("hi"), nil)
		if m == mEcho {
			if err != nil || string(r.Header) != "hi" {
				t.Errorf("the allowed method: %v", err)
			}
			continue
		}
		if !sys.Is(err, sys.Access) || !strings.Contains(err.Error(), "join first") || !wire.IsUnsent(err) {
			t.Errorf("method %d: %v", m, err)
		}
	}
	if err := stranger.Send(mOneWay, nil, []byte("smuggled")); err != nil {
		t.Fatal(err)
	}
	w.awaitLog("may not send them")
	good := w.client(nil)
	if _, err := good.Call(t.Context(), mFast, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := good.Send(mOneWay, nil, []byte("ours")); err != nil {
		t.Fatal(err)
	}
	if got := string(<-w.oneWay); got != "ours" {
		t.Errorf("the handler got %q", got)
	}
}

// TestAllowIsAskedForEverybody: a refusal says why, and counts at once.
func TestAllowIsAskedForEverybody(t *testing.T) {
	w := guarded(t)
	if _, err := w.client(nil).Call(t.Context(), mError, nil, nil); !sys.Is(err, sys.Permission) || !strings.Contains(err.Error(), "not for nodes") {
		t.Errorf("got %v", err)
	}
	removed := w.client(func(cfg *wire.ClientConfig) { cfg.TLS = nodeCreds(t, w.ca, 9).ClientTLS() })
	// Large requests are skipped without keeping them.
	if _, err := removed.Call(t.Context(), mEcho, nil, make([]byte, 1<<20)); !sys.Is(err, sys.Access) || !strings.Contains(err.Error(), "n9 was removed") {
		t.Errorf("got %v", err)
	}
}

// TestStrangersAreBounded: messages, requests in flight and connections.
func TestStrangersAreBounded(t *testing.T) {
	w := guarded(t)
	c := rawStranger(t, w)
	if _, err := c.Write(rawFrame(1, 0, uint16(mEcho), 0, wire.StrangerFrame, wire.StrangerFrame, 1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
		t.Error("the connection stays after a message that is too large")
	}
	w.awaitLog("bytes of a peer without a certificate")
	small := w.client(func(cfg *wire.ClientConfig) { cfg.TLS = strangerTLS(t, w) })
	if _, err := small.Call(t.Context(), mEcho, nil, make([]byte, wire.StrangerFrame-32)); err != nil {
		t.Errorf("the largest message: %v", err)
	}
	for range wire.StrangersMax - 1 {
		rawStranger(t, w)
	}
	extra := w.client(func(cfg *wire.ClientConfig) { cfg.TLS = strangerTLS(t, w) })
	if _, err := extra.Call(t.Context(), mEcho, nil, nil); !sys.Is(err, sys.Unavailable) {
		t.Errorf("one stranger too many: %v", err)
	}
	w.awaitLog("which is the most")
	if _, err := w.client(nil).Call(t.Context(), mEcho, nil, nil); err != nil {
		t.Errorf("a node beside many strangers: %v", err)
	}
}

// TestStrangersLeave: who has no certificate does not stay, however busy.
func TestStrangersLeave(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) {
		cfg.StallTimeout, cfg.StrangerLife = 100*time.Millisecond, 200*time.Millisecond
		cfg.Identify = func(cs tls.ConnectionState) (wire.Identity, error) {
			if len(cs.PeerCertificates) == 0 {
				return wire.Identity{}, nil
			}
			return identify(cs)
		}
		cfg.Allow = func(wire.Identity, wire.Method) error { return nil }
	})
	node := w.client(nil)
	if _, err := node.Call(t.Context(), mEcho, nil, nil); err != nil {
		t.Fatal(err)
	}
	c := rawStranger(t, w)
	for {
		if _, err := c.Write(rawFrame(7, 0, 0, 0, 0, 0, 1, 0)); err != nil {
			break
		}
		if _, err := io.ReadFull(c, make([]byte, 32)); err != nil {
			break
		}
	}
	w.awaitLog("without a certificate lasts 200ms")
	if !node.Connected() {
		t.Error("a node had to leave too")
	}
}

// TestStrangerHasOneRequest: a second request is refused while one runs.
func TestStrangerHasOneRequest(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) {
		cfg.TLS.ClientAuth = tls.RequestClientCert
		cfg.TLS.VerifyConnection = nil
		cfg.Identify = func(tls.ConnectionState) (wire.Identity, error) { return wire.Identity{}, nil }
		cfg.Allow = func(wire.Identity, wire.Method) error { return nil }
	})
	c := w.client(func(cfg *wire.ClientConfig) { cfg.TLS = &tls.Config{InsecureSkipVerify: true} })
	done := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), mHang, nil, nil)
		done <- err
	}()
	<-w.hanging
	if _, err := c.Call(t.Context(), mEcho, nil, nil); !sys.Is(err, sys.Busy) {
		t.Errorf("a second request: %v", err)
	}
	close(w.release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestStrangersNeedAllow: without Allow nobody comes in without a certificate.
func TestStrangersNeedAllow(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) {
		cfg.TLS.ClientAuth = tls.RequestClientCert
		cfg.TLS.VerifyConnection = nil
		cfg.Identify = func(tls.ConnectionState) (wire.Identity, error) { return wire.Identity{}, nil }
	})
	c := w.client(func(cfg *wire.ClientConfig) { cfg.TLS = &tls.Config{InsecureSkipVerify: true} })
	if _, err := c.Call(t.Context(), mEcho, nil, nil); err == nil {
		t.Error("a stranger was served")
	}
	w.awaitLog("presented no certificate")
}

// rawStranger connects without a certificate, by hand.
func rawStranger(t *testing.T, w *world) *tls.Conn {
	t.Helper()
	c := must[*tls.Conn](t)(tls.Dial("tcp", w.addr, strangerTLS(t, w)))
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 24)
	if _, err := io.ReadFull(c, p); err != nil {
		t.Fatal(err)
	}
	if binary.LittleEndian.Uint32(p[16:]) == 0 {
		t.Fatal("the preface has no limit")
	}
	if _, err := c.Write(rawPreface("KOIN", 1, 1)); err != nil {
		t.Fatal(err)
	}
	// A ping that is answered says that the connection is counted.
	if _, err := c.Write(rawFrame(7, 0, 0, 0, 0, 0, 1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	return c
}
