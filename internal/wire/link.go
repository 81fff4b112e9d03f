package wire

import (
	"net"
	"sync"
)

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
