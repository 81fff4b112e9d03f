package node_test

import (
	"slices"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/node"
)

// TestAllMove: all nodes get new addresses at once, as in a new network. It is enough that each of them is told where one of them is.
func TestAllMove(t *testing.T) {
	w := newTown(t, 3, 1)
	token := w.token(w.admin(), time.Hour)
	joined, _, err := w.join("n4", token, nil)
	check(t, err)
	for _, r := range append(w.runs, w.run(joined)) {
		w.end(r)
	}
	first := freePort(t)
	var moved []*config.Node
	for i, was := range w.nodes {
		n := *was
		n.Listen = freePort(t)
		if i == 0 {
			n.Listen = first
		}
		n.Advertise = n.Listen
		n.Voters = slices.Clone(was.Voters)
		n.Voters[0].Addr = first
		moved = append(moved, &n)
		w.run(&n)
	}
	joined, _, err = w.join("n4", token, func(o *node.JoinOptions) { o.Seeds = []string{first} })
	check(t, err)
	moved = append(moved, joined)
	w.run(joined)
	w.client.Nodes = []string{first}
	c := w.members()
	await(t, "the map has the new addresses", func() bool {
		check(t, c.Refresh(t.Context()))
		for _, n := range moved {
			if x := memberOf(c, uint64(n.ID)); x == nil || x.Addr != n.Listen {
				return false
			}
		}
		return true
	})
	w.admin()
}
