package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/engine"
)

// app is what all subcommands share: the streams and the global flags.
type app struct {
	in       io.Reader
	out, err io.Writer

	configPath string
	devDir     string         // of dev's --dir
	noHelp     error          // help was asked for about what there is not
	stopped    syscall.Signal // asked to stop; 0: none
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

// newRoot makes the root without its subcommands.
func newRoot(a *app) *cobra.Command {
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
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{cmd: cmd.CommandPath(), err: flagError(err)}
	})
	a.addFlags(root.PersistentFlags())
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
	return root
}

// addFlags adds the flags that all commands have.
func (a *app) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&a.configPath, "config", "", "client configuration `FILE` of the cluster to speak to; for serve, the node's")
	flags.VarP(&a.output, "output", "o", "what lists are printed as: table or json")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print results and errors only")
}

// subcommand is a command of the root, which is made when it is needed.
type subcommand struct {
	name string
	make func() *cobra.Command
}

// named is a subcommand that is made from what it works with.
func named[T any](name string, with T, make func(T) *cobra.Command) subcommand {
	return subcommand{name, func() *cobra.Command { return make(with) }}
}

// subcommands are those of the root, by their group in the help.
func subcommands(a *app) map[string][]subcommand {
	all := map[string][]subcommand{
		groupStart:   {named("status", a, newStatusCommand)},
		groupCluster: {named("node", a, newNodeCommand), named("fsck", a, newFsckCommand), named("blocks", a, newBlocksCommand)},
		groupTree:    treeCommands(a, a.openTree),
		groupProcs:   processCommands(newProcsApp(a)),
		groupKeys:    {named("kv", a, newKVCommand), named("lock", a, newLockCommand)},
		groupTools:   {named("bench", a, newBenchCommand), named("version", a, newVersionCommand)},
	}
	for group, cmds := range nodeCommands(a) {
		all[group] = append(all[group], cmds...)
	}
	return all
}

// newRootCommand makes the whole command tree.
func newRootCommand(a *app) *cobra.Command { return newRootCommandFor(a, nil) }

// newRootCommandFor makes the command tree, or of a command line that names a
// subcommand only that one: the others take longer to make than much of what
// commands do.
func newRootCommandFor(a *app, args []string) *cobra.Command {
	root := newRoot(a)
	all, name := subcommands(a), firstWord(root.PersistentFlags(), args)
	if group, c, ok := find(all, name); ok {
		all = map[string][]subcommand{group: {c}}
	}
	for group, cmds := range all {
		addTo(root, group, cmds)
	}
	root.SetHelpCommandGroupID(groupTools)
	root.SetCompletionCommandGroupID(groupTools)
	checkArguments(root)
	decimalFlags(root)
	a.checkHelp(root)
	switch name {
	case "help":
		checkHelpCommand(root)
	case cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		plainFlags(root)
	}
	return root
}

// find looks for a subcommand by its name.
func find(all map[string][]subcommand, name string) (group string, c subcommand, ok bool) {
	for group, cmds := range all {
		for _, c := range cmds {
			if c.name == name {
				return group, c, true
			}
		}
	}
	return "", subcommand{}, false
}

// commandName is the name of the subcommand that a command line names, whether there is one or not; empty when it names none.
func commandName(args []string) string {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	(&app{}).addFlags(flags)
	return firstWord(flags, args)
}

// firstWord is the first of some arguments that is no flag and no flag's value;
// empty when there is none.
func firstWord(flags *pflag.FlagSet, args []string) string {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			return arg
		}
		f := flags.Lookup(strings.TrimLeft(arg, "-"))
		if len(arg) == 2 {
			f = flags.ShorthandLookup(arg[1:])
		}
		if f != nil && f.NoOptDefVal == "" {
			i++
		}
	}
	return ""
}

// addTo adds commands to parent under one group of its help.
func addTo(parent *cobra.Command, group string, cmds []subcommand) {
	for _, s := range cmds {
		c := s.make()
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
// for none, 2 for a usage error, 128 and the signal's number (130 for Ctrl-C) when
// one asked to stop, else 1. A result that could not be written is an error, and the
// cause of others.
func (a *app) exitCode(err error) int {
	if lost := a.lost(); lost != nil {
		if _, ok := errors.AsType[*exitError](err); err == nil || !ok && errors.Is(err, errors.Unwrap(lost)) {
			err = lost
		}
	}
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
		return 128 + int(cmp.Or(a.stopped, syscall.SIGINT))
	}
	a.complain(err)
	return code
}

// complain tells an error, without the passwords of URLs in it.
func (a *app) complain(err error) { fmt.Fprintf(a.err, "koinon: %s\n", a.told(words(err))) }

// told is a message as people get it.
func (a *app) told(msg string) string { return a.hint(engine.Redact(msg)) }

// note tells the user something that is not a result, errors in words. --quiet
// keeps it back.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		for i, arg := range args {
			if err, ok := arg.(error); ok {
				args[i] = words(err)
			}
		}
		fmt.Fprintln(a.err, a.told(fmt.Sprintf(format, args...)))
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
