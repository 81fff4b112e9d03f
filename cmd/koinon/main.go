// Command koinon is the whole of Koinon: the node, the mount, and the tools
// to look at and work on a cluster and its tree.
//
// There is a file per subcommand. The commands hold no logic of their own:
// they read flags, call a package under internal, and print what it returns.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/koinon/koinon/internal/engine"
)

func main() {
	os.Args = engine.HideArgs(os.Args)
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the process's exit code. The
// command's context ends at the first signal that asks to stop; a second one
// kills the process.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, release := signal.NotifyContext(ctx, stopSignals()...)
	defer release()
	context.AfterFunc(ctx, release)

	a := &app{in: in, out: out, err: errOut}
	root := newRootCommand(a)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	return a.exitCode(root.ExecuteContext(ctx))
}

// stopSignals are the signals that ask to stop. A process that was started to
// outlive its terminal (nohup) goes on ignoring SIGHUP.
func stopSignals() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}
