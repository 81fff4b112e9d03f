package main

import (
	"context"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newMkdirCommand(t *treeApp) *cobra.Command {
	var parents bool
	cmd := &cobra.Command{
		Use:     "mkdir [-p] PATH...",
		Short:   "Make directories",
		Example: "  koinon mkdir -p /photos/2026/summer",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			perm := 0o777 &^ umask()
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				return t.each(ctx, args, func(arg string) error {
					p := treePath(arg)
					if parents {
						return treeError("make directory", p, c.MkdirAll(ctx, p, perm))
					}
					return treeError("make directory", p, c.Mkdir(ctx, p, perm),
						hint{fs.ErrNotExist, "give -p to make the directories above it too"})
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&parents, "parents", "p", false, "make those above it too, and be content when it is there")
	return cmd
}
