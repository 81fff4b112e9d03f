package node_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// TestNumberOfAnother: the map comes to have the key of each member, those of the first ones too. A machine with the number of one of
// them, and another key, is answered by nobody, does not move that one, and is talked to by nobody.
func TestNumberOfAnother(t *testing.T) {
	w := newTown(t, 3, 1)
	a := w.admin()
	n, _, err := w.join("n4", w.token(a, time.Hour), nil)
	check(t, err)
	w.run(n)
	c := w.members()
	key := func(n *config.Node) string {
		t.Helper()
		creds, err := auth.LoadCredentials(n.TLS.CA, n.TLS.Cert, n.TLS.Key)
		check(t, err)
		return string(creds.Key())
	}
	await(t, "all have a map with all keys", func() bool {
		check(t, c.Refresh(t.Context()))
		for _, n := range append(w.nodes, n) {
			x := memberOf(c, uint64(n.ID))
			status, err := c.NodeStatus(t.Context(), n.Listen)
			if x == nil || string(x.Key) != key(n) || err != nil || status.Epoch != c.Map().Epoch {
				return false
			}
		}
		return true
	})

	other, err := w.ca.IssueNode(2, nil)
	check(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	server := wire.NewServer(wire.ServerConfig{TLS: other.ServerTLS(), Identify: cluster.Identify})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { check(t, errors.Join(server.Close(), <-served)) })
	x := cluster.New(cluster.Config{Cluster: "lab", Seeds: w.client.Nodes, TLS: other.ClientTLS()})
	t.Cleanup(func() { check(t, x.Close()) })
	for _, n := range w.nodes {
		_, err := x.NodeStatus(t.Context(), n.Listen)
		w.refused(err, sys.Access, "is another machine")
	}
	_, err = x.Change(t.Context(), &clusterpb.Command{Op: &clusterpb.Command_SetAddr{SetAddr: &clusterpb.SetAddr{Id: 2, Addr: l.Addr().String()}}})
	w.refused(err, sys.Access, "is another machine")
	check(t, c.Refresh(t.Context()))
	if at := memberOf(c, 2).Addr; at != w.nodes[1].Listen {
		t.Errorf("the map has n2 at %s", at)
	}
	_, err = c.NodeStatus(t.Context(), l.Addr().String())
	w.refused(err, sys.Unavailable, "is another machine")
}
