package remote

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sync/semaphore"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote/remotepb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// touchedMax is the most inodes of which a reply carries the new attributes.
const touchedMax = 16

// Server answers for the tree on one node; it does so only while the node
// leads the group.
type Server struct {
	group  rsm.Group
	rows   rows
	leases *leases
	views  views
	log    *slog.Logger
	stop   func()
	begins *semaphore.Weighted // held while a leadership begins
}

// ServerOptions say what a Server is made of.
type ServerOptions struct {
	Group rsm.Group // whose leader answers
	// Database holds the tree's rows in place of the group's state; nil: it
	// does not. It stays the caller's, who closes it after the Server.
	Database meta.Database
	Clock    env.Clock
	Logger   *slog.Logger
}

// NewServer follows the group's leadership and applies. Close stops it.
func NewServer(o ServerOptions) *Server {
	s := &Server{group: o.Group, leases: newLeases(o.Clock), views: newViews(o.Clock), log: o.Logger, begins: semaphore.NewWeighted(1)}
	if o.Database != nil {
		s.rows = newInDatabase(o.Group, o.Database, o.Clock, s.changed)
	} else {
		s.rows = newInLog(o.Group, s.changed)
	}
	s.stop = o.Group.Watch(s.watch)
	return s
}

// Close lets go of the group.
func (s *Server) Close() {
	s.stop()
	s.follow()
}

// follow ends a leadership.
func (s *Server) follow() {
	s.leases.follow()
	s.views.follow()
	s.rows.follow()
}

// Tidy lets go of what is left of sessions that have ended. It is to be called
// now and then on the leader.
func (s *Server) Tidy(ctx context.Context) error { return s.rows.tidy(ctx) }

// Register adds the server's methods.
func (s *Server) Register(srv *wire.Server) {
	srv.Handle(MethodDo, s.serveDo)
	srv.Handle(MethodQuery, s.serveQuery)
	srv.Handle(MethodRenew, s.serveRenew)
	srv.Handle(MethodView, s.serveView)
	srv.Handle(MethodLoad, s.serveLoad)
}

// watch follows the leadership, so that the wait for earlier leases begins
// before the first request comes.
func (s *Server) watch(st rsm.Status) {
	if st.Role != rsm.Leader {
		s.follow()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), Term)
	defer cancel()
	if _, err := s.lead(ctx, "meta.Lead"); err != nil {
		s.log.Debug("not leading yet", "err", err)
	}
}

// lead makes sure that the table of leases is that of the present leadership,
// and returns which that is. A new one begins with the sessions of the state,
// all of which may cache what earlier leaders let them.
func (s *Server) lead(ctx context.Context, op sys.Op) (term uint64, err error) {
	round := s.group.Leading()
	if round == 0 {
		return 0, s.group.NotLeader(op)
	}
	if s.leases.leads(round) {
		return round, nil
	}
	if err := s.begins.Acquire(ctx, 1); err != nil {
		return 0, sys.E(op, sys.Unavailable, err)
	}
	defer s.begins.Release(1)
	if s.leases.leads(round) {
		return round, nil
	}
	// After a read, all that earlier leaders have agreed on is in the state,
	// the sessions they opened too.
	if err := readNothing(ctx, s.group); err != nil {
		return 0, err
	}
	if err := s.rows.lead(ctx, round); err != nil {
		return 0, err
	}
	infos, err := s.group.Sessions()
	if err != nil {
		return 0, err
	}
	sessions := make([]sys.SessionID, 0, len(infos))
	for _, i := range infos {
		sessions = append(sessions, i.ID)
	}
	if s.group.Leading() != round {
		return 0, s.group.NotLeader(op)
	}
	s.leases.lead(round, sessions)
	return round, nil
}

// still fails when the leadership in which a request began has ended: what was
// done or read since may have been under another one, with leases that this
// node does not know of.
func (s *Server) still(term uint64, op sys.Op) error {
	if s.group.Leading() != term {
		return s.group.NotLeader(op)
	}
	return nil
}

// changed runs before a change is visible. The outcome's number goes back to
// the caller in Order.
func (s *Server) changed(at uint64, session sys.SessionID, seq uint64, o *meta.Outcome) {
	if len(o.Inos) > 0 {
		o.Order = s.leases.changed(at, session, seq, o.Inos)
	}
}

