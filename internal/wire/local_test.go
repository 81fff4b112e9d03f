package wire_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/koinon/koinon/internal/wire"
)

// The tests of this file are about sockets that only Linux has.

func localSocket(addr string) string { return "@koinon/" + addr }

// TestAPeerOnThisMachineUsesTheLocalSocket looks at what the server logs of the peer's address.
func TestAPeerOnThisMachineUsesTheLocalSocket(t *testing.T) {
	for _, tc := range []struct {
		name, listen string
		host         string
		edit         func(*wire.ClientConfig)
		want         string
	}{
		{"an address", "127.0.0.1:0", "127.0.0.1", func(c *wire.ClientConfig) { c.Dial = wire.Dial }, "addr=localhost:0"},
		{"a name", "127.0.0.1:0", "localhost", func(c *wire.ClientConfig) { c.Dial = wire.Dial }, "addr=localhost:0"},
		{"any address", "0.0.0.0:0", "127.0.0.1", func(c *wire.ClientConfig) { c.Dial = wire.Dial }, "addr=localhost:0"},
		{"TCP", "127.0.0.1:0", "127.0.0.1", func(c *wire.ClientConfig) { c.Dial = dialTCP }, "addr=127.0.0.1:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			_, port, err := net.SplitHostPort(w.listenAt(tc.listen))
			if err != nil {
				t.Fatal(err)
			}
			c := w.clientTo(net.JoinHostPort(tc.host, port), tc.edit)
			if _, err := c.Call(context.Background(), mEcho, nil, []byte("x")); err != nil {
				t.Fatal(err)
			}
			w.awaitLog(tc.want)
		})
	}
}

// TestAHandshakeIsBoundToItsSocket passes a client's handshake on from one kind of socket to the other, as somebody would
// who wants to read or write what is not encrypted on the local one.
func TestAHandshakeIsBoundToItsSocket(t *testing.T) {
	for _, tc := range []struct {
		name    string
		in, out func(w *world) (network, addr string)
		from    func(at net.Addr) func(context.Context, string) (net.Conn, error)
	}{
		{"from TCP to the local socket",
			func(*world) (string, string) { return "tcp", "127.0.0.1:0" },
			func(w *world) (string, string) { return "unix", localSocket(w.addr) },
			func(at net.Addr) func(context.Context, string) (net.Conn, error) {
				return func(ctx context.Context, _ string) (net.Conn, error) { return dialTCP(ctx, at.String()) }
			}},
		{"from a local socket to TCP",
			func(w *world) (string, string) { return "unix", localSocket(w.addr + ".relay") },
			func(w *world) (string, string) { return "tcp", w.addr },
			func(at net.Addr) func(context.Context, string) (net.Conn, error) {
				return func(ctx context.Context, _ string) (net.Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "unix", at.String())
				}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			l := must[net.Listener](t)(net.Listen(tc.in(w)))
			relayed := make(chan struct{})
			go func() {
				defer close(relayed)
				network, addr := tc.out(w)
				relay(l, network, addr, io.Discard)
			}()
			c := w.client(func(c *wire.ClientConfig) { c.Dial = tc.from(l.Addr()) })
			_, err := c.Call(context.Background(), mEcho, nil, nil)
			if err == nil || !wire.IsUnsent(err) || !strings.Contains(err.Error(), "no application protocol") {
				t.Errorf("error is %v, expected one about the protocol of a connection that was passed on", err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			<-relayed
			w.awaitLog("connection refused")
		})
	}
}

// relay passes the first connection of a listener on, and what comes back to a tap, too.
func relay(l net.Listener, network, addr string, tap io.Writer) {
	in, err := l.Accept()
	if err != nil {
		return
	}
	defer in.Close()
	out, err := net.Dial(network, addr)
	if err != nil {
		return
	}
	defer out.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(in, io.TeeReader(out, tap))
		_ = in.Close()
	}()
	_, _ = io.Copy(out, in)
	_ = out.Close()
	<-back
}

// squatter makes the test's binary take a name that a server would, as another user.
const squatter = "WIRE_TEST_SQUAT"

// squat takes a name until it is killed.
func squat(name string) {
	l, err := net.Listen("unix", name)
	if err != nil {
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	for {
		if _, err := l.Accept(); err != nil {
			os.Exit(1)
		}
	}
}

// TestAnotherUsersSocketIsLeftAlone has a process of another user listen where the client looks. Only root can make one: for
// others the process is their own, and is spoken to.
func TestAnotherUsersSocketIsLeftAlone(t *testing.T) {
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	self := must[string](t)(os.Executable())
	// Where the binary lies may be closed to other users.
	cmd := exec.Command("/proc/self/fd/3")
	f := must[*os.File](t)(os.Open(self))
	defer f.Close()
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), squatter+"="+localSocket(l.Addr().String()))
	root := os.Geteuid() == 0
	if root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out := must[io.ReadCloser](t)(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	c := must[net.Conn](t)(wire.Dial(context.Background(), l.Addr().String()))
	defer c.Close()
	if _, local := c.(*net.UnixConn); local == root {
		t.Errorf("as root %v: connected to %T", root, c)
	}
}

// TestLocalSocketsNeedBothCertificates makes a raw handshake without one.
func TestLocalSocketsNeedBothCertificates(t *testing.T) {
	w := newWorld(t, nil)
	raw := must[net.Conn](t)(net.Dial("unix", localSocket(w.addr)))
	defer raw.Close()
	naked := nodeCreds(t, w.ca, 2).ClientTLS()
	naked.Certificates, naked.NextProtos = nil, []string{"koinon-local"}
	c := tls.Client(raw, naked)
	if err := c.Handshake(); err != nil {
		t.Fatal(err) // the client has done its part; the server refuses what comes
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("error is %v, expected certificate required", err)
	}
	w.awaitLog("didn't provide a certificate")
}
