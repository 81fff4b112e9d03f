package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/node"
)

func newNodeCommand(a *app) *cobra.Command {
	cmd := parent("node", "Look at the nodes of the cluster")
	cmd.AddCommand(newNodeLsCommand(a))
	return cmd
}

func newNodeLsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the nodes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.readStatus(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(s.Nodes, func(w io.Writer) { writeNodes(w, s.Nodes) })
		},
	}
}

func writeNodes(w io.Writer, nodes []node.NodeStatus) {
	row(w, "NODE", "ADDRESS", "STATE", "ROLE", "LAG", "BLOCKS", "USED", "FREE", "MEMORY")
	for _, n := range nodes {
		if n.State != "up" {
			row(w, nodeName(n), n.Addr, n.State, "", "", "", "", "", "")
			continue
		}
		row(w, nodeName(n), n.Addr, n.State, n.Role, n.Lag, n.Blocks, byteSize(n.BytesUsed), byteSize(n.BytesFree), byteSize(n.Resident))
	}
}

// nodeName is empty for a node that has never told who it is.
func nodeName(n node.NodeStatus) string {
	if n.ID == 0 {
		return ""
	}
	return n.ID.String()
}

// parent builds a command that only has subcommands.
func parent(use, short string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  noSubcommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}
