package wire_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/wire"
	"github.com/koinon/koinon/internal/wire/wirepb"
)

// pocket keeps the passes of one client.
type pocket struct {
	mu   sync.Mutex
	pass []byte
	kept int // how often Keep was called
}

func (p *pocket) Pass(string) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pass
}

func (p *pocket) Keep(_ string, pass []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pass = bytes.Clone(pass)
	p.kept++
}

// change flips a bit of the pass.
func (p *pocket) change(at int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pass[at] ^= 1
}

// errTLS is what a client ends with that was to need no TLS.
var errTLS = errors.New("TLS was used")

// passenger calls the server once as client "ann", with what is in the pocket, and returns as whom the server knew it. The
// client is closed then, so that what it was given is in the pocket.
func (w *world) passenger(p *pocket, edit func(*wire.ClientConfig)) (as string, err error) {
	w.t.Helper()
	c := w.client(func(c *wire.ClientConfig) {
		c.TLS = must[*auth.Credentials](w.t)(w.ca.IssueClient("ann")).ClientTLS()
		c.Dial, c.Identify, c.Passes = wire.Dial, identify, p
		if edit != nil {
			edit(c)
		}
	})
	reply := &wirepb.Error{}
	if err = wire.Invoke(context.Background(), c, mProto, &wirepb.Error{}, reply); err == nil {
		as = reply.GetOp()
		if peer, ok := c.Peer(); !ok || peer.Node != 1 || peer.Cluster != "alpha" {
			w.t.Errorf("the server is %v, %v, expected node n1", peer, ok)
		}
	}
	if cerr := c.Close(); cerr != nil {
		w.t.Error(cerr)
	}
	return as, err
}

func withoutTLS(c *wire.ClientConfig) {
	c.TLS.VerifyConnection = func(tls.ConnectionState) error { return errTLS }
}

// TestNobodyInBetweenLearnsAPass: who leaves the handshake to client and server and passes on what follows has, of a pass that is given,
// nothing that he could show.
func TestNobodyInBetweenLearnsAPass(t *testing.T) {
	w := newWorld(t, nil)
	l := must[net.Listener](t)(net.Listen("unix", localSocket(w.addr+".relay")))
	var seen bytes.Buffer // what the server sends
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		relay(l, "unix", localSocket(w.addr), &seen)
	}()
	p := &pocket{}
	if _, err := w.passenger(p, func(c *wire.ClientConfig) {
		c.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", l.Addr().String())
		}
	}); err != nil || p.kept != 1 {
		t.Fatalf("%d passes, %v", p.kept, err)
	}
	_ = l.Close() // what it was for is done
	<-relayed
	if !bytes.Contains(seen.Bytes(), ticketOf(p.pass)) {
		t.Error("the ticket was not seen: this test looks at the wrong bytes")
	}
	if bytes.Contains(seen.Bytes(), secretOf(p.pass)) {
		t.Error("the secret was there to be read")
	}
}

// A server of before passes, or one that closes for another reason, is spoken to by TLS in the same attempt, and asked no more.
func TestAServerThatKnowsNoPasses(t *testing.T) {
	w := newWorld(t, nil)
	p := &pocket{}
	if _, err := w.passenger(p, nil); err != nil {
		t.Fatal(err)
	}
	good, dials := bytes.Clone(p.pass), 0
	for _, answer := range []string{"", "\x01", "\x02", "\x15\x03\x01\x00\x02\x02\x46"} {
		p.pass, dials = bytes.Clone(good), 0
		as, err := w.passenger(p, func(c *wire.ClientConfig) {
			c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				dials++
				conn, err := wire.Dial(ctx, addr)
				if dials == 1 && err == nil {
					_ = conn.Close()
					conn, err = deaf(t, answer)
				}
				return conn, err
			}
		})
		if err != nil || as != "client ann says 0" || dials != 2 || bytes.Equal(p.pass, good) {
			t.Errorf("after the answer %x: known as %q, %v, %d connections", answer, as, err, dials)
		}
	}
}

// deaf is a connection over which one answer comes, whatever is sent, and then its end.
func deaf(t *testing.T, answer string) (net.Conn, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = syscall.Close(fds[1]) })
	_, err = syscall.Write(fds[1], []byte(answer))
	f := os.NewFile(uintptr(fds[0]), "deaf")
	conn, cerr := net.FileConn(f)
	return conn, errors.Join(err, cerr, f.Close(), syscall.Shutdown(fds[1], syscall.SHUT_WR))
}

func TestAPassSparesTheHandshake(t *testing.T) {
	w := newWorld(t, nil)
	p := &pocket{}
	for i, edit := range []func(*wire.ClientConfig){nil, withoutTLS, withoutTLS} {
		if as, err := w.passenger(p, edit); err != nil || as != "client ann says 0" {
			t.Errorf("connection %d: known as %q, %v", i, as, err)
		}
	}
	if p.kept != 1 {
		t.Errorf("passes were kept %d times, expected once", p.kept)
	}
	w.awaitLog("addr=localhost:0")
}

