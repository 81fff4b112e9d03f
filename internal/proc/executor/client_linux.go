package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/sys"
)

// Options of an Executor.
type Options struct {
	// Command is the program and its arguments that call Supervise for the directory.
	Command []string
	// SpoolMax bounds the bytes of an output that are kept and not acknowledged; 0 for DefaultSpoolMax. A process that
	// prints more waits.
	SpoolMax int64
}

// DefaultSpoolMax is the usual Options.SpoolMax, in bytes.
const DefaultSpoolMax = 16 << 20

// Executor is the connection to the supervisor of a directory. Methods may be called concurrently. They start a
// supervisor when there is none.
type Executor struct {
	dir     string
	home    *os.File // the directory, which may have been removed or replaced by now
	opts    Options
	calls   calls
	mu      sync.Mutex     // held while a supervisor is being started
	started daemon.Process // the last one that was started here
	failure error          // of the last try to start one; nil: it did start
	tried   time.Time      // when that was
	rest    time.Duration  // for how long none is made after it
	closed  context.Context
	close   context.CancelFunc
	limits  Enforced
	fence   *uint64 // when it was opened; nil: the supervisor is older than the question
	is      string  // the supervisor's instance then
	waiting sync.WaitGroup
}

// Open finds the supervisor of a directory, or starts one. The directory belongs to it: it holds records and
// spools; it is made if need be. Its file system must be able to punch holes (fallocate(2): ext4, xfs, btrfs, tmpfs).
func Open(ctx context.Context, dir string, opts Options) (*Executor, error) {
	const op = sys.Op("executor.Open")
	if len(opts.Command) == 0 {
		return nil, sys.E(op, sys.Invalid, "Options.Command is empty: expected the program that runs the supervisor")
	}
	if opts.SpoolMax == 0 {
		opts.SpoolMax = DefaultSpoolMax
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, sys.E(op, err)
	}
	home, err := os.Open(dir)
	if err != nil {
		return nil, sys.E(op, err)
	}
	x := &Executor{dir: dir, home: home, opts: opts}
	x.closed, x.close = context.WithCancel(context.Background())
	x.calls.dial = x.dial
	reply, err := call[enforcedReply](ctx, x, callEnforced, struct{}{})
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	x.limits, x.fence, x.is = reply.Enforced, reply.Fence, reply.Instance
	return x, nil
}

// Close ends the connection. The processes run on, as long as the lease does.
func (x *Executor) Close() error {
	x.close()
	x.waiting.Wait()
	return errors.Join(x.calls.close(), x.home.Close())
}

// Shutdown kills all processes, records them as Fenced, and ends the supervisor. What was not forgotten is there again
// with the next one.
func (x *Executor) Shutdown(ctx context.Context) error {
	pid, err := call[int](ctx, x, callShutdown, struct{}{})
	if err != nil {
		return err
	}
	p, err := daemon.Identify(pid)
	if errors.Is(err, daemon.ErrGone) {
		return nil
	} else if err != nil {
		return sys.E(sys.Op("executor.Shutdown"), err)
	}
	return p.Wait(ctx)
}

// Enforced tells which limits this node enforces.
func (x *Executor) Enforced() Enforced { return x.limits }

// Start starts a process and returns when it runs its program. To start an attempt again that was started already does
// nothing, also when it has ended. See ErrNotFound and its neighbours for what can go wrong.
func (x *Executor) Start(ctx context.Context, spec Spec) error {
	_, err := call[struct{}](ctx, x, callStart, newStartRequest(spec, x.opts.SpoolMax))
	return err
}

// Signal sends a signal to the process group of a process. One that has ended is sys.NotExist.
func (x *Executor) Signal(ctx context.Context, id ID, sig syscall.Signal) error {
	_, err := call[struct{}](ctx, x, callSignal, signalRequest{id, sig})
	return err
}

// Stop sends TERM to the process group of a process, and KILL to all that belongs to it when it still runs after the grace
// time; at once when that is 0. It does not wait for the end. A process that has ended is no error; a shorter
// grace of a later call counts.
func (x *Executor) Stop(ctx context.Context, id ID, grace time.Duration) error {
	_, err := call[struct{}](ctx, x, callStop, stopRequest{id, grace})
	return err
}

