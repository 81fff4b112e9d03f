//go:build linux

package fusefs

import (
	"context"
	"sync"
	"time"
)

// interruptGrace is how long an interrupted request may go on before it is
// given up; it takes up to twice as long.
const interruptGrace = 500 * time.Millisecond

// request is the context of a request. It ends some time after the kernel has
// sent an interrupt: a signal that a program handles, which for Go programs
// and those with timers comes all the time, must not make a stat(2) fail with
// EINTR that is done in a moment, while a killed program must not wait for an
// answer that does not come.
//
// It costs no goroutine, and nothing at all until somebody waits for it. It
// must not be used once end was called.
type request struct {
	cancel <-chan struct{}
	in     *interrupts

	// in.mu guards what follows.
	done  chan struct{} // nil until asked for
	seen  bool          // the interrupt was seen at the last look
	ended bool
	err   error
}

// interrupts looks after the requests that somebody waits for.
type interrupts struct {
	mu      sync.Mutex
	waiting map[*request]struct{}
}

var _ context.Context = (*request)(nil)

// begin returns the context of a request that the kernel cancels by cancel.
func (r *rawFS) begin(cancel <-chan struct{}) *request {
	return &request{cancel: cancel, in: &r.interrupts}
}

// end ends the use of the context.
func (r *request) end() {
	r.in.mu.Lock()
	defer r.in.mu.Unlock()
	r.ended = true
	delete(r.in.waiting, r)
}

func (r *request) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }
func (r *request) Value(any) any                           { return nil }

func (r *request) Err() error {
	r.in.mu.Lock()
	defer r.in.mu.Unlock()
	return r.err
}

func (r *request) Done() <-chan struct{} {
	r.in.mu.Lock()
	defer r.in.mu.Unlock()
	if r.done == nil {
		r.done = make(chan struct{})
		if !r.ended {
			if r.in.waiting == nil {
				r.in.waiting = make(map[*request]struct{})
			}
			r.in.waiting[r] = struct{}{}
		}
	}
	return r.done
}

// look ends the requests whose interrupt was seen at the look before.
func (in *interrupts) look() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for r := range in.waiting {
		select {
		case <-r.cancel:
		default:
			continue
		}
		if !r.seen {
			r.seen = true
			continue
		}
		r.err = context.Canceled
		close(r.done)
		delete(in.waiting, r)
	}
}

// watch looks after requests until stop ends.
func (in *interrupts) watch(stop <-chan struct{}) {
	tick := time.NewTicker(interruptGrace)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			in.look()
		}
	}
}
