package client

import (
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// TestWaits: it is said who keeps a node from leaving.
func TestWaits(t *testing.T) {
	table := &placement.Table{PGs: [][]sys.NodeID{{1, 2, 3}, {2, 3, 4}}, From: [][]sys.NodeID{{4}, nil}}
	s := &Status{Leader: 1, Nodes: []NodeStatus{{ID: 1, State: "up"}, {ID: 2, State: "up", Healing: "1 of 2"}, {ID: 3, State: "down"},
		{ID: 4, State: "up", Voter: true, Healing: "own"}}}
	want := "it still votes; 2 placement groups need it until others have copied them; still copying: n2 (1 of 2); no answer from n3"
	if got := s.waits(4, table); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (&Status{}).waits(4, &placement.Table{}); got != "there is no leader" {
		t.Errorf("%q", got)
	}
	if got := (&Status{Leader: 1}).waits(4, table); !strings.HasPrefix(got, "2 placement groups") {
		t.Errorf("%q", got)
	}
}

// TestWithout: a node is not removed where the others could not go on.
func TestWithout(t *testing.T) {
	up := NodeStatus{State: "up", Voter: true}
	down := NodeStatus{State: "down", Voter: true}
	learner := NodeStatus{State: "up", Member: "up"}
	joining := NodeStatus{State: "up", Member: "joining"}
	downLearner := NodeStatus{State: "down"}
	leaving := NodeStatus{State: "up", Voter: true, Member: "draining"}
	signer := NodeStatus{State: "up", Voter: true, Signs: true}
	leavingSigner := NodeStatus{State: "up", Signs: true, Member: "draining"}
	for _, tc := range []struct {
		name   string
		others []NodeStatus
		signs  bool   // it has the key of the CA
		want   string // empty: may go
	}{
		{"the only node", nil, false, "the only node"},
		{"of two", []NodeStatus{up}, false, ""},
		{"of three", []NodeStatus{up, up}, false, ""},
		{"of three, one of the others dead", []NodeStatus{up, down}, false, "no majority: of n2, n3"},
		{"of four, a learner can vote in its place", []NodeStatus{up, down, learner}, false, ""},
		{"of four, the learner has to learn", []NodeStatus{up, down, joining}, false, "n3 is down; start n3 first, or remove the dead one instead, or wait until n4"},
		{"of four, the learner is dead too", []NodeStatus{up, down, downLearner}, false, "n3 is down; start n3"},
		{"of five, two dead, of which one votes no more", []NodeStatus{up, up, down, down}, false, ""},
		{"of five, two dead and one leaving", []NodeStatus{leaving, up, down, down}, false, "of n3, n4, n5, which choose the log then, n4, n5 are down"},
		{"of five, one dead", []NodeStatus{up, up, up, down}, false, ""},
		{"the others leave", []NodeStatus{leaving}, false, "the only node"},
		{"one of two with the key", []NodeStatus{signer, up}, true, ""},
		{"the one with the key", []NodeStatus{up, up}, true, "copy the file"},
		{"the one with the key that stays", []NodeStatus{leavingSigner, up, up}, true, "copy the file"},
		{"the key is elsewhere already", []NodeStatus{up, up}, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &Status{Nodes: []NodeStatus{{ID: 1, State: "up", Voter: true, Signs: tc.signs}}}
			for i, n := range tc.others {
				n.ID = s.Nodes[i].ID + 1
				s.Nodes = append(s.Nodes, n)
			}
			err := s.without(1)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// TestMayGoOn: who cannot follow a removal does not know that it did not begin.
func TestMayGoOn(t *testing.T) {
	for kind, goesOn := range map[sys.Kind]bool{sys.Unavailable: true, sys.Interrupted: true, sys.Invalid: false} {
		err := mayGoOn(3, sys.E(kind, "no majority"))
		if !sys.Is(err, kind) || !strings.Contains(err.Error(), "no majority") || strings.Contains(err.Error(), "goes on by itself") != goesOn {
			t.Errorf("%v: %v", kind, err)
		}
	}
}
