package kv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// Session holds locks and ephemeral keys for as long as it renews. It counts
// its time from the sending of each renewal by a clock that goes on while the
// machine sleeps, so it knows that it is lost before the cluster gives away
// what it held. Its methods may be called concurrently.
type Session struct {
	c   *Client
	s   *cluster.Session
	id  sys.SessionID
	ttl time.Duration

	mu    sync.Mutex
	until time.Duration // Boot time to which it certainly lives
	err   error         // why it ended

	life context.Context // ends with the session
	end  context.CancelFunc
	done sync.WaitGroup
}

// NewSession opens a session that lives for ttl after each renewal, TTLMin to
// TTLMax. Close ends it.
func (c *Client) NewSession(ctx context.Context, ttl time.Duration) (*Session, error) {
	open := &kvpb.Command{Op: &kvpb.Command_Open{Open: &kvpb.Open{TtlNs: int64(ttl), Owner: c.opt.Name}}}
	if err := Check(open); err != nil {
		return nil, sys.E(sys.Op("kv.NewSession"), err)
	}
	if err := c.inUse(); err != nil {
		return nil, err
	}
	s := &Session{c: c, s: cluster.NewSession(c.opt.Cluster, c.opt.Name, nil, nil), ttl: ttl}
	if err := s.s.Open(ctx, 0); err != nil {
		return nil, err
	}
	s.id = s.s.ID()
	s.until = c.opt.Clock.Boot() + ttl
	if _, err := c.try(ctx, s.s, open); err != nil {
		return nil, errors.Join(err, s.s.Close(ctx))
	}
	s.life, s.end = context.WithCancel(context.Background())
	c.mu.Lock()
	closed := c.closed
	c.sessions[s] = struct{}{}
	c.mu.Unlock()
	s.done.Go(s.renew)
	s.done.Go(s.watchClock)
	if closed { // meanwhile
		return nil, errors.Join(c.inUse(), s.Close(ctx))
	}
	return s, nil
}

// ID is the session's number in the cluster.
func (s *Session) ID() sys.SessionID { return s.id }

// Ended is closed when the session is lost or closed.
func (s *Session) Ended() <-chan struct{} { return s.life.Done() }

// Left is how long the session certainly lives on without a renewal; 0 when it
// has ended.
func (s *Session) Left() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left()
}

// left ends the session when its time is over. The caller holds mu.
func (s *Session) left() time.Duration {
	left := s.until - s.c.opt.Clock.Boot()
	if s.err == nil && left <= 0 {
		s.lose(fmt.Errorf("no renewal was confirmed for %v", s.ttl))
	}
	if s.err != nil {
		return 0
	}
	return left
}

// Err is why the session ended, nil while it lives: of kind sys.SessionGone.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left()
	return s.err
}

// lose ends the session for good. The caller holds mu.
func (s *Session) lose(cause error) {
	if s.err == nil {
		s.err = sys.E(sys.Op("kv.Session"), sys.SessionGone, sys.Subject(fmt.Sprintf("session %d", s.id)), cause)
		s.end()
	}
}

func (s *Session) lost(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose(cause)
}

// Close ends the session: what it held is released at once, or, when nobody
// hears of it, after its time to live.
func (s *Session) Close(ctx context.Context) error {
	s.lost(errors.New("it was closed"))
	s.c.mu.Lock()
	_, open := s.c.sessions[s]
	delete(s.c.sessions, s)
	s.c.mu.Unlock()
	s.done.Wait()
	if !open { // it was closed before
		return nil
	}
	return s.s.Close(ctx)
}

// watchClock ends the session in time, whatever the renewals do. Timers stand
// still while the machine sleeps, so the clock is looked at often.
func (s *Session) watchClock() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case <-timer.C:
		}
		timer.Reset(min(s.Left(), s.ttl/20))
	}
}

