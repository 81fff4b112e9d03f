package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// serverConn is one accepted connection.
type serverConn struct {
	s      *Server
	raw    net.Conn
	w      *writer
	dec    *decoder
	peer   Identity
	addr   string
	class  Class
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	gone   chan struct{} // closed when the read loop has ended
	wg     sync.WaitGroup

	warned, dropped bool // only the read loop uses them

	// Only the watchdog uses these.
	lastReads, lastBeat uint64
	silent, stalled     time.Duration
	age                 time.Duration // of a stranger's connection

	mu       sync.Mutex
	calls    map[uint64]*serverCall
	queue    []*serverCall // waiting for their turn
	running  int
	inBytes  int // of the requests that arrived and are not answered
	inCount  int
	outBytes int   // of large replies that wait to be written
	err      error // why the connection was closed
}

// serverCall is one request on its way to its handler and back.
type serverCall struct {
	req      Request
	handler  HandlerFunc
	id       uint64
	buf      *buffer
	size     int
	deadline time.Time // zero for none
	cancel   context.CancelFunc
	canceled bool
}

// greet does the TLS and version handshakes.
func (s *Server) greet(c net.Conn) (*serverConn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	if err := c.SetDeadline(time.Now().Add(s.cfg.HandshakeTimeout)); err != nil {
		return nil, err
	}
	g, pass, err := s.introduce(ctx, c)
	if err != nil {
		return nil, explainTLS(err)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	sc := &serverConn{s: s, raw: c, peer: g.peer, addr: peerAddr(c), class: g.theirs.class,
		gone: make(chan struct{}), calls: make(map[uint64]*serverCall)}
	sc.ctx, sc.cancel = context.WithCancel(s.ctx)
	sc.w = newWriter(g.frames, g.cork, sc.kill)
	sc.dec = newDecoder(g.frames, &s.pool)
	sc.dec.idle = sc.w.flush
	sc.dec.admit = sc.admit
	if sc.stranger() {
		sc.dec.max = StrangerFrame
	}
	if pass != nil {
		_ = sc.w.small(&frame{kind: kindPass}, nil, pass, writeIdle) // it fails only when the connection ends
	}
	return sc, nil
}

// introduce makes the greeting, by a pass that this server gave or by TLS. pass is one to be given, or nil.
func (s *Server) introduce(ctx context.Context, c net.Conn) (g greeting, pass []byte, err error) {
	own := preface{newest: versionNewest, oldest: versionOldest,
		maxRequests: uint32(s.cfg.MaxInFlight), maxBytes: uint32(s.cfg.MaxInFlightBytes)}
	l := newLink(c, tls.Server, s.cfg.TLS)
	local, _ := c.(*net.UnixConn)
	if local != nil {
		widen(local)
		head, err := l.records.peek()
		if err != nil {
			return g, nil, err
		}
		if string(head[:len(passMagic)]) == passMagic {
			l.records.drop()
			if g, admitted, err := s.passes.admit(local, head, own, time.Now()); err != nil || admitted {
				return g, nil, err
			}
		}
	}
	if err := l.handshake(ctx); err != nil {
		return g, nil, err
	}
	state := l.tls.ConnectionState()
	g = greeting{frames: l.frames(), cork: l.cork}
	if g.peer, err = s.cfg.Identify(state); err != nil {
		return g, nil, err
	}
	if g.peer == (Identity{}) && s.cfg.Allow == nil {
		return g, nil, sys.E(sys.Op("wire.Serve"), sys.Access, "the peer presented no certificate")
	}
	if _, err := l.tls.Write(own.encode()); err != nil {
		return g, nil, err
	}
	if g.theirs, err = readPreface(l.tls); err == nil && local != nil && g.theirs.wantsPass && g.peer.Name != "" {
		pass, err = s.givePass(local, g.peer, &state)
	}
	return g, pass, err
}

// givePass makes a pass for a client who has shown a certificate. It ends with that at the latest, and with the server's.
func (s *Server) givePass(c *net.UnixConn, peer Identity, state *tls.ConnectionState) ([]byte, error) {
	uid, err := peerUser(c)
	if err != nil {
		return nil, err
	}
	hidden, err := mask(state)
	if err != nil {
		return nil, err
	}
	notAfter := time.Now().Add(passLife)
	certs := []*x509.Certificate{state.PeerCertificates[0]}
	for i := range s.cfg.TLS.Certificates {
		certs = append(certs, s.cfg.TLS.Certificates[i].Leaf)
	}
	for _, cert := range certs {
		if cert != nil && cert.NotAfter.Before(notAfter) {
			notAfter = cert.NotAfter
		}
	}
	return s.passes.issue(peer, uint32(uid), notAfter, hidden), nil
}

// run serves the connection until it ends and all its handlers have returned.
func (c *serverConn) run() error {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.w.run()
	}()
	err := c.readLoop()
	c.kill(err)
	close(c.gone)
	c.wg.Wait()
	c.dec.close()
	return c.err
}

