//go:build linux && !client

package main

import (
	"context"
	"log/slog"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/devcluster"
	"github.com/koinon/koinon/internal/logfile"
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

// statusProber tells devcluster what the nodes say of themselves.
type statusProber struct{ cfg *config.Client }

var _ devcluster.Prober = statusProber{}

func connectProber(_ context.Context, cfg *config.Client) (devcluster.Prober, error) {
	return statusProber{cfg}, nil
}

// Answers implements devcluster.Prober.
func (p statusProber) Answers(ctx context.Context) (map[sys.NodeID]devcluster.Answer, error) {
	// What does not answer is shown as such; there is nothing to log.
	s, err := client.ReadStatus(ctx, p.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	answers := make(map[sys.NodeID]devcluster.Answer, len(s.Nodes))
	for _, n := range s.Nodes {
		if n.State != "up" {
			continue
		}
		a := devcluster.Answer{Role: devcluster.RoleFollower, Trouble: n.Trouble}
		switch {
		case n.ID == s.Leader:
			a.Role = devcluster.RoleLeader
		case n.Role == string(devcluster.RoleLearner):
			a.Role = devcluster.RoleLearner
		}
		answers[n.ID] = a
	}
	return answers, nil
}

// Close implements devcluster.Prober.
func (p statusProber) Close() error { return nil }
