//go:build linux

package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/mountinfo"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
	"github.com/koinon/koinon/internal/wire"
)

// Options are the parts of an Agent. Clock, Logger, Capacity and Labels may be
// left out.
type Options struct {
	Node    sys.NodeID
	Cluster *cluster.Client // on the node's own account; not owned
	// Leader answers a request where this node leads, see proc.Server.Answer; nil has all of them sent.
	Leader func(ctx context.Context, m wire.Method, payload []byte) (answer []byte, ok bool)
	ID     string // of the cluster
	Dir    string // of the agent alone; made if need be
	Boot   string // of the machine, whose end is that of all processes; "" is daemon.Boot's
	Name   string // of the node, for people
	// Capacity is what the node gives to processes; what is 0 in it is all CPUs,
	// and three quarters of the machine's memory.
	Capacity *procpb.Resources
	Labels   map[string]string // beside arch and os
	// FS leads to the tree, for what processes print. It is called often, and
	// first when there is something to write; the FS stays its owner's.
	FS func(ctx context.Context) (*vfs.FS, error)
	// Mounts tells where this machine has the tree, the place that is preferred
	// first. It is called for each reservation; nil finds the mounts of the cluster.
	Mounts   func() ([]string, error)
	Clock    env.Clock // nil is the system's
	Logger   *slog.Logger
	Executor executor.Options // the supervisor's directory is appended to Command
}

// Agent is a node's half of the process table. Register, Run once, and Close.
type Agent struct {
	opts     Options
	log      *slog.Logger
	clock    env.Clock
	capacity *procpb.Resources
	store    *store
	exec     *executor.Executor
	was      *saved // what New found; for Run
	mounts   mountinfo.Table

	dead       atomic.Pointer[map[string]error] // the mounts that do not answer, and how; changed by watchMounts alone
	mountDoubt wake                             // to look at the mounts early
	trouble    atomic.Pointer[string]           // why the processes cannot be looked after; nil: they can

	turns  chan *turn     // for the owner of the participant
	fences chan *newFence // for the same
	votes  mailbox        // what the participant says by itself
	beat   wake           // to send a heartbeat early
	began  reporter
	ended  reporter
	era    *era // changed by the owner of the participant alone

	usage    map[executor.ID]executor.Process // what runs, as it was measured last; of beats alone
	measured time.Duration
	missed   map[executor.ID]bool // what the executor did not know then, of what it had told

	leadership, mark uint64 // of the leader's last answer; of beats alone

	runCtx  context.Context // ends with Run
	stopRun context.CancelFunc
	running sync.WaitGroup // everything that Run has started

	mu      sync.Mutex
	fence   uint64
	holds   map[commit.Tx]*hold // reserved, not decided
	settled chan struct{}       // closed when one of them is decided, and replaced
	tasks   map[taskKey]*task   // decided, and not all known to the leader
	procs   map[executor.ID]*process
	retired []*process // the leader knows their end; the oldest first
	used    procpb.Resources
}

// hold is a reservation that is not decided.
type hold struct {
	res  *procpb.Reservation
	need *procpb.Resources
}

// settle wakes who waits for the decision on a reservation. The caller holds
// a.mu.
func (a *Agent) settle() {
	close(a.settled)
	a.settled = make(chan struct{})
}

