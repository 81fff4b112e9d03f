package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// abortGrace is how long a call whose ctx has ended waits for the segment
	// of its payload that is being written, before the connection is given up.
	abortGrace = 250 * time.Millisecond
	// selfWriteMax is the number of bytes in flight up to which a caller
	// writes by itself: they surely fit into the socket's buffer, so that the
	// caller does not block beyond its ctx when the peer stands still.
	selfWriteMax = 64 << 10
	// keepAliveTicks is in how many steps KeepAlive is measured. Steps are
	// counted, not time, so that a process that was itself stopped does not
	// blame its peers.
	keepAliveTicks = 4
)

// errGone says that a connection ended before a call put anything on it.
var errGone = errors.New("connection is gone")

// clientConn is one connection of a Client.
type clientConn struct {
	c        *Client
	raw      net.Conn
	w        *writer
	dec      *decoder
	closed   chan struct{}
	peer     Identity
	mask     []byte // of the pass that is to come, nil for none; of the read loop alone
	born     time.Time
	oneWayID atomic.Uint64
	sent     atomic.Bool // something was sent since the watchdog last looked
	calls    callPool

	maxCount, maxBytes int

	mu      sync.Mutex
	waiting map[uint64]*call
	lastID  uint64
	count   int // requests in flight
	bytes   int // their bytes
	queue   []*roomWaiter
	leaving bool // the server sent goAway
	err     error
}

// call is one request in flight.
type call struct {
	result    chan result // holds one
	size      int
	abandoned bool // nobody waits, but the server has not answered yet
}

type result struct {
	m   message
	err error
}

// callPool keeps calls, for their channels.
type callPool struct{ p sync.Pool }

func (p *callPool) get(size int) *call {
	c, ok := p.p.Get().(*call)
	if !ok {
		c = &call{result: make(chan result, 1)}
	}
	c.size, c.abandoned = size, false
	return c
}

// put takes back a call whose result was received.
func (p *callPool) put(c *call) { p.p.Put(c) }

// roomWaiter is a call that waits for room in the connection's budget.
type roomWaiter struct {
	size  int
	ready chan struct{} // closed when room was taken for it
}

// greet connects and does the TLS and version handshakes.
func (c *Client) greet() (*clientConn, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.DialTimeout)
	defer cancel()
	conn, err := c.dialAndGreet(ctx, c.cfg.Passes != nil)
	if errors.Is(err, errPass) && ctx.Err() == nil {
		c.cfg.Passes.Keep(c.addr, nil)
		return c.dialAndGreet(ctx, false)
	}
	return conn, err
}

// dialAndGreet is one try of greet, with a pass if there is one and it may be used.
func (c *Client) dialAndGreet(ctx context.Context, byPass bool) (*clientConn, error) {
	raw, err := c.cfg.Dial(ctx, c.addr)
	if err != nil {
		return nil, err
	}
	conn, err := c.handshake(ctx, raw, byPass)
	if err != nil {
		if cerr := raw.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
		return nil, err
	}
	return conn, nil
}

func (c *Client) handshake(ctx context.Context, raw net.Conn, byPass bool) (*clientConn, error) {
	// Close must end what follows, and so must the deadline.
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	own := preface{newest: versionNewest, oldest: versionOldest, class: c.cfg.Class, wantsPass: isLocal(raw) && c.cfg.Passes != nil}
	g, err := c.introduce(ctx, raw, own, byPass)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("handshake: %w", ctx.Err())
		}
		if errors.Is(err, errPass) {
			return nil, err // greet goes on by TLS
		}
		return nil, explainTLS(err)
	}
	if !stop() {
		return nil, fmt.Errorf("handshake: %w", ctx.Err())
	}
	conn := &clientConn{c: c, raw: raw, peer: g.peer, mask: g.mask, born: time.Now(), closed: make(chan struct{}), waiting: make(map[uint64]*call),
		maxCount: max(1, min(c.cfg.MaxInFlight, int(g.theirs.maxRequests))),
		maxBytes: max(MaxFrame+frameSize, min(c.cfg.MaxInFlightBytes, int(g.theirs.maxBytes)))}
	conn.w = newWriter(g.frames, g.cork, conn.kill)
	conn.dec = newDecoder(g.frames, &c.pool)
	conn.dec.first = MaxFrame // it answers what we asked
	return conn, nil
}