// kill closes the connection at once. What runs sees its ctx end.
func (c *serverConn) kill(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	dropped := c.queue
	c.queue = nil
	c.mu.Unlock()
	c.s.logClose(c.raw.Close())
	c.w.fail(err)
	c.cancel()
	for _, call := range dropped {
		call.buf.release()
	}
}

// stranger says that the peer has shown no certificate.
func (c *serverConn) stranger() bool { return c.peer == Identity{} }

// allowed returns why the peer may not use a method, nil when it may.
func (c *serverConn) allowed(m Method) error {
	if c.s.cfg.Allow == nil {
		return nil
	}
	return c.s.cfg.Allow(c.peer, m)
}

// admit says whether a message that begins may be kept in memory. Clients know
// the limits and wait, so a refusal means that they do not keep to them.
func (c *serverConn) admit(f frame) bool {
	if c.allowed(f.method) != nil {
		return false
	}
	if f.kind != kindRequest {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inCount >= c.s.cfg.MaxInFlight || c.inCount > 0 && c.stranger() || c.inBytes+f.size() > c.s.cfg.MaxInFlightBytes {
		return false
	}
	c.inCount++
	c.inBytes += f.size()
	return true
}

func (c *serverConn) readLoop() error {
	for {
		m, err := c.dec.next()
		if err != nil {
			return explainTLS(err)
		}
		c.w.waitRoom()
		switch m.kind {
		case kindRequest:
			c.request(&m)
		case kindOneWay:
			c.oneWay(&m)
		case kindCancel:
			c.canceled(m.id)
		case kindPing:
			// An error here is the connection's end, which next will notice.
			_ = c.w.small(&frame{kind: kindPong, id: m.id}, nil, nil, writeIdle)
		default:
			m.buf.release()
			return malformed("a client sent kind %d", m.kind)
		}
	}
}

func (c *serverConn) oneWay(m *message) {
	defer m.buf.release()
	if m.flags&flagAbort != 0 {
		return
	}
	if m.refused {
		if !c.dropped {
			c.dropped = true
			c.s.cfg.Logger.Warn("one-way messages dropped: the peer may not send them", "method", m.method, "peer", c.peer, "addr", c.addr, "err", c.allowed(m.method))
		}
		return
	}
	e := c.s.methods[m.method]
	if e.oneWay == nil {
		// A newer build may send what this one does not know.
		if !c.warned {
			c.warned = true
			c.s.cfg.Logger.Warn("one-way messages dropped: unknown method; is this build older than the peer's?",
				"method", m.method, "peer", c.peer, "addr", c.addr)
		}
		return
	}
	e.oneWay(&Request{Method: m.method, Header: m.header(), Payload: m.payload(), Peer: c.peer, Addr: c.addr})
}

// request starts or queues a request that has fully arrived.
func (c *serverConn) request(m *message) {
	e := c.s.methods[m.method]
	switch {
	case m.flags&flagAbort != 0:
		if !m.refused {
			c.forget(m.size())
		}
		return
	case m.refused:
		if err := c.allowed(m.method); err != nil {
			c.refuse(m, err)
			return
		}
		c.refuse(m, sys.E(sys.Op("wire.Serve"), sys.Busy, "more requests are in flight on this connection than the server allows"))
		return
	case e.fast == nil && e.handler == nil:
		c.forget(m.size())
		m.buf.release()
		c.refuse(m, sys.E(sys.Op("wire.Serve"), sys.NotSupported,
			fmt.Sprintf("the server does not know method %d: is it of an older version?", m.method)))
		return
	}
	call := &serverCall{id: m.id, buf: m.buf, size: m.size(), handler: e.handler,
		req: Request{Method: m.method, Header: m.header(), Payload: m.payload(), Peer: c.peer, Addr: c.addr}}
	if e.fast != nil {
		resp, err := e.fast(c.ctx, &call.req)
		c.answer(call, resp, err, writeIdle)
		return
	}
	if m.timeoutUs != 0 {
		call.deadline = time.Now().Add(time.Duration(m.timeoutUs) * time.Microsecond)
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		call.buf.release()
		return
	}
	if _, dup := c.calls[m.id]; dup {
		c.mu.Unlock()
		call.buf.release()
		c.kill(malformed("request ID %d is in use", m.id))
		return
	}
	c.calls[m.id] = call
	if len(c.queue) > 0 || !c.mayStart() {
		c.queue = append(c.queue, call)
		c.mu.Unlock()
		return
	}
	c.start()
	c.mu.Unlock()
	go c.work(call)
}

// mayStart reports whether one more handler may run. The caller holds c.mu.
func (c *serverConn) mayStart() bool {
	return c.err == nil && c.running < c.s.cfg.MaxRunning && c.outBytes <= c.s.cfg.MaxInFlightBytes
}

// start counts a handler that the caller, who holds c.mu, will run.
func (c *serverConn) start() {
	c.running++
	c.wg.Add(1)
}

// next takes a request from the queue when it may start. The caller holds c.mu
// and runs work with it.
func (c *serverConn) next() *serverCall {
	if len(c.queue) == 0 || !c.mayStart() {
		return nil
	}
	call := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	c.start()
	return call
}

// work runs handlers, one request after the other, while there are any.
func (c *serverConn) work(call *serverCall) {
	for call != nil {
		c.handle(call)
		c.mu.Lock()
		c.running--
		next := c.next()
		c.mu.Unlock()
		c.wg.Done()
		call = next
	}
}

// handle runs one handler and answers.
func (c *serverConn) handle(call *serverCall) {
	var ctx context.Context
	var cancel context.CancelFunc
	if call.deadline.IsZero() {
		ctx, cancel = context.WithCancel(c.ctx)
	} else {
		ctx, cancel = context.WithDeadline(c.ctx, call.deadline)
	}
	defer cancel()
	c.mu.Lock()
	call.cancel = cancel
	if call.canceled {
		cancel()
	}
	c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		// Nobody waits for the answer any more.
		c.answer(call, Response{}, &unsent{sys.E(sys.Op("wire.Serve"), kindOf(err), err)}, writeSelf)
		return
	}
	resp, err := call.handler(ctx, &call.req)
	c.answer(call, resp, err, writeSelf)
}

