package wire

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// Client is one logical connection to an address. It connects when it is first
// used and again after a failure; while a new attempt is not yet due, calls
// fail at once, so that the caller can try another node. Safe for concurrent
// use.
type Client struct {
	addr string
	cfg  ClientConfig
	pool bufferPool

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	cur     *clientConn              // what new requests use, nil for none
	conns   map[*clientConn]struct{} // all that run
	dialing *attempt
	kept    chan struct{} // closed when a pass that is being kept is; nil for none
	backoff time.Duration
	next    time.Time // no attempt before
	lastErr error
}

// attempt is one attempt to connect that any number of calls wait for.
type attempt struct {
	done chan struct{}
	conn *clientConn
	err  error
}

// NewClient returns a client for addr, "host:port". It does not connect yet. A
// configuration without TLS panics.
func NewClient(addr string, cfg ClientConfig) *Client {
	cfg.fill()
	c := &Client{addr: addr, cfg: cfg, conns: make(map[*clientConn]struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Addr returns the address that the client connects to.
func (c *Client) Addr() string { return c.addr }

// Connected reports whether there is a connection that is believed to work.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur != nil && c.cur.usable()
}

// Peer returns who is at the other end, by its certificate, if Connected.
func (c *Client) Peer() (peer Identity, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur == nil || !c.cur.usable() {
		return Identity{}, false
	}
	return c.cur.peer, true
}

// Connect begins to connect, where there is no connection and an attempt is due.
// It does not wait.
func (c *Client) Connect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur == nil || !c.cur.usable() {
		_, _ = c.dialLocked() // the next call tells
	}
}

// Connecting reports whether an attempt to connect is under way.
func (c *Client) Connecting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dialing != nil
}

// Call sends a request and waits for its answer. header and payload belong to
// the caller again when Call returns; while a large payload is being written,
// Call may return up to a quarter of a second after ctx has ended. The caller
// releases the reply.
//
// Errors: what the handler answered; sys.Unavailable when the connection could
// not be made or was lost, and when ctx's deadline passed; sys.Interrupted
// when ctx was canceled; sys.Access when either side does not accept the
// other's certificate; sys.Invalid when the message is over the limits.
// IsUnsent tells whether the request was certainly not executed.
func (c *Client) Call(ctx context.Context, m Method, header, payload []byte) (*Reply, error) {
	if len(header) > MaxHeader || len(payload) > MaxPayload {
		return nil, c.failure(sys.Invalid, &unsent{fmt.Errorf("method %d: header of %d and payload of %d bytes, the limits are %d and %d",
			m, len(header), len(payload), MaxHeader, MaxPayload)})
	}
	for {
		conn, err := c.connect(ctx)
		if err != nil {
			return nil, err
		}
		r, err := conn.call(ctx, m, header, payload)
		if err == errGone && ctx.Err() == nil {
			continue // it went between connect and call: nothing was sent
		}
		return r, err
	}
}

// Send queues a one-way message and never blocks. header and payload are
// copied. Messages of one connection arrive in order, each at most once; a
// message is lost when the connection is. Errors: sys.Unavailable without a
// connection (Send then begins to make one), sys.Busy when SendQueueBytes are
// waiting, sys.Invalid over the limits.
func (c *Client) Send(m Method, header, payload []byte) error {
	if len(header) > MaxHeader || len(payload) > MaxPayload {
		return c.failure(sys.Invalid, &unsent{fmt.Errorf("one-way message %d: header of %d and payload of %d bytes, the limits are %d and %d",
			m, len(header), len(payload), MaxHeader, MaxPayload)})
	}
	c.mu.Lock()
	conn := c.cur
	if conn == nil || !conn.usable() {
		_, err := c.dialLocked()
		c.mu.Unlock()
		if err == nil {
			err = errors.New("connecting")
		}
		return c.failure(sys.Unavailable, &unsent{err})
	}
	c.mu.Unlock()
	f := frame{kind: kindOneWay, method: m, id: conn.oneWayID.Add(1)}
	conn.sent.Store(true)
	if err := conn.w.send(&f, header, payload, c.cfg.SendQueueBytes); err != nil {
		if sys.Is(err, sys.Busy) {
			return c.failure(sys.Busy, &unsent{err})
		}
		return c.failure(sys.Unavailable, &unsent{err})
	}
	return nil
}

// keep has a pass kept.
func (c *Client) keep(pass []byte) {
	kept := make(chan struct{})
	c.mu.Lock()
	c.kept = kept
	c.mu.Unlock()
	go func() {
		defer close(kept)
		c.cfg.Passes.Keep(c.addr, pass)
	}()
}

