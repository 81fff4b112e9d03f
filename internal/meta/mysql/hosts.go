package mysql

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	driver "github.com/go-sql-driver/mysql"
)

// hostTimeout is how long one of several hosts may take to let a connection in.
const hostTimeout = time.Second

// hosts are the addresses of the servers of one database, in the order of the
// URL. All connections go to one of them for as long as it answers, so that the
// servers of a Galera cluster need not agree on the fence's row more often than
// they must; a new connection goes to the next one that does.
type hosts struct {
	addrs []string
	at    atomic.Uint32 // index of the one in use
}

// configure makes connections of c go to the hosts.
func (h *hosts) configure(c *driver.Config) error {
	if c.Net != "tcp" {
		return nil
	}
	return c.Apply(driver.BeforeConnect(func(_ context.Context, c *driver.Config) error {
		c.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) { return h.dial(ctx, network, c) }
		return nil
	}))
}

// dial connects to the first host that lets it in, from the one in use on. c is
// the connection's own, whose certificate is to be for that host's name.
func (h *hosts) dial(ctx context.Context, network string, c *driver.Config) (net.Conn, error) {
	d := net.Dialer{Timeout: c.Timeout}
	if len(h.addrs) > 1 {
		d.Timeout = hostTimeout
	}
	var all error
	start := h.at.Load()
	for i := range uint32(len(h.addrs)) {
		at := (start + i) % uint32(len(h.addrs))
		conn, err := d.DialContext(ctx, network, h.addrs[at])
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		if i > 0 {
			h.at.CompareAndSwap(start, at)
		}
		if c.TLS != nil && c.TLS.ServerName == "" {
			c.TLS = c.TLS.Clone()
			c.TLS.ServerName, _, _ = net.SplitHostPort(h.addrs[at])
		}
		return conn, nil
	}
	return nil, all
}

// next gives up the host in use. It is false when there is no other.
func (h *hosts) next() bool {
	if len(h.addrs) < 2 {
		return false
	}
	at := h.at.Load()
	h.at.CompareAndSwap(at, (at+1)%uint32(len(h.addrs)))
	return true
}

// moveOn makes new connections go to the next host after an error for which
// another one may be better, and drops those that nobody uses.
func (e *Engine) moveOn(err error) {
	if !elsewhere(err) || !e.hosts.next() {
		return
	}
	e.cfg.Log.Warn("the next database server is tried", "server", e.hosts.addrs[e.hosts.at.Load()], "err", e.explain("mysql.Connect", err))
	e.db.SetMaxIdleConns(0)
	e.db.SetMaxIdleConns(readersMax)
	e.writer.SetMaxIdleConns(0)
	e.writer.SetMaxIdleConns(1)
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
