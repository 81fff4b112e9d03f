package main

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newRmCommand(t *treeApp) *cobra.Command {
	var recursive, force bool
	cmd := &cobra.Command{
		Use:     "rm [-r] [-f] PATH...",
		Short:   "Remove files and directories",
		Example: "  koinon rm /notes/today\n  koinon rm -r /build",
		Args: func(cmd *cobra.Command, args []string) error {
			if force {
				return nil
			}
			return arguments(1, -1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				return t.each(ctx, args, func(arg string) error {
					p := treePath(arg)
					err := remove(ctx, c, p, recursive)
					if force && errors.Is(err, fs.ErrNotExist) {
						return nil
					}
					return treeError("remove", p, err)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "directories with everything below them")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "be content when there is nothing")
	return cmd
}

func remove(ctx context.Context, c *koinon.Client, p string, recursive bool) error {
	if base := path.Base(p); base == "/" || base == "." || base == ".." {
		return errors.New("the root of the tree stays, and so do . and ..: name what is in them")
	}
	info, err := c.Lstat(ctx, p)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return c.Remove(ctx, p)
	case !recursive:
		return errors.New("is a directory: give -r to remove it with everything below it")
	}
	return c.RemoveAll(ctx, p)
}
