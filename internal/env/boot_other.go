//go:build !linux

package env

import "time"

// begun is when the process began; time.Since of it uses the monotonic clock.
var begun = time.Now()

// Boot is the time since the process began. Machines other than Linux run
// clients only, whose leases end early rather than late when they sleep.
func (System) Boot() time.Duration { return time.Since(begun) }
