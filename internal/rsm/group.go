package rsm

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// Group is this node's replica of one group: its log and the state that the
// machines have made of it. Its methods may be called concurrently. Package
// replica implements it.
type Group interface {
	// Propose has a command agreed and applied, and returns its result. With a
	// session it takes effect at most once however often it is proposed, on
	// whatever replica. local is what the machine made beside the result; nil when
	// the command had been applied before.
	//
	// Errors: sys.NotLeader and sys.Unavailable (LeaderOf may tell where to go on;
	// in the second case the command may yet take effect), sys.SessionGone,
	// sys.NoSpace (nothing was proposed), sys.Busy (too much waits), sys.TooBig,
	// and sys.Interrupted when ctx ended first: the command may yet take effect.
	Propose(ctx context.Context, cmd Command) (result []byte, local any, err error)
	// Read runs fn on a consistent view of a namespace that holds everything that
	// was acknowledged before Read was called. Only the leader can: others answer
	// sys.NotLeader (see LeaderOf). Under a lease it costs no message; without one
	// a majority is asked first, which is also what happens when the lease ran out
	// while fn ran: fn may run twice, and must start afresh each time. An error of
	// fn is returned as it is.
	Read(ctx context.Context, ns Namespace, fn func(r Reader) error) error
	// ReadLocal runs fn on a consistent view of what this replica has applied,
	// which may be behind. Where another state was put in its place meanwhile fn
	// runs again, and must start afresh. An error of fn is returned as it is.
	ReadLocal(ns Namespace, fn func(r Reader) error) error
	// Pin returns a view that holds everything that was acknowledged before Pin was
	// called. As Read it is the leader's to give.
	Pin(ctx context.Context, ns Namespace) (Pinned, error)
	// OnApply has fn called for every command of the namespace that is applied, on
	// this replica, with what Machine.Apply returned as local: after it ran and
	// before any Read or ReadLocal can see what it wrote and before its result is
	// released. fn runs in the applier: it must be quick, must not block, and must
	// not call the group. Commands applied before OnApply are not shown.
	OnApply(ns Namespace, fn func(st Stamp, local any))
	// Applied returns the slot up to which the state is visible. A view that is
	// taken afterwards holds at least that much.
	Applied() uint64
	// Leading returns the round of the ballot under which this replica leads as
	// far as it knows, 0 when it does not. It costs nothing, and proves nothing:
	// see Read.
	Leading() uint64
	// NotLeader is the error of a replica that was asked for what only the leader
	// can do.
	NotLeader(op sys.Op) error
	// Status returns what is known of the group now.
	Status() Status
	// Watch has fn called, from a goroutine of the host, after this replica's role
	// or its leader changed, and once at the start. Changes that follow quickly may
	// be shown as one. stop ends it; a call that runs already may still end later.
	Watch(fn func(Status)) (stop func())
	// OpenSession makes a session. When the outcome is not known the session may
	// exist; it then ends by itself for want of signs of life.
	OpenSession(ctx context.Context, name string) (sys.SessionID, error)
	// EndSession ends sessions; that one is gone already is fine.
	EndSession(ctx context.Context, ids ...sys.SessionID) error
	// KeepAlive is a sign of life of sessions. It is the leader's to count: others
	// answer sys.NotLeader. sys.SessionGone names the first one that does not
	// exist; the others are kept.
	KeepAlive(ids ...sys.SessionID) error
	// Sessions lists the sessions as this replica knows them, in ID order.
	Sessions() ([]SessionInfo, error)
}

// Pinned is a view of a namespace that stays as it is. Close it: until then the
// host cannot close, and the space of what is deleted meanwhile is not freed.
type Pinned interface {
	// Good says that the view is what it was: that the leadership under which it was
	// made has not ended. Ask after reading: a replica that follows may be given
	// another state as a whole.
	Good() bool
	// Read runs fn on the view. It may run concurrently.
	Read(fn func(r Reader) error) error
	// Close lets go of the view. No Read may be under way.
	Close() error
}

// SessionInfo describes a session.
type SessionInfo struct {
	ID       sys.SessionID
	Name     string
	OpenedNs int64 // since the epoch
	// Idle is how long nothing was heard of it; only the leader's is right.
	Idle time.Duration
}
