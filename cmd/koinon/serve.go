//go:build linux && !client

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/node"
	"github.com/koinon/koinon/internal/sys"
)

// serveFlags are the flags of serve that go over the file's keys.
type serveFlags struct {
	dir, listen, advertise, zone, retention, logLevel, logFile, meta, metrics string
	rejoin                                                                    bool
	blocks                                                                    blocksFlags

	join  []string // seeds of the cluster to join
	token string
}

func newServeCommand(a *app) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve --config FILE | --join HOST:PORT --token TOKEN --dir DIR --listen HOST:PORT",
		Short: "Run one node of a cluster",
		Long: `Run one node of a cluster, in the foreground, until SIGINT or SIGTERM.

The node's TOML file says which cluster it belongs to, which node it is, where
it keeps its data and how the others reach it. Flags go over the file.

With --join this machine becomes a node of a cluster that runs: any of its nodes
lets it in, once, for a token that "koinon node token" made there. What it gets,
it keeps in --dir, with its node.toml; the same command line just starts it from
then on.`,
		Example: `  koinon serve --config /etc/koinon/node.toml
  koinon serve --config node.toml --log-level debug
  koinon serve --join 10.0.0.1:7400 --token @token --dir /var/lib/koinon --listen :7400`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "keep the node's data in `DIR`")
	flags.StringVar(&f.listen, "listen", "", "accept connections on `HOST:PORT`")
	flags.StringVar(&f.advertise, "advertise", "", "the `HOST:PORT` under which the others reach this node")
	flags.StringSliceVar(&f.join, "join", nil, "join the cluster that the node at `HOST:PORT` belongs to")
	flags.StringVar(&f.token, "token", "", "the `TOKEN` to join with; @FILE reads it from a file, - from standard input")
	flags.StringVar(&f.zone, "zone", "", "failure domain (`ZONE`) of this node")
	flags.StringVar(&f.retention, "retention", "", "keep unlinked data for this `TIME`, like 10m")
	flags.StringVar(&f.logLevel, "log-level", "", "log from `LEVEL` on: debug, info, warn or error")
	flags.StringVar(&f.logFile, "log-file", "", "log to `FILE` (rotated) instead of standard error")
	flags.StringVar(&f.metrics, "metrics", "", "answer Prometheus at http://`HOST:PORT`/metrics, not encrypted: an address that only trusted machines reach")
	flags.StringVar(&f.meta, "meta", "", metaUsage)
	f.blocks.add(flags, "")
	flags.BoolVar(&f.rejoin, "rejoin", false, "this node has voted before and lost its data: learn from the others before voting")
	return cmd
}

// metaUsage is the flag --meta of the commands that have it.
const metaUsage = "keep the tree's metadata in the database at `URL`, mysql://user:password@host:port/database; @FILE and env:NAME hide the password"

// blocksFlags are --blocks and what goes with it.
type blocksFlags struct {
	url            string
	acceptVolatile bool
}

func (f *blocksFlags) add(flags *pflag.FlagSet, who string) {
	flags.StringVar(&f.url, "blocks", "", "keep the blocks in Redis at `URL`, redis://:password@host:port/0, redis+cluster://host,host or redis+sentinel://host,host/master; @FILE and env:NAME hide the password"+who)
	flags.BoolVar(&f.acceptVolatile, "accept-volatile-blocks", false, "use a Redis that may silently lose blocks")
}

// in is what the flags say, paths taken from dir.
func (f *blocksFlags) in(dir string) config.Blocks {
	return config.Blocks{URL: engine.Ref(f.url).In(dir), AcceptVolatile: f.acceptVolatile}
}

// serve runs a node until ctx ends.
func (a *app) serve(ctx context.Context, f serveFlags) error {
	path := a.configPath
	joining := len(f.join) > 0 || f.token != ""
	switch {
	case joining && path != "":
		return &usageError{cmd: "koinon serve", err: errors.New("--join makes the configuration that --config names: give one of them")}
	case joining && f.dir == "":
		return &usageError{cmd: "koinon serve", err: errors.New("give --dir DIR, the directory of the node that joins")}
	case !joining && path == "":
		return &usageError{cmd: "koinon serve", err: errors.New("give the node's configuration with --config FILE, or --join HOST:PORT to join a cluster")}
	}
	if joining {
		var err error
		if path, err = a.join(ctx, f); err != nil {
			return err
		}
		f.dir = "" // it holds the configuration, which says where the data is
	}
	a.configPath = "" // what is advised below is for clients
	cfg, err := config.LoadNode(path, f.override)
	if err != nil {
		return err
	}
	if cfg.Proc.Supervisor, err = supervisor(); err != nil {
		return err
	}
	log, closeLog, err := a.fileLogger(cfg.Log)
	if err != nil {
		return err
	}
	servePprof(ctx, log)
	return errors.Join(node.Serve(ctx, cfg, version(), log), closeLog())
}

// join makes the directory that of a node, if it is not yet, and returns its
// configuration's path.
func (a *app) join(ctx context.Context, f serveFlags) (string, error) {
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return "", err
	}
	token, err := a.readToken(f.token)
	if err != nil && !node.HasJoined(dir) { // it is not needed any more then
		return "", err
	}
	here, err := os.Getwd()
	if err != nil {
		return "", err
	}
	meta := engine.Ref(f.meta).In(here)
	log, closeLog, err := a.fileLogger(config.Log{Level: f.logLevel, File: f.logFile})
	if err != nil {
		return "", err
	}
	path, err := node.Join(ctx, node.JoinOptions{Dir: dir, Seeds: f.join, Token: token, Listen: f.listen, Advertise: f.advertise,
		Zone: f.zone, Version: version(), Meta: config.Engine{URL: meta}, Blocks: f.blocks.in(here)}, log)
	return path, errors.Join(err, closeLog())
}

// tokenMax bounds what is read as a token, in bytes.
const tokenMax = 4096

// readToken returns the value of --token.
func (a *app) readToken(value string) (string, error) {
	name, isFile := strings.CutPrefix(value, "@")
	in := a.in
	switch {
	case isFile:
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	case value != "-":
		return value, nil
	}
	text, err := io.ReadAll(io.LimitReader(in, tokenMax))
	if err == nil && len(bytes.TrimSpace(text)) == 0 {
		if !isFile {
			name = "standard input"
		}
		return "", sys.E(sys.Op("koinon serve"), sys.Invalid, sys.Subject(name), "there is no token in it: `koinon node token` prints one on standard output; did that fail?")
	}
	return string(text), err
}

// override puts the flags that were given over the file's keys. Their paths
// count from the working directory.
func (f serveFlags) override(n *config.Node) error {
	for _, s := range []struct {
		to   *string
		from string
		path bool
	}{{&n.Dir, f.dir, true}, {&n.Listen, f.listen, false}, {&n.Zone, f.zone, false}, {&n.Advertise, f.advertise, false}, {&n.Metrics, f.metrics, false},
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
	if f.meta != "" {
		n.Meta.URL = engine.Ref(f.meta)
	}
	if f.blocks.url != "" {
		n.Blocks.URL = engine.Ref(f.blocks.url)
	}
	n.Blocks.AcceptVolatile = n.Blocks.AcceptVolatile || f.blocks.acceptVolatile
	if f.retention == "" {
		return nil
	}
	if err := n.Retention.UnmarshalText([]byte(f.retention)); err != nil {
		return &usageError{cmd: "koinon serve", err: err}
	}
	return nil
}
