package wire

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// This file is how a client comes back to a server of its machine: with a pass, which the server gave it over the local socket after
// a handshake of TLS, and which saves it the next one. Decision 23 says why that is safe, docs/formats/wire.md what is sent.

// Passes keeps passes between the connections of a client, and of later clients of the same credentials. A pass is a secret. Its
// methods may be called concurrently.
type Passes interface {
	// Pass returns the newest pass for a server's address, nil for none.
	Pass(addr string) []byte
	// Keep takes the place of what Pass has returned; nil says that it is of no use.
	Keep(addr string, pass []byte)
}

const (
	// passLife is how long a pass is of use, if the server runs that long.
	passLife = 12 * time.Hour
	// passMax is the most bytes that a pass has, and a ticket, which is a part of it.
	passMax = 1 << 10

	passMagic   = "KPAS"
	passVersion = 1
	proofSize   = sha256.Size
	nonceSize   = 32
	issuerSize  = 16
)

// What a server answers to a ticket.
const (
	ticketRefused  = 0 // TLS follows
	ticketAccepted = 1
)

// proof shows that its maker knows a pass's secret. It holds for one greeting: both sides have added a nonce to it.
func proof(secret []byte, side string, ticket, clientNonce, serverNonce []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("koinon pass, " + side + "\x00"))
	h.Write(clientNonce)
	h.Write(serverNonce)
	h.Write(ticket)
	return h.Sum(nil)
}

// issuer gives passes and knows its own again. Those of another process, or of the same server before it was started again, are
// strange to it. It is immutable.
type issuer struct {
	id  [issuerSize]byte
	key [sha256.Size]byte
}

func newIssuer() *issuer {
	i := &issuer{}
	_, _ = rand.Read(i.id[:]) // it never fails: crypto/rand
	_, _ = rand.Read(i.key[:])
	return i
}

// secret is what only the issuer and who was given the ticket know: without a key, nobody can find it for any ticket, so that
// knowing it proves that the ticket is the issuer's, too.
func (i *issuer) secret(ticket []byte) []byte {
	h := hmac.New(sha256.New, i.key[:])
	h.Write(ticket)
	return h.Sum(nil)
}

// mask is what hides a pass's secret on its way: only the two ends of the handshake know it (RFC 8446, 7.5). Somebody in between,
// who left the handshake to them and reads what follows it, learns nothing.
func mask(state *tls.ConnectionState) ([]byte, error) {
	return state.ExportKeyingMaterial("EXPORTER-koinon-pass", nil, sha256.Size)
}

// issue makes the content of a frame of kind pass, for a client of a user of this machine.
func (i *issuer) issue(peer Identity, uid uint32, notAfter time.Time, mask []byte) []byte {
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // it never fails: crypto/rand
	ticket := append([]byte{passVersion}, i.id[:]...)
	ticket = append(ticket, nonce[:]...)
	ticket = binary.LittleEndian.AppendUint64(ticket, uint64(notAfter.Unix()))
	ticket = binary.LittleEndian.AppendUint32(ticket, uid)
	ticket = appendString(ticket, peer.Cluster)
	ticket = appendString(ticket, peer.Name)
	secret := i.secret(ticket)
	subtle.XORBytes(secret, secret, mask)
	b := binary.LittleEndian.AppendUint64(nil, uint64(notAfter.Unix()))
	b = append(b, secret...)
	return append(b, ticket...)
}

// read returns whom a ticket was given to, if it may be one of the issuer's, of that user, and is valid now: a proof must
// follow.
func (i *issuer) read(ticket []byte, uid uint32, now time.Time) (peer Identity, ok bool) {
	head := append([]byte{passVersion}, i.id[:]...)
	if len(ticket) < len(head)+nonceSize || !hmac.Equal(ticket[:len(head)], head) {
		return Identity{}, false
	}
	r := reader(ticket[len(head)+nonceSize:])
	notAfter := r.time()
	owner := r.uint32()
	peer = Identity{Cluster: r.string(), Name: r.string()}
	return peer, r != nil && len(r) == 0 && now.Before(notAfter) && owner == uid
}

