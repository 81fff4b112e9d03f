package replica

import (
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// Applied implements rsm.Group.
func (g *Group) Applied() uint64 { return uint64(g.applied.Load()) }

// Leading implements rsm.Group.
func (g *Group) Leading() uint64 {
	v := g.view.Load()
	if v.role != rsm.Leader {
		return 0
	}
	return v.ballot.Round
}

// Leader returns who leads as far as this replica knows, 0 when nobody.
func (g *Group) Leader() sys.NodeID { return g.view.Load().leader }

// NotLeader implements rsm.Group.
func (g *Group) NotLeader(op sys.Op) error { return notLeader(op, g.Leader()) }

func notLeader(op sys.Op, leader sys.NodeID) error {
	return sys.E(op, sys.NotLeader, &rsm.LeaderError{Leader: leader})
}
