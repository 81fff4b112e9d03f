package env

import (
	"sync/atomic"
	"time"
)

// Ticker is a time.Ticker whose ticks come at multiples of its period, see NewTicker.
type Ticker struct {
	C       <-chan time.Time // holds one tick
	stopped atomic.Bool
}

// NewTicker ticks at the multiples of d, which is above 0, of c.Boot, so that those who look at something now and then wake a process,
// and the machine, together. The first tick comes after d at the latest. Stop it.
func NewTicker(c Clock, d time.Duration) *Ticker {
	ticks := make(chan time.Time, 1)
	t := &Ticker{C: ticks}
	var next func()
	next = func() {
		time.AfterFunc(d-c.Boot()%d, func() {
			if t.stopped.Load() {
				return
			}
			select {
			case ticks <- time.Now():
			default: // the last one has not been taken
			}
			next()
		})
	}
	next()
	return t
}

// Stop ends the ticks. One that has come may be left in C.
func (t *Ticker) Stop() { t.stopped.Store(true) }