// Renew lets processes run until a moment of the clock CLOCK_BOOTTIME. Before the first Renew nothing starts. An earlier
// moment than the last one shortens the lease.
func (x *Executor) Renew(ctx context.Context, until time.Duration) error {
	_, err := call[struct{}](ctx, x, callRenew, renewRequest{until})
	return err
}

// Fence refuses, for ever, all later starts of attempts with an epoch below the given one. What runs goes on (see Sweep). A
// lower epoch than an earlier one changes nothing.
func (x *Executor) Fence(ctx context.Context, epoch uint64) error {
	_, err := call[struct{}](ctx, x, callFence, epochRequest{epoch})
	return err
}

// Missed reports whether the supervisor, when it was opened, had not heard of a Fence of this epoch: its directory is not
// the one that was told of it, and knows nothing of the attempts of before. What an earlier supervisor of the directory ran
// has ended by then. A supervisor that does not tell has missed nothing, since one that is started is never older.
func (x *Executor) Missed(epoch uint64) bool { return x.fence != nil && *x.fence < epoch }

// Instance names the supervisor that was there when it was opened: each process of it has another one. What an earlier one
// did last may be in no record: its file system may have died, with the machine or alone. "" is one of an old version, which
// had synced the begin of each attempt.
func (x *Executor) Instance() string { return x.is }

// Sweep kills all that runs with an epoch below the given one, and returns when it has ended, as Fenced, and that is
// recorded. Call Fence before.
func (x *Executor) Sweep(ctx context.Context, epoch uint64) error {
	_, err := call[struct{}](ctx, x, callSweep, epochRequest{epoch})
	return err
}

// Forget drops the records and spools of a process that has ended: its events are told no more. One that runs is
// sys.Busy; one that is not known is no error.
func (x *Executor) Forget(ctx context.Context, id ID) error {
	_, err := call[struct{}](ctx, x, callForget, idRequest{id})
	return err
}

// List returns what runs, with its usage, and what has ended and was not forgotten, in the order of starts.
func (x *Executor) List(ctx context.Context) ([]Process, error) {
	return call[[]Process](ctx, x, callList, struct{}{})
}

// Events tells, in order, of all that happened after an event, of processes that were not forgotten; after 0 of all. Both
// events of a process that has ended are told again until then. When an end is told, the process's outputs are final.
// The channel is closed when ctx ends or the Executor is closed.
func (x *Executor) Events(ctx context.Context, after uint64) <-chan Event {
	events := make(chan Event)
	x.waiting.Go(func() {
		defer close(events)
		ctx, cancel := x.within(ctx)
		defer cancel()
		for ctx.Err() == nil {
			batch, err := call[[]Event](ctx, x, callEvents, eventsRequest{after})
			if err != nil {
				pause(ctx, retryEvery)
			}
			for _, e := range batch {
				select {
				case events <- e:
					after = e.Seq
				case <-ctx.Done():
					return
				}
			}
		}
	})
	return events
}

// Stdin opens the standard input of a process that was started with Spec.Stdin. A process that has ended is
// sys.NotExist; one that ends, or closes its input, makes Write fail with EPIPE. The input stays open when
// the daemon ends, and may be opened again; only Close makes the process see its end. A write that waits for
// a slow reader ends with ctx.
func (x *Executor) Stdin(ctx context.Context, id ID) (io.WriteCloser, error) {
	const op = sys.Op("executor.Stdin")
	at, err := call[stdinReply](ctx, x, callStdin, idRequest{id})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(at.Path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, sys.E(op, sys.Unavailable, err)
	}
	if is, err := inode(f); err != nil || is != at.Inode {
		return nil, errors.Join(sys.E(op, sys.NotExist, sys.Subject(id.String()), "the process has just ended", err), f.Close())
	}
	s := &stdin{File: f, x: x, id: id}
	s.stop = context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) }) // fails only on a closed file
	return s, nil
}

