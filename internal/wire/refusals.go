package wire

import (
	"sync"
	"time"
)

// A server tells of refusalsTold refused connections within refusalsWindow one by
// one, and of all others by their number: anybody can make it refuse thousands a
// second.
const (
	refusalsTold   = 10
	refusalsWindow = time.Minute
)

// refusals counts what is refused. Its methods may be called concurrently.
type refusals struct {
	mu     sync.Mutex
	began  time.Time // of the window, zero before the first
	told   int
	untold int
}

// note counts a refusal and reports whether to tell of it. untold is how many of an
// earlier window nobody was told of.
func (r *refusals) note(now time.Time) (tell bool, untold int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	untold = r.over(now)
	if r.began.IsZero() {
		r.began = now
	}
	if r.told < refusalsTold {
		r.told++
		return true, untold
	}
	r.untold++
	return false, untold
}

// ended returns how many refusals of a window that is over nobody was told of.
func (r *refusals) ended(now time.Time) (untold int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over(now)
}

// over ends the window when its time has passed. The caller holds mu.
func (r *refusals) over(now time.Time) (untold int) {
	if now.Sub(r.began) < refusalsWindow {
		return 0
	}
	untold = r.untold
	r.began, r.told, r.untold = time.Time{}, 0, 0
	return untold
}