func (s *Server) serveDo(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("meta.Do")
	var r remotepb.DoRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	var cmd metapb.Command
	frees, err := checkCommand(req.Payload, &cmd)
	if err != nil {
		return wire.Response{}, err
	}
	term, err := s.lead(ctx, op)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	session := sys.SessionID(r.Session)
	leave, err := s.enter(ctx, term, session, &cmd)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	defer leave()
	forget := s.leases.expect(session, r.Seq, inosFrom(r.Dropped))
	defer forget()
	result, local, err := s.rows.propose(ctx, rsm.Command{Session: session, Seq: r.Seq, Ack: r.Ack, NS: rsm.NSMeta, Body: req.Payload, Reserve: frees})
	if err != nil {
		return cluster.LeaderHint(err)
	}
	reply := &remotepb.DoReply{}
	if err := s.release(ctx, term, &r, local, reply); err != nil {
		if sys.Is(err, sys.NotLeader) { // which would say that the command had no effect
			err = sys.E(op, sys.Unavailable, err)
		}
		return cluster.LeaderHint(err)
	}
	if r.Sole && cmd.GetMknod() != nil && reply.Grant != nil {
		reply.Grant.Sole = s.leases.grantSole(term, session, directories(reply))
	}
	return respond(reply, result), nil
}

// enter waits until a command can be run that may use names which another
// session has to itself, and keeps it so until leave.
func (s *Server) enter(ctx context.Context, term uint64, session sys.SessionID, cmd *metapb.Command) (leave func(), err error) {
	if cmd.GetMknod().GetIno() == 0 { // else it keeps a promise itself
		if err := s.leases.clear(ctx, term); err != nil {
			return nil, err
		}
	}
	dirs := namesOf(cmd)
	if name := removes(cmd); name != nil && s.leases.anyAlone(session) {
		a, _, err := s.rows.read(ctx, &metapb.Query{Op: &metapb.Query_Lookup{Lookup: name}})
		if err != nil {
			return nil, err
		}
		if a.Attr != nil {
			dirs = append(dirs, sys.Ino(a.Attr.Ino))
		}
	}
	return s.leases.enter(ctx, term, session, dirs)
}

// release waits until nobody can see anything older than what a command has
// changed, and completes the reply.
func (s *Server) release(ctx context.Context, term uint64, r *remotepb.DoRequest, local any, reply *remotepb.DoReply) error {
	if err := s.still(term, "meta.Do"); err != nil {
		return err
	}
	if err := s.leases.settle(ctx, term); err != nil {
		return err
	}
	o, ok := local.(*meta.Outcome)
	if !ok { // a retry of what had been applied: it may have touched anything
		return s.leases.barrier(ctx, term)
	}
	if len(o.Inos) == 0 {
		return nil
	}
	err := s.leases.barrier(ctx, term, o.Inos...)
	if err == nil && len(o.Attrs) <= touchedMax {
		reply.Touched = o.Attrs
		reply.Grant = s.grant(term, sys.SessionID(r.Session), seenAt{change: o.Order}, o.Inos)
	}
	return err
}

// checkCommand refuses what cannot be a command, or only the leader itself may
// run, before it gets into the log. frees says that it makes space.
func checkCommand(body []byte, cmd *metapb.Command) (frees bool, _ error) {
	if err := pb.Unmarshal(body, cmd); err != nil || cmd.Op == nil {
		return false, sys.E(sys.Op("meta.Do"), sys.Invalid, fmt.Sprintf("not a command this node knows (%v): are all nodes of one version?", err))
	}
	switch cmd.Op.(type) {
	case *metapb.Command_Purge, *metapb.Command_DropFreed, *metapb.Command_Format, *metapb.Command_EndSession,
		*metapb.Command_Load:
		return false, sys.E(sys.Op("meta.Do"), sys.Permission, "only the leader itself runs this command")
	case *metapb.Command_Unlink, *metapb.Command_Rmdir, *metapb.Command_SetAttr, *metapb.Command_KeepOpen, *metapb.Command_GiveUp:
		frees = true
	}
	return frees, nil
}

func (s *Server) grant(term uint64, session sys.SessionID, seen seenAt, inos []sys.Ino) *remotepb.Grant {
	if session == 0 || seen == (seenAt{}) {
		return nil
	}
	granted, seq := s.leases.grant(term, session, seen, inos)
	return &remotepb.Grant{Inos: granted, Seq: seq, Term: term}
}

// directories are those that were changed and granted.
func directories(reply *remotepb.DoReply) (dirs []uint64) {
	for _, a := range reply.Touched {
		if sys.FileType(a.Type) == sys.TypeDir && slices.Contains(reply.Grant.Inos, a.Ino) {
			dirs = append(dirs, a.Ino)
		}
	}
	return dirs
}

func respond(header pb.Message, payload []byte) wire.Response {
	raw := pb.Marshal(header)
	return wire.Response{Header: raw, Payload: payload}
}

