package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/cluster"
)

func newStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the cluster: who leads, who is up, how full",
		Long: `Show the cluster as its nodes tell of themselves: who leads, who is up, how far
behind a node is, how full it is, and what a person should look at.

It needs no majority: a node that does not answer is shown as down.

Exit code 0: there is a leader and most of the nodes that vote are up, so reads and
writes go on;
1: there is none, or the cluster cannot be asked.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.readStatus(cmd.Context())
			for n := 0; err == nil && !s.Majority && upCount(s) > len(s.Nodes)/2 && n < electionTries; n++ {
				time.Sleep(electionPause)
				s, err = a.readStatus(cmd.Context())
			}
			if err != nil {
				return err
			}
			if err := a.print(s, func(w io.Writer) { writeStatus(w, s) }); err != nil {
				return err
			}
			return missing(s)
		},
	}
}

// A leader is elected within a second: meanwhile there is none, and nothing is
// wrong.
const (
	electionTries = 6
	electionPause = 200 * time.Millisecond
)

func upCount(s *client.Status) int {
	up := 0
	for _, n := range s.Nodes {
		if n.State == "up" {
			up++
		}
	}
	return up
}

// missing is an error when no majority can agree. It names who is missing.
func missing(s *client.Status) error {
	if s.Majority {
		return nil
	}
	var down []string
	for _, n := range s.Nodes {
		switch {
		case n.State == "up":
		case n.ID == 0: // nobody has told who it is
			down = append(down, n.Addr)
		default:
			down = append(down, fmt.Sprintf("%v at %s", n.ID, n.Addr))
		}
	}
	if len(down) == 0 {
		return errors.New("the nodes have no leader although all answer: see their logs, and what is said of them above")
	}
	advice := "start them again"
	if upCount(s) == 0 { // nobody has told which nodes there are
		advice = cluster.NobodyAnswers
	}
	return fmt.Errorf("no majority: no answer from %s: %s", strings.Join(down, ", "), advice)
}

// signers are the nodes that sign the certificates of new ones.
func signers(s *client.Status) string {
	var names []string
	for _, n := range s.Nodes {
		if n.Signs {
			names = append(names, n.ID.String())
		}
	}
	if len(names) == 0 {
		return "no node that answers has it: none can join"
	}
	return strings.Join(names, ", ")
}

func writeStatus(w io.Writer, s *client.Status) {
	leader := "none: writes wait until a majority of the nodes is up"
	if s.Majority {
		leader = s.Leader.String()
	} else if upCount(s) > len(s.Nodes)/2 {
		leader = "none, though a majority of the nodes is up: see below whether they vote. Where the logs of several are damaged move nothing away (docs/operating/repair.md)"
	}
	fmt.Fprintf(w, "cluster  %s\nleader   %s\nnodes    %d of %d up\nCA key   %s\n", s.Cluster, leader, upCount(s), len(s.Nodes), signers(s))
	if s.Meta != "" {
		fmt.Fprintf(w, "metadata %s\n", s.Meta)
	}
	if s.Blocks != "" {
		fmt.Fprintf(w, "blocks   %s\n", s.Blocks)
	}
	fmt.Fprintln(w)
	writeNodes(w, s.Nodes, false)
	writeNotes(w, s.Nodes)
}
