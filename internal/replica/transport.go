package replica

import (
	"context"

	"github.com/koinon/koinon/internal/sys"
)

// Lane separates messages that must not wait behind one another.
type Lane uint8

// The lanes.
const (
	// LaneUrgent is for small messages that keep leadership: heartbeats and votes.
	LaneUrgent Lane = iota
	// LaneBulk is for messages that carry entries.
	LaneBulk
	lanes
)

// Transport carries messages between the hosts. It may lose, repeat and
// reorder messages; it must not change them and must say truly who sent them.
type Transport interface {
	// Send hands a message over and never blocks; a message that cannot be
	// queued is dropped. The frame is the caller's again when Send returns.
	Send(to sys.NodeID, lane Lane, frame []byte)
	// Call sends a request and waits for its answer. req belongs to the
	// caller again when Call has returned.
	Call(ctx context.Context, to sys.NodeID, req []byte) ([]byte, error)
	// SetPeers says who there is to talk to, and where. Connections to others
	// and to former addresses end; messages and requests of others are dropped
	// and refused. Before the first call there is nobody.
	SetPeers(peers []Peer)
	// Handle sets who gets messages and requests. Until then, and after
	// Handle with a nil Handler, they are dropped and refused.
	Handle(h Handler)
}

// Handler takes what arrives.
type Handler interface {
	// Message takes a frame, which is the handler's own from then on. It must
	// not block. Frames of a peer come one after another within a lane.
	Message(from sys.NodeID, frame []byte)
	// Call answers a request. req is valid only during the call.
	Call(ctx context.Context, from sys.NodeID, req []byte) ([]byte, error)
}
