package proc

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// ServerOptions configure a Server. All but Clock, Logger and Retention are
// required.
type ServerOptions struct {
	Group   rsm.Group
	Machine *Machine        // the one that the group runs
	Cluster *cluster.Client // to the nodes, on this node's own account
	// Tree is the tree as the leader changes it. Barrier waits until no mount
	// can still see inodes as they were; with none given, any.
	Tree    meta.Client
	Barrier func(ctx context.Context, inos ...sys.Ino) error
	Clock   env.Clock // nil is the system's
	Logger  *slog.Logger
	// Retention is how long ended jobs are kept; 0 is Retention.
	Retention time.Duration
	// LostAfter is how long after the last answer a node is declared lost; 0 is
	// LostAfter. Leases are two thirds of it.
	LostAfter time.Duration
}

// Server is the leader's half of the process table on one node; it answers only
// while the node leads the group.
type Server struct {
	opt   ServerOptions
	group rsm.Group
	hub   *hub

	own atomic.Pointer[ownNode] // nil: reached like others

	mu   sync.Mutex
	lead *leadership // nil: not leading, or not ready to

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	done    sync.WaitGroup
	unwatch func()
	wake    chan struct{}
}

// leadership is what a leader has in memory. Server.mu guards it.
type leadership struct {
	term    uint64
	since   time.Duration // Boot time
	wall    int64         // the time of day then
	coord   *commit.Coordinator
	model   *model
	planned time.Duration // when the last plan was made
	took    time.Duration // and how long that took
	later   bool          // another one has been put off
	waiting int           // how many tasks it has left in the queue
	looked  time.Duration // when lives and timeouts were last looked at
	swept   time.Duration // when leftovers were
	over    bool          // another coordinator has taken over
	forgot  time.Duration // when records that transactions have ended were last proposed
	forgets []commit.Record
	mark    uint64             // the highest given to what heartbeats did not list
	last    uint64             // the highest ID given to a job
	coming  map[string]*newJob // by request
	unsure  map[string]bool    // requests whose command may be in the log, or come into it
	gone    chan struct{}      // closed when it has ended
}

// NewServer starts to follow the leadership. Close stops it.
func NewServer(opt ServerOptions) *Server {
	if opt.Clock == nil {
		opt.Clock = env.System{}
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Retention == 0 {
		opt.Retention = Retention
	}
	if opt.LostAfter == 0 {
		opt.LostAfter = LostAfter
	}
	s := &Server{opt: opt, group: opt.Group, hub: opt.Machine.hub, wake: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.done.Go(s.run)
	s.unwatch = s.group.Watch(func(st rsm.Status) {
		if st.Role != rsm.Leader {
			s.hub.wakeAll() // they go to the next leader
		}
		signal(s.wake)
	})
	return s
}

// ownNode is the node's half in the same process.
type ownNode struct {
	node  sys.NodeID
	party func(context.Context, *procpb.Messages) (*procpb.Messages, error)
}

// Own spares the server the way through a connection to the node that it is on: party answers messages as MethodParty does.
// It may be called until Close, and after.
func (s *Server) Own(node sys.NodeID, party func(context.Context, *procpb.Messages) (*procpb.Messages, error)) {
	s.own.Store(&ownNode{node, party})
}

// Answer spares the node that the server is on the way through a connection: it answers a report, a vote or a heartbeat as its
// method does. ok is false when it cannot, as where another node leads; it may have been taken nevertheless.
func (s *Server) Answer(ctx context.Context, node sys.NodeID, m wire.Method, payload []byte) (answer []byte, ok bool) {
	var serve wire.HandlerFunc
	switch m {
	case MethodHeartbeat:
		serve = s.serveHeartbeat
	case MethodVotes:
		serve = s.serveVotes
	case MethodBegan:
		serve = s.serveBegan
	case MethodEnded:
		serve = s.serveEnded
	}
	if serve == nil || s.group.Leading() == 0 {
		return nil, false
	}
	r, err := serve(ctx, &wire.Request{Method: m, Payload: payload, Peer: wire.Identity{Node: node}})
	return r.Payload, err == nil
}

// Close ends what NewServer started, and sends those who wait to other nodes.
func (s *Server) Close() {
	s.unwatch()
	s.mu.Lock()
	s.stop()
	s.mu.Unlock()
	s.hub.wakeAll()
	s.done.Wait()
	s.hub.subscribe(false)
}

// spawn runs fn in a goroutine that Close waits for, or not at all when it does so already. The caller holds mu.
func (s *Server) spawn(fn func()) {
	if s.ctx.Err() == nil {
		s.done.Go(fn)
	}
}

// Register adds the server's methods.
func (s *Server) Register(srv *wire.Server) {
	srv.Handle(MethodSubmit, s.serveSubmit)
	srv.Handle(MethodList, s.serveList)
	srv.Handle(MethodWait, s.serveWait)
	srv.Handle(MethodInspect, s.serveInspect)
	srv.Handle(MethodKill, s.serveKill)
	srv.Handle(MethodNodes, s.serveNodes)
	srv.Handle(MethodDrain, s.serveDrain)
	srv.Handle(MethodHeartbeat, s.serveHeartbeat)
	srv.Handle(MethodVotes, s.serveVotes)
	srv.Handle(MethodBegan, s.serveBegan)
	srv.Handle(MethodEnded, s.serveEnded)
}

const (
	tick           = 50 * time.Millisecond  // while something is under way
	lookEvery      = 500 * time.Millisecond // at rest
	forgetEvery    = time.Second            // nobody waits for it, and each time is an entry of the log
	sweepEvery     = time.Minute
	proposeTimeout = 10 * time.Second
	againEvery     = 2 * time.Second // a node is told again to end something
)

// run drives what a leader does.
func (s *Server) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.hub.signal:
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.turn())
	}
}

