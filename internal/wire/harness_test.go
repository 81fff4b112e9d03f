package wire_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
	"github.com/koinon/koinon/internal/wire/wirepb"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(squatter); name != "" {
		squat(name)
	}
	goleak.VerifyTestMain(bothWays{m})
}

// overTCP makes the clients of newWorld leave local sockets alone.
var overTCP bool

// bothWays runs all tests over local sockets, and again over TCP.
type bothWays struct{ m *testing.M }

func (b bothWays) Run() int {
	code := b.m.Run()
	if code == 0 {
		overTCP = true
		code = b.m.Run()
	}
	return code
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// The methods of the test server.
const (
	mEcho     wire.Method = 1
	mFast     wire.Method = 2
	mError    wire.Method = 3
	mHang     wire.Method = 4
	mZero     wire.Method = 5
	mOneWay   wire.Method = 6
	mDeadline wire.Method = 7
	mProto    wire.Method = 8
	mBad      wire.Method = 9
	mSink     wire.Method = 10
)

// world is a cluster with one server.
type world struct {
	t      testing.TB
	ca     *auth.CA
	server *wire.Server
	addr   string
	log    *logBuffer

	hanging chan string   // says "in" and "out" for each mHang handler
	release chan struct{} // lets mHang handlers return
	oneWay  chan []byte   // what mOneWay got
}

// logBuffer keeps what was logged, for tests that look for it.
type logBuffer struct {
	mu    sync.Mutex
	text  []byte
	wrote chan struct{}
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func identify(cs tls.ConnectionState) (wire.Identity, error) {
	id, err := auth.PeerIdentity(cs)
	return wire.Identity(id), err
}

func newCA(t testing.TB, cluster string) *auth.CA {
	t.Helper()
	return must[*auth.CA](t)(auth.NewCA(cluster))
}

func nodeCreds(t testing.TB, ca *auth.CA, id sys.NodeID) *auth.Credentials {
	t.Helper()
	return must[*auth.Credentials](t)(ca.IssueNode(id, []string{"127.0.0.1"}))
}

// newWorld starts a server; edit may change its configuration.
func newWorld(t testing.TB, edit func(*wire.ServerConfig)) *world {
	t.Helper()
	w := &world{
		t: t, ca: newCA(t, "alpha"), log: &logBuffer{wrote: make(chan struct{}, 1)},
		hanging: make(chan string, 10000), release: make(chan struct{}), oneWay: make(chan []byte, 100000),
	}
	cfg := wire.ServerConfig{
		TLS:      nodeCreds(t, w.ca, 1).ServerTLS(),
		Identify: identify,
		Logger:   slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&cfg)
	}
	if cfg.Allow != nil && cfg.TLS.VerifyConnection != nil {
		cfg.TLS = nodeCreds(t, w.ca, 1).JoinServerTLS()
	}
	w.server = wire.NewServer(cfg)
	w.methods()
	w.addr = w.listen()
	t.Cleanup(func() {
		if err := w.server.Close(); err != nil {
			t.Errorf("closing the server: %v", err)
		}
	})
	return w
}

func (w *world) listen() string { return w.listenAt("127.0.0.1:0") }

func (w *world) listenAt(addr string) string {
	l := must[*wire.Listener](w.t)(wire.Listen(addr))
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(l) }()
	w.t.Cleanup(func() {
		if err := errors.Join(w.server.Close(), <-served); err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

func (w *world) methods() {
	echo := func(_ context.Context, req *wire.Request) (wire.Response, error) {
		return wire.Response{Header: req.Header, Payload: req.Payload}, nil
	}
	w.server.Handle(mEcho, echo)
	w.server.HandleFast(mFast, echo)
	w.server.Handle(mError, func(_ context.Context, req *wire.Request) (wire.Response, error) {
		return wire.Response{Payload: req.Payload}, sys.E(sys.Op("meta.Rename"), sys.Subject("/a"), sys.E(sys.Op("replica.Propose"), sys.NotLeader, "ask n2"))
	})
	w.server.Handle(mHang, func(ctx context.Context, req *wire.Request) (wire.Response, error) {
		w.hanging <- "in"
		defer func() { w.hanging <- "out" }()
		select {
		case <-ctx.Done():
			return wire.Response{}, ctx.Err()
		case <-w.release:
			return wire.Response{Payload: req.Payload}, nil
		}
	})
	w.server.Handle(mSink, func(context.Context, *wire.Request) (wire.Response, error) {
		return wire.Response{}, nil
	})
	zero := make([]byte, 4<<20)
	w.server.Handle(mZero, func(_ context.Context, req *wire.Request) (wire.Response, error) {
		return wire.Response{Payload: zero}, nil
	})
	w.server.HandleOneWay(mOneWay, func(req *wire.Request) {
		w.oneWay <- append(append([]byte(nil), req.Header...), req.Payload...)
	})
	w.server.Handle(mDeadline, func(ctx context.Context, _ *wire.Request) (wire.Response, error) {
		d, ok := ctx.Deadline()
		if !ok {
			return wire.Response{}, nil
		}
		return wire.Response{Payload: []byte(time.Until(d).String())}, nil
	})
	wire.HandleProto(w.server, mProto, func(_ context.Context, peer wire.Identity, req *wirepb.Error) (*wirepb.Error, error) {
		if req.GetKind() != 0 {
			return nil, sys.E(sys.Exist)
		}
		return &wirepb.Error{Op: fmt.Sprintf("%v says %d", peer, len(req.GetText())), Text: req.GetText()}, nil
	})
	w.server.Handle(mBad, func(context.Context, *wire.Request) (wire.Response, error) {
		return wire.Response{Header: make([]byte, wire.MaxHeader+1)}, nil
	})
}

// client returns a client of the server; edit may change its configuration.
func (w *world) client(edit func(*wire.ClientConfig)) *wire.Client {
	w.t.Helper()
	return w.clientTo(w.addr, edit)
}

func (w *world) clientTo(addr string, edit func(*wire.ClientConfig)) *wire.Client {
	w.t.Helper()
	cfg := wire.ClientConfig{
		TLS:    nodeCreds(w.t, w.ca, 2).ClientTLS(),
		Logger: slog.New(slog.DiscardHandler),
	}
	if overTCP {
		cfg.Dial = dialTCP
	}
	if edit != nil {
		edit(&cfg)
	}
	c := wire.NewClient(addr, cfg)
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Errorf("closing the client: %v", err)
		}
	})
	return c
}
