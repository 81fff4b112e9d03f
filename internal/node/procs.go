package node

import (
	"context"
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

// ConnectProcs reaches the cluster through any of the configured nodes. Close
// ends the connection.
func ConnectProcs(ctx context.Context, cfg *config.Client, log *slog.Logger) (*Procs, error) {
	cc, err := dial(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	return &Procs{Client: proc.NewClient(cc), cluster: cc}, nil
}

// Close ends the connections.
func (p *Procs) Close() error { return p.cluster.Close() }
