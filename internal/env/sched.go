package env

import (
	"runtime"
	"time"
)

// Sched starts what runs at the same time, and lets it wait. Goroutines is the
// machine's own. A simulator has one that lets one run after the other, in an
// order that a seed gives: whoever runs under it waits nowhere else, and holds
// no lock while it does.
type Sched interface {
	// Go runs fn beside the caller.
	Go(fn func())
	// Yield lets others go on first who can.
	Yield()
	// Wait blocks until t fires, or a, b or c has something, which it takes,
	// or is closed, and says which. nil ones never are.
	Wait(t Timer, a, b, c <-chan struct{}) Event
	// NewTimer returns a timer that fires once, after d.
	NewTimer(d time.Duration) Timer
}

// Timer fires once. It is its owner's alone.
type Timer interface {
	// Reset has it fire after d, whatever it was set to and whether it fired.
	Reset(d time.Duration)
	Stop()
}

// Event is what ended a Wait.
type Event uint8

// The events, in the order of Wait's parameters.
const (
	Fired Event = iota
	GotA
	GotB
	GotC
)

// Goroutines runs everything in goroutines.
type Goroutines struct{}

var _ Sched = Goroutines{}

// Go implements Sched.
func (Goroutines) Go(fn func()) { go fn() }

// Yield implements Sched.
func (Goroutines) Yield() { runtime.Gosched() }

// Wait implements Sched.
func (Goroutines) Wait(t Timer, a, b, c <-chan struct{}) Event {
	var fired <-chan time.Time
	if t != nil {
		fired = t.(*timer).wall.C
	}
	select {
	case <-fired:
		return Fired
	case <-a:
		return GotA
	case <-b:
		return GotB
	case <-c:
		return GotC
	}
}

// NewTimer implements Sched.
func (Goroutines) NewTimer(d time.Duration) Timer { return &timer{time.NewTimer(d)} }

type timer struct{ wall *time.Timer }

// Reset implements Timer.
func (t *timer) Reset(d time.Duration) { t.wall.Reset(d) }

// Stop implements Timer.
func (t *timer) Stop() { t.wall.Stop() }
