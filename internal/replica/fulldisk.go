package replica

import (
	"time"

	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

const (
	// handOverAfter is how long the disk is full before a leader looks for
	// another one: space that comes back at once is not worth a change.
	handOverAfter = paxos.Time(1e9)
	// handOverEvery is the shortest time between two tries.
	handOverEvery = paxos.Time(5e9)
)

// fullDisks is what the driver knows of full disks. A leader refuses commands
// when its own is full, so it hands leadership to a replica that has space; a
// follower needs hardly any.
type fullDisks struct {
	self  bool
	since paxos.Time // when self became true
	peers map[sys.NodeID]bool
	next  int // of the voters: who is tried next
}

// heard notes what a peer says of its disk.
func (f *fullDisks) heard(from sys.NodeID, full bool) {
	if full == f.peers[from] {
		return
	}
	if f.peers == nil {
		f.peers = map[sys.NodeID]bool{}
	}
	f.peers[from] = full
}

// patience is how long callers are told to try again after the own disk became
// full, so that they meet the next leader instead of an error.
const patience = 3 * time.Second

// admit refuses a command for which there is no space.
// others says that the group has other voters.
func (h *Host) admit(op sys.Op, cmd *rsm.Command, others bool) error {
	if !h.noSpace.Load() || (cmd.Reserve || cmd.NS == rsm.NSSession) && !h.noReserve.Load() {
		return nil
	}
	if others && h.cfg.Clock.Boot()-time.Duration(h.fullSince.Load()) < patience {
		return sys.E(op, sys.Unavailable, sys.Subject(h.cfg.Dir), "the disk of the leader is full: another leader is looked for")
	}
	return sys.E(op, sys.NoSpace, sys.Subject(h.cfg.Dir),
		"the disk of the leader is nearly full, and no other one can lead: free space on it")
}

// noteSpace takes in the state of the own disk.
func (h *Host) noteSpace(now paxos.Time) {
	f := &h.drv.full
	full := h.noSpace.Load()
	if full == f.self {
		return
	}
	f.self, f.since = full, now
	for _, g := range h.groups {
		if g.d.node != nil {
			g.d.node.SetReluctant(full)
		}
	}
}

// handOver gives the group's leadership to a voter with space when the own
// disk stays full. When there is none it stays: reads go on here.
func (h *Host) handOver(g *Group, now paxos.Time) {
	f := &h.drv.full
	if !f.self || g.d.role != paxos.Leader || now-f.since < handOverAfter ||
		g.d.handedAt != 0 && now-g.d.handedAt < handOverEvery {
		return
	}
	voters := g.inForce().Voters
	for range voters {
		to := sys.NodeID(voters[f.next%len(voters)])
		f.next++
		if to == h.cfg.Self || f.peers[to] {
			continue
		}
		// The core refuses one that does not answer or lags: then the next.
		if err := g.d.node.Transfer(now, paxos.NodeID(to)); err == nil {
			g.d.handedAt = now
			h.cfg.Logger.Warn("leadership is handed over because the disk here is full", "group", g.id, "to", to)
			h.wakeDriver()
			return
		}
	}
}