// turn does what is due, and returns when to look again if nothing happens before.
func (s *Server) turn() time.Duration {
	term := s.group.Leading()
	s.mu.Lock()
	l := s.lead
	if l != nil && (l.term != term || l.over) {
		close(l.gone)
		s.lead, l = nil, nil
		s.hub.subscribe(false)
	}
	s.mu.Unlock()
	switch {
	case l != nil:
		return s.step()
	case term == 0:
		return lookEvery
	}
	if err := s.begin(term); err != nil && s.ctx.Err() == nil {
		s.opt.Logger.Debug("the process table has no coordinator yet", "err", err)
	}
	return tick
}

// begin begins a leadership: an epoch of its own, and the model of what is not
// over.
func (s *Server) begin(term uint64) (err error) {
	ctx, cancel := context.WithTimeout(s.ctx, proposeTimeout)
	defer cancel()
	s.hub.subscribe(true)
	defer func() {
		if err != nil {
			s.hub.subscribe(false) // perhaps nobody begins again
		}
	}()
	res, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordOpen)}}})
	if err != nil {
		return err
	}
	l := &leadership{term: term, since: s.opt.Clock.Boot(), wall: s.opt.Clock.Wall().UnixNano(), gone: make(chan struct{}), coming: map[string]*newJob{}, unsure: map[string]bool{}}
	l.looked, l.swept = l.since, l.since
	var table *commit.Table
	if err := s.group.ReadLocal(rsm.NSProc, func(r rsm.Reader) (err error) {
		if table, err = loadTable(r); err == nil {
			l.model, err = loadModel(r, l.since)
		}
		if err == nil {
			l.last, err = lastJob(r)
		}
		return err
	}); err != nil {
		return err
	}
	if table.Epoch != res.Epoch || s.group.Leading() != term {
		return s.group.NotLeader("proc.begin")
	}
	l.coord = commit.NewCoordinator(commit.Config{PrepareTimeout: commit.Time(prepareTimeout)}, res.Epoch, table.Commits, s.now())
	for _, c := range table.Commits {
		for _, p := range c.Parties {
			if n := l.model.nodes[uint64(nodeOf(p))]; n != nil && PartyOf(n.row.Id, n.row.Fence) != p {
				l.coord.Lost(p) // declared lost by an earlier leader
			}
		}
	}
	s.mu.Lock()
	s.lead = l
	s.mu.Unlock()
	s.opt.Logger.Info("process table", "epoch", res.Epoch, "jobs", len(l.model.jobs), "unfinished", len(table.Commits))
	signal(s.wake)
	return nil
}

