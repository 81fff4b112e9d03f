package kv

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// serveWatch answers with the changes from a revision on, waiting for the first
// one. The node holds nothing for a watch between two requests.
func (s *Server) serveWatch(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("kv.Watch")
	var r kvpb.WatchRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	if !r.Prefix {
		if err := checkKey("key", r.Key); err != nil {
			return wire.Response{}, sys.E(op, err)
		}
	}
	term := s.group.Leading()
	if term == 0 {
		return cluster.LeaderHint(s.group.NotLeader(op))
	}
	reply, err := s.watch(ctx, &r)
	if err == nil && s.group.Leading() != term {
		// What this node heard is only whole while it leads.
		err = s.group.NotLeader(op)
	}
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return wire.Response{Payload: pb.Marshal(reply)}, nil
}

func (s *Server) watch(ctx context.Context, r *kvpb.WatchRequest) (*kvpb.WatchReply, error) {
	wait, cancel := s.waiting(ctx, r.WaitNs)
	defer cancel()
	for from := r.From; ; {
		w := s.hub.wait(event{key: string(r.Key)}, r.Prefix)
		reply, more, err := s.history(ctx, r, from)
		switch {
		case err != nil || r.From == 0 || reply.Failure != nil || len(reply.Events) > 0:
			s.hub.leave(w)
			return reply, err
		case more:
			s.hub.leave(w)
			from = reply.Revision + 1
			continue
		}
		select {
		case <-w.woken:
		case <-wait.Done():
		}
		// Nothing came between what was read and what was heard first. Who
		// waits for a revision to come has seen what is before it.
		first, quiet := s.hub.leave(w)
		reply.Revision = max(reply.Revision, quiet, max(first, 1)-1, from-1)
		if wait.Err() != nil {
			return reply, s.stopping()
		}
		from = reply.Revision + 1
	}
}

// waiting bounds how long a request waits.
func (s *Server) waiting(ctx context.Context, waitNs int64) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, min(time.Duration(waitNs), waitMax))
	release := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		release()
		cancel()
	}
}

// stopping is an error after Close.
func (s *Server) stopping() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return sys.E(sys.Op("kv.wait"), sys.Unavailable, "the node is stopping")
}

func (s *Server) history(ctx context.Context, r *kvpb.WatchRequest, from uint64) (reply *kvpb.WatchReply, more bool, err error) {
	err = s.group.Read(ctx, rsm.NSKV, func(v rsm.Reader) (err error) {
		if r.From == 0 {
			raw, err := v.Get([]byte{rowState})
			reply = &kvpb.WatchReply{Revision: decodeState(raw).rev}
			return err
		}
		reply, more, err = readHistory(v, r, from)
		return err
	})
	return reply, more, err
}

// serveAwait waits until a lock goes to the caller's session.
func (s *Server) serveAwait(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("kv.Await")
	var r kvpb.AwaitRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	wait, cancel := s.waiting(ctx, r.WaitNs)
	defer cancel()
	for {
		w := s.hub.wait(event{lock: true, key: lockEvent(r.Session, r.Name)}, false)
		over := wait.Err() != nil
		fence, err := s.holds(ctx, &r)
		if err == nil && fence == 0 && over {
			err = s.stopping()
		}
		if err != nil || fence != 0 || over {
			s.hub.leave(w)
			if err != nil {
				return cluster.LeaderHint(err)
			}
			return wire.Response{Payload: pb.Marshal(&kvpb.AwaitReply{Fence: fence})}, nil
		}
		select {
		case <-w.woken:
		case <-wait.Done():
		}
		s.hub.leave(w)
	}
}

// holds returns the token under which a session holds a lock, 0 while it waits
// for it.
func (s *Server) holds(ctx context.Context, r *kvpb.AwaitRequest) (fence uint64, err error) {
	err = s.group.Read(ctx, rsm.NSKV, func(v rsm.Reader) error {
		place, err := v.Get(boundKey(r.Session, rowLock, r.Name))
		if err != nil {
			return err
		}
		if place == nil {
			return sys.E(sys.Op("kv.Await"), sys.SessionGone, "the session holds no place in the lock's queue any more")
		}
		if len(place) == 8 {
			return nil
		}
		raw, err := v.Get(named(rowLock, r.Name))
		if err == nil && raw != nil {
			var lock kvpb.Lock
			decode(raw, &lock)
			fence = lock.Fence
		}
		return err
	})
	return fence, err
}
