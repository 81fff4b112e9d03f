package koinon

import (
	"context"
	"log/slog"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
)

// Options say which cluster to open and how.
type Options struct {
	// Config is the TOML file of the cluster's client; empty means the file
	// that KOINON_CONFIG names, else the user's current one.
	Config string
	// Logger gets what the client does in the background; default
	// slog.Default.
	Logger *slog.Logger
}

// load reads the configuration. The Options that it returns name the file, and
// have a logger.
func (o Options) load() (*config.Client, Options, error) {
	file, err := config.ClientPath(o.Config)
	if err != nil {
		return nil, o, err
	}
	o.Config = file
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	cfg, err := config.LoadClient(file)
	return cfg, o, err
}

// Open reaches the cluster through any of its nodes and opens a session.
// Close ends it.
func Open(ctx context.Context, opt Options) (*Client, error) {
	cfg, opt, err := opt.load()
	if err != nil {
		return nil, err
	}
	conn, err := client.Connect(ctx, cfg, opt.Logger)
	if err != nil {
		return nil, err
	}
	c := New(conn.FS())
	c.close, c.locate = conn.Close, conn.Locate
	return c, nil
}
