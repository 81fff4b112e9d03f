package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

// The exit codes of koinon lock beside the command's own, like timeout(1)'s.
const (
	codeLockLost   = 123
	codeNotLocked  = 124
	codeLockFailed = 125
	codeCannotRun  = 126
	codeNotFound   = 127
	codeSignal     = 128 // and the signal's number
)

const lockLong = `Run a command while holding a lock that is the cluster's: of all who take the
lock of one name, on any machine, one runs at a time, in the order in which they
came. The lock is given up when the command ends; what it leaves running then is
not waited for.

The command gets the lock's fencing token in KOINON_FENCE and its name in
KOINON_LOCK. The token of each holder is higher than that of all before it: what
the lock protects should refuse a token lower than one it has seen, because a
machine can stand still at any moment and go on when the lock is long somebody
else's.

When the cluster cannot be reached the lock is lost after --ttl. The command is
stopped before that: it gets SIGTERM --grace before the time is over, and
SIGKILL when it is. Everything it started is stopped with it, except on a
terminal, where it stays in the shell's process group. A new leader may take a
second or two: with a --ttl of less than 4s its election can cost the lock.

A signal to koinon asks the command to stop in the same way, SIGTERM at once and
SIGKILL --grace later, and the lock is given up when all have ended; a second
signal kills them at once. When koinon itself is killed (SIGKILL) the kernel kills
the command, but not what the command has started.

Exit codes: the command's own, 128 and the signal's number when one ended it;
123 the lock was lost while it ran; 124 the lock was not to be had (--try,
--timeout); 125 the cluster gave no lock for another reason; 126 and 127 the
command cannot be run, or is not there.

A lock named ls is taken by "koinon lock -- ls COMMAND".`

const lockExample = `  koinon lock nightly -- ./backup.sh
  koinon lock --try deploy -- make deploy       give up at once when it is held
  koinon lock --timeout 5m deploy -- make deploy
  koinon lock --ttl 30s --grace 10s db -- sh -c './migrate --fence "$KOINON_FENCE"'
  koinon lock ls                                who holds what, who waits`

// lockFlags are those of koinon lock.
type lockFlags struct {
	try                 bool
	timeout, ttl, grace time.Duration
}

func newLockCommand(a *app) *cobra.Command {
	k := &kvApp{app: a, open: a.openKV}
	var f lockFlags
	cmd := &cobra.Command{
		Use: "lock [flags] NAME -- COMMAND [ARG...]", Short: "Run a command while holding a lock", Long: lockLong, Example: lockExample,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) < 2 || dash > 1 || dash < 0 {
				return errors.New("expected the lock's name, then --, then the command: koinon lock NAME -- COMMAND")
			}
			return f.check(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error {
				return k.locked(ctx, kv, args[0], args[1:], f)
			})
		},
	}
	cmd.Flags().BoolVar(&f.try, "try", false, "do not wait when somebody holds it")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "wait no longer than `TIME`; 0 is forever")
	cmd.Flags().DurationVar(&f.ttl, "ttl", koinon.DefaultTTL, fmt.Sprintf("`TIME` without the cluster after which the lock is lost, %v to %v", koinon.TTLMin, koinon.TTLMax))
	cmd.Flags().DurationVar(&f.grace, "grace", 0, "`TIME` from SIGTERM to SIGKILL; 0 is a third of --ttl")
	cmd.AddCommand(newLockLsCommand(k))
	return cmd
}

// check completes the flags.
func (f *lockFlags) check(cmd *cobra.Command) error {
	if f.grace == 0 {
		f.grace = f.ttl / 3
	}
	switch {
	case f.ttl < koinon.TTLMin || f.ttl > koinon.TTLMax:
		return fmt.Errorf("--ttl is %v: choose from %v to %v", f.ttl, koinon.TTLMin, koinon.TTLMax)
	case f.grace < 0:
		return fmt.Errorf("--grace is %v, which is negative", f.grace)
	case f.grace > f.ttl/2:
		return fmt.Errorf("--grace is %v: choose at most half of --ttl, which is %v, so that one late renewal does not stop the command", f.grace, f.ttl)
	case f.timeout < 0:
		return fmt.Errorf("--timeout is %v, which is negative", f.timeout)
	}
	return nil
}

