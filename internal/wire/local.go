package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"github.com/koinon/koinon/internal/sys"
)

// This file is how peers on one machine talk: over a unix socket beside the TCP port. The handshake is the same, with both
// certificates, but what follows never leaves the kernel and is not encrypted. Decision 14 says why that is safe.

// localProtocol is the name for ALPN on local sockets. That it is another than on TCP ties the handshake to the socket: nobody
// can pass a TCP connection's handshake on to a local socket, where what follows would be his to write.
const localProtocol = "koinon-local"

// localHost stands for the address of a local peer.
const localHost = "localhost:0"

// localName is the abstract socket (unix(7)) beside a TCP address; "" on systems without.
func localName(at netip.AddrPort) string {
	if runtime.GOOS != "linux" {
		return ""
	}
	if at.Addr().IsUnspecified() {
		return "@koinon/*:" + strconv.Itoa(int(at.Port()))
	}
	return "@koinon/" + at.String()
}

// Listener listens at a TCP address, and where the system has them at the local socket beside it.
type Listener struct {
	net.Listener              // TCP
	local        net.Listener // nil where there is none
}

// Listen announces "host:port" for Server.Serve. Errors are those of net.Listen; without a local socket, peers on this machine
// use TCP as others do.
func Listen(addr string) (*Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	both := &Listener{Listener: l}
	if name := localName(netip.AddrPortFrom(at.Addr().Unmap(), at.Port())); name != "" {
		if local, err := net.Listen("unix", name); err == nil { // else somebody has taken the name
			both.local = local
		}
	}
	return both, nil
}

// Close closes both.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	if l.local != nil {
		err = errors.Join(err, l.local.Close())
	}
	return err
}

// Dial connects to addr, "host:port": over a local socket where a server of this machine that may be trusted has one, else over
// TCP.
func Dial(ctx context.Context, addr string) (net.Conn, error) {
	if c := dialLocal(ctx, addr); c != nil {
		return c, nil
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func dialLocal(ctx context.Context, addr string) net.Conn {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || runtime.GOOS != "linux" {
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(ips) == 0 {
		return nil
	}
	ip := ips[0].Unmap() // the one that TCP tries first
	if c := dialName(ctx, localName(netip.AddrPortFrom(ip, uint16(n)))); c != nil {
		return c
	}
	if !ownAddress(ip) {
		return nil
	}
	return dialName(ctx, localName(netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(n))))
}

// dialName connects to a local socket, if the process that listens there is one of root or of our own user: anybody else could
// have taken the name to read what follows the handshake, which he may leave to the true server.
func dialName(ctx context.Context, name string) net.Conn {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return nil
	}
	if uid, err := peerUser(c.(*net.UnixConn)); err == nil && (uid == 0 || uid == os.Geteuid()) {
		widen(c.(*net.UnixConn))
		return c
	}
	_ = c.Close() // nothing was sent
	return nil
}

// ownAddress reports whether ip is one of this machine.
func ownAddress(ip netip.Addr) bool {
	if ip.IsLoopback() {
		return true
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if own, ok := netip.AddrFromSlice(n.IP); ok && own.Unmap() == ip {
				return true
			}
		}
	}
	return false
}

// isLocal reports whether a connection is one over a local socket.
func isLocal(c net.Conn) bool {
	_, ok := c.(*net.UnixConn)
	return ok
}

// localTLS is a configuration for local sockets.
func localTLS(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{localProtocol}
	// The handshake proves who is there. Its keys protect nothing that somebody could record for later, so that post-quantum
	// ones would only take their time.
	cfg.CurvePreferences = []tls.CurveID{tls.X25519}
	return cfg
}

// checkProtocol makes sure that both sides know that they speak over a local socket.
func checkProtocol(cs tls.ConnectionState) error {
	if cs.NegotiatedProtocol != localProtocol {
		return sys.E(sys.Access, fmt.Sprintf("protocol %q expected on a local socket, found %q", localProtocol, cs.NegotiatedProtocol))
	}
	return nil
}

// recordReader reads no further than the TLS record that it is in, so that what follows the last one can be read past TLS.
type recordReader struct {
	net.Conn
	head [recordHead]byte
	got  int // bytes of head that have arrived
	out  int // of these, those handed on
	left int // bytes of the record's body to come
}

const recordHead = 5 // type, version, length: RFC 8446, 5.1

// peek returns the first bytes of what has arrived, as many as a record's head has. Read hands them on, unless drop was called.
func (r *recordReader) peek() ([]byte, error) {
	err := r.readHead()
	return r.head[:], err
}

// drop forgets what peek has returned.
func (r *recordReader) drop() { r.got, r.left = 0, 0 }

// readHead reads the rest of a record's head.
func (r *recordReader) readHead() error {
	n, err := io.ReadFull(r.Conn, r.head[r.got:])
	if r.got += n; err != nil {
		return err
	}
	r.left = int(r.head[3])<<8 | int(r.head[4])
	return nil
}

// Read implements io.Reader.
func (r *recordReader) Read(b []byte) (int, error) {
	if r.left == 0 && r.out == recordHead {
		r.got, r.out = 0, 0
	}
	if r.got < recordHead {
		if err := r.readHead(); err != nil {
			return 0, err
		}
	}
	if r.out < recordHead {
		n := copy(b, r.head[r.out:])
		r.out += n
		return n, nil
	}
	n, err := r.Conn.Read(b[:min(len(b), r.left)])
	r.left -= n
	return n, err
}
