package cluster

import (
	"errors"
	"fmt"
	"slices"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/sys"
)

// roster is what a map says of who is a member, to be asked for every request.
type roster struct {
	members map[sys.NodeID]bool
	next    sys.NodeID
}

func newRoster(m *clusterpb.Map) *roster {
	r := &roster{members: make(map[sys.NodeID]bool, len(m.Members)), next: sys.NodeID(nextID(m))}
	for _, x := range m.Members {
		r.members[sys.NodeID(x.Id)] = true
	}
	return r
}

// Removed reports whether the newest map known says that node id was removed.
// It never turns false again: IDs are not used twice. A node with an ID that
// the map has not given out yet is not: it knows a newer map.
func (c *Client) Removed(id sys.NodeID) bool {
	r := c.roster.Load()
	return r != nil && id < r.next && !r.members[id]
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
