package remote

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote/remotepb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// Options configure a Client. Cluster is required.
type Options struct {
	Cluster *cluster.Client // not owned
	Clock   env.Clock       // nil is the system's
	Logger  *slog.Logger
	Name    string // whose session it is, for people
	// OnRevoke is told which inodes must not be taken as known any more, nil
	// for all of them, before the leader hears that they were given up. It
	// must not block and must not call the Client.
	OnRevoke func(inos []sys.Ino)
}

// Client is the tree at the cluster's leader. Commands take effect exactly
// once, whatever happens to connections and leaders meanwhile.
type Client struct {
	opts    Options
	cache   *cache
	session *cluster.Session

	promises atomic.Pointer[Promises]
	tree     atomic.Uint64 // which tree this client knows: see treeNow; 0: none yet

	stop context.CancelFunc
	done sync.WaitGroup
}

// Promises are files that the user of a Client has said are made although the
// tree does not know them yet. Methods may be called concurrently.
type Promises interface {
	// Any says whether there is one.
	Any() bool
	// Keep makes those in dirs, nil for all, and returns when it has or ctx is
	// done.
	Keep(ctx context.Context, dirs []sys.Ino)
}

// SetPromises lets Vacant say yes, from now on. It is called once, by who makes
// many files that others do not look for at once: others wait for what is
// promised.
func (c *Client) SetPromises(p Promises) { c.promises.Store(&p) }

// Vacant says whether a file may be promised: nobody else can find, list or
// make a name in the directory before Promises.Keep was called for it, there is
// no such name now, and the caller may make it. When it says so, whoever asks
// must have made the promise before Keep looks for it.
func (c *Client) Vacant(cred *metapb.Cred, dir sys.Ino, name []byte) bool {
	return c.promises.Load() != nil && c.cache.vacant(cred, dir, name)
}

var _ meta.Client = (*Client)(nil)

