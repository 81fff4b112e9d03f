package cluster

import (
	"fmt"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

var mapKey = []byte("map")

// Machine is the cluster's namespace of the replicated state: the row of the
// map, and one for each token.
type Machine struct{}

var _ rsm.Machine = Machine{}

// Apply runs a clusterpb.Command. The result is a clusterpb.Result; the local
// one is the new *clusterpb.Map when it changed, else nil.
func (Machine) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) ([]byte, any) {
	var cmd clusterpb.Command
	if err := pb.Unmarshal(body, &cmd); err != nil {
		panic(fmt.Sprintf("cluster: expected a command in the log, found %v", err))
	}
	a := apply{tx: tx, now: st.TimeNs, m: &clusterpb.Map{}}
	a.load(mapKey, a.m)
	res := &clusterpb.Result{Epoch: a.m.Epoch}
	res.Refusal = a.run(&cmd, res)
	res.Done = res.Refusal == clusterpb.Refusal_NONE
	if !a.changed {
		return pb.Marshal(res), nil
	}
	a.m.Epoch = res.Epoch + 1
	res.Epoch = a.m.Epoch
	tx.Set(mapKey, pb.Marshal(a.m))
	return pb.Marshal(res), a.m
}

// ReadMap returns the map in the state, nil when the cluster has none yet.
func ReadMap(r rsm.Reader) (*clusterpb.Map, error) {
	raw, err := r.Get(mapKey)
	if err != nil || raw == nil {
		return nil, err
	}
	m := &clusterpb.Map{}
	if err := pb.Unmarshal(raw, m); err != nil {
		return nil, sys.E(sys.Op("cluster.ReadMap"), sys.Corrupt, err)
	}
	m.NextId = nextID(m)
	return m, nil
}

// First builds the map of a new cluster: the members and a placement of pgs
// groups on replicas of them.
func First(cluster string, members []*clusterpb.Member, pgs, replicas int) (*clusterpb.Map, error) {
	table, err := placement.Assign(placementNodes(members), pgs, replicas)
	if err != nil {
		return nil, err
	}
	m := &clusterpb.Map{Cluster: cluster, Members: members, Table: table.Marshal()}
	m.NextId = nextID(m)
	return m, nil
}

// FirstElsewhere is First for a cluster whose blocks an engine from outside
// keeps, at a URL without secrets: no node holds a placement group.
func FirstElsewhere(cluster string, members []*clusterpb.Member, pgs int, url string) *clusterpb.Map {
	table := placement.Table{Epoch: 1, Replicas: 1, PGs: make([][]sys.NodeID, pgs)}
	m := &clusterpb.Map{Cluster: cluster, Members: members, Table: table.Marshal(), Blocks: &clusterpb.BlockStore{Url: url}}
	m.NextId = nextID(m)
	return m
}

func placementNodes(members []*clusterpb.Member) []placement.Node {
	nodes := make([]placement.Node, 0, len(members))
	for _, m := range members {
		nodes = append(nodes, placement.Node{ID: sys.NodeID(m.Id), Zone: m.Zone, Weight: uint32(min(max(m.Weight, 1), placement.MaxWeight))})
	}
	return nodes
}
