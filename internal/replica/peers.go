package replica

import (
	"cmp"
	"slices"

	"github.com/koinon/koinon/internal/sys"
)

// Peer is a node that is, or may become, a member of the groups, and where it
// is reached.
type Peer struct {
	ID   sys.NodeID
	Addr string
}

// SetPeers says who the nodes are that may be members, with or without this
// one, and where they are reached: whoever keeps the cluster's map calls it
// whenever that changes. Messages from and to others are dropped, and no
// connection to them stays. A member that is not named here is not reached, so
// name a node before it becomes a member and drop it some time after it was
// one, so that it hears that it is none. It may be called at any time.
func (h *Host) SetPeers(peers []Peer) {
	h.peersMu.Lock()
	defer h.peersMu.Unlock()
	ids := make([]sys.NodeID, 0, len(peers))
	for _, p := range peers {
		if p.ID != h.cfg.Self {
			ids = append(ids, p.ID)
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	h.peers.Store(&ids)
	h.cfg.Transport.SetPeers(peers)
	h.wakeDriver()
}

// outgoing is what the driver is about to send a peer.
type outgoing struct {
	to     sys.NodeID
	frames [lanes][]byte
}

// followPeers makes room for what is sent to the peers as they are now.
func (d *driver) followPeers(peers *[]sys.NodeID) {
	if peers == d.peers {
		return
	}
	d.peers = peers
	next := make([]*outgoing, len(*peers))
	for i, id := range *peers {
		if next[i] = d.outgoingTo(id); next[i] == nil {
			next[i] = &outgoing{to: id}
		}
	}
	d.outgoing = next
	for id := range d.full.peers {
		if _, ok := slices.BinarySearch(*peers, id); !ok {
			delete(d.full.peers, id)
		}
	}
}

// outgoingTo returns what is about to be sent to a peer, nil for a stranger.
func (d *driver) outgoingTo(id sys.NodeID) *outgoing {
	i, ok := slices.BinarySearchFunc(d.outgoing, id, func(o *outgoing, id sys.NodeID) int { return cmp.Compare(o.to, id) })
	if !ok {
		return nil
	}
	return d.outgoing[i]
}
