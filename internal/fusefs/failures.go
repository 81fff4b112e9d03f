//go:build linux

package fusefs

import (
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// failuresEvery is how often a failure is logged at most.
const failuresEvery = time.Second

// failures logs why programs were answered EIO, which tells them nothing.
type failures struct {
	mu     sync.Mutex
	last   time.Time
	unsaid int // since last
}

// status is statusOf, and logs what a program cannot be told.
func (r *rawFS) status(err error) fuse.Status {
	s := statusOf(err)
	if s == fuse.EIO {
		r.failures.tell(r.opts.Logger, err)
	}
	return s
}

// tell logs an error, unless one was logged just before.
func (f *failures) tell(log *slog.Logger, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.last) < failuresEvery {
		f.unsaid++
		return
	}
	log.Error("a program was answered EIO", "err", err, "more_since_the_last", f.unsaid)
	f.last, f.unsaid = now, 0
}
