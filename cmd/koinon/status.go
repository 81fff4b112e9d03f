package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/node"
)

func newStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the cluster: who leads, who is up, how full",
		Long: `Show the cluster as its nodes tell of themselves: who leads, who is up, how far
behind a node is, how full it is, and what a person should look at.

It needs no majority: a node that does not answer is shown as down.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.readStatus(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { writeStatus(w, s) })
		},
	}
}

func writeStatus(w io.Writer, s *node.Status) {
	up := 0
	for _, n := range s.Nodes {
		if n.State == "up" {
			up++
		}
	}
	leader := "none: writes wait until a majority of the nodes is up"
	if s.Leader != 0 {
		leader = s.Leader.String()
	}
	fmt.Fprintf(w, "cluster  %s\nleader   %s\nnodes    %d of %d up\n\n", s.Cluster, leader, up, len(s.Nodes))
	writeNodes(w, s.Nodes)
	for _, n := range s.Nodes {
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
