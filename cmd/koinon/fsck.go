package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/fsck"
)

// These end fsck with exit code 1 after the problems were printed.
var errPartial = errors.New("nothing is wrong with what could be checked, but some nodes did not answer: start them and check again")
var errUnsound = errors.New("the tree is not sound; see docs/operating/repair.md")

func newFsckCommand(a *app) *cobra.Command {
	var opts fsck.Options
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check that the tree is sound and every block is there",
		Long: `Walk the whole tree and every node's blocks, and change nothing: one entry per
directory, link counts, parents, counters; every block of every file on each
replica that should hold it; no block that belongs to nothing.

Blocks that lack a copy count as sound: the nodes are healing them. Their bytes are
read with --bytes only, which takes as long as reading all files once for each copy;
each node also reads its own once a day, mends what has rotted from other
nodes, and says in koinon status what it could not mend. A problem names a file by its
inode, which find MOUNT -inum N makes a path. The tree is
checked as it is at one moment, and may be used meanwhile; deleted data is kept
until the check has ended. When the leader changes the check starts again.

Exit code 0: sound; 1: problems, one to a line.`,
		Example: `  koinon fsck
  koinon fsck --bytes                 before a disk is taken away
  koinon fsck --thorough -o json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.fsck(cmd.Context(), opts)
		},
	}
	cmd.Flags().BoolVar(&opts.Bytes, "bytes", false, "read every copy of every block, and test it")
	cmd.Flags().BoolVar(&opts.Thorough, "thorough", false, "look every name up on its own as well")
	return cmd
}

func (a *app) fsck(ctx context.Context, opts fsck.Options) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		line := a.newStatusLine()
		opts.Progress = func(phase string, done, of int) {
			if of > 0 {
				line.set(fmt.Sprintf("%s: %d of %d", phase, done, of))
			} else {
				line.set(fmt.Sprintf("%s: %d", phase, done))
			}
		}
		r, err := c.Fsck(ctx, opts)
		line.clear()
		if err != nil {
			return err
		}
		if err := a.print(r, func(w io.Writer) { writeFsck(w, r, opts.Bytes) }); err != nil {
			return err
		}
		switch {
		case r.Partial():
			return errPartial
		case !r.Sound():
			return errUnsound
		}
		return nil
	})
}

func writeFsck(w io.Writer, r *fsck.Report, bytes bool) {
	t := r.Tree
	fmt.Fprintf(w, "tree    %d directories, %d files, %d others; %s; %d in quarantine\n", t.Dirs, t.Files, t.Others, byteSize(t.Bytes), t.Quarantined)
	fmt.Fprintf(w, "blocks  %d, in %d copies; %d lack a copy, %d are missing, %d belong to nothing\n", r.Blocks, r.Copies, r.Thin, r.Missing, r.Orphans)
	if bytes {
		rotten := "none has rotted"
		if len(r.Rotten) > 0 {
			var at []string
			for _, node := range slices.Sorted(maps.Keys(r.Rotten)) {
				at = append(at, fmt.Sprintf("%d on %s", r.Rotten[node], node))
			}
			rotten = "rotten: " + strings.Join(at, ", ") + "; a node mends its own from others when it reads them next, within a day"
		}
		fmt.Fprintf(w, "bytes   %s of all copies were read; %s\n", byteSize(uint64(r.Read)), rotten)
	} else {
		fmt.Fprintln(w, "bytes   not read (--bytes)")
	}
	for _, p := range r.Problems {
		fmt.Fprintln(w, p)
	}
	if r.Sound() {
		fmt.Fprintln(w, "sound")
	}
}
