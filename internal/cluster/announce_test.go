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
