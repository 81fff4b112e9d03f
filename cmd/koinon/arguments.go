package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
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
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += fmt.Sprintf(`: did you mean "%s"?`, strings.Join(near, `" or "`))
	}
	return &usageError{cmd: cmd.CommandPath(), err: errors.New(msg)}
}