// locked takes the lock, runs the command, and gives the lock up.
func (k *kvApp) locked(ctx context.Context, kv *koinon.KV, name string, command []string, f lockFlags) error {
	lock, err := k.take(ctx, kv, name, f)
	if err != nil {
		return err
	}
	err = k.guard(ctx, lock, command, f.grace)
	// When its time is over the cluster gives it up by itself.
	patience := max(lostTimeout, min(closeTimeout, lock.Left()))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if uerr := lock.Unlock(ctx); uerr != nil {
		k.note("lock %s is given up when its time is over: %v", shown(name), uerr)
	}
	return err
}

// lostTimeout is how long telling the cluster of a lock that is lost may take.
const lostTimeout = 500 * time.Millisecond

func (k *kvApp) take(ctx context.Context, kv *koinon.KV, name string, f lockFlags) (*koinon.Lock, error) {
	wait, cancel := ctx, context.CancelFunc(func() {})
	if f.timeout > 0 {
		wait, cancel = context.WithTimeout(ctx, f.timeout)
	}
	defer cancel()
	held := false
	opt := koinon.LockOptions{Try: f.try, TTL: f.ttl, Waits: func(h koinon.Holder) {
		held = true
		k.note("waiting for lock %s, held by %s since %s", shown(name), h.Owner, h.Since.Format(time.DateTime))
	}}
	lock, err := kv.Lock(wait, name, opt)
	for errors.Is(err, koinon.ErrSessionLost) && wait.Err() == nil {
		k.note("the place in the queue for lock %s is lost, since the cluster was not reached for %v: waiting anew", shown(name), f.ttl)
		lock, err = kv.Lock(wait, name, opt)
	}
	switch {
	case err == nil:
		return lock, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case wait.Err() != nil && !held:
		return nil, &exitError{codeLockFailed, fmt.Errorf("cannot take lock %s: the cluster has not answered within %v: `koinon status` shows which nodes are missing", shown(name), f.timeout)}
	case wait.Err() != nil:
		return nil, &exitError{codeNotLocked, fmt.Errorf("lock %s was not to be had within %v: koinon lock ls shows who holds it", shown(name), f.timeout)}
	case errors.Is(err, koinon.ErrLocked):
		return nil, &exitError{codeNotLocked, err}
	}
	return nil, &exitError{codeLockFailed, fmt.Errorf("cannot take lock %s: %w", shown(name), err)}
}

// guard runs the command for as long as the lock is held.
func (k *kvApp) guard(ctx context.Context, lock *koinon.Lock, command []string, grace time.Duration) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = k.in, bare(k.out), k.err
	cmd.Env = append(os.Environ(), "KOINON_LOCK="+lock.Name, "KOINON_FENCE="+strconv.FormatUint(lock.Fence, 10))
	cmd.WaitDelay = time.Second // for what it left behind with our output
	group := !isTerminal(k.in)
	prepareGuarded(cmd, group)
	began, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The command dies with the thread that started it (PR_SET_PDEATHSIG),
		// so the thread must live as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defaultTimers()
		err := cmd.Start()
		began <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-began; err != nil {
		code := codeCannotRun
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			code = codeNotFound
		}
		return &exitError{code, fmt.Errorf("cannot run %s: %w", shown(command[0]), cmp.Or(errors.Unwrap(err), err))}
	}
	force, release := k.onSecondSignal("killing the command")
	defer release()
	lost := stopInTime(ctx, force, lock, grace, ended, func(sig syscall.Signal) (some bool) {
		err := signalGuarded(cmd, sig, group)
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			k.note("signalling the command: %v", err)
		}
		return err == nil
	})
	if lost == nil {
		lost = lock.Err() // perhaps while nobody looked
	}
	if lost != nil {
		return &exitError{codeLockLost, fmt.Errorf("lock %s was lost while the command ran, so the command was stopped: %w", shown(lock.Name), lost)}
	}
	return commandExit(cmd.ProcessState)
}