func (c *serverConn) canceled(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.calls[id]
	if call == nil {
		return // answered while the cancel was on its way
	}
	call.canceled = true
	if call.cancel != nil {
		call.cancel()
	}
}

// forget takes a request out of the connection's account.
func (c *serverConn) forget(size int) {
	c.mu.Lock()
	c.inCount--
	c.inBytes -= size
	c.mu.Unlock()
}

// refuse answers a request that has no call.
func (c *serverConn) refuse(m *message, err error) {
	f := frame{kind: kindError, flags: flagNotExecuted, id: m.id}
	_ = c.w.small(&f, encodeError(err), nil, writeIdle) // fails only when the connection ends
}

// answer sends a handler's result and ends the call.
func (c *serverConn) answer(call *serverCall, resp Response, err error, u urgency) {
	f := frame{kind: kindReply, id: call.id}
	if err == nil && (len(resp.Header) > MaxHeader || len(resp.Payload) > MaxPayload) {
		// No kind that a caller could take for a refusal: the handler has run.
		err = sys.E(sys.Op("wire.Serve"), sys.Other, fmt.Sprintf("executed, but the answer of method %d has a header of %d and a payload of %d bytes, the limits are %d and %d",
			call.req.Method, len(resp.Header), len(resp.Payload), MaxHeader, MaxPayload))
		resp.Payload = nil
	}
	if err != nil {
		f.kind = kindError
		if u, never := err.(*unsent); never {
			f.flags, err = flagNotExecuted, u.err
		}
		resp.Header = encodeError(err)
		if len(resp.Payload) > MaxDetail {
			resp.Payload = nil
		}
	}
	c.mu.Lock()
	delete(c.calls, call.id)
	c.inCount--
	c.inBytes -= call.size
	if u == writeSelf && c.running > 1 {
		u = writeSoon
	}
	c.mu.Unlock()

	if len(resp.Header)+len(resp.Payload) > smallMessage {
		c.answerLarge(f, call, resp, u)
		return
	}
	_ = c.w.small(&f, resp.Header, resp.Payload, u) // fails only when the connection ends
	resp.finish(call)
}

