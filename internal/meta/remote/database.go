package remote

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// inDatabase are rows in a database. The leader of the group alone writes
// there, under a fence of its ballot.
type inDatabase struct {
	group rsm.Group
	db    meta.Database
	clock env.Clock
	tell  changed

	taking *semaphore.Weighted // held by who takes or leaves office

	mu     sync.Mutex
	round  uint64 // that leader is of
	leader meta.DatabaseLeader
	astray error         // why the database does not have the cluster's tree
	failed error         // why the last try to take office failed
	tried  time.Duration // Boot time at which it did
}

// againAfter is how long nobody tries to take office anew after a failure:
// those who wait are not each to wait for a server that is away.
const againAfter = 100 * time.Millisecond

// leadWait bounds one try: the loss of the leadership waits for it.
const leadWait = 3 * time.Second

func newInDatabase(g rsm.Group, db meta.Database, clock env.Clock, tell changed) *inDatabase {
	return &inDatabase{group: g, db: db, clock: clock, tell: tell, taking: semaphore.NewWeighted(1)}
}

// epoch is a ballot as one number, ordered as ballots are.
func epoch(round uint64, self sys.NodeID) uint64 { return round<<32 | uint64(self)&(1<<32-1) }

func (d *inDatabase) lead(ctx context.Context, round uint64) error {
	if done, err := d.led(round); done {
		return err
	}
	if err := d.taking.Acquire(ctx, 1); err != nil { // a database that hangs holds up nobody for longer than he waits
		d.mu.Lock()
		defer d.mu.Unlock()
		return cmp.Or(d.failed, sys.E(sys.Op("meta.Lead"), sys.Unavailable, err))
	}
	defer d.taking.Release(1)
	if done, err := d.led(round); done {
		return err
	}
	d.drop()
	ctx, cancel := context.WithTimeout(ctx, leadWait)
	defer cancel()
	l, err := d.db.Lead(ctx, epoch(round, d.group.Status().Self), func(at uint64, r *meta.Request, o *meta.Outcome) {
		d.tell(at, r.Session, r.Seq, o)
	})
	var astray error
	if err == nil {
		if astray, err = d.compare(ctx); err != nil {
			l.Close()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed, d.tried = err, d.clock.Boot()
	if err != nil {
		return err
	}
	d.round, d.leader, d.astray = round, l, astray
	return nil
}

// led says whether a leadership has begun, or the last try failed only now.
func (d *inDatabase) led(round uint64) (done bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leader != nil && d.round == round {
		return true, nil
	}
	return d.failed != nil && d.clock.Boot()-d.tried < againAfter, d.failed
}

func (d *inDatabase) follow() {
	_ = d.taking.Acquire(context.Background(), 1) // fails with the context only
	defer d.taking.Release(1)
	d.drop()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = nil
}

// drop leaves office. The caller holds d.taking.
func (d *inDatabase) drop() {
	d.mu.Lock()
	l := d.leader
	d.leader = nil
	d.mu.Unlock()
	if l != nil {
		l.Close()
	}
}

// office returns the leader of the present leadership.
func (d *inDatabase) office(ctx context.Context, op sys.Op) (meta.DatabaseLeader, error) {
	round := d.group.Leading()
	if round == 0 {
		return nil, d.group.NotLeader(op)
	}
	if err := d.lead(ctx, round); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leader == nil || d.round != round {
		return nil, d.group.NotLeader(op)
	}
	return d.leader, nil
}

// serving is office where the database has the cluster's tree.
func (d *inDatabase) serving(ctx context.Context, op sys.Op) (meta.DatabaseLeader, error) {
	l, err := d.office(ctx, op)
	if err == nil {
		err = d.elsewhere()
	}
	return l, err
}

// runLoad runs a step of a load on the rows in the database.
func runLoad(ctx context.Context, l meta.DatabaseLeader, step *metapb.Load) ([]byte, error) {
	body := pb.Marshal(&metapb.Command{Op: &metapb.Command_Load{Load: step}})
	r, err := l.Do(ctx, &meta.Request{Body: body})
	return r.Result, err
}

func (d *inDatabase) propose(ctx context.Context, cmd rsm.Command) ([]byte, any, error) {
	l, err := d.serving(ctx, "meta.Do")
	if err != nil {
		return nil, nil, err
	}
	if cmd.Session != 0 { // a session that has ended must not run its commands again
		if err := d.group.KeepAlive(cmd.Session); err != nil {
			return nil, nil, err
		}
	}
	r, err := l.Do(ctx, &meta.Request{Session: cmd.Session, Seq: cmd.Seq, Ack: cmd.Ack, Body: cmd.Body})
	if err != nil || r.Outcome == nil {
		return r.Result, nil, err
	}
	return r.Result, r.Outcome, nil
}

func (d *inDatabase) read(ctx context.Context, q *metapb.Query) (*metapb.Answer, uint64, error) {
	l, err := d.serving(ctx, "meta.Query")
	if err != nil {
		return nil, 0, err
	}
	seen := l.Seq() // before the view is taken, so never newer than it
	a, err := l.Query(ctx, q)
	if err != nil {
		return nil, 0, err
	}
	return a, seen, readNothing(ctx, d.group) // only a leader may let others cache it
}

func (d *inDatabase) pin(ctx context.Context) (pinned, error) {
	if _, err := d.serving(ctx, "meta.View"); err != nil {
		return nil, err
	}
	round := d.group.Leading()
	v, err := d.db.View(ctx)
	if err != nil {
		return nil, err
	}
	return &databaseView{view: v, group: d.group, round: round}, nil
}

// databaseView is a view that takes turns. It is lost with its connection.
type databaseView struct {
	mu    sync.Mutex
	view  meta.DatabaseView
	group rsm.Group
	round uint64
	lost  atomic.Bool
}

// Query implements pinned.
func (v *databaseView) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a, err := v.view.Query(ctx, q)
	if err != nil {
		v.lost.Store(true)
		err = sys.E(sys.Op("meta.Query"), sys.Stale, fmt.Errorf("%w: %w", meta.ErrViewGone, err))
	}
	return a, err
}

// Good implements pinned: the next leader deletes blocks as it likes.
func (v *databaseView) Good() bool {
	return !v.lost.Load() && v.round != 0 && v.group.Leading() == v.round
}

// Close implements pinned.
func (v *databaseView) Close() error {
	if err := v.view.Close(); err != nil && !v.lost.Load() {
		return err
	}
	return nil
}

func (d *inDatabase) tidy(ctx context.Context) error {
	l, err := d.serving(ctx, "meta.EndSession")
	if err != nil {
		return err
	}
	known, err := d.db.Sessions(ctx)
	if err != nil || len(known) == 0 {
		return err
	}
	// The log is asked afterwards, so that a session which is not there has
	// ended, and not just begun.
	if err := readNothing(ctx, d.group); err != nil {
		return err
	}
	infos, err := d.group.Sessions()
	if err != nil {
		return err
	}
	for _, id := range known {
		if slices.ContainsFunc(infos, func(i rsm.SessionInfo) bool { return i.ID == id }) {
			continue
		}
		body := pb.Marshal(&metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Session: uint64(id)}}})
		r, err := l.Do(ctx, &meta.Request{Ends: id, Body: body})
		if err != nil {
			return err
		}
		if _, err := decodeResult(r.Result); err != nil {
			return fmt.Errorf("session %d: %w", id, err)
		}
	}
	return nil
}
