package client

import (
	"slices"
	"testing"
)

// The last leader is asked first, when it is one of the nodes that are
// configured; nothing is made of anything else.
func TestLastLeader(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	nodes := []string{"a:1", "b:1", "c:1"}
	if got := leaderFirst(lastLeader("lab"), nodes); !slices.Equal(got, nodes) {
		t.Errorf("without a last leader: %v", got)
	}
	for _, tc := range []struct {
		last string
		want []string
	}{{"c:1", []string{"c:1", "a:1", "b:1"}}, {"b:1", []string{"b:1", "a:1", "c:1"}}, {"a:1", nodes}, {"gone:1", nodes}} {
		noteLeader("lab", lastLeader("lab"))(tc.last)
		if got := leaderFirst(lastLeader("lab"), nodes); !slices.Equal(got, tc.want) {
			t.Errorf("after %s: %v, want %v", tc.last, got, tc.want)
		}
		if got := leaderFirst(lastLeader("other"), nodes); !slices.Equal(got, nodes) {
			t.Errorf("of another cluster: %v", got)
		}
	}
	if !slices.Equal(nodes, []string{"a:1", "b:1", "c:1"}) {
		t.Errorf("the configuration was changed: %v", nodes)
	}
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	if got := leaderFirst(lastLeader("lab"), nodes); !slices.Equal(got, nodes) {
		t.Errorf("without a home: %v", got)
	}
}