// New opens what the node keeps of its processes, and finds or starts their
// supervisor. Nothing is done before Run.
func New(ctx context.Context, opts Options) (*Agent, error) {
	if opts.Clock == nil {
		opts.Clock = env.System{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	capacity, err := detect(opts.Capacity)
	if err == nil && opts.Boot == "" {
		opts.Boot, err = daemon.Boot()
	}
	if err != nil {
		return nil, err
	}
	a := &Agent{opts: opts, log: opts.Logger, clock: opts.Clock, capacity: capacity, turns: make(chan *turn), fences: make(chan *newFence),
		votes: mailbox{wake: newWake()}, beat: newWake(), mountDoubt: newWake(),
		holds: map[commit.Tx]*hold{}, settled: make(chan struct{}), tasks: map[taskKey]*task{}, procs: map[executor.ID]*process{}}
	if a.opts.Mounts == nil {
		a.opts.Mounts = a.findMounts
	}
	a.dead.Store(&map[string]error{})
	a.runCtx, a.stopRun = context.WithCancel(context.Background())
	a.began = reporter{a: a, method: proc.MethodBegan, wake: newWake()}
	a.ended = reporter{a: a, method: proc.MethodEnded, wake: newWake()}
	a.era = newEra(a.runCtx)
	dir := filepath.Join(opts.Dir, "executor")
	opts.Executor.Command = append(slices.Clone(opts.Executor.Command), dir)
	if a.exec, err = executor.Open(ctx, dir, opts.Executor); err != nil {
		return nil, err
	}
	if a.store, a.was, err = openStore(filepath.Join(opts.Dir, "store"), opts.Boot, opts.Logger); err != nil {
		return nil, errors.Join(err, a.exec.Close())
	}
	a.fence = a.was.fence
	if err := a.findLost(ctx); err != nil {
		return nil, errors.Join(err, a.exec.Close(), a.store.close())
	}
	return a, nil
}

// findLost ends what the store has as running, and the executor may have started
// and does not know any more. It would take that for what was not started yet.
//
// That is so when it was never told of the node's fence, which happens before
// anything runs under it: its directory was lost. It may be so when it is another
// instance than before: what the last one did last was not synced, and its file
// system may have died, with the machine or alone.
func (a *Agent) findLost(ctx context.Context) (err error) {
	missed, instance, before := a.exec.Missed(fenceEpoch(a.fence)), a.exec.Instance(), a.store.executor
	switch {
	case missed:
		err = a.loseUnknown(ctx, "the directory of the node's executor was lost: how it ended is not known")
	case instance != before && before != "": // "" is of a version that synced
		err = a.loseUnknown(ctx, "the node died while it was being started, or soon after: how it ended is not known")
	}
	if err == nil && instance != before {
		err = a.store.setExecutor(instance)
	}
	if err != nil || !missed {
		return err
	}
	return a.exec.Fence(ctx, fenceEpoch(a.fence)) // after the ends are durable
}

// loseUnknown ends as lost what the executor does not know.
func (a *Agent) loseUnknown(ctx context.Context, why string) error {
	list, err := a.exec.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range a.was.tasks {
		for _, p := range a.newTask(s.res, s.ranks).procs {
			if p.taken || p.unborn != nil || slices.ContainsFunc(list, func(known executor.Process) bool { return known.ID == p.id }) {
				continue
			}
			a.log.Warn("a process was lost", "process", p.name, "why", why)
			end := &procpb.Process{State: procpb.State_LOST, Node: uint64(a.opts.Node), EndedNs: a.clock.Wall().UnixNano(), Why: why}
			if err := a.store.setUnborn(p, end); err != nil {
				return err
			}
			if s.ranks[p.rank] == nil {
				s.ranks[p.rank] = &savedRank{}
			}
			s.ranks[p.rank].unborn = end
		}
	}
	return nil
}

// Register adds the methods of a node to a server.
func (a *Agent) Register(s *wire.Server) {
	s.Handle(proc.MethodParty, a.serveParty)
	s.Handle(proc.MethodSignal, a.serveSignal)
	s.Handle(proc.MethodOutput, a.serveOutput)
	s.Handle(proc.MethodStdin, a.serveStdin)
}

// Run takes up what was left by the last Run, and works until ctx is done, or
// until it cannot go on. Processes go on without it as long as their lease.
func (a *Agent) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, a.stopRun)()
	ctx, fail := context.WithCancelCause(a.runCtx)
	defer fail(nil)
	party := a.resume()
	a.running.Go(func() { a.watch(ctx) })
	a.running.Go(func() { a.began.run(ctx) })
	a.running.Go(func() { a.ended.run(ctx) })
	a.running.Go(func() { a.tellVotes(ctx) })
	a.running.Go(func() { a.beats(ctx) })
	a.running.Go(func() { a.watchMounts(ctx) })
	a.running.Go(func() {
		if err := a.own(ctx, party); err != nil {
			fail(err)
		}
	})
	<-ctx.Done()
	a.stopRun()
	a.era.end()
	a.running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// shutdownWithin bounds how long Close waits for a supervisor that has nothing
// to do; it ends by itself in any case.
const shutdownWithin = 2 * time.Second

// Close ends the connection to the executor, and the supervisor when nothing
// runs. Run has returned, or was never called.
func (a *Agent) Close() error {
	a.stopRun()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWithin)
	defer cancel()
	var err error
	if a.was == nil && a.idle(ctx) {
		if err = a.exec.Shutdown(ctx); ctx.Err() != nil {
			err = nil
		}
	}
	return errors.Join(err, a.exec.Close(), a.store.close(), a.mounts.Close())
}

// idle says that nothing runs and nothing is about to.
func (a *Agent) idle(ctx context.Context) bool {
	a.mu.Lock()
	for _, t := range a.tasks {
		if t.alive > 0 { // perhaps it is being started just now, and in no list
			a.mu.Unlock()
			return false
		}
	}
	a.mu.Unlock()
	list, err := a.exec.List(ctx)
	return err == nil && !slices.ContainsFunc(list, func(p executor.Process) bool { return p.Status == nil })
}

// resume takes up the reservations and the tasks that the store had, and
// returns the participant that goes on with them.
func (a *Agent) resume() *commit.Participant {
	for _, c := range a.was.party.Records {
		if c.State != commit.Prepared {
			continue
		}
		res, err := readReservation(c.Payload)
		if err != nil {
			a.log.Error("a reservation cannot be read", "tx", c.Tx, "err", err)
			continue
		}
		a.hold(c.Tx, res)
	}
	for _, s := range a.was.tasks {
		a.begin(a.newTask(s.res, s.ranks))
	}
	party := commit.NewParticipant(commit.Config{}, proc.PartyOf(uint64(a.opts.Node), a.fence), a.was.party, a.now())
	a.was = nil
	return party
}

// now is the participant's clock.
func (a *Agent) now() commit.Time { return commit.Time(a.clock.Boot()) }

// wake is an event that may happen many times before it is looked at.
type wake chan struct{}

func newWake() wake { return make(wake, 1) }

func (w wake) set() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