// greeting is what both sides know of each other, and how they go on.
type greeting struct {
	peer   Identity
	theirs preface
	frames io.ReadWriter
	cork   *corkConn // nil over a local socket
	mask   []byte    // of a pass that may follow; nil: none may
}

// introduce makes the greeting, by a pass or by TLS.
func (c *Client) introduce(ctx context.Context, raw net.Conn, own preface, byPass bool) (greeting, error) {
	if own.wantsPass && byPass {
		if p, ok := decodePass(c.cfg.Passes.Pass(c.addr)); ok && time.Now().Before(p.notAfter) {
			theirs, refused, err := p.present(raw, own)
			if err != nil || !refused {
				return greeting{peer: p.server, theirs: theirs, frames: raw}, err
			}
		}
	}
	l := newLink(raw, tls.Client, c.cfg.TLS)
	if err := l.handshake(ctx); err != nil {
		return greeting{}, err
	}
	// The server speaks first: its preface says that it accepted us, and as
	// we have sent nothing yet, its refusal cannot get lost.
	theirs, err := readPreface(l.tls)
	if err != nil {
		return greeting{}, err
	}
	state := l.tls.ConnectionState()
	g := greeting{theirs: theirs, frames: l.frames(), cork: l.cork}
	if g.peer, err = c.cfg.Identify(state); err != nil {
		return greeting{}, err
	}
	if own.wantsPass {
		if g.mask, err = mask(&state); err != nil {
			return greeting{}, err
		}
	}
	_, err = l.tls.Write(own.encode())
	return g, err
}

// run serves the connection until it ends.
func (c *clientConn) run() error {
	var wg sync.WaitGroup
	wg.Go(c.w.run)
	wg.Go(c.watch)
	c.kill(c.readLoop())
	wg.Wait()
	c.dec.close()
	return c.err
}

// usable reports whether new requests may use the connection.
func (c *clientConn) usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && !c.leaving
}

// kill ends the connection and fails all calls.
func (c *clientConn) kill(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	lost := c.waiting
	c.waiting = nil
	close(c.closed)
	c.mu.Unlock()
	if cerr := c.raw.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		c.c.cfg.Logger.Warn("closing failed", "addr", c.c.addr, "err", cerr)
	}
	c.w.fail(err)
	for _, call := range lost {
		if !call.abandoned {
			call.result <- result{err: c.c.failure(sys.Unavailable, fmt.Errorf("the connection was lost before the answer came: %w", err))}
		}
	}
}

// call does one request on this connection.
func (c *clientConn) call(ctx context.Context, m Method, header, payload []byte) (*Reply, error) {
	size := frameSize + len(header) + len(payload)
	f := frame{kind: kindRequest, method: m}
	cl, u, err := c.begin(ctx, &f, size)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		// Rounded up, so that the server does not give up before we do.
		left := (time.Until(deadline) + time.Microsecond - 1).Microseconds()
		f.timeoutUs = uint32(min(max(left, 1), math.MaxUint32))
	}
	if len(header)+len(payload) > smallMessage {
		return c.callLarge(ctx, cl, &f, header, payload)
	}
	// An error is the connection's end, and the result says so.
	_ = c.w.small(&f, header, payload, u)
	select {
	case r := <-cl.result:
		return c.finish(ctx, cl, r)
	case <-ctx.Done():
		return c.abandon(ctx, cl, f.id)
	}
}

// callLarge does a request whose payload is written from where it is.
func (c *clientConn) callLarge(ctx context.Context, cl *call, f *frame, header, payload []byte) (*Reply, error) {
	written := make(chan bool, 1)
	o := &outgoing{frame: *f, header: header, payload: payload, done: func(whole bool) { written <- whole }}
	if err := c.w.large(o, writeLater); err != nil {
		return c.finish(ctx, cl, <-cl.result)
	}
	// The payload is the caller's again when we return, so the writer must
	// have let go of it by then.
	select {
	case r := <-cl.result:
		c.w.abort(o)
		if whole := <-written; !whole && r.err != nil {
			r.err = c.c.failure(sys.Unavailable, &unsent{errors.Unwrap(r.err)})
		}
		return c.finish(ctx, cl, r)
	case <-ctx.Done():
	}
	c.w.abort(o)
	grace := time.NewTimer(abortGrace)
	defer grace.Stop()
	var whole bool
	select {
	case whole = <-written:
	case <-grace.C:
		c.kill(fmt.Errorf("the peer took no bytes of a request for %v", abortGrace))
		whole = <-written
	}
	if whole {
		return c.abandon(ctx, cl, f.id)
	}
	if c.drop(f.id) {
		return nil, c.c.failure(kindOf(ctx.Err()), &unsent{ctx.Err()})
	}
	return c.finish(ctx, cl, <-cl.result)
}

