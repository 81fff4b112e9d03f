package cluster

import (
	"maps"
	"slices"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/sys"
)

// A member that has moved tells the leader where it is, and the map comes to say it
// (Announce). When many move at once nobody reaches a leader: then they go by what
// they tell each other.

// Moved takes in where a node is. direct says that it has told so itself, which
// counts for more than what others have heard. It holds until the map gives the
// node another address than now.
func (c *Client) Moved(at *clusterpb.Place, direct bool) {
	if checkMember(at.GetAddr(), "") != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := sys.NodeID(at.Node)
	if _, known := c.places[id]; direct || !known {
		c.places[id] = at.Addr
	}
}

// Places returns what Moved has taken in and still holds, by number.
func (c *Client) Places() []*clusterpb.Place {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*clusterpb.Place
	for _, id := range slices.Sorted(maps.Keys(c.places)) {
		out = append(out, &clusterpb.Place{Node: uint64(id), Addr: c.places[id]})
	}
	return out
}

// placeOf is where a member is reached. The caller holds c.mu.
func (c *Client) placeOf(x *clusterpb.Member) string {
	if at, ok := c.places[sys.NodeID(x.Id)]; ok {
		return at
	}
	return x.Addr
}

// settlePlaces forgets what the map says otherwise from now on. The caller holds
// c.mu.
func (c *Client) settlePlaces(next *clusterpb.Map) {
	maps.DeleteFunc(c.places, func(id sys.NodeID, _ string) bool {
		was, is := member(c.m, uint64(id)), member(next, uint64(id))
		return is == nil || was != nil && was.Addr != is.Addr
	})
}
