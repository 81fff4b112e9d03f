package wire_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// pipe is a proxy whose connections can be frozen, as SIGSTOP freezes a peer,
// or cut.
type pipe struct {
	l      net.Listener
	to     string
	frozen atomic.Bool
	thaw   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
}

func newPipe(t *testing.T, to string) *pipe {
	t.Helper()
	p := &pipe{l: must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0")), to: to, thaw: make(chan struct{})}
	p.wg.Go(func() {
		for {
			c, err := p.l.Accept()
			if err != nil {
				return
			}
			p.serve(c)
		}
	})
	t.Cleanup(func() {
		_ = p.l.Close()
		p.cut()
		close(p.thaw)
		p.wg.Wait()
	})
	return p
}

func (p *pipe) serve(c net.Conn) {
	s, err := net.Dial("tcp", p.to)
	if err != nil {
		_ = c.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, c, s)
	p.mu.Unlock()
	p.wg.Go(func() { p.copy(s, c) })
	p.wg.Go(func() { p.copy(c, s) })
}

func (p *pipe) copy(dst, src net.Conn) {
	defer func() { _ = dst.Close() }()
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		if p.frozen.Load() {
			<-p.thaw
			return
		}
		if err != nil {
			return
		}
		if _, err := dst.Write(b[:n]); err != nil {
			return
		}
	}
}

func (p *pipe) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

func TestFrozenPeer(t *testing.T) {
	for _, size := range []int{10, 8 << 20} {
		w := newWorld(t, nil)
		p := newPipe(t, w.addr)
		c := w.clientTo(p.l.Addr().String(), func(cfg *wire.ClientConfig) { cfg.KeepAlive = 200 * time.Millisecond })
		if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
			t.Fatal(err)
		}
		p.frozen.Store(true)
		// A call without a deadline ends when the peer is given up, one with
		// a deadline at its deadline.
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		begin := time.Now()
		_, err := c.Call(ctx, mEcho, nil, make([]byte, size))
		if took := time.Since(begin); !sys.Is(err, sys.Unavailable) || took > 2*time.Second {
			t.Errorf("size %d: call with a deadline: %v after %v", size, err, took)
		}
		_, err = c.Call(context.Background(), mEcho, nil, make([]byte, size))
		if !sys.Is(err, sys.Unavailable) {
			t.Errorf("size %d: call without a deadline: %v", size, err)
		}
	}
}

func TestFrozenPeerOfOneWayMessages(t *testing.T) {
	w := newWorld(t, nil)
	p := newPipe(t, w.addr)
	c := w.clientTo(p.l.Addr().String(), func(cfg *wire.ClientConfig) { cfg.KeepAlive = 100 * time.Millisecond })
	if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
		t.Fatal(err)
	}
	p.frozen.Store(true)
	deadline := time.Now().Add(20 * time.Second)
	for c.Connected() {
		if err := c.Send(mOneWay, nil, make([]byte, 1<<20)); err != nil && !sys.Is(err, sys.Busy) && !sys.Is(err, sys.Unavailable) {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("the frozen peer was not noticed")
		}
		time.Sleep(time.Millisecond) // a sender's pace, nothing is awaited
	}
}

