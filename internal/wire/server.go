package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// entry is what a method number leads to; exactly one of the fields is set.
type entry struct {
	handler HandlerFunc
	fast    HandlerFunc
	oneWay  func(req *Request)
}

// Server answers the requests of the connections that its listeners accept.
// Register all methods before the first Serve; after that every method of
// Server may be called concurrently.
type Server struct {
	cfg     ServerConfig
	pool    bufferPool
	methods map[Method]entry
	passes  *issuer

	ctx    context.Context // ends when handlers must stop
	cancel context.CancelFunc
	wg     sync.WaitGroup // connections and the watchdog

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*serverConn]struct{}
	handshake map[net.Conn]struct{}
	serving   bool
	closing   bool
	strangers int // connections in conns
	refused   refusals
	done      chan struct{} // closed when Close begins
}

// NewServer returns a server without methods. A configuration without TLS or
// Identify panics.
func NewServer(cfg ServerConfig) *Server {
	cfg.fill()
	s := &Server{
		cfg:       cfg,
		methods:   make(map[Method]entry),
		passes:    newIssuer(),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*serverConn]struct{}),
		handshake: make(map[net.Conn]struct{}),
		done:      make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *Server) register(m Method, e entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving {
		panic(fmt.Sprintf("wire: expected method %d to be registered before Serve", m))
	}
	if _, dup := s.methods[m]; dup || m == 0 {
		panic(fmt.Sprintf("wire: expected a fresh method number, found %d", m))
	}
	s.methods[m] = e
}

// Handle registers a handler that runs in a goroutine of its own for each
// request.
func (s *Server) Handle(m Method, h HandlerFunc) { s.register(m, entry{handler: h}) }

// HandleFast registers a handler that runs in the connection's read loop: it
// must not block, because everything else on the connection waits for it. Its
// ctx ends with the connection only.
func (s *Server) HandleFast(m Method, h HandlerFunc) { s.register(m, entry{fast: h}) }

// HandleOneWay registers a handler for one-way messages. It runs in the read
// loop, in the order in which the peer sent them, and must not block.
func (s *Server) HandleOneWay(m Method, h func(req *Request)) { s.register(m, entry{oneWay: h}) }

// Serve accepts connections from l until Close, and then returns nil, at once
// where Close came first. It closes l. It may be called for several listeners. With a Listener of this
// package peers on the same machine use a local socket.
func (s *Server) Serve(l net.Listener) error {
	both, ok := l.(*Listener)
	if !ok {
		return s.serve(l)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if both.local != nil {
		wg.Go(func() {
			if err := s.serve(both.local); err != nil {
				s.cfg.Logger.Warn("peers on this machine use TCP from now on", "err", err)
			}
		})
	}
	return s.serve(both.Listener)
}

func (s *Server) serve(l net.Listener) error {
	const op = sys.Op("wire.Serve")
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return l.Close()
	}
	if !s.serving {
		s.serving = true
		s.wg.Add(1)
		go s.watch()
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer s.forget(l)

	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.accept(c)
			continue
		case s.isClosing():
			return nil
		case errors.Is(err, net.ErrClosed):
			return sys.E(op, sys.Unavailable, sys.Subject(l.Addr().String()), err)
		}
		// Out of file descriptors, most likely: those who are connected go
		// on, and others get their turn later.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.cfg.Logger.Warn("cannot accept connections", "addr", l.Addr().String(), "retry_in", pause, "err", err)
		select {
		case <-time.After(pause):
		case <-s.done:
			return nil
		}
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// forget closes a listener whose Serve returns.
func (s *Server) forget(l net.Listener) {
	s.mu.Lock()
	_, open := s.listeners[l]
	delete(s.listeners, l)
	s.mu.Unlock()
	if open {
		s.logClose(l.Close())
	}
}

func (s *Server) logClose(err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) {
		s.cfg.Logger.Warn("closing failed", "err", err)
	}
}

// refuse tells of a connection that was refused, unless there are many.
func (s *Server) refuse(c net.Conn, err error) {
	tell, untold := s.refused.note(time.Now())
	s.tellUntold(untold)
	if tell {
		s.cfg.Logger.Warn("connection refused", "peer", peerAddr(c), "err", err)
	}
}

