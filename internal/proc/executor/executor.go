// Package executor runs processes on one node: it starts them as their user, within their limits, keeps what they
// print, and tells how they ended. It knows nothing of the cluster.
//
// # Two halves
//
// The processes are children of a supervisor, a process of its own that the node's daemon starts (Open) and that goes on when
// the daemon ends or is killed; Supervise is its main function. So a daemon that comes back finds the processes that it
// had started, their output, and the exit codes of those that ended meanwhile. An Executor is the daemon's end of the
// connection. It connects again by itself, and starts another supervisor when there is none.
//
// A supervisor that dies takes its processes with it. The next one makes sure of that before it does anything else, and
// reports them as Lost.
//
// # What is never left running
//
// A process belongs to an attempt: a rank of a job under an epoch. Everything that it started belongs to it too, also what
// forked away into a session of its own, and is killed when the process ends, before that is told. The processes of a
// node run under a lease of the daemon (Renew); when it runs out they are killed, since nobody may know any more that they
// run here. Fence closes epochs: what is below starts no more.
//
// # What is never lost
//
// Starts and ends are records in a log before they are told, and stay until Forget. That log survives the supervisor, and is
// never synced: a file system that dies, mostly with its machine, may lose what was done last. So whoever has asked for a start
// must remember that himself, and take an attempt that another supervisor (Instance) does not know for lost. Output is kept in
// spools until it is acknowledged (Output.Ack); a process that prints faster than that waits in its write(2).
package executor

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// ID names an attempt to run a rank of a job. The epoch belongs to it, so that a late word about an earlier attempt is
// never taken for one about a later.
type ID struct {
	Job, Rank uint64
	Epoch     uint64 // attempts of the same job and rank have different ones, later ones higher ones
}

// String returns "job.rank@epoch".
func (id ID) String() string { return fmt.Sprintf("%d.%d@%d", id.Job, id.Rank, id.Epoch) }

// Spec tells what to run. Strings are bytes as the kernel takes them, without NUL, and need not be UTF-8.
type Spec struct {
	ID   ID
	Argv []string // at least the program: a path, or a name to be looked up in PATH of Env as execvp(3) does
	Env  []string // "K=V", the whole environment; the executor adds KOINON_ATTEMPT, by which it finds what ran away
	Dir  string   // working directory, absolute

	// UID, GID and Groups, the supplementary groups, are who the process is. Others than the daemon's own take root.
	UID, GID uint32
	Groups   []uint32

	Limits  Limits
	Stdin   bool          // a pipe to be filled through Stdin; else the process reads /dev/null
	Timeout time.Duration // stopped after this, as by Stop with KillGrace; 0 for never
	// KillGrace is what a process has between TERM and KILL when its time is over.
	KillGrace time.Duration
}

// Limits bound what a process and all that it starts may use together. 0 is no limit. Executor.Enforced tells whether this
// node can enforce them.
type Limits struct {
	CPU    int64 // thousandths of a CPU
	Memory int64 // bytes, swap included; who needs more is killed and told so (OOM)
}

// Cause says why a process ended.
type Cause string

// The causes.
const (
	Exited   Cause = "exited"   // by itself, or by a signal that Koinon did not send
	Signaled Cause = "signaled" // by a deadly signal that was sent through Signal before
	Stopped  Cause = "stopped"  // after Stop
	TimedOut Cause = "timeout"  // its Timeout was over
	OOM      Cause = "oom"      // killed by the kernel: it needed more memory than its limit
	Fenced   Cause = "fenced"   // the lease ran out, or Sweep
	Lost     Cause = "lost"     // the supervisor or the machine died: how it ended is not known, but that it did
)

// Status is how a process ended.
type Status struct {
	Cause  Cause
	Code   int            // exit code, when Signal is 0
	Signal syscall.Signal // that killed it, or 0
	Core   bool           // it dumped core
	Ended  time.Time
	CPU    time.Duration // used by the process and all that it started, as far as the node can tell (Enforced.Tracking)
	RSS    int64         // the most memory at once, bytes: of all that belonged to it, with cached files, where a cgroup counts that; else what it, or a child that it waited for, had resident. 0 when not known: less than the supervisor has
	Stdout int64         // bytes printed in all
	Stderr int64
}

// ExitCode is the status as a shell gives it: the exit code, or 128 and the signal; 125 for what is lost.
func (s Status) ExitCode() int {
	switch {
	case s.Cause == Lost:
		return codeTrouble
	case s.Signal != 0:
		return 128 + int(s.Signal)
	}
	return s.Code
}

// Event says that a process started, or that it ended.
type Event struct {
	Seq     uint64 // rises from event to event, also across restarts of daemon and supervisor
	ID      ID
	PID     int // of the process; 0 when it is not known any more
	Started time.Time
	Status  *Status // how it ended; nil: it started
}

// Process is a process that runs or ended and was not forgotten.
type Process struct {
	ID      ID
	PID     int
	Started time.Time
	Status  *Status       // nil while it runs
	CPU     time.Duration // used so far, by all that belongs to it
	RSS     int64         // resident now, of all that belongs to it: bytes. Shared pages count for each
	Count   int           // how many processes belong to it
}

// Stream is one of the two outputs of a process.
type Stream int

// The streams, numbered as in a process.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Spool is the state of an output. Bytes from Acked to Size can be read.
type Spool struct {
	Acked int64 // all before were acknowledged and may be gone. Falls back a little when the supervisor dies.
	Size  int64
	Final bool // nothing will be added: the process has ended
}

// Enforced tells what the node can do about limits.
type Enforced struct {
	CPU, Memory bool
	Tracking    Tracking
	// Why says what is missing, in words; "" when nothing is.
	Why string
}

// Tracking is how the node knows what belongs to a process.
type Tracking string

// The ways of tracking.
const (
	ByCgroup Tracking = "cgroup" // the kernel does it, without a gap
	// ByAttempt: without cgroups, by process group, session, descent and KOINON_ATTEMPT in the environment. What changes
	// all of them is found at the latest when nothing else runs, but not if the supervisor dies before. CPU is that of the
	// process and the children it waited for.
	ByAttempt Tracking = "attempt"
)

// Why a process could not be started. Errors of Start wrap one of these when the trouble is with the Spec; any other
// is trouble of the node or a refusal (sys.StaleEpoch below the fence, sys.Busy when another attempt runs, sys.Unavailable
// without a lease or a supervisor, sys.Permission for another user without root, sys.Invalid).
var (
	ErrNotFound      = errors.New("command not found")
	ErrNotExecutable = errors.New("command cannot be executed")
	ErrNoDirectory   = errors.New("no working directory to start in")
	ErrNoUser        = errors.New("no such user")
)

// ErrAway is a reason of the node: what the working directory is on is a dead mount, or does not answer. Nothing was started.
var ErrAway = errors.New("the file system of the working directory does not answer")

// Exit codes of what could not be started, as in shells and env(1).
const (
	codeTrouble       = 125
	codeNotExecutable = 126
	codeNotFound      = 127
)

// ExitCode is the exit code that stands for an error of Start: 127 for a command that was not found, 126 for one that
// may not be executed, 125 for any other trouble, 0 for nil.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrNotFound):
		return codeNotFound
	case errors.Is(err, ErrNotExecutable):
		return codeNotExecutable
	}
	return codeTrouble
}
