package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

// dfReport is how full the cluster is, as -o json prints it. Sizes are in
// bytes; those of the store are for one copy of everything.
type dfReport struct {
	StoreTotal uint64 `json:"store_total_bytes"`
	StoreUsed  uint64 `json:"store_used_bytes"`
	StoreFree  uint64 `json:"store_free_bytes"`
	TreeBytes  uint64 `json:"tree_bytes"`
	TreeFiles  uint64 `json:"tree_files"`
}

func newDfCommand(t *treeApp) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "df",
		Short: "Show how full the cluster is",
		Long: `Show how full the cluster is. SIZE, USED and FREE are the disks of all
nodes together, divided by the number of copies that are kept, so FREE is
about what can still be written; nodes that share a disk count it each. DATA is
the sum of the lengths of all files, those in quarantine included. Programs
use -o json, which is in bytes.`,
		Example: "  koinon df",
		Args:    arguments(0, 1), // as people type a path to df(1); the answer is the same
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				return t.df(ctx, c)
			})
		},
	}
	human(cmd, new(bool)) // for fingers that are used to it: the table has units anyway
	return cmd
}

func (t *treeApp) df(ctx context.Context, c *koinon.Client) error {
	sp, err := c.StatFS(ctx)
	if err != nil {
		return treeError("measure", "the cluster", err)
	}
	r := dfReport{StoreTotal: sp.Total, StoreFree: sp.Free, StoreUsed: sp.Total - min(sp.Free, sp.Total), TreeBytes: sp.Used, TreeFiles: sp.Files}
	return t.print(r, func(w io.Writer) {
		row(w, "SIZE", "USED", "FREE", "USE%", "DATA", "FILES")
		if r.StoreTotal == 0 { // the store does not know
			row(w, "-", "-", "-", "-", byteSize(r.TreeBytes), r.TreeFiles)
			return
		}
		row(w, byteSize(r.StoreTotal), byteSize(r.StoreUsed), byteSize(r.StoreFree), fmt.Sprintf("%d%%", (r.StoreUsed*100+r.StoreTotal-1)/r.StoreTotal),
			byteSize(r.TreeBytes), r.TreeFiles)
	})
}
