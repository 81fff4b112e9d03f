package mysql

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	driver "github.com/go-sql-driver/mysql"
)

const (
	// hostTimeout is how long one of several hosts may take to accept a
	// connection.
	hostTimeout = time.Second
	// hostSilence is how long one of several hosts may take to answer a
	// statement before another one is asked. A Galera cluster needs some seconds
	// to find out that one of its servers is gone.
	hostSilence = 10 * time.Second
)

// hosts are the addresses of the servers of one database, in the order of the
// URL. All connections go to one of them for as long as it answers, so that the
// servers of a Galera cluster need not agree on the fence's row more often than
// they must, and nobody reads from a server that lags behind the other; then all
// go to the next one that answers.
type hosts struct {
	addrs []string

	mu    sync.Mutex
	at    int // index of the one in use
	conns map[*hostConn]struct{}
}

// hostConn is a connection to one of several hosts.
type hostConn struct {
	*net.TCPConn
	h  *hosts
	at int
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
		c.Timeout, c.ReadTimeout, c.WriteTimeout = hostTimeout, hostSilence, hostSilence
	}
	byName := c.TLS != nil && c.TLS.ServerName == ""
	c.DialFunc = h.dial
	return c.Apply(driver.BeforeConnect(func(_ context.Context, c *driver.Config) error {
		c.Addr = h.addrs[h.now()]
		if byName { // the certificate is to be for that host's
			c.TLS = c.TLS.Clone()
			c.TLS.ServerName, _, _ = net.SplitHostPort(c.Addr)
		}
		return nil
	}))
}

// dial connects to a host. When it does not answer, the next one is in use.
func (h *hosts) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	at := slices.Index(h.addrs, addr)
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		h.use(at, h.after(at))
		return nil, err
	}
	return h.track(conn, at), nil
}

// after is the host that comes next.
func (h *hosts) after(at int) int { return (at + 1) % len(h.addrs) }

func (h *hosts) track(conn net.Conn, at int) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || len(h.addrs) < 2 {
		return conn
	}
	c := &hostConn{tcp, h, at}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[c] = struct{}{}
	return c
}

// now is the host in use.
func (h *hosts) now() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

// use gives up the host was, unless that has been done, for another, and cuts
// all connections to other hosts than that.
func (h *hosts) use(was, at int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at != was {
		return
	}
	h.at = at
	for c := range h.conns {
		if c.at != at {
			delete(h.conns, c)
			_ = c.TCPConn.Close() // whoever uses it sees that
		}
	}
}

// moveOn makes connections go to the next host after an error, for which
// another one may do better, of an operation that began when was was in use.
func (e *Engine) moveOn(was int, err error) {
	if len(e.hosts.addrs) < 2 || !elsewhere(err) {
		return
	}
	next := e.hosts.after(was)
	e.cfg.Log.Warn("the next database server is tried", "server", e.hosts.addrs[next], "err", e.explain("mysql.Connect", err))
	e.hosts.use(was, next)
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
