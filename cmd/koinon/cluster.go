package main

import (
	"context"
	"errors"

	"github.com/koinon/koinon/internal/client"
)

// withClient runs do with a connection to the chosen cluster.
func (a *app) withClient(ctx context.Context, do func(context.Context, *client.Client) error) error {
	cfg, err := a.clientConfig()
	if err != nil {
		return err
	}
	c, err := client.Connect(ctx, cfg, a.logger())
	if err != nil {
		return err
	}
	// The connection is closed in order even when the user interrupts.
	return errors.Join(do(ctx, c), c.Close(context.WithoutCancel(ctx)))
}

// readStatus asks the nodes of the chosen cluster about themselves.
func (a *app) readStatus(ctx context.Context) (*client.Status, error) {
	cfg, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	return client.ReadStatus(ctx, cfg, a.logger())
}
