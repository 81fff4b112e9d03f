package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/internal/sys"
)

// procsOpener opens the process table that a command works on.
type procsOpener func(ctx context.Context) (*koinon.Procs, error)

// procsApp is an app with a process table.
type procsApp struct {
	*app
	open  procsOpener
	where func() (place, error)
	// signals are what asks to stop while a command runs in the foreground;
	// same is for how long a further one counts as the first.
	signals func() (got <-chan os.Signal, release func())
	same    time.Duration
}

// newProcsApp is that of the chosen cluster.
func newProcsApp(a *app) *procsApp {
	return &procsApp{app: a, open: a.openProcs, where: a.here, signals: notify, same: sameSignal}
}

// openProcs opens the process table of the chosen cluster.
func (a *app) openProcs(ctx context.Context) (*koinon.Procs, error) {
	return koinon.OpenProcs(ctx, koinon.Options{Config: a.configPath, Logger: a.logger()})
}

// notify takes the signals that ask to stop from whoever else would act on
// them. A pipe that nobody reads is an error of the write, not a signal.
func notify() (<-chan os.Signal, func()) {
	got, pipe := make(chan os.Signal, 8), make(chan os.Signal, 1)
	signal.Notify(got, stopSignals()...)
	signal.Notify(pipe, syscall.SIGPIPE)
	return got, func() { signal.Stop(got); signal.Stop(pipe) }
}

// processCommands are the commands that run processes and look at them.
func processCommands(p *procsApp) []subcommand {
	return []subcommand{named("run", p, newRunCommand), named("ps", p, newPsCommand), named("logs", p, newLogsCommand), named("kill", p, newKillCommand),
		named("wait", p, newWaitCommand), named("inspect", p, newInspectCommand), named("top", p, newTopCommand)}
}

// with opens the table, lets do work on it, and leaves it in order even when
// the user interrupts.
func (p *procsApp) with(ctx context.Context, do func(ctx context.Context, procs *koinon.Procs) error) error {
	procs, err := p.open(ctx)
	if err != nil {
		return err
	}
	err = do(ctx, procs)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if cerr := procs.Close(ctx); cerr != nil && err == nil {
		p.logger().Debug("leaving the cluster", "err", cerr) // what was done is done
	}
	return err
}

// troubled gives errors the exit code of trouble that is Koinon's own, where
// other codes are the processes'.
func troubled(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if _, own := errors.AsType[*exitError](err); own {
		return err
	}
	return &exitError{code: koinon.ExitTrouble, err: err}
}

// troubledCommand has every error of a command, also of its command line, end
// it with ExitTrouble: other codes are the processes'.
func troubledCommand(cmd *cobra.Command) *cobra.Command {
	args, run := cmd.Args, cmd.RunE
	usage := func(err error) error { return troubled(&usageError{cmd: cmd.CommandPath(), err: err}) }
	cmd.Args = func(cmd *cobra.Command, a []string) error {
		err := args(cmd, a)
		if err == nil {
			return nil
		}
		if told, ok := errors.AsType[*usageError](err); ok {
			err = told.err
		}
		return usage(err)
	}
	cmd.RunE = func(cmd *cobra.Command, a []string) error { return troubled(run(cmd, a)) }
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(flagError(err)) })
	return cmd
}

// caller says who asks, for people.
func caller() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// completeJobs completes the numbers of jobs.
func (p *procsApp) completeJobs(ended bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var words []string
		err := p.quick(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
			jobs, _, err := procs.Jobs(ctx, koinon.ListJobs{Ended: ended, Limit: 100})
			for _, j := range jobs {
				words = append(words, fmt.Sprintf("%d\t%s", j.ID, shown(strings.Join(j.Command, " "))))
			}
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeNodes completes nodes.
func (p *procsApp) completeNodes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	err := p.quick(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
		nodes, err := procs.Nodes(ctx)
		for _, n := range nodes {
			words = append(words, fmt.Sprintf("%s\t%s", nodeID(n.ID), n.Name))
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completionTime is how long somebody who has pressed Tab waits.
const completionTime = 2 * time.Second

func (p *procsApp) quick(ctx context.Context, do func(ctx context.Context, procs *koinon.Procs) error) error {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	return p.with(ctx, do)
}

// nodeID is a node's number as people write it.
func nodeID(id uint64) string { return sys.NodeID(id).String() }

// nodeIDs are several.
func nodeIDs(ids []uint64) string {
	words := make([]string, len(ids))
	for i, id := range slices.Sorted(slices.Values(ids)) {
		words[i] = nodeID(id)
	}
	return strings.Join(words, ",")
}

// findNode returns the node that an argument means: by number, 2 or n2, or by
// the name of its host. known lists the nodes, if they are needed.
func findNode(arg string, known func() ([]koinon.ProcNode, error)) (uint64, error) {
	if id, err := strconv.ParseUint(strings.TrimPrefix(arg, "n"), 10, 32); err == nil && id > 0 {
		return id, nil
	}
	nodes, err := known()
	if err != nil {
		return 0, err
	}
	var found, all []string
	var id uint64
	for _, n := range nodes {
		all = append(all, fmt.Sprintf("%s (%s)", nodeID(n.ID), n.Name))
		if n.Name == arg {
			found, id = append(found, nodeID(n.ID)), n.ID
		}
	}
	switch len(found) {
	case 1:
		return id, nil
	case 0:
		return 0, fmt.Errorf("there is no node %s; there are %s", shown(arg), strings.Join(all, ", "))
	}
	return 0, fmt.Errorf("%s is the host of several nodes, %s: give the number of one", shown(arg), strings.Join(found, ", "))
}

// ago is how long ago, or how long, for people: at most two units.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}