// tellUntold tells how many refused connections nobody was told of one by one.
func (s *Server) tellUntold(n int) {
	if n > 0 {
		s.cfg.Logger.Warn("more connections were refused", "count", n, "within", refusalsWindow)
	}
}

// accept starts a connection's goroutine.
func (s *Server) accept(c net.Conn) {
	s.mu.Lock()
	full := len(s.conns)+len(s.handshake) >= s.cfg.MaxConns
	if s.closing || full {
		s.mu.Unlock()
		if full {
			s.refuse(c, fmt.Errorf("%d connections are open, which is the most", s.cfg.MaxConns))
		}
		s.logClose(c.Close())
		return
	}
	s.handshake[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go s.serveConn(c)
}

// serveConn is the goroutine of a connection: handshake, then its read loop.
func (s *Server) serveConn(c net.Conn) {
	defer s.wg.Done()
	sc, err := s.greet(c)
	s.mu.Lock()
	delete(s.handshake, c)
	closing := s.closing
	if err == nil && sc.stranger() && s.strangers >= StrangersMax {
		err = fmt.Errorf("%d peers without a certificate are connected, which is the most", s.strangers)
	}
	if err == nil && !closing {
		s.conns[sc] = struct{}{}
		if sc.stranger() {
			s.strangers++
		}
	}
	s.mu.Unlock()
	if err != nil || closing {
		if err != nil && !closing {
			s.refuse(c, err)
		}
		if sc != nil {
			sc.cancel()
		}
		s.logClose(c.Close())
		return
	}
	s.cfg.Logger.Debug("connected", "peer", sc.peer, "addr", sc.addr, "class", sc.class)
	err = sc.run()
	s.mu.Lock()
	delete(s.conns, sc)
	if sc.stranger() {
		s.strangers--
	}
	s.mu.Unlock()
	if _, bad := errors.AsType[malformedError](err); bad {
		s.cfg.Logger.Error("connection closed", "peer", sc.peer, "addr", sc.addr, "err", err)
	} else {
		s.cfg.Logger.Debug("connection closed", "peer", sc.peer, "addr", sc.addr, "err", err)
	}
}

// watch closes connections whose peer is silent or takes nothing.
func (s *Server) watch() {
	defer s.wg.Done()
	// A fifth of the shorter time makes both exact enough.
	tick := env.NewTicker(env.System{}, max(min(s.cfg.IdleTimeout, s.cfg.StallTimeout)/5, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		s.tellUntold(s.refused.ended(time.Now()))
		s.mu.Lock()
		conns := make([]*serverConn, 0, len(s.conns))
		for c := range s.conns {
			conns = append(conns, c)
		}
		s.mu.Unlock()
		for _, c := range conns {
			c.check(max(min(s.cfg.IdleTimeout, s.cfg.StallTimeout)/5, time.Millisecond))
		}
	}
}

// Close stops accepting, tells the clients to go, lets running handlers finish
// for CloseGrace, and then cancels what is left and closes all connections. It
// returns when every handler has returned. Closing twice is harmless.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closing = true
	close(s.done)
	var err error
	for l := range s.listeners {
		err = errors.Join(err, l.Close())
	}
	clear(s.listeners)
	for c := range s.handshake {
		err = errors.Join(err, c.Close())
	}
	conns := make([]*serverConn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()

	if s.cfg.CloseGrace > 0 {
		s.drain(conns)
	}
	s.cancel()
	for _, c := range conns {
		c.kill(errServerClosed)
	}
	s.wg.Wait()
	return err
}

var errServerClosed = errors.New("the server is closing")

// drain waits until the clients have left, at most CloseGrace. A client leaves
// when it has its replies.
func (s *Server) drain(conns []*serverConn) {
	grace := time.NewTimer(s.cfg.CloseGrace)
	defer grace.Stop()
	for _, c := range conns {
		c.goAway()
	}
	for _, c := range conns {
		select {
		case <-c.gone:
		case <-grace.C:
			return
		}
	}
}
