// Package env is the seam between Koinon and the machine: the clock, the scheduler
// and, in package envfs, the disk, so that the same code runs on a real machine and
// in a simulated one. Randomness is passed as *rand.Rand.
package env

import (
	"time"
)

// Clock tells the time. Methods may be called concurrently.
type Clock interface {
	// Boot is the time since boot, suspend included (CLOCK_BOOTTIME). It
	// never goes back, and wall clock changes do not touch it. Leases and
	// timeouts use it.
	Boot() time.Duration
	// Wall is the time of day, for timestamps that people see.
	Wall() time.Time
}

// System is the machine's own clock.
type System struct{}

var _ Clock = System{}

// Wall returns time.Now.
func (System) Wall() time.Time { return time.Now() }
