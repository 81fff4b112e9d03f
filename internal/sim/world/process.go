package world

import (
	"iter"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/env"
)

// Process runs goroutines that are coroutines: one runs at a time, until it
// waits. When one of the things that it waits for is there, it goes on after
// a short random while, so that any order of those who can go on comes up.
type Process struct {
	w        *World
	id       uint64
	delay    func() Instant // before a routine goes on
	routines []*routine     // in the order in which they were started
	started  uint64
	running  *routine

	// PausedUntil is when the process goes on: until then none of its
	// routines does, as if it had got SIGSTOP.
	PausedUntil Instant
}

var _ env.Sched = (*Process)(nil)

// NewProcess returns a process without routines. id is what the hash knows it
// by; delay is asked how long a routine that can go on takes to do so.
func (w *World) NewProcess(id uint64, delay func() Instant) *Process {
	p := &Process{w: w, id: id, delay: delay}
	w.processes = append(w.processes, p)
	return p
}

// routine is one goroutine.
type routine struct {
	id    uint64
	next  func() (struct{}, bool)
	yield func(struct{}) bool

	waits   bool
	timer   *timer
	a, b, c <-chan struct{}
	got     env.Event
	turn    uint64 // counts its steps, so that an event meant for an earlier one is known
}

// Go implements env.Sched. It may be called from outside of the process too.
func (p *Process) Go(fn func()) {
	p.started++
	r := &routine{id: p.started}
	// What stop would do is not wanted: a routine always comes to its end.
	r.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		r.yield = yield
		defer func() {
			if v := recover(); v != nil {
				panic(asViolation(v)) // with the stack that it has here
			}
		}()
		fn()
	})
	p.routines = append(p.routines, r)
	p.goOn(r)
}

// goOn has a routine that can go on do so in a while.
func (p *Process) goOn(r *routine) {
	turn := r.turn
	p.w.After(p.delay(), func() { p.step(r, turn) })
}

// step runs a routine until it waits, ends, or the process is found paused.
func (p *Process) step(r *routine, turn uint64) {
	switch {
	case r.turn != turn:
		return
	case p.w.Now < p.PausedUntil:
		p.w.After(p.PausedUntil-p.w.Now+p.delay(), func() { p.step(r, turn) })
		return
	}
	p.run(r)
}

func (p *Process) run(r *routine) {
	if p.running != nil {
		panic("world: a routine is resumed by another one")
	}
	r.turn++
	p.w.Mark('.', p.id, r.id, uint64(r.got))
	p.running = r
	_, more := r.next()
	p.running = nil
	if !more {
		p.routines = slices.DeleteFunc(p.routines, func(o *routine) bool { return o == r })
	}
}

// Wait implements env.Sched.
func (p *Process) Wait(t env.Timer, a, b, c <-chan struct{}) env.Event {
	r := p.running
	if r == nil {
		panic("world: whoever waits is no routine of this process")
	}
	r.a, r.b, r.c, r.timer = a, b, c, nil
	if t != nil {
		r.timer = t.(*timer)
	}
	r.waits = true
	r.yield(struct{}{})
	r.a, r.b, r.c, r.timer = nil, nil, nil, nil
	return r.got
}

// Yield implements env.Sched.
func (p *Process) Yield() {
	r := p.running
	if r == nil {
		panic("world: whoever yields is no routine of this process")
	}
	p.goOn(r)
	r.yield(struct{}{})
}

// Sleep waits.
func (p *Process) Sleep(d Instant) { p.Wait(p.NewTimer(time.Duration(d)), nil, nil, nil) }

// poll finds who can go on.
func (p *Process) poll() {
	for _, r := range p.routines {
		if r.waits && r.ready() {
			r.waits = false
			p.goOn(r)
		}
	}
}

// ready takes what the routine waits for, if it is there.
func (r *routine) ready() bool {
	select {
	case <-r.a:
		r.got = env.GotA
		return true
	default:
	}
	select {
	case <-r.b:
		r.got = env.GotB
		return true
	default:
	}
	select {
	case <-r.c:
		r.got = env.GotC
		return true
	default:
	}
	if r.timer != nil && r.timer.fired {
		r.timer.fired = false
		r.got = env.Fired
		return true
	}
	return false
}

// Finish runs the routines at once, one after the other and pauses or not,
// until done: timers fire when nobody can go on without. The world stands
// still meanwhile.
func (p *Process) Finish(done func() bool) {
	p.PausedUntil = 0
	for !done() {
		r := p.able()
		if r == nil {
			p.w.Fail("process %d does not come to an end: all wait", p.id)
		}
		r.waits = false
		p.run(r)
	}
}

// able returns a routine that can go on.
func (p *Process) able() *routine {
	for _, r := range p.routines {
		if !r.waits || r.ready() {
			return r
		}
	}
	for _, r := range p.routines {
		if r.timer != nil {
			r.timer.Stop()
			r.got = env.Fired
			return r
		}
	}
	return nil
}

// End takes a process away in which nothing runs any more.
func (p *Process) End() {
	if len(p.routines) > 0 {
		p.w.Fail("process %d ends with %d goroutines", p.id, len(p.routines))
	}
	p.w.processes = slices.DeleteFunc(p.w.processes, func(o *Process) bool { return o == p })
}

type timer struct {
	w     *World
	set   uint64 // counts, so that what was set before is known
	fired bool
}

// NewTimer implements env.Sched.
func (p *Process) NewTimer(d time.Duration) env.Timer {
	t := &timer{w: p.w}
	t.Reset(d)
	return t
}

// Reset implements env.Timer.
func (t *timer) Reset(d time.Duration) {
	t.Stop()
	set := t.set
	t.w.After(Instant(d), func() {
		if t.set == set {
			t.fired = true
		}
	})
}

// Stop implements env.Timer.
func (t *timer) Stop() {
	t.set++
	t.fired = false
}

// Idle reports whether no routine is left.
func (p *Process) Idle() bool { return len(p.routines) == 0 }

// Running reports whether one of its routines runs now.
func (p *Process) Running() bool { return p.running != nil }