// begin registers a request when there is room for it, and says who should
// write it.
func (c *clientConn) begin(ctx context.Context, f *frame, size int) (*call, urgency, error) {
	err := ctx.Err()
	if deadline, ok := ctx.Deadline(); err == nil && ok && !time.Now().Before(deadline) {
		err = context.DeadlineExceeded // which ctx tells later, when its timer has fired
	}
	if err != nil {
		return nil, 0, c.c.failure(kindOf(err), &unsent{err})
	}
	c.mu.Lock()
	if c.err != nil || c.leaving {
		c.mu.Unlock()
		return nil, 0, errGone
	}
	if len(c.queue) > 0 || !c.fits(size) {
		if err := c.wait(ctx, size); err != nil {
			return nil, 0, err
		}
	} else {
		c.take(size)
	}
	c.lastID++
	f.id = c.lastID
	cl := c.calls.get(size)
	c.waiting[f.id] = cl
	u := writeLater
	switch {
	case c.count == 1:
		u = writeSelf
	case c.bytes <= selfWriteMax:
		u = writeSoon
	}
	c.mu.Unlock()
	return cl, u, nil
}

func (c *clientConn) fits(size int) bool {
	return c.count < c.maxCount && c.bytes+size <= c.maxBytes
}

func (c *clientConn) take(size int) {
	c.count++
	c.bytes += size
}

// give returns room and passes it on. The caller holds c.mu.
func (c *clientConn) give(size int) {
	c.count--
	c.bytes -= size
	for len(c.queue) > 0 && c.fits(c.queue[0].size) {
		c.take(c.queue[0].size)
		close(c.queue[0].ready)
		c.queue = c.queue[1:]
	}
}

// wait waits for room. It is called with c.mu held; it returns with c.mu held
// and the room taken, or with an error and without c.mu.
func (c *clientConn) wait(ctx context.Context, size int) error {
	w := &roomWaiter{size: size, ready: make(chan struct{})}
	c.queue = append(c.queue, w)
	c.mu.Unlock()
	var err error
	select {
	case <-w.ready:
	case <-c.closed:
		err = errGone
	case <-ctx.Done():
		err = c.c.failure(kindOf(ctx.Err()), &unsent{fmt.Errorf("while waiting for room on the connection: %w", ctx.Err())})
	}
	c.mu.Lock()
	if err == nil && (c.err != nil || c.leaving) {
		err = errGone
	}
	if err == nil {
		return nil
	}
	defer c.mu.Unlock()
	select {
	case <-w.ready:
		c.give(size)
		return err
	default:
	}
	for i, q := range c.queue {
		if q == w {
			c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
			break
		}
	}
	return err
}

// finish turns a result into what Call returns.
func (c *clientConn) finish(ctx context.Context, cl *call, r result) (*Reply, error) {
	c.calls.put(cl)
	if r.err != nil {
		return nil, r.err
	}
	if r.m.kind == kindError {
		err := decodeError(r.m.header(), r.m.payload(), r.m.flags&flagNotExecuted != 0)
		r.m.buf.release()
		return nil, c.afterDeadline(ctx, err)
	}
	return &Reply{Header: r.m.header(), Payload: r.m.payload(), buf: r.m.buf}, nil
}

// afterDeadline makes the error of a call whose deadline has passed the same,
// whether our clock or the server's noticed first.
func (c *clientConn) afterDeadline(ctx context.Context, err error) error {
	deadline, ok := ctx.Deadline()
	if !ok || time.Now().Before(deadline) || !sys.Is(err, sys.Unavailable) && !sys.Is(err, sys.Interrupted) {
		return err
	}
	cause := fmt.Errorf("%w; the server said: %v", context.DeadlineExceeded, err)
	if IsUnsent(err) {
		cause = &unsent{cause}
	}
	return c.c.failure(sys.Unavailable, cause)
}

