package wire

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
)

// link is a connection from its handshake on. Over TCP everything passes through TLS; over a local socket the handshake and the
// prefaces do, and what follows does not.
type link struct {
	raw     net.Conn
	tls     *tls.Conn
	cork    *corkConn     // nil over a local socket
	records *recordReader // what TLS reads over a local socket
}

// newLink prepares a connection; side is tls.Client or tls.Server.
func newLink(raw net.Conn, side func(net.Conn, *tls.Config) *tls.Conn, cfg *tls.Config) link {
	if isLocal(raw) {
		records := &recordReader{Conn: raw}
		return link{raw: raw, tls: side(records, localTLS(cfg)), records: records}
	}
	cork := &corkConn{Conn: raw}
	return link{raw: raw, tls: side(cork, cfg), cork: cork}
}

func (l link) handshake(ctx context.Context) error {
	if err := l.tls.HandshakeContext(ctx); err != nil || l.cork != nil {
		return err
	}
	return checkProtocol(l.tls.ConnectionState())
}

// frames is where frames come from and go to.
func (l link) frames() io.ReadWriter {
	if l.cork == nil {
		return l.raw
	}
	return l.tls
}

// peerAddr is the network address of a connection's other end.
func peerAddr(c net.Conn) string {
	if isLocal(c) {
		return localHost
	}
	return c.RemoteAddr().String()
}

// maxCork is how many bytes of ciphertext are gathered before they are written.
const maxCork = 320 << 10

// corkConn stands between TLS and the network. TLS writes each record of
// 16 KiB by itself; while corked, records are gathered and leave together.
type corkConn struct {
	net.Conn

	mu     sync.Mutex
	corked bool
	buf    []byte
	err    error // of a write while corked
}

// Write writes b, at once or when uncorked.
func (c *corkConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.Conn.Write(b)
	}
	if c.err != nil {
		return 0, c.err
	}
	if len(c.buf)+len(b) > maxCork {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	c.buf = append(c.buf, b...)
	return len(b), nil
}

func (c *corkConn) flush() error {
	if len(c.buf) > 0 {
		_, c.err = c.Conn.Write(c.buf)
		c.buf = c.buf[:0]
	}
	return c.err
}

// cork begins to gather.
func (c *corkConn) cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// uncork writes what was gathered.
func (c *corkConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flush()
}