func inode(f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

type stdin struct {
	*os.File
	x    *Executor
	id   ID
	stop func() bool
}

// Close closes the daemon's end, and has the supervisor close the one by which it kept the input open.
func (s *stdin) Close() error {
	s.stop()
	err := s.File.Close()
	ctx, cancel := context.WithTimeout(s.x.closed, closeWithin)
	defer cancel()
	_, cerr := call[struct{}](ctx, s.x, callCloseStdin, idRequest{s.id})
	return errors.Join(err, cerr)
}

const (
	closeWithin = 10 * time.Second
	retryEvery  = 100 * time.Millisecond
	retryWithin = 5 * time.Second
	readyWithin = 20 * time.Second
)

// within ends a context with the Executor.
func (x *Executor) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(x.closed, cancel)
	return ctx, func() { stop(); cancel() }
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// call makes a call. All of them may be repeated, so a connection that broke, because the supervisor died, is tried again:
// dial starts another one.
func call[Reply, Request any](ctx context.Context, x *Executor, name string, req Request) (Reply, error) {
	op := sys.Op("executor." + name)
	var reply Reply
	body, err := json.Marshal(req)
	if err != nil {
		return reply, sys.E(op, sys.Invalid, err)
	}
	ctx, cancel := x.within(ctx)
	defer cancel()
	var cause error // of what took too long
	for begun := time.Now(); ; {
		err = x.calls.post(ctx, name, body, &reply)
		if ctx.Err() == nil {
			cause = err
		}
		var remote *remoteError
		switch {
		case err == nil:
			return reply, nil
		case errors.As(err, &remote) && !errors.Is(err, errEnding):
			return reply, err
		case errors.Is(err, errHomeless):
			return reply, sys.E(op, sys.NotExist, sys.Subject(x.dir), errHomeless)
		case ctx.Err() != nil:
			if cause == nil {
				return reply, sys.E(op, sys.Interrupted, context.Cause(ctx))
			}
			return reply, sys.E(op, sys.Interrupted, fmt.Errorf("%w (%w)", cause, context.Cause(ctx)))
		case time.Since(begun) > retryWithin:
			return reply, sys.E(op, sys.Unavailable, err)
		}
		pause(ctx, retryEvery)
	}
}

// dial connects to the supervisor, after starting one if nobody listens.
func (x *Executor) dial(ctx context.Context) (net.Conn, error) {
	conn, err := dialSocket(ctx, x.home)
	if err == nil || !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
		return conn, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if conn, err = dialSocket(ctx, x.home); err == nil {
		return conn, nil // somebody was faster
	}
	if err := x.checkHome(); err != nil {
		return nil, err
	}
	if _, err := x.started.Alive(); err != nil { // takes it off the list of children that have ended
		return nil, err
	}
	if x.failure != nil && time.Since(x.tried) < x.rest {
		return nil, x.failure
	}
	if x.failure = x.launch(ctx); x.failure != nil {
		x.tried, x.rest = time.Now(), min(max(2*x.rest, restMin), restMax)
		return nil, x.failure
	}
	x.rest = 0
	return dialSocket(ctx, x.home)
}

// How long nobody tries to start a supervisor after one has not started.
const (
	restMin = 100 * time.Millisecond
	restMax = 10 * time.Second
)

// launch starts a supervisor. The caller holds mu.
func (x *Executor) launch(ctx context.Context) error {
	log := filepath.Join(x.dir, logName)
	d, err := daemon.Start(daemon.Spec{Path: x.opts.Command[0], Args: x.opts.Command[1:], Log: log, Ready: true})
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	x.started = d.Process
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	_, err = d.AwaitReady(ctx)
	if err = errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("the supervisor does not start: %w: %s", err, daemon.Ending(log, logLines))
	}
	return nil
}

var errHomeless = errors.New("the directory was removed or replaced while it was in use")

// checkHome fails when another directory, or none, is where the executor's was: there must be no supervisor of this one.
func (x *Executor) checkHome() error {
	was, err := x.home.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(x.dir); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(was, now) {
		return errHomeless
	}
	return nil
}

// dialSocket connects by way of the descriptor of the directory: the path of a socket is at most 107 bytes, and another
// directory may have taken this one's path.
func dialSocket(ctx context.Context, home *os.File) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", home.Fd(), socketName))
}