// abandon ends a call whose ctx ended after the request was sent. Its room
// stays taken until the server has answered, because until then the server
// works on it.
func (c *clientConn) abandon(ctx context.Context, cl *call, id uint64) (*Reply, error) {
	c.mu.Lock()
	if c.waiting[id] != cl {
		c.mu.Unlock()
		return c.finish(ctx, cl, <-cl.result) // the answer came just now
	}
	cl.abandoned = true
	c.mu.Unlock()
	_ = c.w.small(&frame{kind: kindCancel, id: id}, nil, nil, writeLater) // fails only when the connection ends
	return nil, c.c.failure(kindOf(ctx.Err()), fmt.Errorf("no answer in time: %w", ctx.Err()))
}

// drop removes a call that the server never saw in full. It returns false when
// the call has a result.
func (c *clientConn) drop(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.waiting[id]
	if cl == nil {
		return false
	}
	delete(c.waiting, id)
	c.give(cl.size)
	return true
}

func (c *clientConn) readLoop() error {
	for {
		m, err := c.dec.next()
		if err != nil {
			return explainTLS(err)
		}
		switch m.kind {
		case kindReply, kindError:
			if err := c.deliver(m); err != nil {
				return err
			}
		case kindPong:
		case kindPass:
			if err := c.keep(m); err != nil {
				return err
			}
		case kindGoAway:
			if c.leave() {
				return errServerClosed
			}
		default:
			m.buf.release()
			return malformed("a server sent kind %d", m.kind)
		}
	}
}

// keep keeps a pass for the next client. That is a file's write, for which nobody waits. There is one for a connection that asked.
func (c *clientConn) keep(m message) error {
	if c.mask == nil {
		m.buf.release()
		return malformed("a pass that was not asked for")
	}
	pass := encodePass(c.peer, m.payload(), c.mask)
	c.mask = nil
	m.buf.release()
	c.c.keep(pass)
	return nil
}

// deliver hands a reply to its call.
func (c *clientConn) deliver(m message) error {
	c.mu.Lock()
	cl := c.waiting[m.id]
	if cl == nil {
		err := c.err
		c.mu.Unlock()
		m.buf.release()
		if err == nil {
			err = malformed("a reply to request %d, which is not in flight", m.id)
		}
		return err
	}
	delete(c.waiting, m.id)
	c.give(cl.size)
	abandoned := cl.abandoned
	last := c.leaving && len(c.waiting) == 0
	c.mu.Unlock()
	if abandoned {
		m.buf.release()
	} else {
		cl.result <- result{m: m}
	}
	if last {
		return errServerClosed
	}
	return nil
}

// leave stops new requests, because the server is closing. It reports whether
// there is nothing to wait for.
func (c *clientConn) leave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	return len(c.waiting) == 0
}

// watch gives the connection up when the peer is silent for KeepAlive although
// something is expected of it, and probes it when it is idle.
func (c *clientConn) watch() {
	step := max(c.c.cfg.KeepAlive/keepAliveTicks, time.Millisecond)
	tick := env.NewTicker(env.System{}, step)
	defer tick.Stop()
	var lastReads, pings uint64
	var silent, expecting int
	probe := false // a ping is unanswered
	for {
		select {
		case <-c.closed:
			return
		case <-tick.C:
		}
		silent++
		if reads := c.dec.reads.Load(); reads != lastReads {
			lastReads, silent, expecting, probe = reads, 0, 0, false
			c.sent.Store(false)
			continue
		}
		c.mu.Lock()
		busy := len(c.waiting) > 0
		c.mu.Unlock()
		idle := time.Duration(silent)*step >= c.c.cfg.IdlePing
		if !busy && !probe && !idle && !c.sent.Load() {
			expecting = 0
			continue
		}
		expecting++
		if expecting > keepAliveTicks {
			c.kill(fmt.Errorf("the peer was silent for %v", c.c.cfg.KeepAlive))
			return
		}
		if !probe {
			probe = true
			pings++
			_ = c.w.small(&frame{kind: kindPing, id: pings}, nil, nil, writeLater) // fails only when the connection ends
		}
	}
}
