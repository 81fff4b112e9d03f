package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/sys"
)

func newNodeRmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NODE",
		Aliases: []string{"remove"},
		Short:   "Take a node out of the cluster",
		Long: `Take a node out of the cluster, for ever: others vote in its place and copy what
it holds, then it leaves, and its process ends. The cluster serves all the time.
Also for a node that is dead: nobody waits for what it held.

It is refused where the others would have no majority. A machine comes back
with an empty directory and a new token, under a new number.`,
		Example: `  koinon node rm 2
  koinon node rm n2`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(strings.TrimPrefix(args[0], "n"), 10, 32)
			if err != nil || id == 0 {
				return &usageError{cmd: "koinon node rm", err: fmt.Errorf("%q is no node: give its number, like 2 or n2", args[0])}
			}
			return a.withAdmin(cmd.Context(), func(ctx context.Context, c *client.Admin) error {
				err := c.Remove(ctx, sys.NodeID(id), a.removalProgress(sys.NodeID(id)))
				if err == nil {
					a.note("n%d has left the cluster", id)
				}
				return err
			})
		},
	}
}

// removalProgress tells what a removal waits for whenever that has changed.
func (a *app) removalProgress(id sys.NodeID) func(waits string) {
	last := ""
	return func(waits string) {
		if waits != last {
			a.note("%v leaves; waiting: %s", id, waits)
			last = waits
		}
	}
}