// guardTick is how often the time left of a lock is looked at.
const guardTick = 20 * time.Millisecond

// stopInTime waits for the command's end. It stops the command in time before
// the lock is lost, at once when it is lost already, and when the user asks for
// it, with force at once; then it waits for what the command started as well, and
// kills what does not end in time. The error says that the lock was lost, or would
// have been. kill says whether there was still somebody to get the signal.
func stopInTime(ctx, force context.Context, lock *koinon.Lock, grace time.Duration, ended <-chan error, kill func(syscall.Signal) (some bool)) (lost error) {
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	var killAt time.Time // when SIGKILL is due; zero before SIGTERM
	asked, forced, gone := ctx.Done(), force.Done(), lock.Lost()
	for over := false; ; {
		select {
		case <-ended:
			if lost != nil {
				kill(syscall.SIGKILL) // what it started and left behind
			}
			if lost != nil || killAt.IsZero() {
				return lost
			}
			ended, over = nil, true
		case <-forced:
			forced = nil
			killAt = time.Now()
		case <-asked:
			asked = nil
			if killAt.IsZero() {
				killAt = time.Now().Add(grace)
				kill(syscall.SIGTERM)
			}
		case <-gone:
			gone = nil
		case <-tick.C:
		}
		left := lock.Left()
		if lost == nil && left <= grace {
			if lost = lock.Err(); lost == nil {
				lost = fmt.Errorf("no renewal was confirmed in time, %v before it would be somebody else's", left.Round(time.Millisecond))
			}
			if killAt.IsZero() {
				kill(syscall.SIGTERM)
			}
			killAt = time.Now().Add(grace)
			if left > 0 {
				killAt = time.Now().Add(left)
			}
		}
		due := !killAt.IsZero() && !time.Now().Before(killAt)
		if due {
			kill(syscall.SIGKILL)
			killAt = time.Now().Add(time.Second)
		}
		if over && (due || !kill(0)) {
			return lost
		}
	}
}

// commandExit passes on how the command ended.
func commandExit(st *os.ProcessState) error {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return &exitError{code: codeSignal + int(ws.Signal())}
	}
	if code := st.ExitCode(); code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// lockEntry is a lock as -o json prints it.
type lockEntry struct {
	Name string `json:"name"`
	holderEntry
	Waiting int           `json:"waiting"`
	Waiters []holderEntry `json:"waiters"` // the first hundred
}

type holderEntry struct {
	Owner   string    `json:"owner"`
	Session uint64    `json:"session"`
	Fence   uint64    `json:"fence"` // of a waiter: the revision of its place
	Since   time.Time `json:"since"`
}

func newHolderEntry(h koinon.Holder) holderEntry {
	return holderEntry{h.Owner, h.Session, h.Fence, h.Since.UTC()}
}

func newLockLsCommand(k *kvApp) *cobra.Command {
	return &cobra.Command{
		Use:     "ls [PREFIX]",
		Short:   "List who holds which lock, and who waits",
		Example: "  koinon lock ls\n  koinon lock ls db/ -o json",
		Args:    arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error {
				list := []lockEntry{}
				for after := ""; ; {
					locks, next, err := kv.Locks(ctx, strings.Join(args, ""), after)
					if err != nil {
						return fmt.Errorf("cannot list locks: %w", err)
					}
					for _, l := range locks {
						e := lockEntry{Name: l.Name, holderEntry: newHolderEntry(l.Holder), Waiting: l.Waiting, Waiters: []holderEntry{}}
						for _, w := range l.Waiters {
							e.Waiters = append(e.Waiters, newHolderEntry(w))
						}
						list = append(list, e)
					}
					if after = next; after == "" {
						break
					}
				}
				return k.print(list, func(w io.Writer) {
					row(w, "LOCK", "FENCE", "WAITING", "SINCE", "HOLDER")
					for _, l := range list {
						row(w, shown(l.Name), l.Fence, l.Waiting, l.Since.Local().Format(time.DateTime), l.Owner)
					}
				})
			})
		},
	}
}
