//go:build linux && !client

package main

import (
	"os"
	"runtime"

	"github.com/koinon/koinon/internal/program"
)

// superviseName is the subcommand that serve starts a node's processes with.
const superviseName = "supervise"

// nodeCommands are those that the client's program does not have, by their group.
func nodeCommands(a *app) map[string][]subcommand {
	return map[string][]subcommand{
		groupStart: {named("dev", a, newDevCommand)},
		groupCluster: {named("init", a, newInitCommand), named("serve", a, newServeCommand), named("mount", a, newMountCommand),
			{superviseName, newSuperviseCommand}, named("meta", a, newMetaCommand)},
	}
}

// processorsMin is how many of Go's processors a node or a mount has at least. Go's monitor takes the processor from a thread that waits
// in a system call, such as fdatasync(2), and does so late where timers are late: there should be others.
const processorsMin = 4

// begin prepares the process for what it is to do.
func begin(args []string) {
	program.Take()
	if name := commandName(args); name != "serve" && name != "mount" {
		return
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < processorsMin {
		runtime.GOMAXPROCS(processorsMin)
	}
}