// What travels over the network is never without TLS, and there are no passes for it.
func TestPassesAreForLocalSockets(t *testing.T) {
	w := newWorld(t, nil)
	p := &pocket{}
	if _, err := w.passenger(p, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.passenger(p, func(c *wire.ClientConfig) { withoutTLS(c); c.Dial = dialTCP }); !errors.Is(err, errTLS) {
		t.Errorf("error over TCP with a pass is %v, expected that TLS was used", err)
	}
	empty := &pocket{}
	if _, err := w.passenger(empty, func(c *wire.ClientConfig) { c.Dial = dialTCP }); err != nil || empty.kept != 0 {
		t.Errorf("over TCP %d passes were given, %v", empty.kept, err)
	}
	// The server is not greeted with a ticket over TCP either: that is no record of TLS.
	raw := must[net.Conn](t)(net.Dial("tcp", w.addr))
	defer raw.Close()
	if _, err := raw.Write(greetingOf(ticketOf(p.pass), make([]byte, 32))); err != nil {
		t.Fatal(err)
	}
	w.awaitLog("first record does not look like a TLS handshake")
}

// Nodes have their connections for long, and nobody is to speak as one who has only seen a file of a user's cache.
func TestNodesGetNoPasses(t *testing.T) {
	w := newWorld(t, nil)
	p := &pocket{}
	if as, err := w.passenger(p, func(c *wire.ClientConfig) { c.TLS = nodeCreds(t, w.ca, 2).ClientTLS() }); err != nil || as != "node n2 says 0" || p.kept != 0 {
		t.Errorf("known as %q, %d passes, %v", as, p.kept, err)
	}
}

// A server that was started again knows nothing of the passes of before. They are replaced.
func TestPassesEndWithTheServer(t *testing.T) {
	w := newWorld(t, nil)
	p := &pocket{}
	if _, err := w.passenger(p, nil); err != nil {
		t.Fatal(err)
	}
	next := newWorld(t, func(c *wire.ServerConfig) { c.TLS = nodeCreds(t, w.ca, 1).ServerTLS() })
	next.ca = w.ca
	if _, err := next.passenger(p, withoutTLS); !errors.Is(err, errTLS) {
		t.Errorf("error with another server's pass is %v, expected that TLS was used", err)
	}
	for i, edit := range []func(*wire.ClientConfig){nil, withoutTLS} {
		if as, err := next.passenger(p, edit); err != nil || as != "client ann says 0" {
			t.Errorf("connection %d: known as %q, %v", i, as, err)
		}
	}
}

// A pass that was changed, wherever, is of no use; TLS decides then, at the latest with the second try.
func TestChangedPasses(t *testing.T) {
	w := newWorld(t, nil)
	p := &pocket{}
	if _, err := w.passenger(p, nil); err != nil {
		t.Fatal(err)
	}
	good := bytes.Clone(p.pass)
	for at := ownBytes; at < len(good); at++ { // what is before is the client's note for itself
		p.pass = bytes.Clone(good)
		p.change(at)
		if as, err := w.passenger(p, withoutTLS); err == nil {
			t.Fatalf("with byte %d changed the server knew %q", at, as)
		}
		if _, err := w.passenger(p, nil); err != nil {
			t.Fatalf("with byte %d changed and TLS: %v", at, err)
		}
	}
	for _, pass := range [][]byte{{}, {0}, {1}, good[:len(good)-1], append(bytes.Clone(good), 0), make([]byte, 4096)} {
		p.pass = pass
		if _, err := w.passenger(p, withoutTLS); err == nil {
			t.Errorf("a pass of %d bytes was taken", len(pass))
		}
	}
}

// greetingOf is how a client with a ticket begins, by docs/formats/wire.md.
func greetingOf(ticket, nonce []byte) []byte {
	b := append([]byte("KPAS"), 1)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(ticket)))
	return append(append(b, nonce...), ticket...)
}

// ownBytes is what is before the secret in a pass that is kept: form, server, time.
const ownBytes = 1 + 8 + 2 + len("alpha") + 8

func secretOf(pass []byte) []byte { return pass[ownBytes : ownBytes+32] }
func ticketOf(pass []byte) []byte { return pass[ownBytes+32:] }

func rawProof(secret []byte, side string, ticket, clientNonce, serverNonce []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(append([]byte("koinon pass, "+side), 0))
	h.Write(clientNonce)
	h.Write(serverNonce)
	h.Write(ticket)
	return h.Sum(nil)
}

// byHand greets a server by docs/formats/wire.md, without help from the package.
type byHand struct {
	w             *world
	secret        []byte
	ticket, nonce []byte
}

func newByHand(t *testing.T) *byHand {
	w, p := newWorld(t, nil), &pocket{}
	if _, err := w.passenger(p, nil); err != nil {
		t.Fatal(err)
	}
	return &byHand{w, secretOf(p.pass), ticketOf(p.pass), bytes.Repeat([]byte{7}, 32)}
}

