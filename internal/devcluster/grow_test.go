//go:build linux

package devcluster

import (
	"slices"
	"testing"
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
