package client

import (
	"maps"
	"testing"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// Every copy of a slice counts where it is, holes nowhere.
func TestAddHeld(t *testing.T) {
	table := &placement.Table{PGs: [][]sys.NodeID{{1, 2}, {2, 3}}}
	held := map[sys.NodeID]int64{}
	addHeld(held, table, []*metapb.Slice{
		{Len: 100, Slice: uint64(sys.NewSliceID(7, 0))}, {At: 100, Len: 50}, {At: 150, Len: 10, Slice: uint64(sys.NewSliceID(8, 1))},
		{At: 160, Len: 1, Slice: uint64(sys.NewSliceID(9, 5))},
	})
	if want := (map[sys.NodeID]int64{1: 100, 2: 110, 3: 10}); !maps.Equal(held, want) {
		t.Errorf("got %v, want %v", held, want)
	}
}
