//go:build linux && client

package main

import (
	"os"
	"runtime"
	"slices"

	"github.com/koinon/koinon/internal/program"
)

// nodeCommands are those of the node's program, which also tells about all commands.
func nodeCommands(*app) map[string][]subcommand { return nil }

// begin leaves what is not the client's to the node's program.
func begin(args []string) {
	runtime.LockOSThread() // execve(2) keeps what belongs to the thread that calls it, such as PR_SET_PDEATHSIG: the main one, here
	defer runtime.UnlockOSThread()
	a := &app{err: os.Stderr}
	_, _, known := find(subcommands(a), commandName(args))
	if known || slices.Equal(args, []string{"--version"}) {
		return
	}
	os.Exit(a.exitCode(program.Become()))
}
