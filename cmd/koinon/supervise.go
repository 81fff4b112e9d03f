//go:build linux && !client

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/proc/executor"
)

func newSuperviseCommand() *cobra.Command {
	return &cobra.Command{
		Use:     superviseName + " DIR",
		Short:   "Run a node's processes",
		Long:    "Run the processes of the node whose supervisor's directory is DIR. `koinon serve` starts it.",
		Example: "  koinon supervise /var/lib/koinon/data/proc/executor",
		Hidden:  true,
		Args:    arguments(1, 1),
		RunE:    func(cmd *cobra.Command, args []string) error { return executor.Supervise(cmd.Context(), args[0]) },
	}
}

// supervisor is the command line of the supervisor, but for the directory.
func supervisor() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program, to start the supervisor of processes: %w", err)
	}
	return []string{self, superviseName}, nil
}
