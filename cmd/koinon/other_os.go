//go:build !linux

package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// nodeCommands are those that a client's program would not have. What needs Linux is there on other systems too, and says so.
func nodeCommands(a *app) map[string][]subcommand {
	return map[string][]subcommand{
		groupStart: {linuxOnly("dev", "Run a cluster on this machine")},
		groupCluster: {linuxOnly("init", "Prepare the first node of a new cluster"), linuxOnly("serve", "Run one node of a cluster"),
			linuxOnly("mount", "Mount the tree on a directory"), named("meta", a, newMetaCommand)},
	}
}

func begin([]string) {}

func linuxOnly(name, short string) subcommand {
	return named(name, short, func(short string) *cobra.Command {
		return &cobra.Command{
			Use:                name,
			Short:              short + " (on Linux)",
			DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) == 1 && (args[0] == "-h" || args[0] == "--help") {
					return cmd.Help()
				}
				return fmt.Errorf("koinon %s works on Linux, not on %s: run it on a Linux machine; the commands on the tree (`koinon ls`, `koinon cp` and the like) work here",
					name, runtime.GOOS)
			},
		}
	})
}
