// Package env is the seam between Koinon and the machine: the clock, the disk and
// the scheduler, so that the same code runs on a real machine and in a simulated one.
//
// The disk is Pebble's vfs.FS, which has a real implementation and a
// crashable, fault-injecting one. Randomness is passed as *rand.Rand.
package env

import (
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
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

// FS is the disk.
type FS = vfs.FS

// Disk is the machine's own file system.
var Disk FS = vfs.Default

// System is the machine's own clock.
type System struct{}

var _ Clock = System{}

// Wall returns time.Now.
func (System) Wall() time.Time { return time.Now() }
