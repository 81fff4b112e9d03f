//go:build linux && !client

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/devcluster"
	"github.com/koinon/koinon/internal/sys"
)

func newDevStatusCommand(d *devCommand) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what runs, and who leads",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := d.open()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return d.print(s, func(w io.Writer) { d.writeDevStatus(w, s) })
		},
	}
}

func (d *devCommand) writeDevStatus(w io.Writer, s *devcluster.Status) {
	mount := s.Mount
	switch {
	case s.MountDead:
		mount += d.hint(" (its process died: programs get errors until `koinon dev up` mounts it again)")
	case !s.Mounted:
		mount += " (not mounted)"
	}
	fmt.Fprintf(w, "cluster    %s\ndirectory  %s\nmount      %s\n\n", s.Cluster, s.Directory, mount)
	row(w, "NODE", "STATE", "ROLE", "PID", "ADDRESS", "DIRECTORY")
	for _, n := range s.Nodes {
		pid := ""
		if n.PID != 0 {
			pid = fmt.Sprint(n.PID)
		}
		row(w, n.Number, n.State, n.Role, pid, n.Address, n.Directory)
	}
	for _, n := range s.Nodes {
		if n.Trouble != "" {
			fmt.Fprintf(w, "\nnode %d: %s\n", n.Number, n.Trouble)
		}
	}
}

func newDevKillCommand(d *devCommand) *cobra.Command {
	return &cobra.Command{
		Use:     "kill N...",
		Short:   "Kill nodes with SIGKILL, as a power cut would",
		Example: "  koinon dev kill 2\n  koinon dev kill 1 2 3",
		Args:    arguments(1, -1),

		ValidArgsFunction: d.completeNodes(true),
		RunE: func(_ *cobra.Command, args []string) error {
			ns, err := numbers(args)
			if err != nil {
				return err
			}
			c, err := d.change()
			if err != nil {
				return err
			}
			return c.Kill(ns...)
		},
	}
}

// completeNodes completes the numbers of nodes that run, or of those that do not.
func (d *devCommand) completeNodes(run bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := d.open()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		s, err := c.Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var words []string
		for _, n := range s.Nodes {
			if number := strconv.Itoa(n.Number); n.PID != 0 == run && !slices.Contains(args, number) {
				words = append(words, fmt.Sprintf("%s\t%s at %s", number, n.State, n.Address))
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

func newDevStartCommand(d *devCommand) *cobra.Command {
	return &cobra.Command{
		Use:     "start N...",
		Short:   "Start nodes that are down",
		Example: "  koinon dev start 2",
		Args:    arguments(1, -1),

		ValidArgsFunction: d.completeNodes(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			ns, err := numbers(args)
			if err != nil {
				return err
			}
			c, err := d.change()
			if err != nil {
				return err
			}
			return c.Start(cmd.Context(), ns...)
		},
	}
}

func newDevStopCommand(d *devCommand) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "Unmount the tree and stop the nodes; the data stays",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := d.change()
			if err != nil {
				return err
			}
			return c.Stop(cmd.Context())
		},
	}
}

func newDevResetCommand(d *devCommand) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Stop the cluster and delete it with all its data",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := d.change()
			if err != nil {
				return err
			}
			if !yes {
				if err := d.confirm(fmt.Sprintf("Delete the cluster in %s with all its data?", c.Dir())); err != nil {
					return err
				}
			}
			if err := c.Reset(cmd.Context()); err != nil {
				return err
			}
			d.note("deleted %s", c.Dir())
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// confirm asks a question whose answer must be yes. Without a terminal there
// is nobody to ask.
func (a *app) confirm(question string) error {
	const op = sys.Op("dev reset")
	if !isTerminal(a.in) {
		return sys.E(op, sys.Invalid, "nothing was deleted: there is no terminal to ask on; give --yes to go on")
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return sys.E(op, sys.Interrupted, "nothing was deleted")
}
