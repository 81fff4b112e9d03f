package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
)

// tokenLife is how long a token is good for when nothing else is asked for.
const tokenLife = time.Hour

func newTokenCommand(a *app) *cobra.Command {
	var life time.Duration
	var zone string
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make a token with which one machine can join the cluster",
		Long: `Make a token with which one machine can join the cluster, once, and print it on
standard output. It is a secret: who has it can become a node.

The token also names the cluster's CA, so the machine that joins speaks to no
other cluster by mistake.`,
		Example: `  koinon node token > token
  koinon node token --expires 10m --zone rack-b
  koinon node token ls`,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAdmin(cmd.Context(), func(ctx context.Context, c *client.Admin) error {
				t, err := c.NewToken(ctx, life, zone)
				if err != nil {
					return err
				}
				return a.printToken(t)
			})
		},
	}
	cmd.Flags().DurationVar(&life, "expires", tokenLife, "how long the token is good for, a `TIME` like 10m or 24h")
	cmd.Flags().StringVar(&zone, "zone", "", "failure domain (`ZONE`) of the machine, unless it gives one itself")
	cmd.AddCommand(newTokenLsCommand(a), newTokenRmCommand(a))
	return cmd
}

// printToken prints the token alone, and beside it what to do with it.
func (a *app) printToken(t *client.NewToken) error {
	if err := a.print(t, func(w io.Writer) { row(w, t.Token) }); err != nil {
		return err
	}
	a.note(`Good for one machine until %s. On that machine:

  koinon serve --join %s --token TOKEN --dir DIR --listen :7400

"koinon node token rm %s" takes it back.`, t.Expires.Format("2006-01-02 15:04:05"), t.Seed, t.ID)
	return nil
}

func newTokenLsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the join tokens and what became of them",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAdmin(cmd.Context(), func(ctx context.Context, c *client.Admin) error {
				tokens, err := c.Tokens(ctx)
				if err != nil {
					return err
				}
				return a.print(tokens, func(w io.Writer) { writeTokens(w, tokens) })
			})
		},
	}
}

func writeTokens(w io.Writer, tokens []client.TokenInfo) {
	row(w, "TOKEN", "STATE", "NODE", "CREATED", "EXPIRES", "CREATOR", "ZONE")
	for _, t := range tokens {
		by := ""
		if t.Node != 0 {
			by = t.Node.String()
		}
		row(w, t.ID, t.State, by, t.Created.Format("2006-01-02 15:04"), t.Expires.Format("2006-01-02 15:04"), t.Creator, t.Zone)
	}
}

func newTokenRmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rm TOKEN...",
		Aliases: []string{"remove"},
		Short:   "Take join tokens back, by the names that ls shows",
		Example: "  koinon node token rm 3f9c",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withAdmin(cmd.Context(), func(ctx context.Context, c *client.Admin) error {
				for _, id := range args {
					if err := c.RemoveToken(ctx, id); err != nil {
						return fmt.Errorf("token %s: %w", id, err)
					}
				}
				return nil
			})
		},
	}
}

// withAdmin runs do with a connection to the chosen cluster that opens no
// session: it needs nothing of the tree.
func (a *app) withAdmin(ctx context.Context, do func(context.Context, *client.Admin) error) (err error) {
	cfg, err := a.clientConfig()
	if err != nil {
		return err
	}
	c, err := client.ConnectAdmin(ctx, cfg, a.logger())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := c.Close(); err == nil {
			err = cerr
		}
	}()
	return do(ctx, c)
}
