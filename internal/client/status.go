package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
)

// Status is a cluster as its nodes tell of themselves.
type Status struct {
	Cluster string     `json:"cluster"`
	Leader  sys.NodeID `json:"leader"` // 0 when there is none
	// Majority says that there is a leader and most voters are up, so that
	// writes go on.
	Majority bool `json:"majority"`
	// Meta says where the metadata is; empty when it is in the log.
	Meta string `json:"meta_store,omitempty"`
	// Blocks says where the blocks are and what that promises; empty when the
	// nodes keep them.
	Blocks string       `json:"block_store,omitempty"`
	Nodes  []NodeStatus `json:"nodes"`
}

// NodeStatus is one node. Only ID, Addr, State and Trouble are set of a node
// that does not answer, and ID only when another one knows it.
type NodeStatus struct {
	ID         sys.NodeID `json:"id"`
	Addr       string     `json:"addr"`
	Role       string     `json:"role"`
	State      string     `json:"state"`             // up, down
	Member     string     `json:"member,omitempty"`  // up, joining, draining; empty while the map is not known
	Drained    bool       `json:"drained,omitempty"` // it starts no more processes, see koinon node drain
	Joined     *time.Time `json:"joined,omitempty"`  // since when it is a member, where that is known
	Version    string     `json:"version,omitempty"`
	Round      uint64     `json:"round"`
	Chosen     uint64     `json:"chosen"`
	Applied    uint64     `json:"applied"`
	Truncated  uint64     `json:"truncated"`
	Lag        uint64     `json:"lag"` // slots behind the most that any node has chosen
	Blocks     uint64     `json:"blocks"`
	BytesUsed  uint64     `json:"bytes_used"`
	BytesFree  uint64     `json:"bytes_free"`
	Resident   uint64     `json:"bytes_resident"`
	Healing    string     `json:"healing,omitempty"`
	Trouble    string     `json:"trouble,omitempty"`
	UptimeSecs float64    `json:"uptime_seconds"`

	// Voter says that it is one of those who choose the log.
	Voter bool `json:"voter"`
	// Signs says that it has the key of the cluster's CA, so that it signs the
	// certificates of new nodes.
	Signs bool `json:"signs"`

	// Log is how busy its log is; nil when the node is down or too old to tell.
	Log *LogStatus `json:"log,omitempty"`
	// BlockStore says where the blocks are and what that promises; empty when
	// the nodes keep them.
	BlockStore string `json:"block_store,omitempty"`
	// MetaStore says where the metadata is; empty when it is in the log.
	MetaStore string `json:"meta_store,omitempty"`

	voters []uint64 // that it knows
	epoch  uint64   // of the map that it knows
}

// LogStatus is what to look at when the log is slow. Counters, and the spreads,
// are since the node's process started; times are in seconds.
type LogStatus struct {
	Proposals     uint64           `json:"proposals"`        // commands taken from callers
	Entries       uint64           `json:"entries"`          // that carried them
	Syncs         uint64           `json:"syncs"`            // writes of the log, each with one fdatasync
	Bytes         uint64           `json:"bytes"`            // written to it
	Batch         SpreadStatus     `json:"batch_commands"`   // commands in an entry
	SyncTime      SpreadStatus     `json:"sync_seconds"`     // a write of the log with its sync
	Lease         float64          `json:"lease_seconds"`    // left; above 0 on the leader only
	QueueCommands uint64           `json:"queue_commands"`   // that wait to be proposed
	QueueBytes    uint64           `json:"queue_bytes"`      //
	InFlight      uint64           `json:"in_flight"`        // entries proposed and not applied
	Applies       uint64           `json:"applies"`          // commands
	Deduped       uint64           `json:"deduplicated"`     // commands that had been applied before
	Reads         uint64           `json:"reads"`            // linearizable ones
	ReadIndexes   uint64           `json:"read_indexes"`     // of these, how many needed a round
	Elections     uint64           `json:"elections"`        // changes of leader seen
	Dropped       uint64           `json:"dropped_messages"` // that came faster than they were handled
	Snapshots     uint64           `json:"snapshots_sent"`
	Installs      uint64           `json:"snapshots_received"`
	Sessions      uint64           `json:"sessions"`
	Followers     []FollowerStatus `json:"followers,omitempty"` // as the leader sees them
}

