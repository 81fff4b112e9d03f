//go:build linux

package program

import "golang.org/x/sys/unix"

const (
	// TimerSlack is by how much the kernel may be late with the timers of a joined program, in ns. Go's runtime has a thread
	// that sleeps 20 µs at a time while anything goes on, and with DefaultSlack it wakes 14,000 times a second, which takes
	// a fifth of the CPU of a node at work (docs/decisions/0021-slack-timers.md).
	// The last digit tells it from one that people have chosen.
	TimerSlack = 500_001
	// DefaultSlack is the kernel's, in ns (prctl(2)). Any other was chosen by somebody, such as TimerSlackNSec= of systemd, and stays.
	DefaultSlack = 50_000
)

// DefaultTimers gives the calling thread, and what it starts, the kernel's timer slack in place of the program's. The caller has
// locked its goroutine to the thread.
func DefaultTimers() {
	if now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err == nil && now == TimerSlack {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, DefaultSlack, 0, 0, 0) // it was so before
	}
}
