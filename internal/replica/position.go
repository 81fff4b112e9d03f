package replica

import "github.com/koinon/koinon/internal/sys"

// Applied returns the slot up to which the state is visible. A view that is
// taken afterwards holds at least that much.
func (g *Group) Applied() uint64 { return uint64(g.applied.Load()) }

// Leading returns the round of the ballot under which this replica leads as
// far as it knows, 0 when it does not. It costs nothing, and proves nothing:
// see Read.
func (g *Group) Leading() uint64 {
	v := g.view.Load()
	if v.role != Leader {
		return 0
	}
	return v.ballot.Round
}

// Leader returns who leads as far as this replica knows, 0 when nobody.
func (g *Group) Leader() sys.NodeID { return g.view.Load().leader }

// NotLeader is the error of a replica that was asked for what only the leader
// can do.
func (g *Group) NotLeader(op sys.Op) error { return notLeader(op, g.Leader()) }
