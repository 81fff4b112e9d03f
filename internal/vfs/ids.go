package vfs

import (
	"context"
	"sync"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// idRange is how many slice numbers are reserved at a time.
const idRange = 256

// sliceIDs gives out slice IDs from reserved ranges of numbers, and keeps one
// range in reserve so that a writer seldom waits for the tree.
type sliceIDs struct {
	fs *FS

	mu          sync.Mutex
	next, end   uint64 // the range in use
	spare       uint64 // first of the range in reserve; 0 when there is none
	reserving   bool
	reserveDone chan struct{}
	err         error // of the last reservation
}

// take returns a fresh ID. Placement groups are taken in turn.
func (s *sliceIDs) take(ctx context.Context) (sys.SliceID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.next == s.end && s.spare != 0 {
			s.next, s.end, s.spare = s.spare, s.spare+idRange, 0
		}
		if s.next < s.end {
			seq := s.next
			s.next++
			if s.spare == 0 && s.end-s.next < idRange/2 && !s.reserving {
				s.reserve()
			}
			return sys.NewSliceID(seq, sys.PG(seq%uint64(s.fs.opts.PGs))), nil
		}
		if !s.reserving && !s.reserve() {
			return 0, errClosed
		}
		done := s.reserveDone
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			s.mu.Lock()
			return 0, sys.E(sys.Op("vfs.AllocSlices"), sys.Interrupted, ctx.Err())
		}
		s.mu.Lock()
		if s.next == s.end && s.spare == 0 && s.err != nil {
			return 0, s.err
		}
	}
}

// reserve asks for the next range in the background. s.mu is held.
func (s *sliceIDs) reserve() bool {
	s.reserving, s.reserveDone = true, make(chan struct{})
	ok := s.fs.startTask(func() {
		r, err := s.fs.do(s.fs.ctx, &metapb.Command{Op: &metapb.Command_AllocSlices{
			AllocSlices: &metapb.AllocSlices{Count: idRange, Session: uint64(s.fs.opts.Session)}}})
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err = err; err == nil {
			s.spare = r.GetFirstSlice()
		}
		s.reserving = false
		close(s.reserveDone)
	})
	if !ok {
		s.reserving = false
		close(s.reserveDone)
	}
	return ok
}
