package env

import "time"

// NewTicker is time.NewTicker with ticks at multiples of d of c.Boot, so that those who look at something
// now and then wake a process, and the machine, together. The first tick comes sooner than after d.
func NewTicker(c Clock, d time.Duration) *time.Ticker {
	first := d - c.Boot()%d
	t := time.NewTicker(first)
	// Both are due at the same moment. Where this comes first, or after a Stop, a tick less or more is seen by nobody.
	time.AfterFunc(first, func() { t.Reset(d) })
	return t
}
