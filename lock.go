package koinon

import (
	"context"
	"errors"
	"time"

	"github.com/koinon/koinon/internal/kv"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/sys"
)

// DefaultTTL is how long a session lives without a renewal unless another time
// is asked for.
const DefaultTTL = 15 * time.Second

// The bounds of a session's time to live.
const (
	TTLMin = kv.TTLMin
	TTLMax = kv.TTLMax
)

// Session holds locks and ephemeral keys, and is renewed in the background.
// One that cannot be renewed ends by itself, before the cluster gives to
// others what it held: time counts from the sending of the last renewal that
// was confirmed. Methods may be called concurrently.
type Session struct{ s *kv.Session }

// NewSession opens a session; ttl 0 is DefaultTTL. Close ends it.
func (k *KV) NewSession(ctx context.Context, ttl time.Duration) (*Session, error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	s, err := k.c.NewSession(ctx, ttl)
	if err != nil {
		return nil, kvError(err)
	}
	return &Session{s}, nil
}

// ID is the session's number in the cluster.
func (s *Session) ID() uint64 { return uint64(s.s.ID()) }

// Lost is closed when the session has ended.
func (s *Session) Lost() <-chan struct{} { return s.s.Ended() }

// Left is how long what the session holds is certainly its own; 0 when it has
// ended. It looks at the clock, so it is right also in a process that was
// stopped and has just gone on.
func (s *Session) Left() time.Duration { return s.s.Left() }

// Err is why the session has ended, nil while it lives.
func (s *Session) Err() error { return kvError(s.s.Err()) }

// Close ends the session; what it held is released.
func (s *Session) Close(ctx context.Context) error { return kvError(s.s.Close(ctx)) }

// Commit is KV.Commit within the session: PutEphemeral is possible.
func (s *Session) Commit(ctx context.Context, t Txn) (revision uint64, err error) {
	return commit(ctx, s.s, t)
}

// LockOptions say how to take a lock. The zero value waits until ctx ends.
type LockOptions struct {
	// Try does not wait: the error is ErrLocked when somebody holds it.
	Try bool
	// TTL is that of the lock's session; 0 is DefaultTTL. KV.Lock uses it.
	TTL time.Duration
	// Waits, when not nil, is told before the call begins to wait.
	Waits func(holder Holder)
}

// Holder is who holds a lock, or waits for it.
type Holder struct {
	Owner   string // host and process
	Session uint64
	Fence   uint64 // the token; of one who waits the revision of its place
	Since   time.Time
}

func newHolder(l *kvpb.Lock) Holder {
	return Holder{Owner: l.GetOwner(), Session: l.GetSession(), Fence: l.GetFence(), Since: time.Unix(0, l.GetSinceNs())}
}

// Lock is a lock that is held. What it protects must refuse a token lower than
// one it has seen, where it can: a process may be stopped at any moment, and
// go on when somebody else holds the lock (see docs/decisions/0005).
type Lock struct {
	Name  string
	Fence uint64 // higher than that of every earlier holder

	*Session
	owned bool // the session is the lock's own
}

// Lock takes a lock in a session of its own; those who wait get it in the order
// in which they came. When ctx ends first, the error is ctx's.
func (k *KV) Lock(ctx context.Context, name string, opt LockOptions) (*Lock, error) {
	s, err := k.NewSession(ctx, opt.TTL)
	if err != nil {
		return nil, err
	}
	l, err := s.Lock(ctx, name, opt)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if cerr := s.Close(ctx); cerr != nil {
			err = errors.Join(err, cerr)
		}
		return nil, err
	}
	l.owned = true
	return l, nil
}

// closeTimeout is how long giving up what was not got may take.
const closeTimeout = 5 * time.Second

// Lock takes a lock that ends with the session. A session takes a lock once.
func (s *Session) Lock(ctx context.Context, name string, opt LockOptions) (*Lock, error) {
	var waits func(*kvpb.Lock)
	if opt.Waits != nil {
		waits = func(l *kvpb.Lock) { opt.Waits(newHolder(l)) }
	}
	fence, err := s.s.Lock(ctx, []byte(name), opt.Try, waits)
	if err != nil {
		return nil, kvError(err)
	}
	return &Lock{Name: name, Fence: fence, Session: s}, nil
}

// Unlock gives the lock to the next who waits. That it is lost already is fine.
func (l *Lock) Unlock(ctx context.Context) error {
	if l.owned {
		return l.Close(ctx)
	}
	err := l.s.Unlock(ctx, []byte(l.Name))
	if sys.Is(err, sys.SessionGone) || sys.Is(err, sys.NotExist) {
		return nil
	}
	return kvError(err)
}

// LockInfo tells of a lock that is held.
type LockInfo struct {
	Name string
	Holder
	Waiters []Holder // in their order, at most 100
	Waiting int      // how many there are
}

// Locks lists the locks that are held whose names begin with a prefix, in
// order, from the first one above after; next is the After of the next page,
// empty when there is none.
func (k *KV) Locks(ctx context.Context, prefix, after string) (locks []LockInfo, next string, err error) {
	a, err := k.c.Query(ctx, &kvpb.Query{Op: &kvpb.Query_Locks{Locks: &kvpb.Locks{Prefix: []byte(prefix), After: []byte(after)}}})
	if err != nil {
		return nil, "", kvError(err)
	}
	for _, l := range a.Locks {
		info := LockInfo{Name: string(l.Name), Holder: newHolder(l), Waiting: int(l.Waiting)}
		for _, w := range l.Waiters {
			info.Waiters = append(info.Waiters, newHolder(w))
		}
		locks = append(locks, info)
	}
	if a.More {
		next = string(a.Next)
	}
	return locks, next, nil
}
