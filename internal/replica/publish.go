package replica

import (
	"slices"
	"time"

	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// publishStatus lets Status see what only the driver knows.
func (g *Group) publishStatus() {
	h := g.host
	now := paxos.Time(h.cfg.Clock.Boot())
	st := g.d.node.Status()
	s := rsm.Status{BallotRound: st.Promised.Round, BallotNode: sys.NodeID(st.Promised.Node),
		Chosen: uint64(st.Chosen), Truncated: uint64(g.d.truncated), Removed: g.removed(now, st.Left)}
	if g.d.damaged || g.d.repairing {
		s.Damaged = h.repairAdvice()
	}
	if len(st.Configs) > 0 {
		s.Voters, s.Learners = nodeIDs(st.Configs[0].Voters), nodeIDs(st.Configs[0].Learners)
		s.Voter = slices.Contains(s.Voters, h.cfg.Self)
	}
	next := st.Changing
	if k := len(st.Configs); next == nil && k > 1 {
		next = &st.Configs[k-1].Configuration
	}
	if next != nil {
		s.NextVoters, s.NextLearners = nodeIDs(next.Voters), nodeIDs(next.Learners)
	}
	for i := range st.Peers {
		if p := &st.Peers[i]; sys.NodeID(p.ID) != h.cfg.Self {
			peer := peerStatus(p, now, slices.Contains(s.Voters, sys.NodeID(p.ID)))
			peer.Full = h.drv.full.peers[peer.ID]
			s.Peers = append(s.Peers, peer)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.published = s
}

func peerStatus(p *paxos.PeerStatus, now paxos.Time, voter bool) rsm.PeerStatus {
	s := rsm.PeerStatus{ID: sys.NodeID(p.ID), Voter: voter, Match: uint64(p.Chosen), Lag: uint64(p.Lag), LastSeen: -1,
		Reachable: p.Reachable, Snapshot: p.Snapshot}
	if p.HeardAt != 0 {
		s.LastSeen = time.Duration(now - p.HeardAt)
	}
	return s
}
