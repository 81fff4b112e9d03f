package node

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
)

// Status is a cluster as its nodes tell of themselves.
type Status struct {
	Cluster string       `json:"cluster"`
	Leader  sys.NodeID   `json:"leader"` // 0 when there is none
	Nodes   []NodeStatus `json:"nodes"`
}

// NodeStatus is one node. Only ID, Addr, State and Trouble are set of a node
// that does not answer.
type NodeStatus struct {
	ID         sys.NodeID `json:"id"`
	Addr       string     `json:"addr"`
	Role       string     `json:"role"`
	State      string     `json:"state"` // up, down
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
}

// statusTimeout is how long a node may take to tell of itself.
const statusTimeout = 1500 * time.Millisecond

// ReadStatus asks all configured nodes at once. It needs no majority; a node
// that does not answer is down.
func ReadStatus(ctx context.Context, cfg *config.Client, log *slog.Logger) (*Status, error) {
	creds, err := auth.LoadCredentials(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		return nil, err
	}
	cc := cluster.New(cluster.Config{Cluster: cfg.Cluster, Seeds: cfg.Nodes, TLS: creds.ClientTLS(), Logger: log})
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
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	addrs := cc.Addrs()
	out := &Status{Cluster: name, Nodes: make([]NodeStatus, len(addrs))}
	replies := make([]*clusterpb.StatusReply, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			r, err := cc.NodeStatus(ctx, addr)
			if err != nil {
				out.Nodes[i] = NodeStatus{ID: cc.IDOf(addr), Addr: addr, State: "down", Trouble: err.Error()}
				return
			}
			replies[i] = r
			out.Nodes[i] = nodeStatus(addr, r)
		})
	}
	wg.Wait()
	summarize(out, replies)
	return out, nil
}

func nodeStatus(addr string, r *clusterpb.StatusReply) NodeStatus {
	return NodeStatus{
		ID: sys.NodeID(r.Node), Addr: addr, Role: r.Role, State: "up", Version: r.Version, Round: r.BallotRound,
		Chosen: r.Chosen, Applied: r.Applied, Truncated: r.Truncated, Blocks: r.Blocks, BytesUsed: r.BytesUsed,
		BytesFree: r.BytesFree, Resident: r.ResidentBytes, Healing: r.Healing, Trouble: r.Trouble,
		UptimeSecs: time.Since(time.Unix(0, r.StartedNs)).Round(time.Second).Seconds(),
	}
}

// summarize finds the leader, by the highest round that any node knows, and
// how far each node is behind.
func summarize(s *Status, replies []*clusterpb.StatusReply) {
	var round, chosen uint64
	for _, r := range replies {
		if r == nil {
			continue
		}
		chosen = max(chosen, r.Chosen)
		if r.Role == "leader" && r.BallotRound >= round {
			round, s.Leader = r.BallotRound, sys.NodeID(r.Node)
		}
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.State == "up" {
			n.Lag = chosen - min(n.Applied, chosen)
		}
		if n.Role == "leader" && n.ID != s.Leader {
			n.Role = "follower" // it has not heard of its successor yet
		}
	}
	slices.SortFunc(s.Nodes, func(a, b NodeStatus) int { return int(a.ID) - int(b.ID) })
}
