//go:build linux

package daemon

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// timerSlack is by how much the kernel may be late with the timers of a daemon, in ns. Go's runtime has a thread that
	// sleeps 20 µs at a time while anything goes on, and with the kernel's 50 µs of slack it wakes 14,000 times a second,
	// which takes a fifth of the CPU of a node at work (docs/benchmarks.md).
	timerSlack = 500_000
	// processorsMin is how many of Go's processors a daemon has at least. That thread also takes the processor from a thread
	// that waits in a system call, such as fdatasync(2), and now does so later: there should be others.
	processorsMin = 4

	slackAsked = "KOINON_TIMER_SLACK" // in the environment of a program that was started anew
)

// EaseTimers prepares a process to run for long: its timers may be half a millisecond late, and take less CPU for that. A
// thread has its slack from the one that started it, and the runtime's are there already, so the program is executed anew,
// with the same PID, arguments and open files. Where that cannot be done, and where somebody else has chosen a slack
// (TimerSlackNSec= of systemd), everything stays as it is. Call it first of all, before signals are caught, on the process's main
// thread, where a program's main function begins: execve(2) keeps what belongs to the thread that calls it, such as PR_SET_PDEATHSIG.
// The program that is executed gets first in front of the rest of the environment.
func EaseTimers(first ...string) {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < processorsMin {
		runtime.GOMAXPROCS(processorsMin)
	}
	if os.Getenv(slackAsked) != "" {
		_ = os.Unsetenv(slackAsked) // fails for bad names only
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || now != defaultSlack {
		return
	}
	path, err := os.Executable()
	if err != nil || unix.Gettid() != os.Getpid() || unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0) != nil {
		return
	}
	var files unix.Rlimit // which Go has raised, and takes back when it executes something
	limited := unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil
	if unix.Exec(path, os.Args, append(append(first, os.Environ()...), slackAsked+"=1")) != nil {
		DefaultTimers()
		if limited {
			_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &files) // it was so before
		}
	}
}

// defaultSlack is the kernel's, in ns (prctl(2)).
const defaultSlack = 50_000

// DefaultTimers takes EaseTimers back for the calling thread and what it starts. The caller has locked its goroutine to the
// thread.
func DefaultTimers() {
	if now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err == nil && now == timerSlack {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, defaultSlack, 0, 0, 0) // it was so before
	}
}
