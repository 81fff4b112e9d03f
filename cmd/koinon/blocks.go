package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/blockcopy"
	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
)

func newBlocksCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "blocks",
		Short: "Look after where the blocks are",
		Args:  noSubcommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBlocksCopyCommand(a))
	return cmd
}

func newBlocksCopyCommand(a *app) *cobra.Command {
	var from, to string
	var verify bool
	cmd := &cobra.Command{
		Use:   "copy --from STORE --to STORE",
		Short: "Copy all blocks of one store into another",
		Long: `Copy all blocks of one store into another. Each is checked against its writer's
checksums, and read back. What is there already is not copied again, so after
Ctrl-C or trouble the same command goes on where it was.

A STORE is the URL of a Redis, as in --blocks of "koinon serve", with the blocks
of the cluster of --config; @FILE and env:NAME hide the password. Or it is
cluster:FILE, whatever store the cluster uses whose client configuration FILE is.

What is written to the source meanwhile may be missing, and the command says so
when clients are connected. Most can be copied ahead, while the tree is used; then
unmount it, do not use "koinon cp" and the like, and run the command once more.

To another Redis: copy, stop the nodes, change url under [blocks] in the nodes'
and clients' files, start the nodes. Between nodes and Redis: a cluster keeps its
kind of store for ever, so make a new cluster with the other one, copy the blocks
into it and move the metadata. docs/operating/engines.md has the steps.`,
		Example: `  koinon blocks copy --from @old.url --to @new.url
  koinon blocks copy --from cluster:/etc/koinon/client.toml --to cluster:new.toml`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" || to == "" {
				return &usageError{cmd: cmd.CommandPath(), err: errors.New("give --from STORE and --to STORE")}
			}
			return a.copyBlocks(cmd.Context(), from, to, verify)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&from, "from", "", "copy the blocks of `STORE`")
	flags.StringVar(&to, "to", "", "into `STORE`")
	flags.BoolVar(&verify, "verify", false, "read and compare also what is there already")
	return cmd
}

func (a *app) copyBlocks(ctx context.Context, from, to string, verify bool) error {
	var cfg *config.Client
	if !strings.HasPrefix(from, client.ClusterScheme) || !strings.HasPrefix(to, client.ClusterScheme) {
		var err error
		if cfg, err = a.clientConfig(); err != nil {
			return err
		}
	}
	began := time.Now()
	bar := a.progress("copying", -1)
	opts := blockcopy.Options{Verify: verify, Progress: func(r blockcopy.Report, size int64) {
		bar.Describe(fmt.Sprintf("%d blocks copied, %d were there", r.Copied, r.There))
		bar.Add(size)
	}}
	r, err := client.CopyBlocks(ctx, cfg, from, to, opts, a.logger())
	bar.Finish()
	if r.Clients > 0 {
		a.note("clients were connected meanwhile (%d: mounts, commands, locks), and what they wrote may be missing: "+
			"unmount the tree everywhere and run the command again, which then copies only that", r.Clients)
	}
	if errors.Is(err, blockcopy.ErrDamaged) {
		a.note("%d blocks were copied, %d were there, %d are damaged", r.Copied, r.There, r.Damaged)
		return err
	}
	if err != nil {
		a.note("%d blocks were copied, %d were there: run the command again to go on", r.Copied, r.There)
		return err
	}
	return a.print(r, func(w io.Writer) {
		fmt.Fprintf(w, "%d blocks copied and read back (%s in %v), %d were there already, %d were deleted meanwhile\n",
			r.Copied, byteSize(uint64(r.Bytes)), time.Since(began).Round(10*time.Millisecond), r.There, r.Removed)
	})
}
