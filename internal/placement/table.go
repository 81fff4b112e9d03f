package placement

import (
	"fmt"
	"slices"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/placement/placementpb"
	"github.com/koinon/koinon/internal/sys"
)

// Table says which nodes hold which placement group. It is immutable once it
// is shared: every change makes a new table with a higher epoch.
type Table struct {
	// Epoch counts the changes, from 1 on.
	Epoch uint64
	// Replicas is how many nodes each group should have; with fewer nodes in
	// the cluster, each group has all of them.
	Replicas int
	// PGs are the nodes of each group.
	PGs [][]sys.NodeID
	// From are nodes that held the group before and may still have blocks that
	// its nodes lack. Readers and healing ask them last. Forget takes them away.
	From [][]sys.NodeID
}

// Nodes returns the nodes that hold pg, nil when there is no such group.
func (t *Table) Nodes(pg sys.PG) []sys.NodeID {
	if int64(pg) >= int64(len(t.PGs)) {
		return nil
	}
	return t.PGs[pg]
}

// Sources returns the nodes that held pg before and are still to be asked.
func (t *Table) Sources(pg sys.PG) []sys.NodeID {
	if int64(pg) >= int64(len(t.From)) {
		return nil
	}
	return t.From[pg]
}

// Holds reports whether node is one of the nodes of pg.
func (t *Table) Holds(pg sys.PG, node sys.NodeID) bool { return slices.Contains(t.Nodes(pg), node) }

// Members returns every node that the table names, in order.
func (t *Table) Members() []sys.NodeID {
	var all []sys.NodeID
	for _, lists := range [][][]sys.NodeID{t.PGs, t.From} {
		for _, list := range lists {
			for _, id := range list {
				if at, found := slices.BinarySearch(all, id); !found {
					all = slices.Insert(all, at, id)
				}
			}
		}
	}
	return all
}

// Quorum returns how many of n replicas must hold a block before its write
// succeeds: a majority, so two of two and two of three.
func Quorum(n int) int { return n/2 + 1 }

// Forget returns a table without the sources for which gone is true: nobody
// waits for what they have. It returns t itself when nothing changes.
func (t *Table) Forget(gone func(pg sys.PG, node sys.NodeID) bool) *Table {
	var n *Table
	for pg := range t.PGs {
		for _, id := range t.Sources(sys.PG(pg)) {
			if !gone(sys.PG(pg), id) {
				continue
			}
			if n == nil {
				n = t.clone()
				n.Epoch++
			}
			n.From[pg] = slices.DeleteFunc(n.From[pg], func(o sys.NodeID) bool { return o == id })
		}
	}
	if n == nil {
		return t
	}
	return n
}

func (t *Table) clone() *Table {
	n := &Table{Epoch: t.Epoch, Replicas: t.Replicas}
	n.PGs, n.From = make([][]sys.NodeID, len(t.PGs)), make([][]sys.NodeID, len(t.PGs))
	for i := range t.PGs {
		n.PGs[i] = slices.Clone(t.PGs[i])
		if i < len(t.From) {
			n.From[i] = slices.Clone(t.From[i])
		}
	}
	return n
}

// Marshal encodes the table, the same bytes for equal tables.
func (t *Table) Marshal() []byte {
	p := &placementpb.Table{Epoch: t.Epoch, Replicas: uint32(t.Replicas), Groups: make([]*placementpb.Group, len(t.PGs))}
	for i := range t.PGs {
		g := &placementpb.Group{}
		for _, id := range t.PGs[i] {
			g.Nodes = append(g.Nodes, uint64(id))
		}
		for _, id := range t.Sources(sys.PG(i)) {
			g.From = append(g.From, uint64(id))
		}
		p.Groups[i] = g
	}
	b := pb.Marshal(p)
	return b
}

// Unmarshal decodes what Marshal made. Anything else is Corrupt.
func Unmarshal(b []byte) (*Table, error) {
	const op = sys.Op("placement.Unmarshal")
	var p placementpb.Table
	if err := pb.Unmarshal(b, &p); err != nil {
		return nil, sys.E(op, sys.Corrupt, err)
	}
	if err := checkSize(len(p.GetGroups()), int(p.GetReplicas())); err != nil {
		return nil, sys.E(op, sys.Corrupt, err)
	}
	t := &Table{Epoch: p.GetEpoch(), Replicas: int(p.GetReplicas())}
	t.PGs, t.From = make([][]sys.NodeID, len(p.GetGroups())), make([][]sys.NodeID, len(p.GetGroups()))
	for i, g := range p.GetGroups() {
		for _, id := range g.GetNodes() {
			if id == 0 || slices.Contains(t.PGs[i], sys.NodeID(id)) {
				return nil, sys.E(op, sys.Corrupt, fmt.Sprintf("group %d names node %d wrongly", i, id))
			}
			t.PGs[i] = append(t.PGs[i], sys.NodeID(id))
		}
		for _, id := range g.GetFrom() {
			t.From[i] = append(t.From[i], sys.NodeID(id))
		}
	}
	return t, nil
}

// checkSize refuses what is no table.
func checkSize(pgs, replicas int) error {
	if pgs < 1 || pgs > MaxPGs || pgs&(pgs-1) != 0 {
		return sys.E(sys.Invalid, fmt.Sprintf("%d placement groups: choose a power of two up to %d", pgs, MaxPGs))
	}
	if replicas < 1 || replicas > MaxReplicas {
		return sys.E(sys.Invalid, fmt.Sprintf("%d replicas: choose 1 to %d", replicas, MaxReplicas))
	}
	return nil
}
