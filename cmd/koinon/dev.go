//go:build linux

package main

import (
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/devcluster"
)

func newDevCommand(a *app) *cobra.Command {
	d := &devCommand{app: a}
	cmd := parent("dev", "Run a whole cluster on this machine")
	cmd.Long = `Run a whole cluster on this machine: each node a process of its own, and the
tree mounted. Its state is in one directory, survives a stop and comes back at
the next "up". Any node may be killed: the tree goes on while a majority lives.`
	cmd.Example = `  koinon dev up                start three nodes, mount, watch until Ctrl-C
  koinon dev up --detach       the same in the background
  koinon dev kill 2            kill node 2 as a power cut would
  koinon dev start 2           start it again
  koinon dev status            what runs, and who leads
  koinon dev stop              unmount and stop
  koinon dev reset             delete it with all its data`
	cmd.PersistentFlags().StringVar(&d.devDir, "dir", "",
		"`DIR` with the cluster's state (default $XDG_STATE_HOME/koinon/dev, ~/.local/state/koinon/dev)")
	cmd.AddCommand(newDevUpCommand(d), newDevStatusCommand(d), newDevKillCommand(d), newDevStartCommand(d), newDevAddCommand(d), newDevRmCommand(d),
		newDevStopCommand(d), newDevResetCommand(d))
	return cmd
}

// devCommand is what the dev commands share.
type devCommand struct{ *app }

// options returns how devcluster runs this binary.
func (d *devCommand) options() (devcluster.Options, error) {
	opts := devcluster.Options{Dir: d.devDir, Connect: connectProber, Progress: func(line string) { d.note("%s", line) }}
	var err error
	if opts.Dir == "" {
		if opts.Dir, err = devcluster.DefaultDir(); err != nil {
			return opts, err
		}
	}
	opts.Binary, err = os.Executable()
	return opts, err
}

// open finds the cluster that the other dev commands work on.
func (d *devCommand) open() (*devcluster.Cluster, error) {
	opts, err := d.options()
	if err != nil {
		return nil, err
	}
	return devcluster.Open(opts)
}

// numbers reads node numbers.
func numbers(args []string) ([]int, error) {
	ns := make([]int, len(args))
	for i, arg := range args {
		n, err := strconv.Atoi(arg)
		if err != nil {
			return nil, &usageError{cmd: "koinon dev", err: errNotNumber(arg)}
		}
		ns[i] = n
	}
	return ns, nil
}

type errNotNumber string

func (e errNotNumber) Error() string {
	return strconv.Quote(string(e)) + " is no number of a node: `koinon dev status` lists them"
}
