package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newStatCommand(t *treeApp) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:     "stat PATH...",
		Short:   "Show everything about files but their bytes",
		Example: "  koinon stat /notes/today\n  koinon stat -o json /notes",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				return t.stat(ctx, c, args, follow)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "dereference", "L", false, "follow symbolic links")
	return cmd
}

func (t *treeApp) stat(ctx context.Context, c *koinon.Client, args []string, follow bool) error {
	look := c.Lstat
	if follow {
		look = c.Stat
	}
	entries := []treeEntry{}
	err := t.each(ctx, args, func(arg string) error {
		p := treePath(arg)
		info, err := look(ctx, p)
		if err != nil {
			return treeError("stat", p, err)
		}
		entries = append(entries, newTreeEntry(p, info))
		if !t.json() {
			writeStat(t.out, p, info)
		}
		return nil
	})
	if t.json() {
		if perr := t.print(entries, nil); perr != nil {
			return perr
		}
	}
	return err
}

func writeStat(w io.Writer, p string, i *koinon.Info) {
	name := shown(p)
	if i.Target() != "" {
		name += " -> " + shown(i.Target())
	}
	stamp := func(t time.Time) string { return t.Format("2006-01-02 15:04:05.000000000 -0700") }
	fmt.Fprintf(w, "  File: %s\n", name)
	fmt.Fprintf(w, "  Size: %-15d %s\n", i.Size(), typeName(i.Mode()))
	fmt.Fprintf(w, " Inode: %-15d Links: %d   Version: %d\n", i.Ino(), i.Links(), i.Version())
	fmt.Fprintf(w, "  Mode: %04o/%-10s Uid: %d   Gid: %d\n", unixMode(i.Mode()), modeString(i.Mode()), i.UID(), i.GID())
	fmt.Fprintf(w, "Access: %s\nModify: %s\nChange: %s\n", stamp(i.AccessTime()), stamp(i.ModTime()), stamp(i.ChangeTime()))
}
