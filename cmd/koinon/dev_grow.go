//go:build linux && !client

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/devcluster"
	"github.com/koinon/koinon/internal/node"
	"github.com/koinon/koinon/internal/sys"
)

func newDevAddCommand(d *devCommand) *cobra.Command {
	return &cobra.Command{
		Use:   "add",
		Short: "Let one more node join the running cluster",
		Long: `Let one more node join the running cluster, as a machine joins with a token
("koinon node token", "koinon serve --join"). It gets its share of the blocks,
and a vote when that helps.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := d.change()
			if err != nil {
				return err
			}
			return d.devAdmin(cmd.Context(), c, func(ctx context.Context, cfg *config.Client, a *client.Admin) error {
				_, err := c.Add(ctx, func(ctx context.Context, dir, listen string) error {
					o := node.JoinOptions{Dir: dir, Seeds: cfg.Nodes, Listen: listen, Version: version(), CAKey: devcluster.CAKey, Meta: c.Meta(), Blocks: c.Blocks()}
					return d.join(ctx, a, o)
				})
				return err
			})
		},
	}
}

// join makes a token and uses it up. One that was not used is taken back.
func (d *devCommand) join(ctx context.Context, a *client.Admin, o node.JoinOptions) error {
	if node.HasJoined(o.Dir) {
		_, err := node.Join(ctx, o, d.logger())
		return err
	}
	t, err := a.NewToken(ctx, 10*time.Minute, "")
	if err != nil {
		return err
	}
	o.Token = t.Token
	if _, err = node.Join(ctx, o, d.logger()); err == nil {
		return nil
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second) // also after Ctrl-C
	defer cancel()
	if rmErr := a.RemoveToken(back, t.ID); rmErr != nil && !sys.Is(rmErr, sys.NotExist) {
		return errors.Join(err, rmErr)
	}
	return err
}

func newDevRmCommand(d *devCommand) *cobra.Command {
	return &cobra.Command{
		Use:   "rm N",
		Short: "Take a node out of the cluster, for ever",
		Long: `Take a node out of the cluster, for ever, as "koinon node rm" does: others vote in
its place and copy what it holds. Then its directory is deleted.`,
		Example: "  koinon dev rm 4",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ns, err := numbers(args)
			if err != nil {
				return err
			}
			c, err := d.change()
			if err != nil {
				return err
			}
			if !slices.Contains(c.Numbers(), ns[0]) {
				return &usageError{cmd: "koinon dev rm", err: fmt.Errorf("there is no node %d: the cluster has %v", ns[0], c.Numbers())}
			}
			return d.devAdmin(cmd.Context(), c, func(ctx context.Context, _ *config.Client, a *client.Admin) error {
				if err := a.Remove(ctx, sys.NodeID(ns[0]), d.removalProgress(sys.NodeID(ns[0]))); sys.Is(err, sys.Interrupted) {
					return fmt.Errorf("%w; the same command again takes its directory away", err)
				} else if err != nil {
					return err
				}
				return c.Remove(ctx, ns[0])
			})
		},
	}
}

// devAdmin runs fn with a connection to the dev cluster.
func (d *devCommand) devAdmin(ctx context.Context, c *devcluster.Cluster, fn func(context.Context, *config.Client, *client.Admin) error) (err error) {
	cfg, err := config.LoadClient(c.ClientConfig())
	if err != nil {
		return err
	}
	a, err := client.ConnectAdmin(ctx, cfg, d.logger())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := a.Close(); err == nil {
			err = cerr
		}
	}()
	return fn(ctx, cfg, a)
}
