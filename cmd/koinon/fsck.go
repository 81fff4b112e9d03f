package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/fsck"
)

// These end fsck with exit code 1 after the problems were printed.
var errPartial = errors.New("nothing is wrong with what could be checked, but some nodes did not answer: start them and check again")
var errUnsound = errors.New("the tree is not sound; see docs/operating/repair.md")

func newFsckCommand(a *app) *cobra.Command {
	var thorough bool
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check that the tree is sound and every block is there",
		Long: `Walk the whole tree and every node's blocks, and change nothing: one entry per
directory, link counts, parents, counters; every block of every file on each
replica that should hold it; no block that belongs to nothing.

Blocks that lack a copy count as sound: the nodes are healing them. Their bytes are
not read: each node reads its own once a day, mends what has rotted from other
nodes, and says in koinon status what it could not mend; reading a file tests it at
once. The tree is
checked as it is at one moment, and may be used meanwhile; deleted data is kept
until the check has ended. When the leader changes the check starts again.

Exit code 0: sound; 1: problems, one to a line.`,
		Example: `  koinon fsck
  koinon fsck --thorough -o json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.fsck(cmd.Context(), thorough)
		},
	}
	cmd.Flags().BoolVar(&thorough, "thorough", false, "look every name up on its own as well")
	return cmd
}

func (a *app) fsck(ctx context.Context, thorough bool) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.Fsck(ctx, fsck.Options{Thorough: thorough})
		if err != nil {
			return err
		}
		if err := a.print(r, func(w io.Writer) { writeFsck(w, r) }); err != nil {
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

func writeFsck(w io.Writer, r *fsck.Report) {
	t := r.Tree
	fmt.Fprintf(w, "tree    %d directories, %d files, %d others; %s; %d in quarantine\n", t.Dirs, t.Files, t.Others, byteSize(t.Bytes), t.Quarantined)
	fmt.Fprintf(w, "blocks  %d, in %d copies; %d lack a copy, %d are missing, %d belong to nothing (bytes were not read)\n", r.Blocks, r.Copies, r.Thin, r.Missing, r.Orphans)
	for _, p := range r.Problems {
		fmt.Fprintln(w, p)
	}
	if r.Sound() {
		fmt.Fprintln(w, "sound")
	}
}
