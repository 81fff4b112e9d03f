//go:build linux

package main

import (
	"context"
	"log/slog"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/devcluster"
	"github.com/koinon/koinon/internal/logfile"
	"github.com/koinon/koinon/internal/node"
	"github.com/koinon/koinon/internal/sys"
)

// fileLogger logs as a configuration says: to a rotated file, else to
// standard error. The file, if any, is closed by the function returned.
func (a *app) fileLogger(cfg config.Log) (*slog.Logger, func() error, error) {
	opts := &slog.HandlerOptions{Level: cfg.SlogLevel()}
	if cfg.File == "" {
		return slog.New(slog.NewTextHandler(a.err, opts)), func() error { return nil }, nil
	}
	f, err := logfile.Open(cfg.File, logfile.DefaultMax)
	if err != nil {
		return nil, nil, err
	}
	return slog.New(slog.NewTextHandler(f, opts)), f.Close, nil
}

// statusProber tells devcluster the roles of the nodes.
type statusProber struct{ cfg *config.Client }

var _ devcluster.Prober = statusProber{}

func connectProber(_ context.Context, cfg *config.Client) (devcluster.Prober, error) {
	return statusProber{cfg}, nil
}

// Roles implements devcluster.Prober.
func (p statusProber) Roles(ctx context.Context) (map[sys.NodeID]devcluster.Role, error) {
	// What does not answer is shown as such; there is nothing to log.
	s, err := node.ReadStatus(ctx, p.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	roles := make(map[sys.NodeID]devcluster.Role, len(s.Nodes))
	for _, n := range s.Nodes {
		switch {
		case n.State != "up":
		case n.ID == s.Leader:
			roles[n.ID] = devcluster.RoleLeader
		case n.Role == string(devcluster.RoleLearner):
			roles[n.ID] = devcluster.RoleLearner
		default:
			roles[n.ID] = devcluster.RoleFollower
		}
	}
	return roles, nil
}

// Close implements devcluster.Prober.
func (p statusProber) Close() error { return nil }
