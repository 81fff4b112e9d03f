//go:build linux && !client

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/devcluster"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/node"
	"github.com/koinon/koinon/internal/sys"
)

// devUpFlags are the flags of dev up.
type devUpFlags struct {
	nodes   int
	mount   string
	meta    string
	blocks  blocksFlags
	detach  bool
	noMount bool
}

func newDevUpCommand(d *devCommand) *cobra.Command {
	var f devUpFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the cluster and mount its tree",
		Long: `Start the cluster, made anew if there is none, and mount its tree. What runs
already is left alone; what is missing is started.

It stays in the foreground and shows who is up until Ctrl-C, then unmounts and
stops the nodes. With --detach it returns once the tree is mounted, and so it does
where all runs already.`,
		Example: `  koinon dev up
  koinon dev up --nodes 1 --mount ~/tree
  koinon dev up --dir /tmp/try --detach`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("nodes") && (f.nodes < 1 || f.nodes > devcluster.MaxNodes) {
				return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--nodes is %d: give 1 to %d", f.nodes, devcluster.MaxNodes)}
			}
			for _, name := range []string{"meta", "blocks"} {
				if flag := cmd.Flags().Lookup(name); flag.Changed && flag.Value.String() == "" {
					return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--%s is empty: give a URL, or leave it out to keep all with the nodes", name)}
				}
			}
			return d.up(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&f.nodes, "nodes", 0, fmt.Sprintf("a new cluster has `N` nodes (default %d)", devcluster.DefaultNodes))
	flags.StringVar(&f.mount, "mount", "", "mount the tree on `DIR` (default the state's mnt)")
	flags.StringVar(&f.meta, "meta", "", metaUsage+" (a new cluster's)")
	f.blocks.add(flags, " (a new cluster's)")
	flags.BoolVarP(&f.detach, "detach", "d", false, "return once the tree is mounted")
	flags.BoolVar(&f.noMount, "no-mount", false, "start the nodes only")
	return cmd
}

// up runs dev up. A first signal stops the cluster in order, a second one
// kills what still runs.
func (d *devCommand) up(ctx context.Context, f devUpFlags) error {
	opts, err := d.options()
	if err != nil {
		return err
	}
	if d.devDir == "" {
		d.note("the cluster in %s:", opts.Dir)
	}
	opts.Nodes, opts.Mount, opts.NoMount = f.nodes, f.mount, f.noMount
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	opts.Meta, opts.Blocks = engine.Ref(f.meta).In(here), f.blocks.in(here)
	opts.Probe = func(ctx context.Context) error {
		if err := node.ProbeMeta(ctx, opts.Meta); err != nil {
			return err
		}
		return node.ProbeBlocks(ctx, opts.Blocks)
	}
	force, release := d.onSecondSignal("killing what still runs")
	defer release()
	c, res, err := devcluster.Up(ctx, force, opts)
	if err != nil {
		return err
	}
	d.chooseCurrent(c)
	if err := d.giveTree(ctx, c); err != nil {
		res.Warnings = append(res.Warnings, fmt.Sprintf("the tree belongs to root, so only root can write into it: %s\ntry again with `koinon dev up`", words(err)))
	}
	for _, w := range res.Warnings {
		fmt.Fprintf(d.err, "koinon: warning: %s\n", d.hint(w))
	}
	d.welcome(c, res, f)
	if f.detach || res.AlreadyRunning() {
		return nil
	}
	return d.watch(ctx, force, c)
}

// watch shows the status until the user, or another terminal, stops the
// cluster.
func (d *devCommand) watch(ctx, force context.Context, c *devcluster.Cluster) error {
	line := newWatchLine(d.app)
	err := c.Watch(ctx, line.show)
	line.end()
	switch {
	case errors.Is(err, devcluster.ErrStopped), sys.Is(err, sys.Busy):
		d.note("%v", err)
		return nil
	case err != nil:
		return err
	}
	return c.Stop(force)
}

// chooseCurrent makes the cluster the user's current one if there is none.
// The cluster runs all the same when that fails.
func (d *devCommand) chooseCurrent(c *devcluster.Cluster) {
	if _, err := config.SetCurrentIfAbsent(c.ClientConfig()); err != nil {
		d.note("koinon: warning: this cluster is not your current one, give --config %s: %v", c.ClientConfig(), err)
	}
}

// giveTree makes the tree the user's own: a new one belongs to root, who is not
// there to make directories for others on a cluster that one user has started.
func (d *devCommand) giveTree(ctx context.Context, c *devcluster.Cluster) (err error) {
	if os.Geteuid() == 0 {
		return nil
	}
	cfg, err := config.LoadClient(c.ClientConfig())
	if err != nil {
		return err
	}
	client, err := client.Connect(ctx, cfg, d.logger())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()
	return client.GiveTree(ctx, uint32(os.Geteuid()), uint32(os.Getegid()))
}

// welcome says where the cluster is and what to try next.
func (d *devCommand) welcome(c *devcluster.Cluster, res *devcluster.UpResult, f devUpFlags) {
	if d.quiet {
		return
	}
	foreground := !f.detach && !res.AlreadyRunning()
	koinon := programName()
	dev := koinon + " dev"
	if d.devDir != "" {
		dev += " --dir " + quoted(d.devDir)
	}
	var b strings.Builder
	if res.AlreadyRunning() {
		fmt.Fprintf(&b, "The cluster in %s is already running.\n", c.Dir())
	}
	if res.Mounted {
		fmt.Fprintf(&b, "\nThe tree is mounted on %s\n", c.Mount())
	} else {
		fmt.Fprintf(&b, "\nThe nodes serve; the tree is not mounted.\n")
	}
	where := ""
	if foreground {
		where = " in another terminal"
	}
	fmt.Fprintf(&b, "\nTry%s:\n", where)
	if current, err := config.IsCurrent(c.ClientConfig()); err != nil || !current {
		fmt.Fprintf(&b, "  export %s=%s\n", config.EnvConfig, c.ClientConfig())
	}
	if res.Mounted {
		fmt.Fprintf(&b, "  cp -r /usr/share/doc %s/\n", c.Mount())
	} else {
		fmt.Fprintf(&b, "  %s cp -r /usr/share/doc koinon:/\n", koinon)
	}
	if nodes := c.Numbers(); len(nodes) > 2 {
		fmt.Fprintf(&b, "  %s kill %[2]d     the tree goes on without node %[2]d\n  %[1]s start %[2]d    it catches up\n", dev, nodes[0])
	}
	fmt.Fprintf(&b, "  %s status\n", dev)
	if foreground {
		fmt.Fprintf(&b, "\nCtrl-C unmounts and stops it; the data stays.\n\n")
	} else {
		fmt.Fprintf(&b, "\nStop it with: %s stop\n", dev)
	}
	fmt.Fprint(d.out, b.String())
}

// programName is what the user types to run this program again: koinon where
// the shell finds it, else the path it was run by.
func programName() string {
	const name = "koinon"
	found, err := exec.LookPath(name)
	if err != nil {
		return os.Args[0]
	}
	self, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	a, errA := os.Stat(found)
	b, errB := os.Stat(self)
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return os.Args[0]
	}
	return name
}
