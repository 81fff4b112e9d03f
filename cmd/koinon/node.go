package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
)

func newNodeCommand(a *app) *cobra.Command {
	cmd := parent("node", "Look at the nodes of the cluster, let new ones in, take others out")
	p := newProcsApp(a)
	cmd.AddCommand(newNodeLsCommand(a), newTokenCommand(a), newNodeRmCommand(a), newNodeDrainCommand(p), newNodeUndrainCommand(p))
	return cmd
}

func newNodeLsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the nodes",
		Long: `List the nodes, and what a person should look at. Exit code 1: none answers, and
what is listed is what this machine's configuration says.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.readStatus(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.print(s.Nodes, func(w io.Writer) { writeNodes(w, s.Nodes, true); writeNotes(w, s.Nodes) }); err != nil {
				return err
			}
			if upCount(s) == 0 {
				return missing(s)
			}
			return nil
		},
	}
}

// writeNodes writes a table of nodes.
func writeNodes(w io.Writer, nodes []client.NodeStatus, versions bool) {
	line := func(version string, cells ...any) {
		if versions {
			cells = append(cells, version)
		}
		row(w, cells...)
	}
	line("VERSION", "NODE", "ADDRESS", "STATE", "ROLE", "LAG", "BLOCKS", "USED", "FREE", "MEMORY", "JOINED")
	for _, n := range nodes {
		joined := ""
		if n.Joined != nil {
			joined = n.Joined.Format("2006-01-02 15:04")
		}
		if n.State != "up" {
			line("", nodeName(n), n.Addr, nodeState(n), "", "", "", "", "", "", joined)
			continue
		}
		blocks, used, free := fmt.Sprint(n.Blocks), byteSize(n.BytesUsed), byteSize(n.BytesFree)
		if n.BlockStore != "" { // they are not the node's
			blocks, used, free = "-", "-", "-"
		}
		line(n.Version, nodeName(n), n.Addr, nodeState(n), n.Role, n.Lag, blocks, used, free, byteSize(n.Resident), joined)
	}
}

// writeNotes writes what a person should look at, node by node.
func writeNotes(w io.Writer, nodes []client.NodeStatus) {
	for _, n := range nodes {
		name := n.Addr // what does not answer has not told who it is
		if n.ID != 0 {
			name = n.ID.String()
		}
		for _, words := range []string{n.Trouble, n.Healing} {
			if words != "" {
				fmt.Fprintf(w, "\n%s: %s\n", name, words)
			}
		}
	}
}

// nodeState is whether a node answers, and what it is to the cluster where that
// is not the usual.
func nodeState(n client.NodeStatus) string {
	words := []string{n.State}
	switch {
	case n.Member == "" || n.Member == "up":
	case n.State == "up":
		words = []string{n.Member}
	default:
		words = append(words, n.Member)
	}
	if n.Drained {
		words = append(words, "no processes")
	}
	return strings.Join(words, ", ")
}

// nodeName is empty for a node that has never told who it is.
func nodeName(n client.NodeStatus) string {
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