// TestPeerThatNeverSpeaks dials a listener that accepts and is silent.
func TestPeerThatNeverSpeaks(t *testing.T) {
	w := newWorld(t, nil)
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer func() { _ = l.Close() }()
	c := w.clientTo(l.Addr().String(), func(cfg *wire.ClientConfig) { cfg.DialTimeout = 100 * time.Millisecond })
	_, err := c.Call(context.Background(), mEcho, nil, nil)
	if !sys.Is(err, sys.Unavailable) || !wire.IsUnsent(err) {
		t.Errorf("call: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	c = w.clientTo(l.Addr().String(), nil)
	if _, err = c.Call(ctx, mEcho, nil, nil); !errors.Is(err, context.DeadlineExceeded) || !wire.IsUnsent(err) {
		t.Errorf("call whose deadline is before the dial's: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	w := newWorld(t, nil)
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int32
	c := w.clientTo(addr, func(cfg *wire.ClientConfig) {
		cfg.BackoffMin, cfg.BackoffMax = time.Hour, time.Hour
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			dials.Add(1)
			return d.DialContext(ctx, "tcp", addr)
		}
	})
	for range 3 {
		_, err := c.Call(context.Background(), mEcho, nil, nil)
		if !sys.Is(err, sys.Unavailable) || !wire.IsUnsent(err) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("call: %v", err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d attempts to connect, expected 1: the others are not due", n)
	}
}

func TestReconnect(t *testing.T) {
	w := newWorld(t, nil)
	p := newPipe(t, w.addr)
	c := w.clientTo(p.l.Addr().String(), func(cfg *wire.ClientConfig) { cfg.BackoffMax = 20 * time.Millisecond })
	for range 5 {
		result := make(chan error, 1)
		go func() {
			_, err := c.Call(context.Background(), mHang, nil, nil)
			for wire.IsUnsent(err) {
				_, err = c.Call(context.Background(), mHang, nil, nil)
			}
			result <- err
		}()
		expect(t, w.hanging, "in")
		p.cut()
		if err := <-result; !sys.Is(err, sys.Unavailable) || wire.IsUnsent(err) {
			t.Errorf("call on a connection that was cut: %v, unsent %v", err, wire.IsUnsent(err))
		}
		expect(t, w.hanging, "out")
	}
}

func TestCloseOfTheServerIsGraceful(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	payload := pattern(4<<20, 1)
	results := make(chan error, 8)
	for range cap(results) {
		go func() {
			r, err := c.Call(context.Background(), mHang, nil, payload)
			if err == nil && len(r.Payload) != len(payload) {
				err = io.ErrShortBuffer
			}
			results <- err
		}()
	}
	for range cap(results) {
		expect(t, w.hanging, "in")
	}
	closed := make(chan error, 1)
	go func() { closed <- w.server.Close() }()
	for c.Connected() {
		time.Sleep(time.Millisecond) // the goaway has no event that a user sees
	}
	if _, err := c.Call(context.Background(), mEcho, nil, nil); !wire.IsUnsent(err) {
		t.Errorf("a new call while the server closes: %v", err)
	}
	close(w.release)
	for range cap(results) {
		if err := <-results; err != nil {
			t.Errorf("call under way while the server closes: %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestCloseBeforeServe(t *testing.T) {
	w := newWorld(t, nil)
	if err := w.server.Close(); err != nil {
		t.Fatal(err)
	}
	l := must[*wire.Listener](t)(wire.Listen("127.0.0.1:0"))
	if err := w.server.Serve(l); err != nil {
		t.Errorf("Serve of a closed server: %v", err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Errorf("the listener is still open: %v", c.Close())
	}
}

func TestCloseOfTheServerEndsHandlers(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.CloseGrace = 20 * time.Millisecond })
	c := w.client(nil)
	result := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), mHang, nil, nil)
		result <- err
	}()
	expect(t, w.hanging, "in")
	if err := w.server.Close(); err != nil {
		t.Error(err)
	}
	expect(t, w.hanging, "out")
	if err := <-result; err == nil {
		t.Error("the call succeeded")
	}
}

func TestCloseOfTheClient(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	result := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), mHang, nil, nil)
		result <- err
	}()
	expect(t, w.hanging, "in")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-result; !sys.Is(err, sys.Unavailable) || wire.IsUnsent(err) {
		t.Errorf("call under way: %v", err)
	}
	expect(t, w.hanging, "out")
	if _, err := c.Call(context.Background(), mEcho, nil, nil); !sys.Is(err, sys.Unavailable) || !wire.IsUnsent(err) {
		t.Errorf("call of a closed client: %v", err)
	}
	if err := c.Send(mOneWay, nil, nil); !sys.Is(err, sys.Unavailable) {
		t.Errorf("Send of a closed client: %v", err)
	}
}