// prepareTimeout is how long nodes may take to vote.
const prepareTimeout = 2 * time.Second

func (s *Server) now() commit.Time { return commit.Time(s.opt.Clock.Boot()) }

// propose has a command agreed. It returns its result, and which inodes it
// changed. A refusal is an error.
func (s *Server) propose(ctx context.Context, cmd *procpb.Command) (*procpb.Result, []sys.Ino, error) {
	raw, local, err := s.group.Propose(ctx, rsm.Command{NS: rsm.NSProc, Body: pb.Marshal(cmd), Reserve: cmd.GetSubmit() == nil})
	if err != nil {
		return nil, nil, err
	}
	res := &procpb.Result{}
	if err := pb.Unmarshal(raw, res); err != nil {
		return nil, nil, sys.E(sys.Op("proc.propose"), sys.Corrupt, err)
	}
	inos, _ := local.([]sys.Ino)
	return res, inos, failed("proc.Do", res.Failure)
}

// step does all that is due of a leader, and returns when the next step is if nothing happens before.
func (s *Server) step() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lead
	if l == nil {
		return tick
	}
	now := s.opt.Clock.Boot()
	s.follow(l, now)
	l.coord.Tick(commit.Time(now))
	if now-l.looked >= lookEvery {
		l.looked = now
		s.look(l, now)
	}
	s.tellEnds(l, now)
	s.plan(l, now)
	s.pump(l)
	if len(l.forgets) > 0 && now-l.forgot >= forgetEvery {
		l.forgot = now
		for _, r := range l.forgets {
			s.startAgree(l, r)
		}
		l.forgets = nil
	}
	if now-l.swept >= sweepEvery {
		l.swept = now
		before := l.dayTime(now) - int64(s.opt.Retention)
		s.spawn(func() { s.sweep(before) })
	}
	if l.over || l.model.dirty || !l.coord.Idle() || len(l.model.live) > 0 {
		return tick
	}
	return lookEvery
}

// dayTime is the time of day, in ns, at a Boot time of the leadership. It goes on evenly when somebody sets the clock: plans,
// timeouts and retention do not jump.
func (l *leadership) dayTime(now time.Duration) int64 { return l.wall + int64(now-l.since) }

// follow brings the model up to date.
func (s *Server) follow(l *leadership, now time.Duration) {
	for _, d := range s.hub.take() {
		l.model.follow(&d, now)
		for _, j := range d.jobs {
			l.last = max(l.last, j.Id)
		}
	}
}

// leader makes sure that this node leads and can answer, and that the model
// holds all that was acknowledged before. The caller unlocks s.mu when err is
// nil.
func (s *Server) leader(ctx context.Context, op sys.Op) (*leadership, error) {
	if err := s.group.Read(ctx, rsm.NSProc, func(rsm.Reader) error { return nil }); err != nil {
		return nil, err
	}
	s.mu.Lock()
	l := s.lead
	if l == nil || l.over || l.term != s.group.Leading() {
		s.mu.Unlock()
		signal(s.wake)
		return nil, sys.E(op, sys.Unavailable, "this node has only just begun to lead")
	}
	s.follow(l, s.opt.Clock.Boot())
	return l, nil
}

// treeNow is the tree as the leader changes it by itself.
type treeNow struct {
	ctx  context.Context
	tree meta.Client
}

// Do implements tree.
func (t treeNow) Do(cmd *metapb.Command) (*metapb.Result, error) {
	res, err := t.tree.Do(t.ctx, cmd)
	if err == nil && res.GetFailure() != nil {
		err = res.Failure.Err()
	}
	return res, err
}

// Query implements tree.
func (t treeNow) Query(q *metapb.Query) (*metapb.Answer, error) { return t.tree.Query(t.ctx, q) }
