package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newMvCommand(t *treeApp) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "mv [-n] SOURCE... TARGET",
		Short: "Rename, or move into a directory",
		Long: `Rename a file or directory of the tree, or move several into a directory. Each
takes effect in one step. To move between this machine and the tree, use cp.`,
		Example: "  koinon mv /draft /final\n  koinon mv /a /b /archive",
		Args:    arguments(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				return t.move(ctx, c, args[:len(args)-1], treePath(args[len(args)-1]), keep)
			})
		},
	}
	cmd.Flags().BoolVarP(&keep, "no-clobber", "n", false, "fail rather than replace what is there")
	return cmd
}

func (t *treeApp) move(ctx context.Context, c *koinon.Client, from []string, to string, keep bool) error {
	info, err := c.Stat(ctx, to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return treeError("move to", to, err)
	}
	isDir := err == nil && info.IsDir()
	if !isDir && (len(from) > 1 || strings.HasSuffix(to, "/") && err == nil) {
		return fmt.Errorf("cannot move to %s: not a directory: make one with `koinon mkdir %s`, or choose another", shown(to), quoted(to))
	}
	rename := c.Rename
	if keep {
		rename = c.RenameNew
	}
	return t.each(ctx, from, func(arg string) error {
		src, dst := treePath(arg), to
		if isDir {
			dst = inDir(to, src)
		}
		err := rename(ctx, src, dst)
		hints := []hint{
			{syscall.ENOTEMPTY, "remove it first, or choose another name"},
		}
		if _, lerr := c.Lstat(ctx, src); lerr == nil {
			hints = append(hints, hint{fs.ErrNotExist, "make the directory with `koinon mkdir -p " + quoted(path.Dir(dst)) + "`"})
		}
		return treeError("move", shown(src)+" to "+shown(dst), err, hints...)
	})
}