// NewClient opens a session and starts to keep it.
func NewClient(ctx context.Context, opts Options) (*Client, error) {
	if opts.Clock == nil {
		opts.Clock = env.System{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{opts: opts, cache: newCache(opts.Clock)}
	c.session = cluster.NewSession(opts.Cluster, opts.Name, c.admit, c.cache.lost)
	if err := c.session.Open(ctx, 0); err != nil && !sys.Is(err, sys.NoSpace) {
		return nil, err // on full disks one can still read: session is 0 until there is space
	}
	c.cache.revoke = opts.OnRevoke
	loop, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.done.Go(func() { c.renew(loop) })
	return c, nil
}

// Close ends the session. Commands under way must have returned.
func (c *Client) Close(ctx context.Context) error {
	c.stop()
	c.done.Wait()
	c.cache.lost()
	return c.session.Close(ctx)
}

// Session returns the current session.
func (c *Client) Session() sys.SessionID { return c.session.ID() }

// LeaseLeft is how long what was last read may still be taken as true.
func (c *Client) LeaseLeft() time.Duration { return c.cache.left() }

// Query reads the tree, from the cache when its lease runs.
func (c *Client) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	if a, err := c.cache.answer(q); a != nil || err != nil {
		return a, err
	}
	for {
		session := c.Session()
		a, err := c.query(ctx, session, q)
		if session == 0 || !sys.Is(err, sys.SessionGone) {
			return a, err
		}
		err = c.session.Open(ctx, session)
		if sys.Is(err, sys.NoSpace) { // on full disks one can still read
			if err = c.admit(ctx); err == nil {
				return c.query(ctx, 0, q)
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// query asks the leader in a session, or in none.
func (c *Client) query(ctx context.Context, session sys.SessionID, q *metapb.Query) (*metapb.Answer, error) {
	raw := pb.Marshal(q)
	header := pb.Marshal(&remotepb.QueryRequest{Session: uint64(session)})
	tick := c.cache.now()
	reply, err := c.opts.Cluster.CallLeader(ctx, MethodQuery, header, raw)
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	var r remotepb.QueryReply
	a := &metapb.Answer{}
	if err := unmarshalBoth(reply, &r, a); err != nil {
		return nil, err
	}
	if a.Failure == nil || sys.Kind(a.Failure.Kind) == sys.NotExist {
		c.cache.learn(q, a, r.Grant.GetInos(), r.Grant.GetTerm(), r.Grant.GetSeq(), tick)
	}
	if a.Failure != nil {
		return nil, a.Failure.Err()
	}
	return a, nil
}

func unmarshalBoth(reply *wire.Reply, header, payload pb.Message) error {
	if err := pb.Unmarshal(reply.Header, header); err != nil {
		return sys.E(sys.Op("meta.call"), sys.Corrupt, err)
	}
	if err := pb.Unmarshal(reply.Payload, payload); err != nil {
		return sys.E(sys.Op("meta.call"), sys.Corrupt, err)
	}
	return nil
}

// treeNow tells which tree the cluster has: 1 and how often one was loaded, 0 for
// none.
func (c *Client) treeNow(ctx context.Context) (uint64, error) {
	a, err := c.query(ctx, 0, treeState)
	if err != nil || a.Attr == nil {
		return 0, err
	}
	return uint64(a.Moves) + 1, nil
}

// admit refuses a session in another tree than the one that this client knows:
// the inodes that it has open are other files there. A tree is loaded only where
// there are no sessions, so within one it stays the same.
func (c *Client) admit(ctx context.Context) error {
	const op = sys.Op("meta.Session")
	known := c.tree.Load()
	if known == 0 {
		return nil // renew learns it at once
	}
	now, err := c.treeNow(ctx)
	switch {
	case err != nil:
		return err
	case now == 0:
		return sys.E(op, sys.Busy, "the tree is missing: a load of it is under way, or was interrupted")
	case now != known:
		c.cache.lost()
		return sys.E(op, sys.Stale, "while this client was away the tree was loaded from a dump, and its files are others: unmount it and mount it again")
	}
	return nil
}

// learnTree finds out which tree this client knows.
func (c *Client) learnTree(ctx context.Context) {
	if c.tree.Load() != 0 {
		return
	}
	now, err := c.treeNow(ctx)
	if err != nil {
		c.opts.Logger.Debug("which tree it is is not known yet", "err", err)
	}
	c.tree.Store(now)
}

// Do runs a command. An error of kind Unavailable, Interrupted or SessionGone
// leaves open whether it took effect.
func (c *Client) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	if c.Session() == 0 {
		if err := c.session.Open(ctx, 0); err != nil {
			return nil, err
		}
	}
	for {
		session := c.Session()
		res, retry, err := c.try(ctx, cmd)
		if !retry {
			return res, err
		}
		if err := c.session.Open(ctx, session); err != nil {
			return nil, err
		}
	}
}

// try runs a command in the current session. retry says that the session was
// gone and that the command certainly had no effect.
func (c *Client) try(ctx context.Context, cmd *metapb.Command) (_ *metapb.Result, retry bool, _ error) {
	t := c.session.Begin()
	defer c.session.End(t)
	if op, ok := cmd.Op.(*metapb.Command_AllocSlices); ok {
		op.AllocSlices.Session = uint64(t.Session)
	}
	raw := pb.Marshal(cmd)
	e := c.cache.begin(cmd)
	req := &remotepb.DoRequest{Session: uint64(t.Session), Seq: t.Seq, Ack: t.Ack, Sole: c.promises.Load() != nil}
	for _, ino := range e.inos {
		req.Dropped = append(req.Dropped, uint64(ino))
	}
	header := pb.Marshal(req)
	reply, open, err := c.opts.Cluster.CallLeaderCounted(ctx, MethodDo, header, raw)
	if err != nil {
		c.cache.end(e, nil, nil, nil)
		return nil, sys.Is(err, sys.SessionGone) && !open, err
	}
	defer reply.Release()
	var r remotepb.DoReply
	res := &metapb.Result{}
	if err := unmarshalBoth(reply, &r, res); err != nil {
		c.cache.end(e, nil, nil, nil)
		return nil, false, err
	}
	c.cache.end(e, res, r.Touched, r.Grant)
	if res.Failure != nil {
		return nil, false, res.Failure.Err()
	}
	return res, false, nil
}

// keep makes what was promised in dirs. When that takes longer than the lease
// lasts, others no longer wait for it.
func (c *Client) keep(ctx context.Context, dirs []sys.Ino) {
	p := c.promises.Load()
	if p == nil || !(*p).Any() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, Term+2*drift)
	defer cancel()
	(*p).Keep(ctx, dirs)
}

// owes says whether there are promises.
func (c *Client) owes() bool {
	p := c.promises.Load()
	return p != nil && (*p).Any()
}

// renew keeps the lease until ctx is done.
func (c *Client) renew(ctx context.Context) {
	var term, acked uint64
	owes := false // promises of an earlier leadership
	for ctx.Err() == nil {
		session := c.Session()
		if session == 0 {
			if c.session.Open(ctx, 0) != nil {
				c.pause(ctx, noSessionPause)
			}
			continue
		}
		header := pb.Marshal(&remotepb.RenewRequest{Session: uint64(session), Acked: acked, Term: term, Owes: owes})
		sent, r := c.opts.Clock.Boot(), remotepb.RenewReply{}
		reply, err := c.opts.Cluster.CallLeader(ctx, MethodRenew, header, nil)
		if err == nil {
			err = pb.Unmarshal(reply.Payload, &r)
			reply.Release()
		}
		switch {
		case err == nil && session == c.Session():
			c.learnTree(ctx)
			before := term
			term, acked = c.cache.renewed(sent, r.Term, r.Seq, r.Inos, r.Reset_)
			switch {
			case term != before: // the new leader waits for them, but first for what was cached
				owes = c.owes()
			case owes || r.Reset_:
				owes = false
				c.keep(ctx, nil)
			case len(r.Inos) > 0:
				c.keep(ctx, inosFrom(r.Inos))
			}
		case err == nil || sys.Is(err, sys.SessionGone):
			term, acked = 0, 0
			if err == nil {
				continue
			}
			if err = c.session.Open(ctx, session); sys.Is(err, sys.Stale) {
				c.opts.Logger.Error("this client is of no use any more", "err", err)
				return
			}
			if err != nil && ctx.Err() == nil {
				c.pause(ctx, renewPause)
			}
		case ctx.Err() == nil:
			c.opts.Logger.Debug("lease not renewed", "err", err)
			c.pause(ctx, renewPause)
		}
	}
}

func inosFrom(raw []uint64) []sys.Ino {
	inos := make([]sys.Ino, len(raw))
	for n, ino := range raw {
		inos[n] = sys.Ino(ino)
	}
	return inos
}

const (
	renewPause     = 20 * time.Millisecond // after a renewal that failed
	noSessionPause = time.Second           // while no session can be opened
)

func (c *Client) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
