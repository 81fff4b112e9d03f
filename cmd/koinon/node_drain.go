package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newNodeDrainCommand(p *procsApp) *cobra.Command {
	return p.drainCommand(&cobra.Command{
		Use:   "drain NODE",
		Short: "Start no more processes on a node",
		Long: `Start no more processes on a node, as before maintenance. What runs there goes on:
koinon top shows when it is empty. The node goes on serving the tree.`,
		Example: "  koinon node drain 2\n  koinon node drain build7.example.org",
	}, true)
}

func newNodeUndrainCommand(p *procsApp) *cobra.Command {
	return p.drainCommand(&cobra.Command{
		Use:     "undrain NODE",
		Short:   "Let a node take processes again",
		Example: "  koinon node undrain 2",
	}, false)
}

// drained is what was said of a node, as -o json prints it.
type drained struct {
	Node     uint64 `json:"node"`
	Draining bool   `json:"draining"`
}

func (p *procsApp) drainCommand(cmd *cobra.Command, on bool) *cobra.Command {
	cmd.Args = arguments(1, 1)
	cmd.ValidArgsFunction = p.completeNodes
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
			id, err := findNode(args[0], func() ([]koinon.ProcNode, error) { return procs.Nodes(ctx) })
			if err != nil {
				return err
			}
			if err := procs.Drain(ctx, id, on); err != nil {
				return err
			}
			if on {
				p.note("%s starts no more processes; koinon top shows when it has none", nodeID(id))
			} else {
				p.note("%s takes processes again", nodeID(id))
			}
			return p.print(drained{id, on}, func(io.Writer) {})
		})
	}
	return cmd
}
