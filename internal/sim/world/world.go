// Package world is what simulations run in: one clock, one queue of events,
// one source of randomness, and a hash of all that happened. A Process in it
// runs goroutines one at a time.
//
// Nothing here is safe for concurrent use, as nothing is concurrent: the same
// seed gives the same run, event by event.
package world

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
)

// Instant is a time, or a span, of the world in nanoseconds.
type Instant int64

// Spans.
const (
	Microsecond Instant = 1e3
	Millisecond Instant = 1e6
	Second      Instant = 1e9
)

// World is everything there is.
type World struct {
	Seed   uint64
	Rand   *rand.Rand
	Now    Instant
	Hash   uint64 // of all that was marked
	Events int    // how many there were

	print     func(line string)
	queue     eventQueue
	eventSeq  uint64
	processes []*Process
}

// New returns a world in which nothing happens yet. print, unless nil, gets
// every event as a line for people.
func New(seed uint64, print func(line string)) *World {
	return &World{Seed: seed, Rand: rand.New(rand.NewPCG(seed, 0x6b6f696e6f6e)), Hash: fnvOffset, print: print}
}

// violation is how a check ends a run.
type violation struct{ error }

// Run runs fn and returns what Fail said, or what panicked.
func (w *World) Run(fn func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("seed %d, at %d us: %w", w.Seed, w.Now/Microsecond, asViolation(p).error)
		}
	}()
	fn()
	return nil
}

// asViolation makes a violation of what panicked.
func asViolation(p any) violation {
	if v, ok := p.(violation); ok {
		return v
	}
	return violation{fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
}

// Fail ends the run.
func (w *World) Fail(format string, args ...any) { panic(violation{fmt.Errorf(format, args...)}) }

// event is something that happens at a time. Events of the same time happen in
// the order in which they were made.
type event struct {
	at  Instant
	seq uint64
	do  func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push is for container/heap.
func (q *eventQueue) Push(x any) { *q = append(*q, x.(event)) }

// Pop is for container/heap.
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return e
}

// After makes something happen later.
func (w *World) After(d Instant, do func()) {
	w.eventSeq++
	heap.Push(&w.queue, event{at: w.Now + d, seq: w.eventSeq, do: do})
}

// RunUntil lets happen what happens until a time.
func (w *World) RunUntil(end Instant) {
	for len(w.queue) > 0 && w.queue[0].at <= end {
		e := heap.Pop(&w.queue).(event)
		w.Now = e.at
		w.Events++
		e.do()
		for _, p := range w.processes {
			p.poll()
		}
	}
	w.Now = end
}

// Every does something again and again, mean apart on average, while ok.
func (w *World) Every(mean Instant, ok func() bool, do func()) {
	w.After(w.Pick(mean/4, 2*mean), func() {
		if ok() {
			do()
			w.Every(mean, ok, do)
		}
	})
}

// Pick returns a random span in [lo, hi).
func (w *World) Pick(lo, hi Instant) Instant { return lo + Instant(w.Rand.Int64N(int64(hi-lo))) }

// Chance is true with probability p.
func (w *World) Chance(p float64) bool { return p > 0 && w.Rand.Float64() < p }

// OneOf returns one of some values.
func OneOf[T any](w *World, values ...T) T { return values[w.Rand.IntN(len(values))] }

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// Mark folds an event into the hash.
func (w *World) Mark(what byte, values ...uint64) {
	h := (w.Hash ^ uint64(what)) * fnvPrime
	h = (h ^ uint64(w.Now)) * fnvPrime
	for _, v := range values {
		h = (h ^ v) * fnvPrime
	}
	w.Hash = h
	if w.print != nil {
		w.print(fmt.Sprintf("%10d %c %v", w.Now/Microsecond, what, values))
	}
}

// Tracing says that somebody reads what Trace writes.
func (w *World) Tracing() bool { return w.print != nil }

// Trace writes a line for people.
func (w *World) Trace(format string, args ...any) {
	if w.print != nil {
		w.print(fmt.Sprintf("%10d   ", w.Now/Microsecond) + fmt.Sprintf(format, args...))
	}
}
