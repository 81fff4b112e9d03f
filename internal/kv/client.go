package kv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// Options configure a Client. Cluster is required.
type Options struct {
	Cluster *cluster.Client // not owned
	Clock   env.Clock       // nil is the system's
	Logger  *slog.Logger
	Name    string // whose sessions they are, for people
}

// Client is the coordination service at the cluster's leader. Its methods may
// be called concurrently.
type Client struct {
	opt     Options
	session *cluster.Session // numbers the commands that no Session holds
	polls   chan struct{}    // holds a token for each request that waits

	mu       sync.Mutex
	closed   bool
	sessions map[*Session]struct{} // that are open
}

// pollsMax bounds the requests that wait at the leader at once; further ones
// take turns. It is half of what a node runs of one connection, so that
// renewals never stand in line behind watches.
const pollsMax = 128

// pollWait is how long a watch waits at the leader. Its answer tells up to
// where nothing happened, so that a quiet watch stays near the present.
const pollWait = 3 * time.Second

// NewClient returns a client that has sent nothing yet.
func NewClient(opt Options) *Client {
	if opt.Clock == nil {
		opt.Clock = env.System{}
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{opt: opt, session: cluster.NewSession(opt.Cluster, opt.Name, nil, nil), polls: make(chan struct{}, pollsMax),
		sessions: make(map[*Session]struct{})}
}

// poll sends a request that waits at the leader.
func (c *Client) poll(ctx context.Context, m wire.Method, header []byte) (*wire.Reply, error) {
	if err := c.inUse(); err != nil {
		return nil, err
	}
	select {
	case c.polls <- struct{}{}:
		defer func() { <-c.polls }()
	case <-ctx.Done():
		return nil, sys.E(sys.Op("kv.poll"), sys.Interrupted, ctx.Err())
	}
	return c.opt.Cluster.CallLeader(ctx, m, header, nil)
}

// pollFor is how long it may wait there.
func (c *Client) pollFor() int64 { return int64(min(pollWait, c.opt.Cluster.Timeout()/2)) }

// Close ends all sessions, and with them what they hold. What is asked afterwards
// fails with fs.ErrClosed.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	closed, open := c.closed, slices.Collect(maps.Keys(c.sessions))
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, s := range open {
		errs = append(errs, s.Close(ctx))
	}
	return errors.Join(append(errs, c.session.Close(ctx))...)
}

// inUse is an error when the client was closed.
func (c *Client) inUse() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return sys.E(sys.Op("kv.Client"), sys.Interrupted, fs.ErrClosed)
	}
	return nil
}

// UnknownError is the error of a command of which it is not known whether it
// takes effect. It is not tried again: under another number it could take
// effect twice.
type UnknownError struct{ Err error }

// Error says so.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("the outcome is not known, look before you try again: %v", e.Err)
}

// Unwrap returns why.
func (e *UnknownError) Unwrap() error { return e.Err }

// IsUnknown says whether err leaves open if a command takes effect.
func IsUnknown(err error) bool {
	_, ok := errors.AsType[*UnknownError](err)
	return ok
}

// CompactedError is the error of a read or watch of history that is gone.
type CompactedError struct {
	Oldest uint64 // the oldest revision that can be read, or watched from
	Err    error
}

// Error says what to do.
func (e *CompactedError) Error() string { return e.Err.Error() }

// Unwrap returns the cause, of kind sys.Stale.
func (e *CompactedError) Unwrap() error { return e.Err }

// Do runs a command exactly once. An *UnknownError leaves open whether it takes
// effect; with any other error it does not.
func (c *Client) Do(ctx context.Context, cmd *kvpb.Command) (*kvpb.Result, error) {
	for {
		if err := c.inUse(); err != nil {
			return nil, err
		}
		id := c.session.ID()
		if id == 0 {
			if err := c.session.Open(ctx, 0); err != nil {
				return nil, err
			}
		}
		res, err := c.try(ctx, c.session, cmd)
		if !sys.Is(err, sys.SessionGone) || IsUnknown(err) {
			return res, err
		}
		if err := c.session.Open(ctx, id); err != nil {
			return nil, err
		}
	}
}

// try runs a command in a session.
func (c *Client) try(ctx context.Context, s *cluster.Session, cmd *kvpb.Command) (*kvpb.Result, error) {
	const op = sys.Op("kv.Do")
	if err := ctx.Err(); err != nil {
		return nil, sys.E(op, sys.Interrupted, err)
	}
	if err := Check(cmd); err != nil {
		return nil, sys.E(op, err)
	}
	t := s.Begin()
	defer s.End(t)
	header := pb.Marshal(&kvpb.DoRequest{Session: uint64(t.Session), Seq: t.Seq, Ack: t.Ack})
	reply, open, err := c.opt.Cluster.CallLeaderCounted(ctx, MethodDo, header, pb.Marshal(cmd))
	if err != nil {
		if open {
			err = &UnknownError{err}
		}
		return nil, err
	}
	res := &kvpb.Result{}
	if err := take(reply, res); err != nil {
		return nil, &UnknownError{err}
	}
	return res, failed(op, res.Failure)
}

// take reads an answer and releases it.
func take(reply *wire.Reply, m pb.Message) error {
	defer reply.Release()
	if err := pb.Unmarshal(reply.Payload, m); err != nil {
		return sys.E(sys.Op("kv.call"), sys.Corrupt, err)
	}
	return nil
}

// Query reads: what was acknowledged before is in the answer, unless it is a
// stale one. History that is gone gives a *CompactedError.
func (c *Client) Query(ctx context.Context, q *kvpb.Query) (*kvpb.Answer, error) {
	if err := c.inUse(); err != nil {
		return nil, err
	}
	call := c.opt.Cluster.CallLeader
	if q.Stale {
		call = c.opt.Cluster.CallAny
	}
	reply, err := call(ctx, MethodQuery, nil, pb.Marshal(q))
	if err != nil {
		return nil, err
	}
	a := &kvpb.Answer{}
	if err := take(reply, a); err != nil {
		return nil, err
	}
	return a, history(failed("kv.Query", a.Failure), a.Oldest)
}

// history makes an error about compacted history one.
func history(err error, oldest uint64) error {
	if sys.Is(err, sys.Stale) {
		return &CompactedError{Oldest: oldest, Err: err}
	}
	return err
}

// Watch asks once for the changes from a revision on, and waits a while when
// there are none. The answer's revision never falls below from-1.
func (c *Client) Watch(ctx context.Context, key []byte, prefix bool, from uint64) (*kvpb.WatchReply, error) {
	req := &kvpb.WatchRequest{Key: key, Prefix: prefix, From: from, WaitNs: c.pollFor()}
	reply, err := c.poll(ctx, MethodWatch, pb.Marshal(req))
	if err != nil {
		return nil, err
	}
	r := &kvpb.WatchReply{}
	if err := take(reply, r); err != nil {
		return nil, err
	}
	if err := failed("kv.Watch", r.Failure); err != nil {
		return nil, history(err, r.Oldest)
	}
	last := max(from, 1) - 1
	for _, e := range r.Events {
		if e.Entry.GetModRevision() < max(last, from) {
			return nil, sys.E(sys.Op("kv.Watch"), sys.Corrupt, fmt.Sprintf("expected changes from revision %d on, found %d", max(last, from), e.Entry.GetModRevision()))
		}
		last = e.Entry.ModRevision
	}
	if r.Revision < last {
		return nil, sys.E(sys.Op("kv.Watch"), sys.Corrupt, fmt.Sprintf("expected progress to revision %d, found %d", last, r.Revision))
	}
	return r, nil
}
