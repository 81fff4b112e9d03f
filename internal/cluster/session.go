package cluster

import (
	"context"
	"errors"
	"sync"

	"github.com/koinon/koinon/internal/sys"
)

// Session is a client's session at the leader. It numbers commands, so that
// each takes effect once however often it is sent. Its methods may be called
// concurrently.
type Session struct {
	client *Client
	name   string
	admit  func(ctx context.Context) error
	opened func()

	opening chan struct{} // holds a token while somebody opens a session
	refused error         // for ever; of who holds the token

	mu    sync.Mutex
	id    sys.SessionID
	seq   uint64              // last given out
	open  map[uint64]struct{} // given out and not answered
	floor uint64              // everything up to it is answered
}

// Ticket names one command. All tries of it carry the same one.
type Ticket struct {
	Session sys.SessionID
	Seq     uint64
	Ack     uint64 // the results of everything up to it have arrived
}

// NewSession returns a session that is not open yet; name tells people whose
// it is. Each time one has been opened, before anybody gets a ticket of it, admit
// is asked whether it may take the place of the last one, and then opened is
// told. Both may be nil, and must not use the Session. When admit is Stale, so is
// every Open from then on.
func NewSession(c *Client, name string, admit func(ctx context.Context) error, opened func()) *Session {
	return &Session{client: c, name: name, admit: admit, opened: opened, opening: make(chan struct{}, 1)}
}

// ID returns the session's number, 0 when it is not open.
func (s *Session) ID() sys.SessionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// Open replaces a session that is gone, or 0, once for all who found it gone.
func (s *Session) Open(ctx context.Context, gone sys.SessionID) error {
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return sys.E(sys.Op("cluster.OpenSession"), sys.Interrupted, ctx.Err())
	}
	if s.ID() != gone || s.refused != nil {
		return s.refused
	}
	if gone != 0 {
		s.client.cfg.Logger.Warn("the session expired: opening another", "session", uint64(gone))
	}
	id, err := s.client.OpenSession(ctx, s.name)
	if err != nil {
		return err
	}
	if s.admit != nil {
		if err := s.admit(ctx); err != nil {
			if sys.Is(err, sys.Stale) {
				s.refused = err
			}
			return errors.Join(err, s.client.CloseSession(ctx, id))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.seq, s.floor, s.open = id, 0, 0, map[uint64]struct{}{}
	if s.opened != nil {
		s.opened()
	}
	return nil
}

// Begin gives out the next ticket. Each must come back by End.
func (s *Session) Begin() Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	s.open[s.seq] = struct{}{}
	return Ticket{Session: s.id, Seq: s.seq, Ack: s.floor}
}

// End says that the command of a ticket will not be sent again.
func (s *Session) End(t Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Session != s.id {
		return
	}
	delete(s.open, t.Seq)
	for s.floor < s.seq {
		if _, open := s.open[s.floor+1]; open {
			break
		}
		s.floor++
	}
}

// Close ends the session, if one is open; what it held is released at once.
func (s *Session) Close(ctx context.Context) error {
	if id := s.ID(); id != 0 {
		return s.client.CloseSession(ctx, id)
	}
	return nil
}
