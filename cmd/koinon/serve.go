//go:build linux

package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/node"
)

// serveFlags are the flags of serve that go over the file's keys.
type serveFlags struct {
	dir, listen, zone, retention, logLevel, logFile string
	rejoin                                          bool
}

func newServeCommand(a *app) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run one node of a cluster",
		Long: `Run one node of a cluster, in the foreground, until SIGINT or SIGTERM.

The node's TOML file says which cluster it belongs to, which node it is, where
it keeps its data and how the others reach it. Flags go over the file.`,
		Example: `  koinon serve --config /etc/koinon/node.toml
  koinon serve --config node.toml --log-level debug`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "keep the node's data in `DIR`")
	flags.StringVar(&f.listen, "listen", "", "accept connections on `HOST:PORT`")
	flags.StringVar(&f.zone, "zone", "", "failure domain of this node")
	flags.StringVar(&f.retention, "retention", "", "keep unlinked data for this `TIME`, like 10m")
	flags.StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error")
	flags.StringVar(&f.logFile, "log-file", "", "log to `FILE` (rotated) instead of standard error")
	flags.BoolVar(&f.rejoin, "rejoin", false, "this node has voted before and lost its data: learn from the others before voting")
	return cmd
}

// serve runs a node until ctx ends.
func (a *app) serve(ctx context.Context, f serveFlags) error {
	if a.configPath == "" {
		return &usageError{cmd: "koinon serve", err: errors.New("give the node's configuration with --config FILE")}
	}
	path := a.configPath
	a.configPath = "" // what is advised below is for clients
	cfg, err := config.LoadNode(path, f.override)
	if err != nil {
		return err
	}
	log, closeLog, err := a.fileLogger(cfg.Log)
	if err != nil {
		return err
	}
	servePprof(ctx, log)
	return errors.Join(node.Serve(ctx, cfg, version(), log), closeLog())
}

// override puts the flags that were given over the file's keys. Their paths
// count from the working directory.
func (f serveFlags) override(n *config.Node) error {
	for _, s := range []struct {
		to   *string
		from string
		path bool
	}{{&n.Dir, f.dir, true}, {&n.Listen, f.listen, false}, {&n.Zone, f.zone, false},
		{&n.Log.Level, f.logLevel, false}, {&n.Log.File, f.logFile, true}} {
		if s.from == "" {
			continue
		}
		*s.to = s.from
		if s.path {
			abs, err := filepath.Abs(s.from)
			if err != nil {
				return err
			}
			*s.to = abs
		}
	}
	if host, _, err := net.SplitHostPort(f.listen); err == nil && host != "" && !net.ParseIP(host).IsUnspecified() {
		// Who listens there is reached there. It tells the cluster.
		for i := range n.Voters {
			if n.Voters[i].ID == n.ID {
				n.Voters[i].Addr, n.Advertise = f.listen, ""
			}
		}
	}
	n.Rejoin = n.Rejoin || f.rejoin
	if f.retention == "" {
		return nil
	}
	if err := n.Retention.UnmarshalText([]byte(f.retention)); err != nil {
		return &usageError{cmd: "koinon serve", err: err}
	}
	return nil
}
