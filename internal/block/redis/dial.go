package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// dialer makes connections for the client library. After as many failures as
// its pool has places, the library asks no more than once a second whether the
// server is back, and until then fails every call. So it hears of no failure here,
// but gets a connection that can do nothing: each call asks anew, and whoever
// repeats calls decides how often.
func (p *place) dialer() func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := p.dial(ctx, network, addr)
		if err != nil {
			return noConn{err}, nil
		}
		return c, nil
	}
}

func (p *place) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialMax)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	silence := time.Second
	if p.replicas > 0 {
		silence += waitMax
	}
	c := &conn{Conn: raw, network: network, addr: addr, silence: silence}
	if p.tls == nil {
		return c, nil
	}
	cfg := p.tls
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		if cfg.ServerName, _, err = net.SplitHostPort(addr); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
	}
	secure := tls.Client(c, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return secure, nil
}

// conn is a connection that finds out when nobody is at its other end. A server
// that was killed may leave a child, which writes a snapshot or the append-only
// file anew and holds on to the connections, so that they neither answer nor end.
type conn struct {
	net.Conn
	network, addr string
	// silence is how long the server may do nothing on the connection before it is
	// asked on another one.
	silence     time.Duration
	read, write time.Time // deadlines; zero for none
}

// SyscallConn implements syscall.Conn, by which the client library sees whether
// an idle connection has ended.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("redis: %T is no socket", c.Conn)
	}
	return s.SyscallConn()
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.read, c.write = t, t
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.read = t
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.write = t
	return c.Conn.SetWriteDeadline(t)
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (n int, err error) {
	return n, c.patiently(c.read, c.Conn.SetReadDeadline, func() (bool, error) {
		n, err = c.Conn.Read(b)
		return n > 0, err
	})
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (n int, err error) {
	return n, c.patiently(c.write, c.Conn.SetWriteDeadline, func() (bool, error) {
		m, err := c.Conn.Write(b[n:])
		n += m
		return m > 0, err
	})
}

// patiently calls do until it succeeds or fails, as long as there is progress, the
// server answers nobody else either, and the deadline has not come.
func (c *conn) patiently(deadline time.Time, set func(time.Time) error, do func() (progress bool, err error)) error {
	if deadline.IsZero() {
		_, err := do()
		return err
	}
	wait, asked := c.silence, false
	for {
		until := time.Now().Add(wait)
		if until.After(deadline) {
			until = deadline
		}
		if err := set(until); err != nil {
			return err
		}
		progress, err := do()
		if !errors.Is(err, os.ErrDeadlineExceeded) || until.Equal(deadline) {
			return err
		}
		switch {
		case progress:
			wait, asked = c.silence, false
		case asked:
			return fmt.Errorf("the server at %s has forgotten this connection: %w", c.addr, net.ErrClosed)
		default:
			if asked = answers(c.network, c.addr, c.silence); asked {
				wait = c.silence / 4 // for what it had to say meanwhile
			}
		}
	}
}

// answers says that a server is about, or is not there at all, and not just
// slow: it does anything to a new connection.
func answers(network, addr string, limit time.Duration) bool {
	c, err := net.DialTimeout(network, addr, limit)
	if err != nil {
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	defer func() { _ = c.Close() }() // nothing was sent that matters
	if err = c.SetDeadline(time.Now().Add(limit)); err == nil {
		if _, err = c.Write([]byte("PING\r\n")); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
	}
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// noConn is a connection that could not be made. Its calls fail with why.
type noConn struct{ why error }

var _ net.Conn = noConn{}

// The library takes the outermost layer off an error of a first call.
func (c noConn) failed() error { return fmt.Errorf("connect: %w", c.why) }

func (c noConn) Read([]byte) (int, error)         { return 0, c.failed() }
func (c noConn) Write([]byte) (int, error)        { return 0, c.failed() }
func (c noConn) Close() error                     { return nil }
func (c noConn) LocalAddr() net.Addr              { return noAddr{} }
func (c noConn) RemoteAddr() net.Addr             { return noAddr{} }
func (c noConn) SetDeadline(time.Time) error      { return nil }
func (c noConn) SetReadDeadline(time.Time) error  { return nil }
func (c noConn) SetWriteDeadline(time.Time) error { return nil }

type noAddr struct{}

func (noAddr) Network() string { return "none" }
func (noAddr) String() string  { return "none" }
