package cluster

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// roster is what a map says of who is a member, to be asked for every request.
type roster struct {
	members map[sys.NodeID]string // and their keys, where they are known
	next    sys.NodeID
}

func newRoster(m *clusterpb.Map) *roster {
	r := &roster{members: make(map[sys.NodeID]string, len(m.Members)), next: sys.NodeID(nextID(m))}
	for _, x := range m.Members {
		r.members[sys.NodeID(x.Id)] = string(x.Key)
	}
	return r
}

// Removed reports whether the newest map known says that node id was removed.
// It never turns false again: IDs are not used twice. A node with an ID that
// the map has not given out yet is not: it knows a newer map.
func (c *Client) Removed(id sys.NodeID) bool {
	r := c.roster.Load()
	if r == nil || id >= r.next {
		return false
	}
	_, member := r.members[id]
	return !member
}

// Refusal returns why a peer is not answered, by the newest map known: it was
// removed, or it has the number of another.
func (c *Client) Refusal(peer wire.Identity) error {
	if peer.Node != 0 && c.Removed(peer.Node) {
		return RemovedError(c.cfg.Cluster, peer.Node)
	}
	return c.another(peer)
}

// another returns an error when the newest map known has another key for the member
// with a peer's number. Two machines get one number when one of them joins through
// an old copy of a node's directory.
func (c *Client) another(peer wire.Identity) error {
	r := c.roster.Load()
	if r == nil {
		return nil
	}
	if key := r.members[peer.Node]; key == "" || peer.Key == "" || key == peer.Key {
		return nil
	}
	return sys.E(sys.Op("cluster.Refusal"), sys.Access, fmt.Sprintf(
		"node %v of cluster %q is another machine by what is known here: one of the two has joined through an old copy of a node's directory", peer.Node, c.cfg.Cluster))
}

// Forked reports whether two maps are of histories that have gone on apart from
// each other, and first that own is the right one. By who has voted and since when:
// what differs from some change on is right where that change came earlier, before an
// old copy of a node's directory came in its place. Else by when members joined, those
// that were removed among them: in one history a number is of one member, and a
// higher one is given out later; of the lowest number that tells it that one is right
// in which it was given out earlier. Maps that tell nothing of it are not called so.
func Forked(own, told *clusterpb.Map) (forked, first bool) {
	for i := max(own.GetReignsBefore(), told.GetReignsBefore()); ; i++ {
		x, y := reign(own, i), reign(told, i)
		if x == nil || y == nil {
			break
		}
		if x.SinceNs != y.SinceNs || !slices.Equal(x.Voters, y.Voters) {
			return true, x.SinceNs < y.SinceNs
		}
	}
	number, theirs := uint64(0), joins(told)
	for _, x := range joins(own) {
		for _, y := range theirs {
			apart := x.id == y.id && x.ns != y.ns || x.id < y.id && x.ns > y.ns || x.id > y.id && x.ns < y.ns
			if n := min(x.id, y.id); apart && (!forked || n < number) {
				forked, first, number = true, x.ns < y.ns, n
			}
		}
	}
	return forked, first
}

// reignsMax is how many changes of who votes a map keeps.
const reignsMax = 500

// reign returns one of all reigns that there have been, nil when the map does not
// have it.
func reign(m *clusterpb.Map, i uint64) *clusterpb.Reign {
	if i -= m.GetReignsBefore(); i < uint64(len(m.GetReigns())) {
		return m.Reigns[i]
	}
	return nil
}

// Reigning adds to a map who votes, when its last reign says otherwise; voters are
// ascending. It reports whether it has.
func Reigning(m *clusterpb.Map, voters []sys.NodeID, now time.Time) bool {
	r := &clusterpb.Reign{SinceNs: now.UnixNano()}
	for _, id := range voters {
		r.Voters = append(r.Voters, uint64(id))
	}
	if n := len(m.Reigns); n > 0 && slices.Equal(m.Reigns[n-1].Voters, r.Voters) {
		return false
	}
	m.Reigns = append(m.Reigns, r)
	if drop := len(m.Reigns) - reignsMax; drop > 0 {
		m.Reigns, m.ReignsBefore = m.Reigns[drop:], m.ReignsBefore+uint64(drop)
	}
	return true
}

// joined is a number that was given out at a time.
type joined struct {
	id uint64
	ns int64
}

// joins returns which numbers a map says were given out when.
func joins(m *clusterpb.Map) []joined {
	out := make([]joined, 0, len(m.GetMembers())+len(m.GetGone()))
	for _, x := range m.GetMembers() {
		if x.JoinedNs != 0 {
			out = append(out, joined{x.Id, x.JoinedNs})
		}
	}
	for _, x := range m.GetGone() {
		if x.JoinedNs != 0 {
			out = append(out, joined{x.Id, x.JoinedNs})
		}
	}
	return out
}

// Parted reports whether a map that is told has members of which own, which has
// everything up to now, never had: nodes with numbers that own has not given
// out yet, or has given to others. Then the two have gone on apart from each other.
func Parted(own, told *clusterpb.Map) bool {
	return slices.ContainsFunc(told.GetMembers(), func(x *clusterpb.Member) bool {
		y := member(own, x.Id)
		return x.Id >= nextID(own) || y != nil && y.JoinedNs != x.JoinedNs
	})
}

// SameMember reports whether a number is of the same member in two maps.
func SameMember(a, b *clusterpb.Map, id sys.NodeID) bool {
	x, y := member(a, uint64(id)), member(b, uint64(id))
	return x != nil && y != nil && x.JoinedNs == y.JoinedNs
}

const opRemoved sys.Op = "cluster.Removed"

// RemovedError is what a node is told that is no member any more. It crosses
// the wire: see IsRemoved.
func RemovedError(cluster string, id sys.NodeID) error {
	return sys.E(opRemoved, sys.Access, fmt.Sprintf(
		"node %v was removed from cluster %q and does not come back under this number: start it with an empty directory and a new token (`koinon node token`), then it joins as a new node", id, cluster))
}

// IsRemoved reports whether err says that this node was removed.
func IsRemoved(err error) bool {
	for {
		e, ok := errors.AsType[*sys.Error](err)
		if !ok {
			return false
		}
		if e.Op == opRemoved {
			return true
		}
		err = e.Err
	}
}