// begin sends the first bytes of a connection.
func (h *byHand) begin(t *testing.T, hello []byte) net.Conn {
	t.Helper()
	c := must[net.Conn](t)(net.Dial("unix", localSocket(h.w.addr)))
	t.Cleanup(func() { _ = c.Close() })
	if err := errors.Join(c.SetDeadline(time.Now().Add(20*time.Second)), second(c.Write(hello))); err != nil {
		t.Fatal(err)
	}
	return c
}

// greet shows the ticket and returns the server's nonce, after a look at the rest of its answer.
func (h *byHand) greet(t *testing.T) (c net.Conn, nonce []byte) {
	t.Helper()
	c = h.begin(t, greetingOf(h.ticket, h.nonce))
	b := make([]byte, 1+32+32+24)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if b[0] != 1 || !bytes.Equal(b[33:65], rawProof(h.secret, "server", h.ticket, h.nonce, b[1:33])) || string(b[65:69]) != "KOIN" {
		t.Fatalf("the server answered %x", b)
	}
	return c, b[1:33]
}

// show sends a proof, a preface and a ping, and says whether the server answers.
func (h *byHand) show(t *testing.T, c net.Conn, proof []byte) bool {
	t.Helper()
	ping := rawFrame(7, 0, 0, 0, 0, 0, 1, 0)
	if _, err := c.Write(append(append(proof, rawPreface("KOIN", 1, 1)...), ping...)); err != nil {
		t.Fatal(err)
	}
	n, err := io.ReadFull(c, ping)
	if n > 0 && (err != nil || ping[0] != 8) {
		t.Fatalf("the server sent %x, %v", ping[:n], err)
	}
	return n > 0
}

func TestAPassByHand(t *testing.T) {
	h := newByHand(t)
	c, nonce := h.greet(t)
	if !h.show(t, c, rawProof(h.secret, "client", h.ticket, h.nonce, nonce)) {
		t.Error("the server does not take a greeting that is as it should be")
	}
	_, was := h.greet(t)
	c, _ = h.greet(t)
	if h.show(t, c, rawProof(h.secret, "client", h.ticket, h.nonce, was)) {
		t.Error("the server takes the proof of another greeting")
	}
	h.w.awaitLog("client ann and does not know its secret")
	c, nonce = h.greet(t)
	if h.show(t, c, rawProof(h.secret, "server", h.ticket, h.nonce, nonce)) {
		t.Error("the server takes its own proof")
	}
	forged := bytes.Replace(h.ticket, []byte("ann"), []byte("bob"), 1)
	c = h.begin(t, greetingOf(forged, h.nonce))
	b := make([]byte, 1+32+32+24)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if h.show(t, c, rawProof(h.secret, "client", forged, h.nonce, b[1:33])) {
		t.Error("the server takes a ticket that was made up")
	}
	h.w.awaitLog("client bob and does not know its secret")
}

func TestMalformedGreetings(t *testing.T) {
	h := newByHand(t)
	h.begin(t, greetingOf(make([]byte, 1025), h.nonce))
	h.w.awaitLog("a ticket of 1025 bytes")
	hello := greetingOf(h.ticket, h.nonce)
	hello[4] = 9 // a form of later: TLS it is
	if answer := make([]byte, 1); second(io.ReadFull(h.begin(t, hello), answer)) != nil || answer[0] != 0 {
		t.Errorf("a ticket in another form is answered with %d", answer)
	}
	hello = greetingOf(h.ticket, h.nonce)
	for _, n := range []int{1, 5, 6, 20, len(hello) - 1} {
		c := h.begin(t, hello[:n])
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Read(make([]byte, 1)); got != 0 || err == nil {
			t.Errorf("after %d bytes the server sent %d, %v", n, got, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A server that sends passes to who did not ask for one does not keep to the protocol.
func TestAPassThatWasNotAskedFor(t *testing.T) {
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	w := newWorld(t, nil)
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			raw, err := l.Accept()
			if err != nil {
				return err
			}
			defer raw.Close()
			c := tls.Server(raw, nodeCreds(t, w.ca, 1).ServerTLS())
			preface := rawPreface("KOIN", 1, 1)
			binary.LittleEndian.PutUint32(preface[12:], 10)
			if _, err := c.Write(preface); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, make([]byte, 24)); err != nil {
				return err
			}
			if _, err := c.Write(append(rawFrame(10, 0, 0, 0, 40, 40, 0, 0), make([]byte, 40)...)); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, c)
			return err
		}()
	}()
	p := &pocket{}
	log := &logBuffer{wrote: make(chan struct{}, 1)}
	c := w.clientTo(l.Addr().String(), func(c *wire.ClientConfig) {
		c.Passes, c.Dial, c.Logger = p, dialTCP, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	if _, err := c.Call(context.Background(), mEcho, nil, nil); err == nil {
		t.Error("the connection goes on")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	<-served // what it ended with is not the point
	if !strings.Contains(log.String(), "a pass that was not asked for") {
		t.Errorf("the client has logged:\n%s", log.String())
	}
	if p.kept != 0 {
		t.Errorf("%d passes were kept", p.kept)
	}
}
