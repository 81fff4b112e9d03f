package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newCatCommand(t *treeApp) *cobra.Command {
	return &cobra.Command{
		Use:     "cat PATH...",
		Short:   "Write files to standard output",
		Example: "  koinon cat /notes/today",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				return t.each(ctx, args, func(arg string) error {
					p := treePath(arg)
					return treeError("read", p, t.cat(ctx, c, p), hint{isDirError, "list it with `koinon ls " + quoted(p) + "`"})
				})
			})
		},
	}
}

func (t *treeApp) cat(ctx context.Context, c *koinon.Client, p string) error {
	f, err := c.Open(ctx, p)
	if err != nil {
		return err
	}
	_, err = f.WriteTo(t.out)
	return errors.Join(err, f.Close())
}
