package kv

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicatest"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// world is three nodes in this process: consensus over a network that can be
// cut, clients over real connections.
type world struct {
	t     testing.TB
	ca    *auth.CA
	net   *replicatest.Network
	nodes []*node
	seeds []string
}

// node is one node of a world.
type node struct {
	w      *world
	id     sys.NodeID
	host   *replica.Host
	server *Server
	wire   *wire.Server
	served chan error
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newWorld(t testing.TB, edit func(*ServerOptions)) *world {
	t.Helper()
	w := &world{t: t, ca: must(auth.NewCA("test")), net: replicatest.NewNetwork(1)}
	var listeners []net.Listener
	var members []*clusterpb.Member
	for id := sys.NodeID(1); id <= 3; id++ {
		w.net.Endpoint(id)
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		listeners = append(listeners, l)
		w.seeds = append(w.seeds, l.Addr().String())
		members = append(members, &clusterpb.Member{Id: uint64(id), Addr: l.Addr().String(), Weight: 1})
	}
	for i, l := range listeners {
		w.nodes = append(w.nodes, w.start(sys.NodeID(i+1), l, edit))
	}
	t.Cleanup(w.close)
	first := must(cluster.First("test", members, 16, 3))
	body := pb.Marshal(&clusterpb.Command{Map: first})
	if _, _, err := w.leader().host.Group(0).Propose(t.Context(), rsm.Command{NS: rsm.NSCluster, Body: body}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) start(id sys.NodeID, l net.Listener, edit func(*ServerOptions)) *node {
	w.t.Helper()
	creds := must(w.ca.IssueNode(id, []string{"127.0.0.1"}))
	n := &node{w: w, id: id, served: make(chan error, 1)}
	cfg := replica.Config{Dir: "/data", FS: vfs.NewMem(), Clock: env.System{}, Cluster: "test", Self: id,
		Transport: w.net.Endpoint(id), Seed: uint64(id), SegmentBytes: 1 << 20, ReserveBytes: -1, SessionTTL: time.Minute,
		Tick: 5 * time.Millisecond, Heartbeat: 20 * time.Millisecond, ElectionTimeout: 150 * time.Millisecond, Lease: 120 * time.Millisecond}
	for v := sys.NodeID(1); v <= 3; v++ {
		cfg.Voters = append(cfg.Voters, replica.Peer{ID: v})
	}
	machine := NewMachine()
	n.host = must(replica.Open(cfg, map[rsm.Namespace]rsm.Machine{rsm.NSCluster: cluster.Machine{}, rsm.NSKV: machine}))
	opt := ServerOptions{Group: n.host.Group(0), Machine: machine, Logger: quiet}
	if edit != nil {
		edit(&opt)
	}
	n.server = NewServer(opt)
	n.wire = wire.NewServer(wire.ServerConfig{TLS: creds.ServerTLS(), Logger: quiet, CloseGrace: -1,
		Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
			id, err := auth.PeerIdentity(cs)
			return wire.Identity(id), err
		}})
	n.server.Register(n.wire)
	(&cluster.Service{Group: n.host.Group(0), Status: func() *clusterpb.StatusReply { return &clusterpb.StatusReply{Node: uint64(id)} }}).Register(n.wire)
	go func() { n.served <- n.wire.Serve(l) }()
	return n
}

func (w *world) close() {
	for _, n := range w.nodes {
		n.server.Close()
		if err := n.wire.Close(); err != nil {
			w.t.Error(err)
		}
		if err := <-n.served; err != nil {
			w.t.Error(err)
		}
		if err := n.host.Close(); err != nil {
			w.t.Error(err)
		}
	}
	w.net.Close()
}

// leader waits for a node that leads and may serve reads.
func (w *world) leader() *node {
	w.t.Helper()
	var found *node
	w.await("a leader", func() bool {
		for _, n := range w.nodes {
			if st := n.host.Group(0).Status(); st.Role == rsm.Leader && st.Ready && st.Lease > 0 {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

// depose cuts the leader off from the other nodes until another one leads.
func (w *world) depose() {
	w.t.Helper()
	old := w.leader()
	w.net.Isolate(old.id, true)
	w.await("another leader", func() bool {
		st := w.nodes[old.id%3].host.Group(0).Status()
		return st.Leader != old.id && st.Leader != 0
	})
	w.net.Isolate(old.id, false)
}

// await polls until ok, as what it waits for has no event of its own.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// client returns a client of its own connections.
func (w *world) client(name string, clock env.Clock) *Client {
	return w.clientOf(name, clock, w.seeds, &atomic.Bool{})
}

// clientOf is client, first of some nodes; cut lets it make no new connection.
func (w *world) clientOf(name string, clock env.Clock, seeds []string, cut *atomic.Bool) *Client {
	w.t.Helper()
	conf := must(w.ca.IssueClient("test")).ClientTLS()
	verify := conf.VerifyConnection
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if cut.Load() {
			return errors.New("cut off")
		}
		if verify != nil {
			return verify(cs)
		}
		return nil
	}
	cc := must(cluster.Dial(w.t.Context(), cluster.Config{Cluster: "test", Seeds: seeds, TLS: conf, Timeout: 10 * time.Second, Logger: quiet}))
	c := NewClient(Options{Cluster: cc, Clock: clock, Name: name})
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			w.t.Error(err)
		}
		if err := cc.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

func (c *Client) mustDo(t testing.TB, cmd *kvpb.Command) *kvpb.Result {
	t.Helper()
	res, err := c.Do(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// session opens one that the test's end closes.
func (w *world) session(c *Client, ttl time.Duration) *Session {
	w.t.Helper()
	s := must(c.NewSession(w.t.Context(), ttl))
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			w.t.Error(err)
		}
	})
	return s
}

// sleeper is the clock of a machine that sleeps: its time goes on by jumps.
type sleeper struct {
	env.System
	slept atomic.Int64 // ns
}

func (c *sleeper) Boot() time.Duration { return c.System.Boot() + time.Duration(c.slept.Load()) }
