package wire

import (
	"context"

	"github.com/koinon/koinon/internal/sys"
)

// Method is the number of a remote operation. Ranges: 1-99 cluster and node,
// 100-199 replica, 200-299 meta, 300-399 block, 400-499 kv.
type Method uint16

// The limits of one message, in bytes.
const (
	// MaxHeader is the most a message's header holds.
	MaxHeader = 64 << 10
	// MaxPayload is the most a message's payload holds.
	MaxPayload = 16 << 20
	// MaxFrame is the most memory one message can make its receiver hold.
	MaxFrame = MaxPayload + MaxHeader
)

// Identity is who stands at the other end of a connection, as proved by its
// certificate. Node is 0 for a client, Name is empty for a node. The zero
// Identity is a stranger, who has shown no certificate.
type Identity struct {
	Cluster string
	Node    sys.NodeID
	Name    string
	Key     string // SHA-256 of the certificate's public key; empty where the connection was made by a pass
}

// String returns "node n3", "client NAME" or "a stranger".
func (i Identity) String() string {
	if i == (Identity{}) {
		return "a stranger"
	}
	if i.Node != 0 {
		return "node " + i.Node.String()
	}
	return "client " + i.Name
}

// Request is a request or one-way message as its handler sees it. Header and
// Payload belong to the connection and are valid until the handler returns.
type Request struct {
	Method  Method
	Header  []byte
	Payload []byte
	// Peer is the sender, Addr its network address.
	Peer Identity
	Addr string
}

// Response is what a handler answers. The handler must not touch Header and
// Payload after it returned them. Release, which may be nil, is called exactly
// once, after the bytes were written or dropped; it must not block.
type Response struct {
	Header  []byte
	Payload []byte
	Release func()
}

// HandlerFunc answers one request. Its ctx ends at the caller's deadline, when
// the caller cancels, and when the connection or the server closes. An error
// crosses whole: kind, operation, subject and cause of every *sys.Error in its
// chain. Response.Payload returned together with an error travels as the
// error's detail (DetailOf), at most MaxDetail bytes. A panic is a broken
// invariant and is not recovered.
type HandlerFunc func(ctx context.Context, req *Request) (Response, error)

// Reply is the answer to a call. Header and Payload are valid until Release.
type Reply struct {
	Header  []byte
	Payload []byte
	buf     *buffer
}

// Release gives the reply's memory back; Header and Payload must not be used
// afterwards. A reply that is not released is collected as garbage. Releasing
// twice is harmless. Not safe for concurrent use.
func (r *Reply) Release() {
	if r == nil || r.buf == nil {
		return
	}
	r.buf.release()
	r.buf, r.Header, r.Payload = nil, nil, nil
}

// Memory returns how many bytes of memory the reply holds until Release.
func (r *Reply) Memory() int {
	if r.buf == nil {
		return 0
	}
	return len(r.buf.b)
}

// Caller is the calling half of Client, for code that wants to be tested
// without a network.
type Caller interface {
	// Call is Client.Call.
	Call(ctx context.Context, m Method, header, payload []byte) (*Reply, error)
}

var _ Caller = (*Client)(nil)

// Class says what a client's connection is for. The server logs it; giving
// bulk data a connection of its own keeps it out of the way of the rest.
type Class uint8

// The classes of connections.
const (
	// ClassControl is for small messages that must not wait: consensus,
	// metadata, heartbeats.
	ClassControl Class = iota
	// ClassBulk is for blocks and snapshots.
	ClassBulk
)

// String returns the class in a word.
func (c Class) String() string {
	if c == ClassBulk {
		return "bulk"
	}
	return "control"
}