func (s *Server) serveQuery(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("meta.Query")
	var r remotepb.QueryRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	q := &metapb.Query{}
	if err := pb.Unmarshal(req.Payload, q); err != nil || q.Op == nil {
		return wire.Response{}, sys.E(op, sys.Invalid, fmt.Sprintf("not a query this node knows (%v): are all nodes of one version?", err))
	}
	term, err := s.lead(ctx, op)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	if r.View != 0 {
		return s.queryView(ctx, r.View, q)
	}
	session := sys.SessionID(r.Session)
	if session != 0 { // who has no session any more may know another tree
		if err := s.group.KeepAlive(session); err != nil {
			return cluster.LeaderHint(err)
		}
	}
	if err := s.leases.clear(ctx, term); err != nil {
		return cluster.LeaderHint(err)
	}
	leave, err := s.leases.enter(ctx, term, session, asksOf(q))
	if err != nil {
		return cluster.LeaderHint(err)
	}
	defer func() { leave() }()
	a, seen, inos, err := s.query(ctx, term, q)
	if err == nil && s.leases.othersAlone(session, inos) { // it tells of a directory that it did not ask for
		leave()
		if leave, err = s.leases.enter(ctx, term, session, inos); err == nil {
			a, seen, inos, err = s.query(ctx, term, q)
		} else {
			leave = func() {}
		}
	}
	if err != nil {
		return cluster.LeaderHint(err)
	}
	reply := &remotepb.QueryReply{}
	if cacheable(q) {
		reply.Grant = s.grant(term, session, seenAt{slot: seen}, inos)
	}
	raw := pb.Marshal(a)
	return respond(reply, raw), nil
}

// query reads, and waits until nobody can see anything older. inos are those
// that the answer tells of.
func (s *Server) query(ctx context.Context, term uint64, q *metapb.Query) (a *metapb.Answer, seen uint64, inos []sys.Ino, err error) {
	a, seen, err = s.rows.read(ctx, q)
	if err == nil {
		err = s.still(term, "meta.Query")
	}
	if err == nil {
		err = s.leases.settle(ctx, term)
	}
	if err != nil {
		return nil, 0, nil, err
	}
	inos = inosOf(q, a)
	return a, seen, inos, s.leases.barrier(ctx, term, inos...)
}

// cacheable says whether clients cache answers to q.
func cacheable(q *metapb.Query) bool {
	switch q.Op.(type) {
	case *metapb.Query_Lookup, *metapb.Query_GetAttr, *metapb.Query_Open, *metapb.Query_ReadDir, *metapb.Query_Access:
		return true
	}
	return false
}

// inosOf lists the inodes that an answer tells of. It is never nil.
func inosOf(q *metapb.Query, a *metapb.Answer) []sys.Ino {
	inos := make([]sys.Ino, 0, 2+len(a.Entries))
	switch op := q.Op.(type) {
	case *metapb.Query_Lookup:
		inos = append(inos, sys.Ino(op.Lookup.Parent))
	case *metapb.Query_ReadDir:
		inos = append(inos, sys.Ino(op.ReadDir.Ino))
	case *metapb.Query_GetChunks:
		inos = append(inos, sys.Ino(op.GetChunks.Ino))
	case *metapb.Query_GetXattr:
		inos = append(inos, sys.Ino(op.GetXattr.Ino))
	case *metapb.Query_ListXattr:
		inos = append(inos, sys.Ino(op.ListXattr.Ino))
	}
	if a.Attr != nil {
		inos = append(inos, sys.Ino(a.Attr.Ino))
	}
	for _, e := range a.Entries {
		if e.Attr != nil {
			inos = append(inos, sys.Ino(e.Ino))
		}
	}
	return inos
}

func (s *Server) serveRenew(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var r remotepb.RenewRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(sys.Op("meta.Renew"), sys.Invalid, err)
	}
	if _, err := s.lead(ctx, "meta.Renew"); err != nil {
		return cluster.LeaderHint(err)
	}
	session := sys.SessionID(r.Session)
	if err := s.group.KeepAlive(session); err != nil {
		return cluster.LeaderHint(err)
	}
	n := s.leases.renew(ctx, session, r.Term, r.Acked, r.Owes)
	// Only a leader may extend a lease: the log's own lease, checked after
	// the fact, says that this node still is one.
	if err := readNothing(ctx, s.group); err != nil {
		return cluster.LeaderHint(err)
	}
	raw := pb.Marshal(&remotepb.RenewReply{Term: n.term, Seq: n.seq, Inos: n.inos, Reset_: n.reset})
	return wire.Response{Payload: raw}, nil
}
