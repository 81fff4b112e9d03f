//go:build linux

package devcluster

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/config"
)

// TestNumbers: nodes are found by their numbers also when some are gone.
func TestNumbers(t *testing.T) {
	s := saved{Nodes: 3}
	if got := s.numbers(); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("numbers of a new cluster are %v", got)
	}
	s.setNumbers([]int{4, 1, 3})
	if got := s.numbers(); !slices.Equal(got, []int{1, 3, 4}) || s.Nodes != 3 {
		t.Errorf("numbers are %v, %d nodes", got, s.Nodes)
	}
	c := &Cluster{saved: s}
	for _, n := range s.numbers() {
		c.nodes = append(c.nodes, &node{number: n})
	}
	got, err := c.pick([]int{3, 4, 3})
	if err != nil || len(got) != 2 || got[0].number != 3 || got[1].number != 4 {
		t.Errorf("picked %v, %v", got, err)
	}
	if _, err := c.pick([]int{2}); err == nil || err.Error() != "there is no node 2; this cluster has 3 nodes: 1 3 4" {
		t.Errorf("node 2: %v", err)
	}
}

// TestRemoveWithoutItsDirectory: a node whose directory is gone is in the way of the others, and those who ask are told how it goes; it goes.
func TestRemoveWithoutItsDirectory(t *testing.T) {
	c, _ := up(t, options(t, ""))
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.nodes[1].dir); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"up":    func() error { _, _, err := Up(t.Context(), t.Context(), c.opts); return err }(),
		"start": func() error { again, _ := Open(c.opts); return again.Start(t.Context(), 2) }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "`koinon dev rm 2`") {
			t.Errorf("%s: %v", what, err)
		}
	}
	left := slices.DeleteFunc(c.Numbers(), func(n int) bool { return n == 2 })
	if err := c.Remove(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	client, err := config.LoadClient(c.ClientConfig())
	if got := c.Numbers(); err != nil || !slices.Equal(got, left) || len(client.Nodes) != len(left) {
		t.Errorf("left are %v, clients know %v, %v", got, client, err)
	}
	if _, _, err := Up(t.Context(), t.Context(), c.opts); err != nil {
		t.Error(err)
	}
}