// renew keeps the session.
func (s *Session) renew() {
	header := pb.Marshal(&kvpb.RenewRequest{Session: uint64(s.id)})
	timer := time.NewTimer(s.ttl / 3)
	defer timer.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case <-timer.C:
		}
		sent := s.c.opt.Clock.Boot()
		one, cancel := context.WithTimeout(s.life, s.ttl/2)
		reply, err := s.c.opt.Cluster.CallLeader(one, MethodRenew, header, nil)
		cancel()
		switch {
		case err == nil:
			reply.Release()
			s.renewed(sent)
			timer.Reset(s.ttl / 3)
		case sys.Is(err, sys.SessionGone):
			s.lost(err)
		default:
			s.c.opt.Logger.Debug("session not renewed", "session", uint64(s.id), "err", err)
			timer.Reset(s.ttl / 50)
		}
	}
}

// renewed counts a renewal from when it was sent. One that comes after the
// session's time was over does not bring it back.
func (s *Session) renewed(sent time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left() > 0 {
		s.until = max(s.until, sent+s.ttl)
	}
}

// Do runs a command of the session exactly once, as Client.Do does. It fails
// with sys.SessionGone when the session has ended.
func (s *Session) Do(ctx context.Context, cmd *kvpb.Command) (*kvpb.Result, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	res, err := s.c.try(ctx, s.s, cmd)
	if sys.Is(err, sys.SessionGone) {
		s.lost(err)
	}
	return res, err
}

// HeldError is the error of a lock that somebody else holds.
type HeldError struct {
	Name   []byte
	Holder *kvpb.Lock
}

// Error names the holder.
func (e *HeldError) Error() string {
	return fmt.Sprintf("lock %q is held by %s since %s", e.Name, e.Holder.GetOwner(), time.Unix(0, e.Holder.GetSinceNs()).Format(time.DateTime))
}

// Lock waits until the session holds a lock, first come first served, and
// returns its fencing token. With try it does not wait: a *HeldError tells who
// holds it. waits, which may be nil, is told before it waits. When ctx ends
// first, the place in the queue is given up.
func (s *Session) Lock(ctx context.Context, name []byte, try bool, waits func(holder *kvpb.Lock)) (fence uint64, err error) {
	res, err := s.Do(ctx, &kvpb.Command{Op: &kvpb.Command_Acquire{Acquire: &kvpb.Acquire{Name: name, Try: try}}})
	switch {
	case IsUnknown(err):
		return 0, errors.Join(err, s.abandon(ctx, name))
	case err != nil:
		return 0, err
	case res.Mismatch:
		return 0, &HeldError{Name: name, Holder: res.Holder}
	case res.Fence == 0:
		if waits != nil {
			waits(res.Holder)
		}
		if res.Fence, err = s.await(ctx, name); err != nil {
			return 0, errors.Join(err, s.abandon(ctx, name))
		}
	}
	return res.Fence, s.Err()
}

// await waits for the session's turn.
func (s *Session) await(ctx context.Context, name []byte) (fence uint64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(s.Err()) })()
	header := pb.Marshal(&kvpb.AwaitRequest{Session: uint64(s.id), Name: name, WaitNs: s.c.pollFor()})
	for {
		reply, err := s.c.poll(ctx, MethodAwait, header)
		var r kvpb.AwaitReply
		if err == nil {
			err = take(reply, &r)
		}
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case sys.Is(err, sys.SessionGone):
			s.lost(err)
			return 0, err
		case err != nil && !sys.Is(err, sys.Unavailable):
			return 0, err
		case r.Fence != 0:
			return r.Fence, nil
		}
	}
}

// abandonTimeout is how long giving up a place in a queue may take.
const abandonTimeout = 2 * time.Second

// abandon gives up a lock that nobody waits for here any more. When that does
// not succeed the session is lost, which gives it up as well.
func (s *Session) abandon(ctx context.Context, name []byte) error {
	if s.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	if err := s.Unlock(ctx, name); err != nil && !sys.Is(err, sys.NotExist) {
		s.lost(err)
	}
	return nil
}

// Unlock gives up a lock.
func (s *Session) Unlock(ctx context.Context, name []byte) error {
	_, err := s.Do(ctx, &kvpb.Command{Op: &kvpb.Command_Release{Release: &kvpb.Release{Name: name}}})
	return err
}
