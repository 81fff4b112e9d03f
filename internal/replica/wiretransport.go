package replica

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// Methods of this package on the wire. Only nodes may use them.
const (
	methodUrgent wire.Method = 100 // one-way: a frame of LaneUrgent
	methodBulk   wire.Method = 101 // one-way: a frame of LaneBulk
	methodCall   wire.Method = 102 // a request between hosts
)

// WireConfig configures a WireTransport.
type WireConfig struct {
	Self sys.NodeID
	// Server gets the transport's methods; it must not serve yet.
	Server *wire.Server
	// Client configures the connections to a peer. Class is overwritten.
	Client func(Peer) wire.ClientConfig
	// Stranger is called when a node speaks to this one that is no peer of it, with each of its messages, which are dropped. nil: it is
	// not told. It must not wait.
	Stranger func(sys.NodeID)
	Logger   *slog.Logger // default: discard
}

// reconnectMax is the longest pause between two tries to connect to a peer.
const reconnectMax = 100 * time.Millisecond

// WireTransport is the Transport between nodes. Each peer has a connection for
// each lane, so that a heartbeat never waits behind entries, and one for calls.
type WireTransport struct {
	cfg     WireConfig
	handler atomic.Pointer[Handler]

	mu     sync.Mutex // held while peers change
	closed bool
	peers  atomic.Pointer[map[sys.NodeID]*peerLinks]
}

// UsesMethod reports whether a method is one of a WireTransport.
func UsesMethod(m wire.Method) bool { return m == methodUrgent || m == methodBulk || m == methodCall }

// peerLinks are the connections to a peer.
type peerLinks struct {
	addr  string
	lanes [lanes]*wire.Client
	calls *wire.Client
}

var _ Transport = (*WireTransport)(nil)

// NewWireTransport registers the methods. Close closes the connections, which
// are made when first used.
func NewWireTransport(cfg WireConfig) *WireTransport {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Stranger == nil {
		cfg.Stranger = func(sys.NodeID) {}
	}
	t := &WireTransport{cfg: cfg}
	t.peers.Store(&map[sys.NodeID]*peerLinks{})
	cfg.Server.HandleOneWay(methodUrgent, t.receive)
	cfg.Server.HandleOneWay(methodBulk, t.receive)
	cfg.Server.Handle(methodCall, t.serve)
	return t
}

// SetPeers implements Transport. It returns when the connections to those who
// are no peers any more are closed.
func (t *WireTransport) SetPeers(peers []Peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	old := *t.peers.Load()
	next := make(map[sys.NodeID]*peerLinks, len(peers))
	for _, p := range peers {
		switch l := old[p.ID]; {
		case p.ID == t.cfg.Self || next[p.ID] != nil:
		case l != nil && l.addr == p.Addr:
			next[p.ID] = l
		default:
			next[p.ID] = t.link(p)
		}
	}
	t.peers.Store(&next)
	for id, l := range old {
		if next[id] == l {
			continue
		}
		if err := l.close(); err != nil {
			t.cfg.Logger.Debug("closing connections", "to", id, "err", err)
		}
	}
}

// link prepares the connections to a peer.
func (t *WireTransport) link(p Peer) *peerLinks {
	dial := func(class wire.Class) *wire.Client {
		c := t.cfg.Client(p)
		c.Class = class
		// A replica that comes back is missed by all commands that wait
		// for a majority, so the others try it often.
		if c.BackoffMax == 0 {
			c.BackoffMax = reconnectMax
		}
		return wire.NewClient(p.Addr, c)
	}
	l := &peerLinks{addr: p.Addr, calls: dial(wire.ClassBulk)}
	l.lanes[LaneUrgent], l.lanes[LaneBulk] = dial(wire.ClassControl), dial(wire.ClassBulk)
	return l
}

func (l *peerLinks) close() error {
	err := l.calls.Close()
	for _, c := range l.lanes {
		err = errors.Join(err, c.Close())
	}
	return err
}

// peer returns the connections to a peer, nil for a stranger.
func (t *WireTransport) peer(id sys.NodeID) *peerLinks { return (*t.peers.Load())[id] }

// Peer returns who is at the other end of the connection to a peer, by its
// certificate, if there is one.
func (t *WireTransport) Peer(id sys.NodeID) (who wire.Identity, ok bool) {
	if l := t.peer(id); l != nil {
		return l.lanes[LaneUrgent].Peer()
	}
	return wire.Identity{}, false
}

// Send implements Transport.
func (t *WireTransport) Send(to sys.NodeID, lane Lane, frame []byte) {
	l := t.peer(to)
	if l == nil {
		return
	}
	method := methodUrgent
	if lane == LaneBulk {
		method = methodBulk
	}
	// A message that is lost here is one that the network lost: the core
	// sends again what matters.
	if err := l.lanes[lane].Send(method, nil, frame); err != nil {
		t.cfg.Logger.Debug("message dropped", "to", to, "err", err)
	}
}

// Call implements Transport.
func (t *WireTransport) Call(ctx context.Context, to sys.NodeID, req []byte) ([]byte, error) {
	l := t.peer(to)
	if l == nil {
		return nil, sys.E(sys.Op("replica.Call"), sys.Invalid, sys.Subject(to.String()), "not a peer of this node")
	}
	reply, err := l.calls.Call(ctx, methodCall, nil, req)
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	return slices.Clone(reply.Payload), nil
}

// Handle implements Transport.
func (t *WireTransport) Handle(h Handler) {
	if h == nil {
		t.handler.Store(nil)
		return
	}
	t.handler.Store(&h)
}

// receive passes a frame on. A frame of somebody who is not a peer is dropped:
// no client may speak in the name of a node.
func (t *WireTransport) receive(req *wire.Request) {
	h := t.handler.Load()
	if h == nil {
		return
	}
	if t.peer(req.Peer.Node) == nil {
		if req.Peer.Node != 0 {
			t.cfg.Stranger(req.Peer.Node)
		}
		return
	}
	(*h).Message(req.Peer.Node, slices.Clone(req.Payload))
}

func (t *WireTransport) serve(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("replica.Call")
	if t.peer(req.Peer.Node) == nil {
		return wire.Response{}, sys.E(op, sys.Permission, sys.Subject(req.Peer.String()), "not a peer of this node")
	}
	h := t.handler.Load()
	if h == nil {
		return wire.Response{}, sys.E(op, sys.Unavailable, "the replica is stopping")
	}
	out, err := (*h).Call(ctx, req.Peer.Node, req.Payload)
	return wire.Response{Payload: out}, err
}

// Close closes the connections; there are no peers any more.
func (t *WireTransport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	var errs []error
	for _, l := range *t.peers.Swap(&map[sys.NodeID]*peerLinks{}) {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}
