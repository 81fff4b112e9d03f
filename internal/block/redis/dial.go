package redis

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// dialer makes connections for the client library. After as many failures as
// its pool has places, the library asks no more than once a second whether the
// server is back, and until then fails every call. So it hears of no failure here,
// but gets a connection that can do nothing: each call asks anew, and whoever
// repeats calls decides how often.
func (p *place) dialer() func(context.Context, string, string) (net.Conn, error) {
	dial := redis.NewDialer(&redis.Options{DialTimeout: dialMax, TLSConfig: p.tls})
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return noConn{err}, nil
		}
		return c, nil
	}
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
