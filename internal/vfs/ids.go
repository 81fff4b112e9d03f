package vfs

import (
	"context"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// idRange is how many slice numbers are reserved at a time.
	idRange = 256
	// giveUpBatch is how many given up slices are worth a command at once;
	// giveUpMax how many are remembered while the tree cannot be reached. The
	// end of the session gives up the rest.
	giveUpBatch = 256
	giveUpMax   = 16 * giveUpBatch
)

// sliceIDs gives out slice IDs from reserved ranges of numbers, and keeps one
// range in reserve so that a writer seldom waits for the tree.
type sliceIDs struct {
	fs *FS

	mu          sync.Mutex
	use, spare  seqRange
	session     sys.SessionID // of the latest reservation
	reserving   bool
	reserveDone chan struct{}
	err         error // of the last reservation

	givenMu sync.Mutex // taken under inode.mu
	given   []*metapb.Slice
}

// seqRange is the reserved numbers [next, end).
type seqRange struct {
	next, end uint64
	session   sys.SessionID // on whose account they are
}

func (r seqRange) empty() bool { return r.next == r.end }

// take returns a fresh ID, and on whose account it is. Placement groups are
// taken in turn.
func (s *sliceIDs) take(ctx context.Context) (sys.SliceID, sys.SessionID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.use.empty() {
			s.use, s.spare = s.spare, seqRange{}
		}
		if !s.use.empty() {
			seq := s.use.next
			s.use.next++
			if s.spare.empty() && s.use.end-s.use.next < idRange/2 && !s.reserving {
				s.reserve()
			}
			return s.place(seq), s.use.session, nil
		}
		if !s.reserving && !s.reserve() {
			return 0, 0, errClosed
		}
		done := s.reserveDone
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			s.mu.Lock()
			return 0, 0, sys.E(sys.Op("vfs.AllocSlices"), sys.Interrupted, ctx.Err())
		}
		s.mu.Lock()
		if s.use.empty() && s.spare.empty() && s.err != nil {
			return 0, 0, s.err
		}
	}
}

func (s *sliceIDs) place(seq uint64) sys.SliceID { return sys.PlaceSlice(seq, s.fs.opts.PGs) }

// reserve asks for the next range in the background. s.mu is held.
func (s *sliceIDs) reserve() bool {
	s.reserving, s.reserveDone = true, make(chan struct{})
	ok := s.fs.startTask(func() {
		fresh, err := s.alloc(s.fs.ctx, idRange)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err = err; err == nil {
			s.spare, s.session = fresh, fresh.session
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

// alloc reserves count numbers.
func (s *sliceIDs) alloc(ctx context.Context, count uint32) (seqRange, error) {
	// What an earlier try may have reserved ends with its session.
	r, err := s.fs.doAgain(ctx, &metapb.Command{Op: &metapb.Command_AllocSlices{
		AllocSlices: &metapb.AllocSlices{Count: count, Session: uint64(s.fs.opts.Session)}}})
	if err != nil {
		return seqRange{}, err
	}
	first := r.GetFirstSlice()
	return seqRange{next: first, end: first + uint64(count), session: sys.SessionID(r.GetSession())}, nil
}

// ended reports whether a session on whose account numbers were reserved has
// ended. What is left of its numbers is thrown away then.
func (s *sliceIDs) ended(ctx context.Context, session sys.SessionID) (bool, error) {
	s.mu.Lock()
	known := s.session != session
	s.mu.Unlock()
	if !known {
		probe, err := s.alloc(ctx, 1)
		if err != nil {
			return false, err
		}
		s.giveUp(s.place(probe.next), 1)
		if probe.session == session {
			return false, nil
		}
		s.mu.Lock()
		s.session = probe.session
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range []*seqRange{&s.use, &s.spare} {
		if r.session == session {
			*r = seqRange{}
		}
	}
	return true, nil
}

// refresh is ended for the session of the latest reservation.
func (s *sliceIDs) refresh(ctx context.Context) error {
	s.mu.Lock()
	session := s.session
	s.mu.Unlock()
	_, err := s.ended(ctx, session)
	return err
}

// giveUp notes that a slice with a reserved number, of size bytes so far, will
// not be published, so that its blocks can go. The tree passes over those that
// were published after all. It does not block.
func (s *sliceIDs) giveUp(id sys.SliceID, size uint32) {
	s.givenMu.Lock()
	if len(s.given) < giveUpMax {
		s.given = append(s.given, &metapb.Slice{Slice: uint64(id), SliceLen: size})
	}
	full := len(s.given) == giveUpBatch
	s.givenMu.Unlock()
	if full {
		s.fs.wakeWriteback()
	}
}

// tellGivenUp tells the tree what was given up.
func (s *sliceIDs) tellGivenUp(ctx context.Context) {
	s.givenMu.Lock()
	given := s.given
	s.given = nil
	s.givenMu.Unlock()
	for len(given) > 0 {
		n := min(len(given), giveUpBatch)
		cmd := &metapb.Command{Op: &metapb.Command_GiveUp{GiveUp: &metapb.GiveUp{Slices: given[:n]}}}
		if _, err := s.fs.doAgain(ctx, cmd); err != nil {
			s.fs.log.Debug("slices could not be given up; it is tried again", "slices", len(given), "err", err)
			s.givenMu.Lock()
			s.given = append(given, s.given...)
			s.givenMu.Unlock()
			return
		}
		given = given[n:]
	}
}

// fullBatch reports whether enough was given up to tell the tree at once.
func (s *sliceIDs) fullBatch() bool {
	s.givenMu.Lock()
	defer s.givenMu.Unlock()
	return len(s.given) >= giveUpBatch
}

// giveUpEvery is how often the tree is told of fewer than giveUpBatch.
const giveUpEvery = 5 * time.Second
