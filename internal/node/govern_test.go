package node

import (
	"slices"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// A node whose disk is full does not become a voter.
func TestFullNodeDoesNotBeginToVote(t *testing.T) {
	for _, full := range []bool{false, true} {
		c := &census{self: 1, st: &rsm.Status{Voters: []sys.NodeID{1, 2, 3}, Learners: []sys.NodeID{4}}, led: time.Hour, m: &clusterpb.Map{}}
		for id := uint64(1); id <= 4; id++ {
			c.m.Members = append(c.m.Members, &clusterpb.Member{Id: id, State: clusterpb.State_UP})
			c.st.Peers = append(c.st.Peers, rsm.PeerStatus{ID: sys.NodeID(id), Reachable: true, LastSeen: time.Millisecond, Full: full && id == 4})
		}
		c.st.Peers[2].LastSeen = time.Hour // somebody is needed in its place
		voters, _, _ := c.electorate()
		if slices.Contains(voters, 4) == full {
			t.Errorf("full %v: the voters are %v", full, voters)
		}
	}
}

// TestSourceIsGivenUp: node 4 gives away what it has to nodes 1, 2 and 3.
func TestSourceIsGivenUp(t *testing.T) {
	table := &placement.Table{Epoch: 7, Replicas: 3, PGs: [][]sys.NodeID{{1, 2, 3}}, From: [][]sys.NodeID{{4, 5}}}
	told := func(epoch uint64, node, source sys.NodeID) *clusterpb.StatusReply {
		return &clusterpb.StatusReply{Node: uint64(node), TableEpoch: epoch,
			Drained: []*clusterpb.Drained{{Source: uint64(source), Groups: []uint32{0}}}}
	}
	for _, tc := range []struct {
		name string
		told []*clusterpb.StatusReply
		dead []sys.NodeID
		from []sys.NodeID
	}{
		{"nobody has it", nil, nil, []sys.NodeID{4, 5}},
		{"one lacks it", []*clusterpb.StatusReply{told(7, 1, 4), told(7, 2, 4)}, nil, []sys.NodeID{4, 5}},
		{"all have it", []*clusterpb.StatusReply{told(7, 1, 4), told(7, 2, 4), told(7, 3, 4)}, nil, []sys.NodeID{5}},
		{"of an older table", []*clusterpb.StatusReply{told(7, 1, 4), told(7, 2, 4), told(6, 3, 4)}, nil, []sys.NodeID{4, 5}},
		{"of another source", []*clusterpb.StatusReply{told(7, 1, 4), told(7, 2, 4), told(7, 3, 5)}, nil, []sys.NodeID{4, 5}},
		{"a holder and a source are dead", []*clusterpb.StatusReply{told(7, 1, 4), told(7, 2, 4)}, []sys.NodeID{3, 5}, []sys.NodeID{5}},
		{"no majority of the holders lives", []*clusterpb.StatusReply{told(7, 1, 4)}, []sys.NodeID{2, 3}, []sys.NodeID{4, 5}},
		{"one who told has died", []*clusterpb.StatusReply{told(7, 1, 4), told(7, 2, 4), told(7, 3, 4)}, []sys.NodeID{3}, []sys.NodeID{5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &census{self: 1, st: &rsm.Status{}, led: time.Hour}
			for id := sys.NodeID(2); id <= 5; id++ {
				if !slices.Contains(tc.dead, id) {
					c.st.Peers = append(c.st.Peers, rsm.PeerStatus{ID: id, LastSeen: time.Millisecond})
				}
			}
			if got := c.drained(table, tc.told); !slices.Equal(got.From[0], tc.from) {
				t.Errorf("sources %v remain, want %v", got.From[0], tc.from)
			}
		})
	}
}
