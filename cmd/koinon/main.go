// Command koinon is the whole of Koinon: the node, the mount, and the tools
// to look at and work on a cluster and its tree.
//
// There is a file per subcommand. The commands hold no logic of their own:
// they read flags, call a package under internal, and print what it returns.
//
// Built with the tag client it is a program with the commands of a client alone,
// which starts sooner; command join puts both into one file (package program).
package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/engine"
)

func main() {
	begin(os.Args[1:])
	os.Args = engine.HideArgs(os.Args, "meta", "blocks", "from", "to")
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// sameSignal is for how long a further signal counts as the first one once
// more: timeout(1) sends each twice, to the process and to its group, and must
// not cut an orderly end short.
const sameSignal = 500 * time.Millisecond

// run executes one command line and returns the process's exit code. The
// command's context ends at the first signal that asks to stop; a second one,
// sameSignal later, kills the process.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: &result{Writer: out}, err: errOut}
	made := make(chan *cobra.Command, 1)
	go func() { made <- newRootCommandFor(a, args) }() // meanwhile: both take a while, and short commands should be quick
	ctx, release := untilSignal(ctx, sameSignal)
	defer release()
	root := <-made
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(a.out)
	root.SetErr(errOut)
	return a.exitCodeOf(ctx, cmp.Or(root.ExecuteContext(ctx), a.noHelp))
}

// exitCodeOf is exitCode of a command that had ctx, which a signal may have ended.
func (a *app) exitCodeOf(ctx context.Context, err error) int {
	if s, ok := errors.AsType[*signalError](context.Cause(ctx)); ok {
		a.stopped = s.Signal
	}
	return a.exitCode(err)
}

// signalError is the cause of a context that ended with a signal.
type signalError struct{ syscall.Signal }

func (e *signalError) Error() string { return "stopped by signal: " + e.Signal.String() }

// Is says that whoever asks whether a context was canceled is told so.
func (e *signalError) Is(target error) bool { return target == context.Canceled }

// untilSignal returns a context that ends at the first signal that asks to
// stop, with a signalError as its cause. One that comes later than same after it
// has its usual effect.
func untilSignal(ctx context.Context, same time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, stopSignals()...)
	go func() {
		select {
		case s := <-signals:
			cancel(&signalError{s.(syscall.Signal)})
			time.AfterFunc(same, func() { signal.Stop(signals) })
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
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

// onSecondSignal returns a context that ends at the second signal that asks to
// stop, and says what follows; the first ends the command's own. Release it.
func (a *app) onSecondSignal(saying string) (force context.Context, release func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, stopSignals()...)
	force, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for first := (time.Time{}); ; {
			select {
			case <-signals:
			case <-force.Done():
				return
			}
			if first.IsZero() {
				first = time.Now()
			} else if time.Since(first) >= sameSignal {
				break
			}
		}
		a.note("%s", saying)
		cancel()
	})
	return force, func() {
		signal.Stop(signals)
		cancel()
		wg.Wait()
	}
}
