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
	var forPeople bool
	cmd := &cobra.Command{
		Use:   "df [-h]",
		Short: "Show how full the cluster is",
		Long: `Show how full the cluster is, in KiB. SIZE, USED and FREE are the disks of
all nodes together, divided by the number of copies that are kept, so FREE is
about what can still be written; nodes that share a disk count it each. DATA is
the sum of the lengths of all files, those in quarantine included.`,
		Example: "  koinon df -h",
		Args:    cobra.MaximumNArgs(1), // as people type a path to df(1); the answer is the same
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				return t.df(ctx, c, forPeople)
			})
		},
	}
	human(cmd, &forPeople)
	return cmd
}

func (t *treeApp) df(ctx context.Context, c *koinon.Client, forPeople bool) error {
	sp, err := c.StatFS(ctx)
	if err != nil {
		return treeError("measure", "the cluster", err)
	}
	r := dfReport{StoreTotal: sp.Total, StoreFree: sp.Free, StoreUsed: sp.Total - min(sp.Free, sp.Total), TreeBytes: sp.Used, TreeFiles: sp.Files}
	size := func(n uint64) string {
		if forPeople {
			return byteSize(n)
		}
		return fmt.Sprint((n + 1023) / 1024)
	}
	return t.print(r, func(w io.Writer) {
		row(w, "SIZE", "USED", "FREE", "USE%", "DATA", "FILES")
		if r.StoreTotal == 0 { // the store does not know
			row(w, "-", "-", "-", "-", size(r.TreeBytes), r.TreeFiles)
			return
		}
		row(w, size(r.StoreTotal), size(r.StoreUsed), size(r.StoreFree), fmt.Sprintf("%d%%", (r.StoreUsed*100+r.StoreTotal-1)/r.StoreTotal),
			size(r.TreeBytes), r.TreeFiles)
	})
}
