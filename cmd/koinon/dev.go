//go:build linux && !client

package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/devcluster"
)

func newDevCommand(a *app) *cobra.Command {
	d := &devCommand{app: a}
	cmd := parent("dev", "Run a whole cluster on this machine")
	cmd.Long = `Run a whole cluster on this machine: each node a process of its own, and the
tree mounted. Its state is in one directory, survives a stop and comes back at
the next "up". Any node may be killed: the tree goes on while a majority lives.

Without --dir these commands work on your current cluster (the one that "koinon
status" shows: --config, KOINON_CONFIG, ~/.config/koinon/client.toml) where
that is a dev cluster, else on the one in ~/.local/state/koinon/dev; they say
which. To make a second one, give "up" another --dir.`
	cmd.Example = `  koinon dev up                start three nodes, mount, watch until Ctrl-C
  koinon dev up --detach       the same in the background
  koinon dev kill 2            kill node 2 as a power cut would
  koinon dev start 2           start it again
  koinon dev status            what runs, and who leads
  koinon dev stop              unmount and stop
  koinon dev reset             delete it with all its data`
	cmd.PersistentFlags().StringVar(&d.devDir, "dir", "",
		"`DIR` with the cluster's state (default that of your current cluster, else $XDG_STATE_HOME/koinon/dev, ~/.local/state/koinon/dev)")
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
		if opts.Dir, err = d.implied(); err != nil {
			return opts, err
		}
	}
	opts.Binary, err = os.Executable()
	return opts, err
}

// implied returns the directory that is meant without --dir: that of the
// cluster that the other commands speak to, where that is a dev cluster, else
// the usual one.
func (d *devCommand) implied() (string, error) {
	// No current cluster is no error here: there may be none yet.
	if path, err := config.ClientPath(d.configPath); err == nil {
		if dir := devcluster.DirOf(path); dir != "" {
			if d.configPath != "" {
				d.devDir = dir // for the commands that messages advise
			}
			return dir, nil
		}
	}
	if d.configPath != "" {
		return "", &usageError{cmd: "koinon dev", err: fmt.Errorf("%s is not the client.toml of a dev cluster: name the cluster with --dir DIR", d.configPath)}
	}
	return devcluster.DefaultDir()
}

// open finds the cluster that the other dev commands work on.
func (d *devCommand) open() (*devcluster.Cluster, error) {
	opts, err := d.options()
	if err != nil {
		return nil, err
	}
	return devcluster.Open(opts)
}

// change is open for commands that change something: without --dir it says
// which cluster is meant.
func (d *devCommand) change() (*devcluster.Cluster, error) {
	named := d.devDir != ""
	c, err := d.open()
	if err == nil && !named {
		d.note("the cluster in %s:", c.Dir())
	}
	return c, err
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
