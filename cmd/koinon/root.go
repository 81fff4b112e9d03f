package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/config"
)

// app is what all subcommands share: the streams and the global flags.
type app struct {
	in       io.Reader
	out, err io.Writer

	configPath string
	devDir     string // of dev's --dir
	output     outputFormat
	quiet      bool
}

// The groups of subcommands in the help, in this order.
const (
	groupStart   = "start"
	groupTree    = "tree"
	groupProcs   = "processes"
	groupKeys    = "keys"
	groupCluster = "cluster"
	groupTools   = "tools"
)

const rootLong = `Koinon joins machines into one system: one file tree mounted on every machine,
agreed on by Paxos, every block kept on several nodes, and one process table.

A cluster on this machine, three nodes and a mounted tree, is one command away:

  koinon dev up

Commands that speak to a cluster find it by --config FILE, else by the file
that KOINON_CONFIG names, else by the user's current one
(~/.config/koinon/client.toml), which the first "koinon dev up" sets.`

const rootExample = `  koinon dev up                      three nodes and a mount, until Ctrl-C
  koinon dev kill 2                  kill node 2; the tree goes on
  koinon status                      who leads, who is up
  koinon cp -r ./photos koinon:/     copy into the tree without a mount
  koinon run -n 3 -- uname -a        run a command on the nodes
  koinon mount ~/tree                mount the tree elsewhere`

// newRootCommand builds the whole command tree.
func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "koinon",
		Short:         "One file tree over many machines",
		Long:          rootLong,
		Example:       rootExample,
		Version:       version(),
		Args:          noSubcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("koinon {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{cmd: cmd.CommandPath(), err: flagError(err)}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", "", "client configuration `FILE` of the cluster to speak to; for serve, the node's")
	flags.VarP(&a.output, "output", "o", "what lists are printed as: table or json")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print results and errors only")
	// Whether a flag completes to words must not depend on the file system.
	if err := root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(
		[]string{formatTable, formatJSON}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(fmt.Sprintf("koinon: expected the flag --output to exist, found %v", err))
	}

	root.AddGroup(
		&cobra.Group{ID: groupStart, Title: "Start here:"},
		&cobra.Group{ID: groupTree, Title: "The tree, without a mount:"},
		&cobra.Group{ID: groupProcs, Title: "Processes:"},
		&cobra.Group{ID: groupKeys, Title: "Keys and locks:"},
		&cobra.Group{ID: groupCluster, Title: "Nodes and mounts:"},
		&cobra.Group{ID: groupTools, Title: "Tools:"},
	)
	addTo(root, groupStart, newDevCommand(a), newStatusCommand(a))
	addTo(root, groupCluster, newInitCommand(a), newServeCommand(a), newMountCommand(a), newNodeCommand(a), newFsckCommand(a), newMetaCommand(a), newBlocksCommand(a), newSuperviseCommand())
	addTo(root, groupTree, treeCommands(a, a.openTree)...)
	addTo(root, groupProcs, processCommands(newProcsApp(a))...)
	addTo(root, groupKeys, newKVCommand(a), newLockCommand(a))
	addTo(root, groupTools, newBenchCommand(a))
	root.SetHelpCommandGroupID(groupTools)
	root.SetCompletionCommandGroupID(groupTools)
	checkArguments(root)
	return root
}

// addTo adds the commands to parent under one group of its help.
func addTo(parent *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		parent.AddCommand(c)
	}
}

// usageError is a command line that makes no sense.
type usageError struct {
	cmd string
	err error
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%v (see %s --help)", e.err, e.cmd)
}

func (e *usageError) Unwrap() error { return e.err }

// exitError ends the process with a code of its own.
type exitError struct {
	code int
	err  error // nil when everything has been said
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exitCode prints err once, as "koinon: ...", and returns the exit code: 0
// for none, 2 for a usage error, 130 when the user interrupted, else 1.
func (a *app) exitCode(err error) int {
	if err == nil {
		return 0
	}
	code := 1
	if e, ok := errors.AsType[*exitError](err); ok {
		if e.err == nil {
			return e.code
		}
		code = e.code
		err = e.err
	} else if _, ok := errors.AsType[*usageError](err); ok {
		code = 2
	} else if errors.Is(err, context.Canceled) {
		return 130
	}
	a.complain(err)
	return code
}

// complain tells an error.
func (a *app) complain(err error) { fmt.Fprintf(a.err, "koinon: %s\n", a.hint(words(err))) }

// note tells the user something that is not a result. --quiet keeps it back.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.err, a.hint(fmt.Sprintf(format, args...)))
	}
}

// clientConfig loads the configuration of the cluster to speak to.
func (a *app) clientConfig() (*config.Client, error) {
	path, err := config.ClientPath(a.configPath)
	if err != nil {
		return nil, err
	}
	return config.LoadClient(path)
}

// logger logs to standard error what a user at a terminal must know.
func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.quiet {
		level = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}
