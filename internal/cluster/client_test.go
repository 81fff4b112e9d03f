package cluster

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

const methodWho wire.Method = 900 // nothing -> nothing; from the leader

// nodes are some that know the map and who leads, and count who connects.
type nodes struct {
	t         *testing.T
	seeds     []string
	client    *auth.Credentials
	connected atomic.Int64
}

func startNodes(t *testing.T, n int, leader uint64) *nodes {
	t.Helper()
	ca, err := auth.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	ns := &nodes{t: t}
	if ns.client, err = ca.IssueClient("test"); err != nil {
		t.Fatal(err)
	}
	var listeners []net.Listener
	var members []*clusterpb.Member
	for id := 1; id <= n; id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		ns.seeds = append(ns.seeds, l.Addr().String())
		members = append(members, &clusterpb.Member{Id: uint64(id), Addr: l.Addr().String(), Weight: 1})
	}
	m, err := First("test", members, 16, 3)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range listeners {
		creds, err := ca.IssueNode(sys.NodeID(i+1), []string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		srv := wire.NewServer(wire.ServerConfig{TLS: creds.ServerTLS(), Logger: slog.New(slog.DiscardHandler), CloseGrace: -1,
			Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
				ns.connected.Add(1)
				id, err := auth.PeerIdentity(cs)
				return wire.Identity(id), err
			}})
		srv.Handle(MethodMap, func(context.Context, *wire.Request) (wire.Response, error) {
			return wire.Response{Header: mustMarshal(m)}, nil
		})
		srv.Handle(methodWho, func(context.Context, *wire.Request) (wire.Response, error) {
			if uint64(i+1) == leader {
				return wire.Response{}, nil
			}
			return wire.Response{Payload: binary.LittleEndian.AppendUint64(nil, leader)}, sys.E(sys.NotLeader, "another node leads")
		})
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		t.Cleanup(func() {
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
			<-served
		})
	}
	return ns
}

// Who only asks something of the leader connects to it and to no third node,
// whoever leads: setting up a connection is most of what a short command takes.
func TestFewConnections(t *testing.T) {
	for leader := uint64(1); leader <= 3; leader++ {
		ns := startNodes(t, 3, leader)
		c, err := Dial(t.Context(), Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			r, err := c.CallLeader(t.Context(), methodWho, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Release()
		}
		if n := ns.connected.Load(); n > 2 {
			t.Errorf("n%d leads: %d connections, expected at most 2", leader, n)
		}
		// What little is asked of the leader itself needs no further one.
		r, err := c.OpenConn(sys.NodeID(leader)).Call(t.Context(), MethodMap, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
		if n := ns.connected.Load(); n > 2 {
			t.Errorf("n%d leads: %d connections with that of OpenConn, expected at most 2", leader, n)
		}
		if c.OpenConn(9) != nil {
			t.Error("there is a connection to a node that is none")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Who begins to reach a cluster waits for nobody: the first request goes out
// beside the one for the map, on the same connection; and who leads elsewhere is
// found without a map at hand.
func TestReach(t *testing.T) {
	for leader := uint64(1); leader <= 3; leader++ {
		ns := startNodes(t, 3, leader)
		c, err := Reach(Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.CallLeader(t.Context(), methodWho, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
		if n, want := ns.connected.Load(), min(int64(leader), 2); n != want {
			t.Errorf("n%d leads: %d connections, expected %d", leader, n, want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Reach(Config{Cluster: "test"}); !sys.Is(err, sys.Invalid) {
		t.Errorf("without an address: %v", err)
	}
}
