package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// Group is this node's replica of one group. Its methods may be called
// concurrently.
type Group struct {
	host     *Host
	id       sys.GroupID
	applier  *applier
	sessions sessions

	view atomic.Pointer[leaderView]
	// leaseSlot is what a read under the lease of view must see applied. It
	// never falls, and is stored before the view and before anybody else hears
	// that the slot is chosen.
	leaseSlot atomic.Uint64

	// configs are the configurations known, never nil; joined says that one of
	// them, or of those before, names this node.
	configs atomic.Pointer[paxos.History]
	joined  atomic.Bool

	hooks atomic.Pointer[hookTable]

	mu            sync.Mutex
	rand          *rand.Rand   // of the names of entries and snapshots
	queue         []*proposals // the last one is open for more
	queueBytes    int
	queueCommands int
	entryBytes    int                   // of the last entry
	inflight      map[uint64]*proposals // by origin
	underWay      int                   // commands proposed and neither answered nor given up
	closed        error                 // answers everything from now on
	calls         []func(now paxos.Time)
	readers       []*readWaiter // wait for the driver to ask for a read index
	appliedWait   []*readWaiter // wait for the state to reach their slot
	installed     installedSnapshot
	published     rsm.Status
	watchers      map[int]func(rsm.Status)
	watcherNext   int
	remoteDigests []digestAt // of slots not applied here yet
	ownDigests    []digestAt // the latest, ascending

	applied atomic.Uint64
	// inForceFrom is the first slot of the newest configuration that the mark
	// names, or is about to.
	inForceFrom atomic.Uint64
	flushed     atomic.Uint64 // durably applied
	replaced    atomic.Uint64 // counts when a snapshot begins to replace the state, and when it has

	incoming incoming // a snapshot that arrives
	outSnap  keeper   // the snapshot that is sent
	batches  meter    // commands per entry proposed

	d groupDriver
}

// installedSnapshot is a snapshot put in place that the core does not know of
// yet; slot 0: none.
type installedSnapshot struct {
	slot    paxos.Slot
	configs paxos.History
}

// leaderView is what callers need to know of the leadership.
type leaderView struct {
	role   rsm.Role
	leader sys.NodeID
	ballot paxos.Ballot // the own one, of a leader
	lease  paxos.Time   // reads that saw leaseSlot are good before it; 0 without a lease
}

// hookTable holds the OnApply hooks by namespace.
type hookTable map[rsm.Namespace][]func(st rsm.Stamp, local any)

func newGroup(h *Host, id sys.GroupID) *Group {
	g := &Group{host: h, id: id, inflight: map[uint64]*proposals{}, watchers: map[int]func(rsm.Status){},
		rand: rand.New(rand.NewPCG(h.rand.Uint64(), uint64(id)))}
	g.view.Store(&leaderView{})
	g.hooks.Store(&hookTable{})
	g.setConfigs(nil)
	g.applier = newApplier(g, h.db, h.machines)
	return g
}

// random returns a number other than 0.
func (g *Group) random() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rand.Uint64() | 1
}

// ID returns the group's number.
func (g *Group) ID() sys.GroupID { return g.id }

// OnApply implements rsm.Group.
func (g *Group) OnApply(ns rsm.Namespace, fn func(st rsm.Stamp, local any)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := hookTable{}
	for k, v := range *g.hooks.Load() {
		next[k] = v
	}
	next[ns] = append(slices.Clone(next[ns]), fn)
	g.hooks.Store(&next)
}

func (g *Group) hooksOf(ns rsm.Namespace) []func(rsm.Stamp, any) { return (*g.hooks.Load())[ns] }

// Watch implements rsm.Group.
func (g *Group) Watch(fn func(rsm.Status)) (stop func()) {
	g.mu.Lock()
	id := g.watcherNext
	g.watcherNext++
	g.watchers[id] = fn
	g.mu.Unlock()
	signal(g.host.notify)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.watchers, id)
	}
}

