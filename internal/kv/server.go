package kv

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// ServerOptions configure a Server. Group and Machine are required.
type ServerOptions struct {
	Group   rsm.Group
	Machine *Machine  // the one that the group runs
	Clock   env.Clock // nil is the system's
	Logger  *slog.Logger
	// KeepRevisions and KeepBytes bound the history kept for watches and
	// reads of the past. Defaults 100,000 and 64 MiB.
	KeepRevisions uint64
	KeepBytes     uint64
}

const (
	keepRevisions = 100_000
	keepBytes     = 64 << 20
	// keepSlack is the share of a bound that history may be over before it is
	// compacted, so that not every change causes a compaction.
	keepSlack = 8
	// compactEvents is how much one command forgets.
	compactEvents = 2000
	// keeperTick is how often the leader looks after sessions and history.
	keeperTick = 100 * time.Millisecond
	// keeperTimeout bounds what it does about them at once.
	keeperTimeout = 2 * time.Second
	// waitMax is how long a request may wait at the leader.
	waitMax = 10 * time.Second
)

// Server answers for the coordination service on one node; it does so only
// while the node leads the group, but for stale reads.
type Server struct {
	opt   ServerOptions
	group rsm.Group
	hub   *hub
	lives lives

	beginning sync.Mutex // held while a leadership begins

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	done sync.WaitGroup

	unwatch func()
}

// NewServer starts to look after sessions and history. Close stops it.
func NewServer(opt ServerOptions) *Server {
	if opt.Clock == nil {
		opt.Clock = env.System{}
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.KeepRevisions == 0 {
		opt.KeepRevisions = keepRevisions
	}
	if opt.KeepBytes == 0 {
		opt.KeepBytes = keepBytes
	}
	s := &Server{opt: opt, group: opt.Group, hub: opt.Machine.hub}
	s.hub.onOpened(func(o openedSession) {
		s.lives.opened(o.id, time.Duration(o.ttlNs), opt.Clock.Boot())
	})
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.done.Go(func() { s.deliver(s.ctx) })
	s.done.Go(func() { s.keep(s.ctx) })
	s.unwatch = s.group.Watch(func(st rsm.Status) {
		if st.Role != rsm.Leader {
			s.hub.wakeAll() // they go to the next leader
		}
	})
	return s
}

// Close ends what NewServer started, and sends those who wait to other nodes.
// Other requests are still answered.
func (s *Server) Close() {
	s.unwatch()
	s.stop()
	s.done.Wait()
	s.hub.onOpened(nil)
}

// Register adds the server's methods.
func (s *Server) Register(srv *wire.Server) {
	srv.Handle(MethodDo, s.serveDo)
	srv.Handle(MethodQuery, s.serveQuery)
	srv.Handle(MethodWatch, s.serveWatch)
	srv.Handle(MethodAwait, s.serveAwait)
	srv.Handle(MethodRenew, s.serveRenew)
}

// deliver wakes those who wait.
func (s *Server) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.hub.signal:
			s.hub.deliver()
		}
	}
}

// keep ends sessions that are silent for too long, and compacts history.
func (s *Server) keep(ctx context.Context) {
	tick := env.NewTicker(env.System{}, keeperTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.group.Leading() == 0 {
			s.lives.follow()
			continue
		}
		if err := s.keepOnce(ctx); err != nil && ctx.Err() == nil {
			s.opt.Logger.Debug("sessions and history are looked after later", "err", err)
		}
	}
}

func (s *Server) keepOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	term, err := s.lead(ctx, "kv.keep")
	if err != nil {
		return err
	}
	if ids := s.lives.expire(term, s.opt.Clock.Boot()); len(ids) > 0 {
		if err := s.end(ctx, ids); err != nil {
			return err
		}
	}
	return s.compact(ctx)
}

