package client

import (
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
)

// What a node says of where metadata and blocks are is the cluster's.
func TestStatusSaysWhereThingsAre(t *testing.T) {
	s := &Status{Nodes: []NodeStatus{{ID: 1, State: "down"}, nodeStatus("h:1", &clusterpb.StatusReply{Node: 2, MetaStore: "mysql://me@h/x", BlockStore: "redis://h"})}}
	summarize(s)
	if s.Meta != "mysql://me@h/x" || s.Blocks != "redis://h" {
		t.Errorf("expected the engines of node 2, found %q and %q", s.Meta, s.Blocks)
	}
}

// TestHealingWithoutMajority: a node that cannot ask the others says so,
// instead of counting groups that it may well have.
func TestHealingWithoutMajority(t *testing.T) {
	const counted = "comparing blocks with the other nodes: 0 of 256 placement groups done, 0 blocks fetched"
	cluster := func(second string) *Status {
		return &Status{Nodes: []NodeStatus{
			{ID: 1, State: "up", Role: "leader", Healing: counted, voters: []uint64{1, 2, 3}},
			{ID: 2, State: second, Role: "follower"},
			{ID: 3, State: "down", Trouble: "it does not answer"},
		}}
	}
	s := cluster("down")
	summarize(s)
	if got := s.Nodes[0].Healing; s.Majority || !strings.Contains(got, "cannot be known") || strings.Contains(got, "256") {
		t.Errorf("without a majority (%v): %q", !s.Majority, got)
	}
	if got := s.Nodes[1].Healing; got != "" {
		t.Errorf("a node that is down heals: %q", got)
	}
	s = cluster("up")
	summarize(s)
	if got := s.Nodes[0].Healing; !s.Majority || got != counted {
		t.Errorf("with a majority (%v): %q", s.Majority, got)
	}
}