// callWatchers tells the watchers.
func (g *Group) callWatchers() {
	g.mu.Lock()
	ids := make([]int, 0, len(g.watchers))
	for id := range g.watchers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	fns := make([]func(rsm.Status), 0, len(ids))
	for _, id := range ids {
		fns = append(fns, g.watchers[id])
	}
	g.mu.Unlock()
	if len(fns) == 0 {
		return
	}
	st := g.Status()
	for _, fn := range fns {
		fn(st)
	}
}

// Status implements rsm.Group.
func (g *Group) Status() rsm.Status {
	h := g.host
	v := g.view.Load()
	g.mu.Lock()
	s := g.published
	s.Peers = slices.Clone(s.Peers)
	s.Dropped = h.droppedFrames.Load()
	s.QueueCommands, s.QueueBytes, s.InFlight = g.queueCommands, g.queueBytes, len(g.inflight)
	g.mu.Unlock()
	s.Group, s.Self = g.id, h.cfg.Self
	s.Role, s.Leader = v.role, v.leader
	s.Applied, s.Flushed = g.applied.Load(), g.flushed.Load()
	s.Chosen = max(s.Chosen, s.Applied)
	s.Ready = v.role == rsm.Leader && v.lease != 0
	if left := time.Duration(v.lease) - h.cfg.Clock.Boot(); v.lease != 0 && left > 0 {
		s.Lease = left
	}
	s.NoSpace = h.noSpace.Load()
	s.Proposals, s.Entries = h.proposed.Load(), h.entries.Load()
	s.Applies, s.Deduped = h.applies.Load(), h.deduped.Load()
	s.Reads, s.ReadIndex, s.Elections = h.reads.Load(), h.readIndexes.Load(), h.elections.Load()
	s.Snapshots, s.Installs = h.snapshotsSent.Load(), h.installs.Load()
	ls := h.log.Stats()
	s.Batch, s.SyncTime = g.batches.spread(), h.syncTimes.spread()
	s.LogSyncs, s.LogBytes, s.LogRecords = ls.Syncs, ls.Bytes, ls.Records
	s.Sessions = g.sessions.count()
	return s
}

// call has fn run by the driver.
func (g *Group) call(fn func(now paxos.Time)) {
	g.mu.Lock()
	g.calls = append(g.calls, fn)
	g.mu.Unlock()
	g.host.wakeDriver()
}

// Transfer hands leadership to another voter. It returns when the request was
// taken; Watch or Status tell the outcome. Errors: sys.NotLeader, sys.Invalid,
// sys.Busy, sys.Unavailable when the other is not fit for it.
func (g *Group) Transfer(ctx context.Context, to sys.NodeID) error {
	const op = sys.Op("replica.Transfer")
	taken := newAnswer[error]()
	g.call(func(now paxos.Time) {
		if g.d.node == nil {
			taken.give(paxos.ErrNotLeader)
			return
		}
		taken.give(g.d.node.Transfer(now, paxos.NodeID(to)))
	})
	switch g.host.cfg.Sched.Wait(nil, taken.done, ctx.Done(), g.host.stop) {
	case env.GotA:
		switch err := taken.v; err {
		case nil:
			return nil
		case paxos.ErrNotLeader:
			return notLeader(op, g.view.Load().leader)
		case paxos.ErrUnknownPeer:
			return sys.E(op, sys.Invalid, sys.Subject(to.String()), err)
		case paxos.ErrBusy:
			return sys.E(op, sys.Busy, err)
		}
		return sys.E(op, sys.Unavailable, sys.Subject(to.String()), taken.v)
	case env.GotB:
		return sys.E(op, sys.Interrupted, ctx.Err())
	}
	return g.host.stopped(op)
}

// OpenSession implements rsm.Group.
func (g *Group) OpenSession(ctx context.Context, name string) (sys.SessionID, error) {
	result, err := g.proposeSession(ctx, &replicapb.SessionCommand{
		Op: &replicapb.SessionCommand_Open_{Open: &replicapb.SessionCommand_Open{Name: name}}})
	if err != nil {
		return 0, err
	}
	var res replicapb.SessionResult
	if err := pb.Unmarshal(result, &res); err != nil {
		return 0, sys.E(sys.Op("replica.OpenSession"), sys.Corrupt, err)
	}
	return sys.SessionID(res.Session), nil
}