// keepPatience is how long Close waits for a pass to be kept. The file system may hang, and the pass is not needed.
const keepPatience = 200 * time.Millisecond

// awaitKept waits for a pass that is being kept.
func (c *Client) awaitKept() {
	c.mu.Lock()
	kept := c.kept
	c.mu.Unlock()
	if kept == nil {
		return
	}
	select {
	case <-kept:
	case <-time.After(keepPatience):
	}
}

// Close ends the connection; calls under way fail. It returns when nothing of
// the client runs any more. Closing twice is harmless.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	conns := slices.Collect(maps.Keys(c.conns))
	c.mu.Unlock()
	c.cancel()
	for _, conn := range conns {
		conn.kill(errClientClosed)
	}
	c.wg.Wait()
	c.awaitKept()
	return nil
}

var errClientClosed = errors.New("the client was closed")

// failure builds the error of an operation on this client's connection.
func (c *Client) failure(kind sys.Kind, cause error) error {
	return sys.E(sys.Op("wire.Call"), kind, sys.Subject(c.addr), cause)
}

// connect returns a working connection, making it if need be.
func (c *Client) connect(ctx context.Context) (*clientConn, error) {
	c.mu.Lock()
	if cur := c.cur; cur != nil && cur.usable() {
		c.mu.Unlock()
		return cur, nil
	}
	a, err := c.dialLocked()
	c.mu.Unlock()
	if err != nil {
		return nil, c.dialFailure(err)
	}
	select {
	case <-a.done:
		if a.err != nil {
			return nil, c.dialFailure(a.err)
		}
		return a.conn, nil
	case <-ctx.Done():
		return nil, c.failure(kindOf(ctx.Err()), &unsent{fmt.Errorf("while connecting: %w", ctx.Err())})
	}
}

// dialFailure builds the error of a connection that could not be made.
func (c *Client) dialFailure(err error) error {
	kind := sys.Unavailable
	if k := sys.KindOf(err); k == sys.Access || k == sys.NotSupported {
		kind = k // trying again does not help
	}
	return c.failure(kind, &unsent{err})
}

// dialLocked returns the attempt under way, or begins one if it is due. The
// caller holds c.mu.
func (c *Client) dialLocked() (*attempt, error) {
	if c.closed {
		return nil, errClientClosed
	}
	if c.dialing != nil {
		return c.dialing, nil
	}
	if c.cur != nil {
		c.lostLocked(c.cur)
	}
	if wait := time.Until(c.next); wait > 0 {
		return nil, fmt.Errorf("no attempt to connect for another %v after: %w", wait.Round(time.Millisecond), c.lastErr)
	}
	a := &attempt{done: make(chan struct{})}
	c.dialing = a
	c.wg.Add(1)
	go c.dial(a)
	return a, nil
}

// dial makes a connection and then is its read loop.
func (c *Client) dial(a *attempt) {
	defer c.wg.Done()
	conn, err := c.greet()
	c.mu.Lock()
	c.dialing = nil
	if err == nil && c.closed {
		err = errors.Join(errClientClosed, conn.raw.Close())
	}
	if err != nil {
		c.failed(err)
	} else {
		c.cur = conn
		c.conns[conn] = struct{}{}
	}
	c.mu.Unlock()
	a.conn, a.err = conn, err
	close(a.done)
	if err != nil {
		c.cfg.Logger.Debug("cannot connect", "addr", c.addr, "class", c.cfg.Class, "err", err)
		return
	}
	err = conn.run()
	c.mu.Lock()
	delete(c.conns, conn)
	c.lostLocked(conn)
	c.mu.Unlock()
	c.cfg.Logger.Debug("connection lost", "addr", c.addr, "class", c.cfg.Class, "err", err)
}

// failed puts off the next attempt. The caller holds c.mu.
func (c *Client) failed(err error) {
	c.lastErr = err
	c.backoff = min(max(2*c.backoff, c.cfg.BackoffMin), c.cfg.BackoffMax)
	c.next = time.Now().Add(c.backoff)
}

// lostLocked notes that conn takes no more requests. It may be called several
// times. The caller holds c.mu.
func (c *Client) lostLocked(conn *clientConn) {
	if c.cur != conn {
		return
	}
	c.cur = nil
	if time.Since(conn.born) > c.cfg.BackoffMax {
		c.backoff = 0 // it worked: the first attempt is free
		return
	}
	c.failed(errors.New("the last connection did not live long"))
}
