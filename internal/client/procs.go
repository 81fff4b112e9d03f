package client

import (
	"log/slog"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/proc"
)

// Procs is a connection to a cluster for its process table alone. It has no
// session.
type Procs struct {
	*proc.Client
	cluster *cluster.Client
}

// ConnectProcs begins to reach the cluster, through any of the configured nodes:
// the first request tells whether it can be reached. Close ends the connection.
func ConnectProcs(cfg *config.Client, log *slog.Logger) (*Procs, error) {
	c, err := clusterConfig(cfg, log)
	if err != nil {
		return nil, err
	}
	cc, err := cluster.Reach(c)
	if err != nil {
		return nil, err
	}
	return &Procs{Client: proc.NewClient(cc), cluster: cc}, nil
}

// Close ends the connections.
func (p *Procs) Close() error { return p.cluster.Close() }