// EndSession implements rsm.Group.
func (g *Group) EndSession(ctx context.Context, ids ...sys.SessionID) error {
	_, err := g.proposeSession(ctx, endCommand(false, ids))
	return err
}

func endCommand[T ~uint64](idle bool, ids []T) *replicapb.SessionCommand {
	end := &replicapb.SessionCommand_End{Idle: idle}
	for _, id := range ids {
		end.Sessions = append(end.Sessions, uint64(id))
	}
	return &replicapb.SessionCommand{Op: &replicapb.SessionCommand_End_{End: end}}
}

func (g *Group) proposeSession(ctx context.Context, cmd *replicapb.SessionCommand) ([]byte, error) {
	body := pb.Marshal(cmd)
	result, _, err := g.Propose(ctx, rsm.Command{NS: rsm.NSSession, Body: body})
	return result, err
}

// KeepAlive implements rsm.Group.
func (g *Group) KeepAlive(ids ...sys.SessionID) error {
	const op = sys.Op("replica.KeepAlive")
	v := g.view.Load()
	if v.role != rsm.Leader {
		return notLeader(op, v.leader)
	}
	now := int64(g.host.cfg.Clock.Boot())
	var gone error
	for _, id := range ids {
		if s := g.sessions.get(id); s != nil {
			s.heard.Store(now)
		} else if gone == nil && v.lease != 0 {
			// Without lease the session may have been opened in the suffix
			// that is not applied yet.
			gone = sys.E(op, sys.SessionGone, sessionSubject(id))
		}
	}
	return gone
}

// Sessions implements rsm.Group.
func (g *Group) Sessions() ([]rsm.SessionInfo, error) {
	now := g.host.cfg.Clock.Boot()
	var out []rsm.SessionInfo
	var bad error
	err := g.ReadLocal(rsm.NSSession, func(r rsm.Reader) error {
		err := r.Scan([]byte{keySession}, []byte{keySession + 1}, func(key, value []byte) bool {
			var row replicapb.SessionRow
			if bad = pb.Unmarshal(value, &row); bad != nil {
				return false
			}
			id := sys.SessionID(beUint64(key[1:]))
			info := rsm.SessionInfo{ID: id, Name: row.Name, OpenedNs: row.OpenedNs}
			if s := g.sessions.get(id); s != nil {
				info.Idle = now - time.Duration(s.heard.Load())
			}
			out = append(out, info)
			return true
		})
		return err
	})
	if err == nil && bad != nil {
		err = sys.E(sys.Op("replica.Sessions"), sys.Corrupt, bad)
	}
	return out, err
}

// ownDigest notes the digest after an own slot and compares it with what the
// leader said.
func (g *Group) ownDigest(d digestAt) {
	g.mu.Lock()
	g.ownDigests = append(g.ownDigests, d)
	if len(g.ownDigests) > digestsKept {
		g.ownDigests = slices.Delete(g.ownDigests, 0, 1)
	}
	g.remoteDigests = slices.DeleteFunc(g.remoteDigests, func(r digestAt) bool {
		if r.slot == d.slot {
			compareDigests(g.id, d, r)
		}
		return r.slot <= d.slot
	})
	g.mu.Unlock()
	if g.view.Load().role == rsm.Leader {
		g.call(func(paxos.Time) { g.host.broadcastDigest(g, d) })
	}
}

// digestsKept is how many digests are kept for comparison.
const digestsKept = 16

// remoteDigest compares the leader's digest, now or when the slot is applied.
func (g *Group) remoteDigest(d digestAt) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, own := range g.ownDigests {
		if own.slot == d.slot {
			compareDigests(g.id, own, d)
			return
		}
	}
	if d.slot > g.applied.Load() && len(g.remoteDigests) < digestsKept {
		g.remoteDigests = append(g.remoteDigests, d)
	}
}

// compareDigests panics when replicas have applied the same slots and differ:
// to go on would spread the difference.
func compareDigests(id sys.GroupID, own, leader digestAt) {
	if own.sum != leader.sum {
		panic(fmt.Sprintf("replica: group %d "+diverged+": digest after slot %d expected %016x (the leader's), found %016x",
			id, own.slot, leader.sum, own.sum))
	}
}
