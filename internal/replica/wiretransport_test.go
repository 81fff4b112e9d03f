package replica_test

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// wires are the servers and transports of a cluster over TLS.
type wires struct {
	transports map[sys.NodeID]*replica.WireTransport
	servers    []*wire.Server
	served     []chan error
}

func newWires(t testing.TB, peers []replica.Peer, listeners []net.Listener) *wires {
	t.Helper()
	ca, err := auth.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return newWiresOf(t, ca, peers, peers, listeners)
}

// newWiresOf makes the transports of some nodes, which know of peers.
func newWiresOf(t testing.TB, ca *auth.CA, nodes, peers []replica.Peer, listeners []net.Listener) *wires {
	t.Helper()
	w := &wires{transports: map[sys.NodeID]*replica.WireTransport{}}
	for i, p := range nodes {
		creds, err := ca.IssueNode(p.ID, []string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		s := wire.NewServer(wire.ServerConfig{TLS: creds.ServerTLS(), CloseGrace: -1,
			Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
				id, err := auth.PeerIdentity(cs)
				return wire.Identity{Cluster: id.Cluster, Node: id.Node, Name: id.Name}, err
			}})
		w.transports[p.ID] = replica.NewWireTransport(replica.WireConfig{Self: p.ID, Server: s,
			Client: func(to replica.Peer) wire.ClientConfig { return wire.ClientConfig{TLS: creds.ClientTLSFor(to.ID)} }})
		w.transports[p.ID].SetPeers(peers)
		done := make(chan error, 1)
		go func() { done <- s.Serve(listeners[i]) }()
		w.servers = append(w.servers, s)
		w.served = append(w.served, done)
	}
	return w
}

func (w *wires) close(t testing.TB) {
	var err error
	for _, tr := range w.transports {
		err = errors.Join(err, tr.Close())
	}
	for i, s := range w.servers {
		err = errors.Join(err, s.Close())
		<-w.served[i]
	}
	if err != nil {
		t.Errorf("close: %v", err)
	}
}

// newWireCluster is newCluster over TLS on the loopback interface.
func newWireCluster(t testing.TB, cfg func(*replica.Config)) *cluster {
	t.Helper()
	var peers []replica.Peer
	var listeners []net.Listener
	for id := sys.NodeID(1); id <= 3; id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		peers = append(peers, replica.Peer{ID: id, Addr: l.Addr().String()})
	}
	w := newWires(t, peers, listeners)
	t.Cleanup(func() { w.close(t) })
	return newCluster(t, 3, func(c *replica.Config) {
		c.Transport, c.Peers = w.transports[c.Self], peers
		if cfg != nil {
			cfg(c)
		}
	})
}

func TestReplicasAgreeOverTLS(t *testing.T) {
	c := newWireCluster(t, nil)
	for i := uint64(1); i <= 100; i++ {
		if got := number(c.must(add("x"))); got != i {
			t.Fatalf("counter: %d expected, found %d", i, got)
		}
	}
	away := c.follower()
	c.close(away)
	c.must(add("x"))
	c.open(away)
	c.agree(101)
	old := c.leader()
	c.close(old)
	if got := number(c.must(add("x"))); got != 102 {
		t.Fatalf("counter after the leader left: 102 expected, found %d", got)
	}
	c.open(old)
	c.agree(102)
}

// TestStrangerIsNotAReplica: a node of the same cluster that is no replica may
// not speak to one.
func TestStrangerIsNotAReplica(t *testing.T) {
	var peers []replica.Peer
	var listeners []net.Listener
	for id := sys.NodeID(1); id <= 2; id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		peers = append(peers, replica.Peer{ID: id, Addr: l.Addr().String()})
	}
	ca, err := auth.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	// Node 2 counts node 1 as its peer, node 1 knows nobody.
	one := newWiresOf(t, ca, peers[:1], peers[:1], listeners[:1])
	defer one.close(t)
	two := newWiresOf(t, ca, peers[1:], peers, listeners[1:])
	defer two.close(t)
	_, err = two.transports[2].Call(t.Context(), 1, nil)
	if !sys.Is(err, sys.Permission) {
		t.Fatalf("sys.Permission expected, found %v", err)
	}
	if _, err := two.transports[2].Call(t.Context(), 7, nil); !sys.Is(err, sys.Invalid) {
		t.Fatalf("a node that is no peer: sys.Invalid expected, found %v", err)
	}
}

// counted is a listener that knows how many of its connections are open.
type counted struct {
	net.Listener
	open atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	return &countedConn{Conn: c, l: l}, nil
}

type countedConn struct {
	net.Conn
	l    *counted
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.l.open.Add(-1) })
	return c.Conn.Close()
}

// TestPeersMoveAndLeave: a node that moves is found at its new address, and no
// connection to one that is no peer any more stays.
func TestPeersMoveAndLeave(t *testing.T) {
	var peers []replica.Peer
	var listeners []net.Listener
	for id := sys.NodeID(1); id <= 4; id++ { // the fourth is the third's new place
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, &counted{Listener: l})
		peers = append(peers, replica.Peer{ID: min(id, 3), Addr: l.Addr().String()})
	}
	ca, err := auth.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	w := newWiresOf(t, ca, peers[:3], peers[:3], listeners[:3])
	defer w.close(t)
	moved := newWiresOf(t, ca, peers[3:], peers[:3], listeners[3:])
	defer moved.close(t)
	c := newCluster(t, 3, func(c *replica.Config) {
		c.Transport, c.Peers = w.transports[c.Self], peers[:3]
	})
	defer c.closeAll() // before the servers
	c.must(add("x"))
	c.agree(1)
	c.close(3)
	cfg := c.config(3)
	cfg.Transport = moved.transports[3]
	h, err := replica.Open(cfg, machines())
	if err != nil {
		t.Fatal(err)
	}
	c.setHost(3, h)
	c.must(add("x"))
	elsewhere := []replica.Peer{peers[0], peers[1], peers[3]}
	for id := sys.NodeID(1); id <= 2; id++ {
		c.host(id).SetPeers(elsewhere)
	}
	c.agree(2)
	old, place := listeners[2].(*counted), listeners[3].(*counted)
	c.await("no connection to the old address", func() bool { return old.open.Load() == 0 })
	c.change(ids(1, 2), nil)
	c.awaitRemoved(3)
	if place.open.Load() == 0 {
		t.Fatal("connections to the new address expected, found none")
	}
	for id := sys.NodeID(1); id <= 2; id++ {
		c.host(id).SetPeers(peers[:2])
	}
	c.await("no connection to the one that left", func() bool { return place.open.Load() == 0 })
	c.must(add("x"))
	if _, err := moved.transports[3].Call(t.Context(), 1, nil); !sys.Is(err, sys.Permission) {
		t.Fatalf("a node that left: sys.Permission expected, found %v", err)
	}
}
