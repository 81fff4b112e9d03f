package remote

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

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta/embedded"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicatest"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// oneVoter starts a group of one replica on a disk in memory, with an empty tree
// and a map that has the node at addr, and waits until it leads.
func oneVoter(t *testing.T, addr string) *replica.Group {
	t.Helper()
	network := replicatest.NewNetwork(1)
	host := must(replica.Open(replica.Config{
		Dir: "state", FS: vfs.NewMem(), Clock: env.System{}, Cluster: "test", Self: 1,
		Voters: []replica.Peer{{ID: 1}}, Transport: network.Endpoint(1), ReserveBytes: -1,
		Tick: time.Millisecond, Heartbeat: 5 * time.Millisecond, ElectionTimeout: 20 * time.Millisecond, Lease: 15 * time.Millisecond,
	}, map[rsm.Namespace]rsm.Machine{rsm.NSMeta: embedded.Machine{}, rsm.NSCluster: cluster.Machine{}}))
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
		network.Close()
	})
	group := host.Group(0)
	leads := make(chan struct{})
	var once atomic.Bool
	stop := group.Watch(func(st rsm.Status) {
		if st.Role == rsm.Leader && st.Ready && once.CompareAndSwap(false, true) {
			close(leads)
		}
	})
	<-leads
	stop()
	first := must(cluster.First("test", []*clusterpb.Member{{Id: 1, Addr: addr, Weight: 1}}, 16, 1))
	for ns, cmd := range map[rsm.Namespace]pb.Message{
		rsm.NSCluster: &clusterpb.Command{Map: first},
		rsm.NSMeta:    &metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{}}},
	} {
		if _, _, err := group.Propose(t.Context(), rsm.Command{NS: ns, Body: pb.Marshal(cmd)}); err != nil {
			t.Fatal(err)
		}
	}
	return group
}

// serveNode serves what a group has at l, until the end of the test, and returns
// the way there.
func serveNode(t *testing.T, l net.Listener, group *replica.Group, handlers map[wire.Method]wire.HandlerFunc) *cluster.Client {
	t.Helper()
	ca := must(auth.NewCA("test"))
	srv := wire.NewServer(wire.ServerConfig{TLS: must(ca.IssueNode(1, []string{"127.0.0.1"})).ServerTLS(), CloseGrace: -1,
		Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
			id, err := auth.PeerIdentity(cs)
			return wire.Identity(id), err
		}})
	(&cluster.Service{Group: group, Status: func() *clusterpb.StatusReply { return &clusterpb.StatusReply{Node: 1} }}).Register(srv)
	for m, h := range handlers {
		srv.Handle(m, h)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	cc := must(cluster.Dial(t.Context(), cluster.Config{Cluster: "test", Seeds: []string{l.Addr().String()}, TLS: must(ca.IssueClient("test")).ClientTLS()}))
	t.Cleanup(func() {
		if err := errors.Join(cc.Close(), srv.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return cc
}

// TestACommandIsNotRunAgainInAnotherSession has a leader lose its place when it
// has just applied a command, and the session end before the client asks again.
// The client must not take the command as one that had no effect: in its next
// session it would run a second time.
func TestACommandIsNotRunAgainInAnotherSession(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	group := oneVoter(t, l.Addr().String())
	s := NewServer(ServerOptions{Group: group, Clock: env.System{}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	var applied atomic.Int32
	group.OnApply(rsm.NSMeta, func(st rsm.Stamp, _ any) {
		if st.Session != 0 && applied.Add(1) == 1 {
			s.leases.follow() // as when leadership is lost
		}
	})
	var session atomic.Uint64
	cc := serveNode(t, l, group, map[wire.Method]wire.HandlerFunc{
		MethodRenew: s.serveRenew, MethodQuery: s.serveQuery,
		MethodDo: func(ctx context.Context, req *wire.Request) (wire.Response, error) {
			resp, err := s.serveDo(ctx, req)
			return resp, errors.Join(err, group.EndSession(ctx, sys.SessionID(session.Load())))
		}})
	c := must(NewClient(t.Context(), Options{Cluster: cc, Name: "test"}))
	session.Store(uint64(c.Session()))
	_, err := c.Do(t.Context(), &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: uint64(sys.RootIno), Name: []byte("once"), Type: uint32(sys.TypeRegular)}}})
	if !sys.Is(err, sys.SessionGone) {
		t.Errorf("expected to be told that the session is gone, found %v", err)
	}
	if n := applied.Load(); n != 1 {
		t.Errorf("the command was applied %d times", n)
	}
	if err := c.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
