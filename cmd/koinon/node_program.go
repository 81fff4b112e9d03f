//go:build linux && !client

package main

import (
	"runtime"

	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/program"
)

// superviseName is the subcommand that serve starts a node's processes with.
const superviseName = "supervise"

// nodeCommands are those that the client's program does not have, by their group.
func nodeCommands(a *app) map[string][]subcommand {
	return map[string][]subcommand{
		groupStart: {named("dev", a, newDevCommand)},
		groupCluster: {named("init", a, newInitCommand), named("serve", a, newServeCommand), named("mount", a, newMountCommand),
			{superviseName, newSuperviseCommand}},
	}
}

// begin prepares the process for what it is to do.
func begin(args []string) {
	var env []string
	if program.Take() {
		env = []string{program.Node}
	}
	runtime.LockOSThread() // to the process's main thread, which EaseTimers needs
	defer runtime.UnlockOSThread()
	if name := firstWord(newRoot(&app{}).PersistentFlags(), args); name == "serve" || name == "mount" {
		daemon.EaseTimers(env...) // before there is anything that an execve(2) would lose, such as a signal that was caught
	}
}