// admit reads what begins with passMagic on a local socket, head being its first bytes, and answers, own being our preface. A peer
// without a valid ticket is told to go on with TLS: admitted is false then.
func (i *issuer) admit(c *net.UnixConn, head []byte, own preface, now time.Time) (g greeting, admitted bool, err error) {
	var fixed [2 + nonceSize]byte
	if _, err := io.ReadFull(c, fixed[:]); err != nil {
		return g, false, noEOF(err)
	}
	n, nonce := int(binary.LittleEndian.Uint16(fixed[:])), fixed[2:]
	if n > passMax {
		return g, false, malformed("a ticket of %d bytes, the limit is %d", n, passMax)
	}
	ticket := make([]byte, n)
	if _, err := io.ReadFull(c, ticket); err != nil {
		return g, false, noEOF(err)
	}
	uid, err := peerUser(c)
	if err != nil {
		return g, false, err
	}
	peer, ok := i.read(ticket, uint32(uid), now)
	if !ok || head[len(passMagic)] != passVersion { // a later form may differ in the proofs, not so far
		_, err := c.Write([]byte{ticketRefused})
		return g, false, err
	}
	var ours [nonceSize]byte
	_, _ = rand.Read(ours[:]) // it never fails: crypto/rand
	secret := i.secret(ticket)
	answer := append([]byte{ticketAccepted}, ours[:]...)
	answer = append(answer, proof(secret, "server", ticket, nonce, ours[:])...)
	if _, err := c.Write(append(answer, own.encode()...)); err != nil {
		return g, false, err
	}
	var shown [proofSize]byte
	if _, err := io.ReadFull(c, shown[:]); err != nil {
		return g, false, noEOF(err)
	}
	if !hmac.Equal(shown[:], proof(secret, "client", ticket, nonce, ours[:])) {
		return g, false, sys.E(sys.Op("wire.Serve"), sys.Access, fmt.Sprintf("the peer shows a ticket of %v and does not know its secret", peer))
	}
	theirs, err := readPreface(c)
	return greeting{peer: peer, theirs: theirs, frames: c}, err == nil, err
}

// pass is what a client keeps.
type pass struct {
	server   Identity // who gave it, by its certificate
	notAfter time.Time
	secret   []byte
	ticket   []byte
}

// encodePass is a pass as it is kept: who gave it, then what was given, which was masked. What was given is nonsense when it is
// too short.
func encodePass(server Identity, given, mask []byte) []byte {
	b := []byte{passVersion}
	b = binary.LittleEndian.AppendUint64(b, uint64(server.Node))
	b = appendString(b, server.Cluster)
	at := len(b) + 8 // of the secret, behind the time
	b = append(b, given...)
	if secret := b[min(at, len(b)):min(at+len(mask), len(b))]; len(secret) == len(mask) {
		subtle.XORBytes(secret, secret, mask)
	}
	return b
}

// decodePass reads a pass that was kept; ok is false for what is none.
func decodePass(b []byte) (p pass, ok bool) {
	if len(b) > passMax || len(b) == 0 || b[0] != passVersion {
		return pass{}, false
	}
	r := reader(b[1:])
	p.server.Node = sys.NodeID(r.uint64())
	p.server.Cluster = r.string()
	p.notAfter = r.time()
	p.secret = r.take(sha256.Size)
	p.ticket = r
	return p, r != nil
}

// PassIsValid reports whether something kept is a pass that may be of use now.
func PassIsValid(kept []byte, now time.Time) bool {
	p, ok := decodePass(kept)
	return ok && now.Before(p.notAfter)
}

// errPass is the error of a greeting that has failed because of a pass, or may have: it is of no use any more.
var errPass = errors.New("the server does not take the pass")

// present greets a server with a pass, own being our preface. refused says that TLS may follow on the same connection. Errors are
// errPass until the server has proved that it knows the pass.
func (p *pass) present(c net.Conn, own preface) (theirs preface, refused bool, err error) {
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // it never fails: crypto/rand
	hello := append([]byte(passMagic), passVersion)
	hello = binary.LittleEndian.AppendUint16(hello, uint16(len(p.ticket)))
	hello = append(hello, nonce[:]...)
	if _, err := c.Write(append(hello, p.ticket...)); err != nil {
		return preface{}, false, errors.Join(errPass, err)
	}
	var answer [1 + nonceSize + proofSize]byte
	if _, err := io.ReadFull(c, answer[:1]); err != nil {
		return preface{}, false, errors.Join(errPass, noEOF(err))
	}
	if answer[0] == ticketRefused {
		return preface{}, true, nil
	}
	if _, err := io.ReadFull(c, answer[1:]); err != nil {
		return preface{}, false, errors.Join(errPass, noEOF(err))
	}
	ours, shown := answer[1:1+nonceSize], answer[1+nonceSize:]
	if answer[0] != ticketAccepted || !hmac.Equal(shown, proof(p.secret, "server", p.ticket, nonce[:], ours)) {
		return preface{}, false, errPass
	}
	if theirs, err = readPreface(c); err != nil {
		return preface{}, false, err
	}
	_, err = c.Write(append(proof(p.secret, "client", p.ticket, nonce[:], ours), own.encode()...))
	return theirs, false, err
}

// appendString writes a string of at most 65,535 bytes with its length before it.
func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// reader takes bytes from the front of its own; it is nil once it was asked for more than there are.
type reader []byte

func (r *reader) take(n int) []byte {
	if *r == nil || len(*r) < n {
		*r = nil
		return make([]byte, n)
	}
	b := (*r)[:n:n]
	*r = (*r)[n:]
	return b
}

func (r *reader) uint32() uint32  { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64  { return binary.LittleEndian.Uint64(r.take(8)) }
func (r *reader) time() time.Time { return time.Unix(int64(r.uint64()), 0) }
func (r *reader) string() string  { return string(r.take(int(binary.LittleEndian.Uint16(r.take(2))))) }