// end has sessions ended by the log. What it held is released with each.
func (s *Server) end(ctx context.Context, ids []sys.SessionID) error {
	var there []sys.SessionID
	err := s.group.ReadLocal(rsm.NSKV, func(r rsm.Reader) error {
		there = nil
		for _, id := range ids {
			raw, err := r.Get(numbered(rowLease, uint64(id)))
			if err != nil {
				return err
			}
			if raw != nil { // else its client has closed it
				there = append(there, id)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(there) > 0 {
		s.opt.Logger.Info("sessions did not renew in time: what they held is released", "sessions", there)
		if err := s.group.EndSession(ctx, there...); err != nil {
			return err
		}
	}
	s.lives.ended(ids)
	return nil
}

// compact forgets history beyond the bounds.
func (s *Server) compact(ctx context.Context) error {
	st := s.hub.last()
	keep, bytes := s.opt.KeepRevisions, s.opt.KeepBytes
	if st.rev-st.compacted <= keep+keep/keepSlack && st.bytes <= bytes+bytes/keepSlack {
		return nil
	}
	for st.rev-st.compacted > keep || st.bytes > bytes {
		body := pb.Marshal(&kvpb.Command{Op: &kvpb.Command_Compact{Compact: &kvpb.Compact{Revisions: keep, Bytes: bytes, EventsMax: compactEvents}}})
		if _, _, err := s.group.Propose(ctx, rsm.Command{NS: rsm.NSKV, Body: body, Reserve: true}); err != nil {
			return err
		}
		now := s.hub.last()
		if now.compacted == st.compacted {
			return nil // nothing is left that it could forget
		}
		st = now
	}
	return nil
}

// lead makes sure that the table of lives is that of the present leadership,
// and returns which that is.
func (s *Server) lead(ctx context.Context, op sys.Op) (term uint64, err error) {
	term = s.group.Leading()
	if term == 0 {
		return 0, s.group.NotLeader(op)
	}
	if s.lives.leads(term) {
		return term, nil
	}
	s.beginning.Lock()
	defer s.beginning.Unlock()
	if s.lives.leads(term) {
		return term, nil
	}
	s.lives.lead(term)
	leases, err := s.leases()
	if err != nil {
		return 0, err
	}
	// The log itself ends sessions that are silent for very long, by the signs
	// of life that it counts. After this, and after a command that stands
	// behind all ends it may have decided on before, it ends none that renew.
	ids := make([]sys.SessionID, 0, len(leases))
	for id := range leases {
		ids = append(ids, id)
	}
	if err := s.group.KeepAlive(ids...); err != nil && !sys.Is(err, sys.SessionGone) {
		return 0, err
	}
	body := pb.Marshal(&kvpb.Command{Op: &kvpb.Command_Begin{Begin: &kvpb.Begin{}}})
	if _, _, err := s.group.Propose(ctx, rsm.Command{NS: rsm.NSKV, Body: body, Reserve: true}); err != nil {
		return 0, err
	}
	if leases, err = s.leases(); err != nil {
		return 0, err
	}
	if s.group.Leading() != term {
		return 0, s.group.NotLeader(op)
	}
	s.lives.begin(term, leases, s.opt.Clock.Boot())
	return term, nil
}

// leases lists the sessions in this replica's state that hold something.
func (s *Server) leases() (map[sys.SessionID]time.Duration, error) {
	out := map[sys.SessionID]time.Duration{}
	err := s.group.ReadLocal(rsm.NSKV, func(r rsm.Reader) error {
		clear(out)
		return r.Scan([]byte{rowLease}, []byte{rowLease + 1}, func(key, value []byte) bool {
			var lease kvpb.Lease
			decode(value, &lease)
			out[sys.SessionID(beUint64(key[1:]))] = time.Duration(lease.TtlNs)
			return true
		})
	})
	return out, err
}

func (s *Server) serveDo(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("kv.Do")
	var r kvpb.DoRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	var cmd kvpb.Command
	if err := pb.Unmarshal(req.Payload, &cmd); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	if err := Check(&cmd); err != nil {
		return wire.Response{}, sys.E(op, err)
	}
	frees := true
	switch c := cmd.Op.(type) {
	case *kvpb.Command_Compact, *kvpb.Command_Begin:
		return wire.Response{}, sys.E(op, sys.Permission, "only the leader itself runs this command")
	case *kvpb.Command_Txn:
		for _, ch := range c.Txn.Changes {
			frees = frees && ch.GetPut() == nil
		}
	}
	result, _, err := s.group.Propose(ctx, rsm.Command{Session: sys.SessionID(r.Session), Seq: r.Seq, Ack: r.Ack,
		NS: rsm.NSKV, Body: req.Payload, Reserve: frees})
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return wire.Response{Payload: result}, nil
}

func (s *Server) serveQuery(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("kv.Query")
	var q kvpb.Query
	if err := pb.Unmarshal(req.Payload, &q); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	var a *kvpb.Answer
	read := func(r rsm.Reader) (err error) {
		a, err = Read(r, &q)
		return err
	}
	var err error
	switch {
	case !q.Stale:
		err = s.group.Read(ctx, rsm.NSKV, read)
	case s.group.Applied() == 0:
		err = sys.E(op, sys.Unavailable, "this node has no state yet, or has lost it: another one may answer")
	default:
		err = s.group.ReadLocal(rsm.NSKV, read)
	}
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return wire.Response{Payload: pb.Marshal(a)}, nil
}

// serveRenew says that a session lives. It may answer so only when nobody can
// have decided its end: not this leader, which keeps its decisions in lives,
// and no other one, which would have had to become leader first.
func (s *Server) serveRenew(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("kv.Renew")
	var r kvpb.RenewRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	term, err := s.lead(ctx, op)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	id := sys.SessionID(r.Session)
	alive := s.lives.renew(term, id, s.opt.Clock.Boot())
	if alive {
		if err := s.group.KeepAlive(id); err != nil {
			return cluster.LeaderHint(err)
		}
	}
	err = s.group.Read(ctx, rsm.NSKV, func(v rsm.Reader) error {
		raw, err := v.Get(numbered(rowLease, r.Session))
		if err == nil && (raw == nil || !alive) {
			err = sys.E(op, sys.SessionGone, "the session did not renew in time, or was closed")
		}
		return err
	})
	if s.group.Leading() != term {
		err = s.group.NotLeader(op)
	}
	return cluster.LeaderHint(err)
}
