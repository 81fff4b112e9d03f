package wire

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"
)

// ServerConfig configures a Server. TLS and Identify are required; a zero
// value of the others means its default.
type ServerConfig struct {
	// TLS must verify the client's certificate. It may let in clients that
	// have none when Identify gives those the zero Identity.
	TLS *tls.Config
	// Identify names the peer of a connection whose handshake succeeded. The
	// zero Identity is a stranger: see Allow.
	Identify func(tls.ConnectionState) (Identity, error)
	// Allow returns nil when the peer may use the method, else the error that
	// answers it; a one-way message is dropped then. It is asked before the
	// bytes of a message are taken, for every message, so it must be quick; it
	// is called concurrently. nil allows everything, but nothing to strangers,
	// who are also held to StrangerFrame, one request at a time, StrangersMax
	// connections, and StrangerLife.
	Allow  func(peer Identity, m Method) error
	Logger *slog.Logger
	// MaxInFlight is how many requests a connection may have unanswered
	// (default 4096); MaxInFlightBytes is how many bytes those may hold
	// (default 64 MiB, at least MaxFrame). Clients learn both when they
	// connect and wait; a request beyond them is refused as sys.Busy.
	MaxInFlight      int
	MaxInFlightBytes int
	// MaxRunning is how many handlers of one connection run at once (default
	// 256); further requests wait their turn.
	MaxRunning int
	// MaxConns is how many connections are served at once (default 4096).
	MaxConns int
	// HandshakeTimeout bounds TLS and version handshake (default 5 s).
	HandshakeTimeout time.Duration
	// IdleTimeout closes a connection that sent nothing, not even a ping, for
	// so long (default 20 s).
	IdleTimeout time.Duration
	// StallTimeout closes a connection whose peer did not take any bytes for
	// so long (default 10 s).
	StallTimeout time.Duration
	// StrangerLife is how long a stranger's connection may last (default one
	// minute).
	StrangerLife time.Duration
	// CloseGrace is how long Close lets handlers finish (default 3 s; below
	// zero: not at all).
	CloseGrace time.Duration
}

// ClientConfig configures a Client. TLS is required; a zero value of the
// others means its default.
type ClientConfig struct {
	// TLS must present our certificate and verify the server's.
	TLS    *tls.Config
	Logger *slog.Logger
	Class  Class
	// DialTimeout bounds connecting, including TLS (default 1 s).
	DialTimeout time.Duration
	// KeepAlive is how long the peer may stay silent while something is
	// expected of it before the connection is given up (default 1 s).
	KeepAlive time.Duration
	// IdlePing is how often an idle connection is probed (default 5 s). It
	// must stay well below the server's IdleTimeout.
	IdlePing time.Duration
	// BackoffMin and BackoffMax bound the pause between failed attempts to
	// connect (default 5 ms and 500 ms). During the pause calls fail at once.
	BackoffMin, BackoffMax time.Duration
	// MaxInFlight and MaxInFlightBytes bound what is unanswered (default
	// 4096 and 64 MiB); the server's limits count when they are lower. Calls
	// beyond wait.
	MaxInFlight      int
	MaxInFlightBytes int
	// SendQueueBytes bounds the one-way bytes that wait to be written
	// (default 32 MiB); Send drops what exceeds it.
	SendQueueBytes int
	// Identify names the server of a connection, which TLS has verified, for
	// Peer (default: the zero Identity).
	Identify func(tls.ConnectionState) (Identity, error)
	// Passes keeps what lets later clients connect without a handshake of TLS
	// to servers of this machine (default: they do not).
	Passes Passes
	// Dial replaces the function Dial.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// What a peer without a certificate may take of a server.
const (
	// StrangerFrame is the most bytes that one message of a stranger has.
	StrangerFrame = 8 << 10
	// StrangersMax is how many connections of strangers are served at once.
	StrangersMax = 64
)

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c *ServerConfig) fill() {
	if c.TLS == nil || c.Identify == nil {
		panic("wire.NewServer: expected TLS and Identify to be set, found nil: there is no plaintext mode")
	}
	or(&c.Logger, slog.Default())
	or(&c.MaxInFlight, 4096)
	or(&c.MaxInFlightBytes, 64<<20)
	c.MaxInFlightBytes = max(c.MaxInFlightBytes, MaxFrame+frameSize)
	or(&c.MaxRunning, 256)
	or(&c.MaxConns, 4096)
	or(&c.HandshakeTimeout, 5*time.Second)
	or(&c.IdleTimeout, 20*time.Second)
	or(&c.StallTimeout, 10*time.Second)
	or(&c.StrangerLife, time.Minute)
	or(&c.CloseGrace, 3*time.Second)
}

func (c *ClientConfig) fill() {
	if c.TLS == nil {
		panic("wire.NewClient: expected TLS to be set, found nil: there is no plaintext mode")
	}
	or(&c.Logger, slog.Default())
	or(&c.DialTimeout, time.Second)
	or(&c.KeepAlive, time.Second)
	or(&c.IdlePing, 5*time.Second)
	or(&c.BackoffMin, 5*time.Millisecond)
	or(&c.BackoffMax, 500*time.Millisecond)
	or(&c.MaxInFlight, 4096)
	or(&c.MaxInFlightBytes, 64<<20)
	c.MaxInFlightBytes = max(c.MaxInFlightBytes, MaxFrame+frameSize)
	or(&c.SendQueueBytes, 32<<20)
	if c.Identify == nil {
		c.Identify = func(tls.ConnectionState) (Identity, error) { return Identity{}, nil }
	}
	if c.Dial == nil {
		c.Dial = Dial
	}
}
