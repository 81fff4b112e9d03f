package cluster

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
)

// TestAnnounceOnlyNews: what the map says already is not sent.
func TestAnnounceOnlyNews(t *testing.T) {
	known := &clusterpb.Member{Id: 1, Addr: "a:1", Zone: "x", Weight: 100}
	for _, tc := range []struct{ at, want *clusterpb.SetAddr }{
		{&clusterpb.SetAddr{Id: 1, Addr: "a:1", Zone: "x", Weight: 100}, nil},
		{&clusterpb.SetAddr{Id: 1, Addr: "a:1"}, nil},
		{&clusterpb.SetAddr{Id: 1, Addr: "a:1", Weight: 110}, nil},
		{&clusterpb.SetAddr{Id: 1, Addr: "a:1", Weight: 90}, nil},
		{&clusterpb.SetAddr{Id: 1, Addr: "a:1", Weight: 111}, &clusterpb.SetAddr{Id: 1, Addr: "a:1", Weight: 111}},
		{&clusterpb.SetAddr{Id: 1, Addr: "a:1", Zone: "y", Weight: 101}, &clusterpb.SetAddr{Id: 1, Addr: "a:1", Zone: "y"}},
		{&clusterpb.SetAddr{Id: 1, Addr: "a:2", Weight: 100}, &clusterpb.SetAddr{Id: 1, Addr: "a:2"}},
	} {
		got := news(known, tc.at)
		if (got == nil) != (tc.want == nil) || got != nil && !proto.Equal(got, tc.want) {
			t.Errorf("%v is sent as %v, expected %v", tc.at, got, tc.want)
		}
	}
	if got := news(nil, &clusterpb.SetAddr{Id: 2, Addr: "a:2"}); got != nil {
		t.Errorf("a node that the map does not have sends %v", got)
	}
}

// TestAnnounceAfterRemoval: a node that announces itself learns that it was removed; who removes it again does not think that he was.
func TestAnnounceAfterRemoval(t *testing.T) {
	removed := &clusterpb.Result{Refusal: clusterpb.Refusal_MEMBER_REMOVED}
	for _, tc := range []struct {
		cmd  *clusterpb.Command
		want bool
	}{
		{&clusterpb.Command{Op: &clusterpb.Command_SetAddr{SetAddr: &clusterpb.SetAddr{Id: 4, Addr: "a:4"}}}, true},
		{&clusterpb.Command{Op: &clusterpb.Command_RemoveMember{RemoveMember: &clusterpb.RemoveMember{Id: 4}}}, false},
	} {
		if err := refused(tc.cmd, removed); err == nil || IsRemoved(err) != tc.want {
			t.Errorf("%v: removed %v expected, found %v", tc.cmd, tc.want, err)
		}
	}
}
