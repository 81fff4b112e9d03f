package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// arguments is the Args of a command that takes least to most arguments, any
// number from least when most is negative.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		var err error
		switch {
		case len(args) < least:
			err = fmt.Errorf("an argument is missing: the command is %s", howToCall(cmd))
		case most >= 0 && len(args) > most:
			err = fmt.Errorf("%q is too much: the command is %s", args[most], howToCall(cmd))
		default:
			return nil
		}
		return &usageError{cmd: cmd.CommandPath(), err: err}
	}
}

// howToCall shows a command's arguments, and its first example.
func howToCall(cmd *cobra.Command) string {
	call := strings.TrimSuffix(cmd.UseLine(), " [flags]")
	example, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n")
	example, _, _ = strings.Cut(example, "   ") // what it does stands behind it
	if example == "" || example == call {
		return call
	}
	return call + ", for example: " + example
}

// checkArguments makes every complaint about arguments, of all commands, a
// usage error.
func checkArguments(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if _, told := errors.AsType[*usageError](err); err == nil || told {
				return err
			}
			return &usageError{cmd: c.CommandPath(), err: fmt.Errorf("%w: %s", err, strings.TrimSuffix(c.UseLine(), " [flags]"))}
		}
	}
	for _, c := range cmd.Commands() {
		checkArguments(c)
	}
}

// noSubcommand is the Args of a command that only has subcommands: an
// argument is the name of one that does not exist.
func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("unknown command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2
	near := cmd.SuggestionsFor(args[0])
	switch {
	case args[0] == "":
		msg = "the name of the command is empty"
	case slices.Contains(near, args[0]):
		msg = fmt.Sprintf(`"--" is in front of the command %q: leave it out`, args[0])
	case len(near) > 0:
		msg += fmt.Sprintf(`: did you mean "%s"?`, strings.Join(near, `" or "`))
	}
	return &usageError{cmd: cmd.CommandPath(), err: errors.New(msg)}
}

// checkHelp has --help of what there is not told as an error.
func (a *app) checkHelp(root *cobra.Command) {
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if cmd.HasSubCommands() {
			// What follows --help is the command that it is about.
			if about, rest, err := cmd.Find(cmd.Flags().Args()); err == nil && about != cmd && len(rest) == 0 {
				help(about, rest)
				return
			}
			if a.noHelp = noSubcommand(cmd, cmd.Flags().Args()); a.noHelp != nil {
				return
			}
		}
		help(cmd, args)
	})
}

// checkHelpCommand has help of what there is not told as an error.
func checkHelpCommand(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() != "help" {
			continue
		}
		tell := c.Run
		c.Run, c.RunE = nil, func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err == nil && about.HasSubCommands() {
				err = noSubcommand(about, rest)
			}
			if err == nil {
				tell(c, args)
			}
			return err
		}
	}
}

// plainFlags takes the marks from the descriptions of flags that tell the help how their values are called: shells show them.
func plainFlags(root *cobra.Command) {
	eachFlag(root, func(f *pflag.Flag) { _, f.Usage = pflag.UnquoteUsage(f) })
}

// decimalFlags has the numbers of flags be decimal: pflag takes 010 for 8, as Go's constants are written.
func decimalFlags(root *cobra.Command) {
	eachFlag(root, func(f *pflag.Flag) {
		switch f.Value.Type() {
		case "int", "uint64":
			f.Value = decimal{f.Value}
		}
	})
}

// decimal is the value of a flag that is a whole number.
type decimal struct{ pflag.Value }

// Set implements pflag.Value.
func (d decimal) Set(text string) error {
	digits := strings.TrimPrefix(text, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return fmt.Errorf("%q: %w", text, strconv.ErrSyntax)
	}
	sign := text[:len(text)-len(digits)]
	return d.Value.Set(sign + cmp.Or(strings.TrimLeft(digits, "0"), "0"))
}

// eachFlag does something to the flags of a command and of all below it.
func eachFlag(cmd *cobra.Command, do func(*pflag.Flag)) {
	cmd.Flags().VisitAll(do)
	cmd.PersistentFlags().VisitAll(do)
	for _, c := range cmd.Commands() {
		eachFlag(c, do)
	}
}
