package remote

import (
	"context"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/embedded"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// rows is where the tree's rows are. Whoever answers for the tree is the leader
// of the group in either case: who votes, sessions and leases are the log's.
type rows interface {
	// lead readies the rows for a leadership that has just begun.
	lead(ctx context.Context, round uint64) error
	// follow ends it.
	follow()
	// propose runs a command. local is a *meta.Outcome, or nil when it had
	// been run before.
	propose(ctx context.Context, cmd rsm.Command) (result []byte, local any, err error)
	// read answers a query. What changed the tree after seen may not be in the
	// answer.
	read(ctx context.Context, q *metapb.Query) (a *metapb.Answer, seen uint64, err error)
	// pin opens a view.
	pin(ctx context.Context) (pinned, error)
	// load runs a step of a load.
	load(ctx context.Context, step *metapb.Load) (result []byte, err error)
	// present is the state of the tree here. It fails when the tree is elsewhere,
	// and says where.
	present(ctx context.Context) (*metapb.Answer, error)
	// tidy lets go of what belongs to sessions that have ended.
	tidy(ctx context.Context) error
}

// pinned is a view of the rows. It may be queried concurrently.
type pinned interface {
	Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error)
	// Good says, after reading, that the view is still what it was.
	Good() bool
	Close() error
}

// changed is told of every outcome before anybody can see it. at orders it
// among what rows.read returns as seen.
type changed func(at uint64, session sys.SessionID, seq uint64, o *meta.Outcome)

// inLog are rows in the group's own state.
type inLog struct{ group rsm.Group }

func newInLog(g rsm.Group, tell changed) inLog {
	g.OnApply(rsm.NSMeta, func(st rsm.Stamp, local any) {
		if o, ok := local.(*embedded.Outcome); ok && o != nil {
			tell(st.Slot, st.Session, st.Seq, o)
		}
	})
	return inLog{g}
}

// These have nothing to do: the state is always there, and its machine ends
// sessions.
func (inLog) lead(context.Context, uint64) error { return nil }
func (inLog) follow()                            {}
func (inLog) tidy(context.Context) error         { return nil }

func (l inLog) propose(ctx context.Context, cmd rsm.Command) ([]byte, any, error) {
	return l.group.Propose(ctx, cmd)
}

func (l inLog) read(ctx context.Context, q *metapb.Query) (a *metapb.Answer, seen uint64, err error) {
	seen = l.group.Applied() // before the view is taken, so never newer than it
	err = l.group.Read(ctx, rsm.NSMeta, func(v rsm.Reader) (err error) {
		a, err = embedded.Read(v, q)
		return err
	})
	return a, seen, err
}

func (l inLog) pin(ctx context.Context) (pinned, error) {
	p, err := l.group.Pin(ctx, rsm.NSMeta)
	if err != nil {
		return nil, err
	}
	return logView{p}, nil
}

type logView struct{ rsm.Pinned }

// Query implements pinned.
func (v logView) Query(_ context.Context, q *metapb.Query) (a *metapb.Answer, err error) {
	err = v.Read(func(r rsm.Reader) (err error) {
		a, err = embedded.Read(r, q)
		return err
	})
	return a, err
}

// readNothing fails unless this node leads, under a lease or with the word of a
// majority, and has applied all that earlier leaders agreed on.
func readNothing(ctx context.Context, g rsm.Group) error {
	return g.Read(ctx, rsm.NSMeta, func(rsm.Reader) error { return nil })
}

// decodeResult returns the result of a command, or its refusal.
func decodeResult(raw []byte) (*metapb.Result, error) {
	res := &metapb.Result{}
	if err := pb.Unmarshal(raw, res); err != nil {
		return nil, sys.E(sys.Op("meta.Do"), sys.Corrupt, err)
	}
	if res.Failure != nil {
		return nil, res.Failure.Err()
	}
	return res, nil
}