// finish gives back the memory of an answer that was written. The answer may
// lie in the request's memory.
func (r *Response) finish(call *serverCall) {
	if r.Release != nil {
		r.Release()
	}
	call.buf.release()
}

// answerLarge sends a reply from where it lies. It counts as backlog until it
// is written, and new handlers wait while the backlog is large.
func (c *serverConn) answerLarge(f frame, call *serverCall, resp Response, u urgency) {
	size := len(resp.Header) + len(resp.Payload)
	c.mu.Lock()
	c.outBytes += size
	c.mu.Unlock()
	if u == writeIdle {
		u = writeLater // the read loop has better things to do
	}
	done := func(bool) {
		resp.finish(call)
		c.mu.Lock()
		c.outBytes -= size
		for next := c.next(); next != nil; next = c.next() {
			go c.work(next)
		}
		c.mu.Unlock()
	}
	if err := c.w.large(&outgoing{frame: f, header: resp.Header, payload: resp.Payload, done: done}, u); err != nil {
		done(false)
	}
}

// goAway tells the client to leave when it has its replies.
func (c *serverConn) goAway() {
	_ = c.w.small(&frame{kind: kindGoAway}, nil, nil, writeLater) // fails only when the connection ends
}

// check is called by the watchdog every tick.
func (c *serverConn) check(tick time.Duration) {
	reads, beat := c.dec.reads.Load(), c.w.beat.Load()
	c.silent += tick
	if reads != c.lastReads {
		c.silent = 0
	}
	c.stalled += tick
	if beat != c.lastBeat || !c.w.busy.Load() {
		c.stalled = 0
	}
	c.lastReads, c.lastBeat = reads, beat
	if c.stranger() {
		c.age += tick
	}
	switch {
	case c.age > c.s.cfg.StrangerLife:
		c.kill(fmt.Errorf("a connection without a certificate lasts %v", c.s.cfg.StrangerLife))
	case c.stalled > c.s.cfg.StallTimeout:
		c.kill(fmt.Errorf("the peer took no bytes for %v", c.s.cfg.StallTimeout))
	case c.silent > c.s.cfg.IdleTimeout:
		c.kill(fmt.Errorf("the peer sent nothing for %v", c.s.cfg.IdleTimeout))
	}
}

// explainTLS makes an error of a handshake say what to do.
func explainTLS(err error) error {
	if _, ours := errors.AsType[*sys.Error](err); ours {
		return err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		if !strings.Contains(op.Err.Error(), "certificate") {
			return sys.E(sys.NotSupported, fmt.Errorf("the peer refuses the TLS handshake: %w", op.Err))
		}
		return sys.E(sys.Access, fmt.Errorf("the peer refuses our certificate (%w): its log says why; both sides need certificates of the same cluster CA that have not expired", op.Err))
	}
	if rec, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return sys.E(sys.NotSupported, fmt.Errorf("the peer does not speak TLS: there is no plaintext mode: %w", rec))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errPeerClosed
	}
	return err
}

var errPeerClosed = errors.New("the peer closed the connection")