// SpreadStatus sums up many numbers. The quantiles are at most a quarter above
// the true ones.
type SpreadStatus struct {
	Count uint64  `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// FollowerStatus is a member as the leader sees it.
type FollowerStatus struct {
	ID        sys.NodeID `json:"id"`
	Lag       uint64     `json:"lag"`               // chosen slots that it may lack
	Reachable bool       `json:"reachable"`         // it has answered within an election timeout
	Snapshot  bool       `json:"snapshot"`          // one is on its way to it
	LastSeen  float64    `json:"last_seen_seconds"` // ago; negative when never
}

// StatusTimeout is how long a node may take to tell of itself.
const StatusTimeout = 1500 * time.Millisecond

// ReadStatus asks all configured nodes at once. It needs no majority; a node
// that does not answer is down.
func ReadStatus(ctx context.Context, cfg *config.Client, log *slog.Logger) (*Status, error) {
	c, err := clusterConfig(cfg, log)
	if err != nil {
		return nil, err
	}
	c.Seeds, c.Led = cfg.Nodes, nil // in the user's order, and who leads is not what it is about
	cc := cluster.New(c)
	defer func() {
		if err := cc.Close(); err != nil {
			log.Debug("closing connections", "err", err)
		}
	}()
	return readStatus(ctx, cc, cfg.Cluster)
}

// Status asks every member of the map.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return readStatus(ctx, c.cluster, c.cluster.Map().GetCluster())
}

func readStatus(ctx context.Context, cc *cluster.Client, name string) (*Status, error) {
	a := asked{cc: cc, nodes: map[string]*NodeStatus{}}
	a.ask(ctx, cc.Addrs())
	if cc.Map() != nil { // it may name nodes that the configuration does not
		a.ask(ctx, slices.DeleteFunc(cc.Addrs(), func(addr string) bool { return a.nodes[addr] != nil }))
	}
	a.renew(ctx)
	out := &Status{Cluster: name}
	for _, addr := range cc.Addrs() { // members first
		n := a.nodes[addr]
		if n == nil || n.left(cc.Map()) {
			continue // of a map that came meanwhile, or no member any more
		}
		if n.ID == 0 {
			n.ID = cc.IDOf(addr)
		}
		known := slices.ContainsFunc(out.Nodes, func(o NodeStatus) bool { return o.ID != 0 && o.ID == n.ID })
		if known || n.ID == 0 && cc.Map() != nil {
			continue // another address of a member, or one where a member was
		}
		n.describe(cc.Map())
		out.Nodes = append(out.Nodes, *n)
	}
	summarize(out)
	return out, nil
}

// asked collects what nodes answer.
type asked struct {
	cc    *cluster.Client
	nodes map[string]*NodeStatus // by address
}

// ask asks all at once, and also for the map where that is not known.
func (a *asked) ask(ctx context.Context, addrs []string) {
	ctx, cancel := context.WithTimeout(ctx, StatusTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, addr := range addrs {
		n := &NodeStatus{}
		a.nodes[addr] = n
		wg.Go(func() {
			r, err := a.cc.NodeStatus(ctx, addr)
			if err != nil {
				*n = NodeStatus{Addr: addr, State: "down", Trouble: reason(err)}
				return
			}
			*n = nodeStatus(addr, r)
			if a.cc.Map() == nil {
				_ = a.cc.Learn(ctx, addr) // a cluster that has not come up yet has none
			}
		})
	}
	wg.Wait()
}

// renew learns the newest map that any of the nodes has: one that was removed and is started again has an older one, in which it is
// a member.
func (a *asked) renew(ctx context.Context) {
	newest, epoch := "", a.cc.Map().GetEpoch()
	for addr, n := range a.nodes {
		if n.epoch > epoch {
			newest, epoch = addr, n.epoch
		}
	}
	if newest == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, StatusTimeout)
	defer cancel()
	_ = a.cc.Learn(ctx, newest) // then the older one has to do
}

// left says that a node which has answered is no member of the map.
func (n *NodeStatus) left(m *clusterpb.Map) bool {
	return n.State == "up" && n.ID != 0 && m != nil &&
		!slices.ContainsFunc(m.GetMembers(), func(x *clusterpb.Member) bool { return sys.NodeID(x.Id) == n.ID })
}

// reason says in few words why a node did not answer.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return "it does not answer: " + errno.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("it does not answer within %v", StatusTimeout)
	}
	return err.Error()
}

func nodeStatus(addr string, r *clusterpb.StatusReply) NodeStatus {
	return NodeStatus{
		ID: sys.NodeID(r.Node), Addr: addr, Role: r.Role, State: "up", Version: r.Version, Round: r.BallotRound,
		Chosen: r.Chosen, Applied: r.Applied, Truncated: r.Truncated, Blocks: r.Blocks, BytesUsed: r.BytesUsed,
		BytesFree: r.BytesFree, Resident: r.ResidentBytes, Healing: r.Healing, Trouble: r.Trouble,
		UptimeSecs: time.Since(time.Unix(0, r.StartedNs)).Round(time.Second).Seconds(),
		Signs:      r.CaKey, Drained: r.NoProcesses,
		Log:    logStatus(r),
		voters: r.Voters, epoch: r.Epoch, BlockStore: r.BlockStore, MetaStore: r.MetaStore,
	}
}

func logStatus(r *clusterpb.StatusReply) *LogStatus {
	l := r.Load
	if l == nil {
		return nil
	}
	s := &LogStatus{
		Proposals: r.Proposals, Entries: r.Entries, Syncs: r.Syncs, Bytes: r.LogBytes, Batch: spreadStatus(l.Batch, 1), SyncTime: spreadStatus(l.SyncNs, 1e-9),
		Lease: time.Duration(l.LeaseNs).Seconds(), QueueCommands: l.QueueCommands, QueueBytes: l.QueueBytes, InFlight: l.InFlight,
		Applies: l.Applies, Deduped: l.Deduped, Reads: l.Reads, ReadIndexes: l.ReadIndexes, Elections: l.Elections, Dropped: l.Dropped,
		Snapshots: l.Snapshots, Installs: l.Installs, Sessions: l.Sessions,
	}
	for _, p := range r.Lags {
		s.Followers = append(s.Followers, FollowerStatus{ID: sys.NodeID(p.Node), Lag: p.Slots, Reachable: p.Reachable,
			Snapshot: p.Snapshot, LastSeen: time.Duration(p.LastSeenNs).Seconds()})
	}
	return s
}

// spreadStatus counts in units of so much.
func spreadStatus(s *clusterpb.Spread, unit float64) SpreadStatus {
	return SpreadStatus{Count: s.GetCount(), Mean: s.GetMean() * unit, P50: float64(s.GetP50()) * unit, P99: float64(s.GetP99()) * unit, Max: float64(s.GetMax()) * unit}
}

// describe adds what the map says of a node.
func (n *NodeStatus) describe(m *clusterpb.Map) {
	for _, x := range m.GetMembers() {
		if sys.NodeID(x.Id) != n.ID {
			continue
		}
		n.Member = strings.ToLower(x.State.String())
		if x.JoinedNs != 0 {
			at := time.Unix(0, x.JoinedNs)
			n.Joined = &at
		}
	}
}

// summarize finds the leader, by the highest round that any node knows, how far
// each node is behind, and whether a majority can agree.
func summarize(s *Status) {
	var round, chosen uint64
	up := map[uint64]bool{}
	voters := make([]uint64, len(s.Nodes)) // all, where nobody knows
	for _, n := range s.Nodes {
		if n.State != "up" {
			continue
		}
		up[uint64(n.ID)] = true
		s.Meta, s.Blocks = cmp.Or(s.Meta, n.MetaStore), cmp.Or(s.Blocks, n.BlockStore)
		if len(n.voters) > 0 && n.Chosen >= chosen {
			voters = n.voters
		}
		chosen = max(chosen, n.Chosen)
		if n.Role == "leader" && n.Round >= round {
			round, s.Leader = n.Round, n.ID
		}
	}
	answer := 0
	for _, id := range voters {
		if up[id] {
			answer++
		}
	}
	s.Majority = s.Leader != 0 && answer > len(voters)/2
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Voter = slices.Contains(voters, uint64(n.ID)) && n.ID != 0
		if n.State == "up" {
			n.Lag = chosen - min(n.Applied, chosen)
		}
		if n.Healing != "" && !s.Majority { // the others that could tell are not there
			n.Healing = "whether it lacks blocks cannot be known before a majority of the nodes is up"
		}
		if n.Role == "leader" && n.ID != s.Leader {
			n.Role = "follower" // it has not heard of its successor yet
		}
	}
	slices.SortFunc(s.Nodes, func(a, b NodeStatus) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Addr, b.Addr))
	})
}
