package koinon

import (
	"context"
	"log/slog"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/node"
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

// Open reaches the cluster through any of its nodes and opens a session.
// Close ends it.
func Open(ctx context.Context, opt Options) (*Client, error) {
	file, err := config.ClientPath(opt.Config)
	if err != nil {
		return nil, err
	}
	cfg, err := config.LoadClient(file)
	if err != nil {
		return nil, err
	}
	log := opt.Logger
	if log == nil {
		log = slog.Default()
	}
	conn, err := node.Connect(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	c := New(conn.FS())
	c.close, c.locate = conn.Close, conn.Locate
	return c, nil
}
