package placement

import (
	"testing"

	"github.com/koinon/koinon/internal/sys"
)

// TestForget: of several sources only those that are gone are given up.
func TestForget(t *testing.T) {
	old := &Table{Epoch: 7, Replicas: 2, PGs: [][]sys.NodeID{{1, 2}, {2, 3}}, From: [][]sys.NodeID{{3, 4}, nil}}
	got := old.Forget(func(pg sys.PG, id sys.NodeID) bool { return pg == 0 && id == 4 })
	if got.Epoch != 8 || len(got.From[0]) != 1 || got.From[0][0] != 3 || len(old.From[0]) != 2 {
		t.Errorf("%+v, and the old one %+v", got, old)
	}
	if again := got.Forget(func(_ sys.PG, id sys.NodeID) bool { return id == 4 }); again != got {
		t.Errorf("nothing to forget gives %+v", again)
	}
}
