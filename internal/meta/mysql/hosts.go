package mysql

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	driver "github.com/go-sql-driver/mysql"
)

const (
	// hostTimeout is how long one of several hosts may take to accept a
	// connection.
	hostTimeout = time.Second
	// silence is how long a server may take to answer a statement before it is
	// given up, for another one where there are several. A Galera cluster needs
	// some seconds to find out that one of its servers is gone.
	silence = 10 * time.Second
)

// hosts are the addresses of the servers of one database, in the order of the
// URL. All connections go to one of them for as long as it answers, so that the
// servers of a Galera cluster need not agree on the fence's row more often than
// they must, and nobody reads from a server that lags behind the other; then all
// go to the next one that answers.
type hosts struct {
	addrs []string

	mu    sync.Mutex
	turn  int // counts the moves; the one in use is addrs[turn%len(addrs)]
	conns map[*hostConn]struct{}
}

// hostConn is a connection to one of several hosts.
type hostConn struct {
	*net.TCPConn
	h    *hosts
	turn int
}

// Close implements net.Conn.
func (c *hostConn) Close() error {
	c.h.mu.Lock()
	delete(c.h.conns, c)
	c.h.mu.Unlock()
	return c.TCPConn.Close()
}

// configure makes each new connection of c go to the host in use.
func (h *hosts) configure(c *driver.Config) error {
	if c.Net != "tcp" {
		return nil
	}
	if len(h.addrs) > 1 {
		c.Timeout = hostTimeout
	}
	byName := c.TLS != nil && c.TLS.ServerName == ""
	c.DialFunc = h.dial
	return c.Apply(driver.BeforeConnect(func(_ context.Context, c *driver.Config) error {
		c.Addr = h.addr(h.now())
		if byName { // the certificate is to be for that host's
			c.TLS = c.TLS.Clone()
			c.TLS.ServerName, _, _ = net.SplitHostPort(c.Addr)
		}
		return nil
	}))
}

// dial connects to the host that was in use a moment ago. When it does not
// answer, the next one is in use.
func (h *hosts) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	turn := h.now()
	if h.addr(turn) != addr {
		return nil, errMoved
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		h.leave(turn)
		return nil, err
	}
	return h.track(conn, turn)
}

// track makes sure that a connection is cut when its host is given up.
func (h *hosts) track(conn net.Conn, turn int) (net.Conn, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || len(h.addrs) < 2 {
		return conn, nil
	}
	c := &hostConn{tcp, h, turn}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turn != turn {
		return nil, errors.Join(errMoved, tcp.Close())
	}
	h.conns[c] = struct{}{}
	return c, nil
}

// errMoved is of a connection to a host that was given up meanwhile.
var errMoved = &net.OpError{Op: "dial", Err: errors.New("another server of the database is in use now")}

// now is the present turn.
func (h *hosts) now() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.turn
}

func (h *hosts) addr(turn int) string { return h.addrs[turn%len(h.addrs)] }

// leave ends a turn, unless it has ended, and cuts its connections. It reports
// whether there is another host.
func (h *hosts) leave(turn int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.addrs) < 2 || h.turn != turn {
		return false
	}
	h.turn++
	for c := range h.conns {
		delete(h.conns, c)
		_ = c.TCPConn.Close() // whoever uses it sees that
	}
	return true
}

// moveOn makes connections go to the next host after an error, for which
// another one may do better, of an operation that began in turn.
func (e *Engine) moveOn(turn int, err error) {
	if elsewhere(err) && e.hosts.leave(turn) {
		e.cfg.Log.Warn("the next database server is tried", "server", e.hosts.addr(turn+1), "err", e.explain("mysql.Connect", err))
	}
}

// elsewhere reports whether another server of the same database may do better.
func elsewhere(err error) bool {
	switch number(err) {
	case errNotReady, errTooManyConnections, errShutdown, errKilled, errReadOnly, errReadOnlyMode, errDiskFull, errTableFull, errNoSpaceWrite,
		errDuringCommit:
		return true
	}
	return lost(err)
}
