//go:build !linux

package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// The commands that need Linux are there on other systems too, and say so.

func newServeCommand(*app) *cobra.Command { return linuxOnly("serve", "Run one node of a cluster") }

func newMountCommand(*app) *cobra.Command {
	return linuxOnly("mount", "Mount the tree on a directory")
}

func newDevCommand(*app) *cobra.Command { return linuxOnly("dev", "Run a cluster on this machine") }

func newSuperviseCommand() *cobra.Command {
	c := linuxOnly(superviseName, "Run a node's processes")
	c.Hidden = true
	return c
}

func easeTimers() {}

func linuxOnly(name, short string) *cobra.Command {
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
}
