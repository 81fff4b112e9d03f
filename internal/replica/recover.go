package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/replica/wal"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// replayed is what the log says about a group.
type replayed struct {
	state logState
	// unsure says that the promise may have been a higher one: records were lost
	// since state was written, or all of them.
	unsure bool
}

// recover opens the log, and makes the groups from it and the state. exists
// says that the directory had been in use.
func (h *Host) recover(exists bool) error {
	found := map[uint64]*replayed{}
	at := func(group uint64) *replayed {
		if found[group] == nil {
			// No directory is a node's before its groups' states are in the log.
			found[group] = &replayed{unsure: exists}
		}
		return found[group]
	}
	for _, id := range h.cfg.Groups {
		at(uint64(id))
	}
	var err error
	var report wal.Report
	h.log, report, err = wal.Open(wal.Options{FS: h.cfg.FS, Dir: h.cfg.FS.PathJoin(h.cfg.Dir, "log"),
		SegmentBytes: h.cfg.SegmentBytes, Logger: h.cfg.Logger, Sched: h.cfg.Sched, Exists: exists,
		Synced: func(took time.Duration) { h.syncTimes.add(uint64(took)) },
	}, func(r wal.Record) (err error) {
		switch r.Type {
		case wal.State:
			g := at(r.Group)
			g.unsure = false
			g.state, err = decodeLogState(r.Body)
		case wal.Gap:
			for _, g := range found {
				g.unsure = true
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if report.TornBytes > 0 {
		h.cfg.Logger.Info("the end of an unfinished log write was cut", "bytes", report.TornBytes)
	}
	if report.Damaged != nil {
		h.cfg.Logger.Error("the log is damaged", "err", report.Damaged)
	}
	for _, id := range h.cfg.Groups {
		r := found[uint64(id)]
		if !exists && h.cfg.Rejoin && !h.cfg.bugs.has(BugWipedVotes) {
			r.unsure = true
		}
		if err := h.recoverGroup(id, r, report.Damaged); err != nil {
			return err
		}
	}
	if err := h.writeStates(); err != nil {
		return err
	}
	if exists {
		return nil
	}
	return writeIdentity(&h.cfg)
}

// recoverGroup makes a group, and its node unless the promise is not known.
func (h *Host) recoverGroup(id sys.GroupID, r *replayed, damaged error) error {
	g := newGroup(h, id)
	h.groups = append(h.groups, g)
	g.d.reads = map[uint64][]*readWaiter{}
	g.applier.begun = r.unsure || r.state.truncated > 0
	if err := g.applier.load(); err != nil {
		return err
	}
	configs := g.applier.members.history
	g.setConfigs(configs)
	applied := g.applier.at.slot
	if err := g.incoming.resume(h, g); err != nil {
		return err
	}
	g.applied.Store(applied)
	g.flushed.Store(applied)
	g.d.reported = paxos.Slot(applied)
	rec := &g.d.recovered
	rec.Configs = configs
	rec.Promised = r.state.promised
	rec.Applied = paxos.Slot(applied)
	rec.Truncated = paxos.Slot(r.state.truncated)
	rec.Damaged = damaged != nil || r.unsure || r.state.damaged || r.state.lost
	g.matchLog(r, damaged)
	rec.Chosen = max(paxos.Slot(r.state.chosen), rec.Applied)
	g.d.truncated, g.d.placing = rec.Truncated, r.state.placing
	h.log.Truncate(uint64(id), uint64(rec.Truncated))
	err := h.log.Each(uint64(id), applied, func(slot uint64, body []byte) error {
		e, err := decodeEntry(body)
		if err == nil && uint64(e.Slot) != slot {
			err = fmt.Errorf("an entry of slot %d is logged as %d", e.Slot, slot)
		}
		if err != nil {
			return sys.E(sys.Op("replica.Open"), sys.Corrupt, err)
		}
		if rec.Promised.Less(e.Ballot) {
			rec.Promised = e.Ballot
		}
		rec.Entries = append(rec.Entries, e)
		return nil
	})
	if err != nil {
		return err
	}
	old := g.matchMark(r)
	g.d.old = old != nil
	if h.cfg.bugs.has(BugDamagedVotes) || h.cfg.bugs.has(BugStateBelieved) && h.alone(configs) {
		r.unsure, r.state.lost, rec.Damaged = false, false, false
	}
	if err := g.doubtMembers(cmp.Or(damaged, old)); err != nil {
		return err
	}
	g.d.damaged, g.d.lost = rec.Damaged, r.unsure || r.state.lost
	g.d.promised, g.d.chosen = rec.Promised, rec.Chosen
	g.tellDamage()
	if !g.d.lost {
		g.begin()
	}
	return nil
}

// tellDamage says that the replica does not vote: at every start until it is
// repaired, and in the status from the first answer on.
func (g *Group) tellDamage() {
	if g.d.damaged {
		g.published.Damaged = g.host.repairAdvice()
		g.host.cfg.Logger.Error("this replica does not vote", "group", g.id, "why", g.published.Damaged)
	}
}

// begin makes the group's node from what was recovered.
func (g *Group) begin() {
	h := g.host
	cfg := paxos.Config{
		ID: paxos.NodeID(h.cfg.Self), Alpha: alpha, MaxMessageBytes: 1 << 20, CacheBytes: 16 << 20,
		ElectionTimeout: paxos.Time(h.cfg.ElectionTimeout), Heartbeat: paxos.Time(h.cfg.Heartbeat),
		Lease: paxos.Time(h.cfg.Lease),
		Rand:  rand.New(rand.NewPCG(h.rand.Uint64(), uint64(g.id))),
		Log:   groupLog{h.log, uint64(g.id)},
	}
	g.d.node = paxos.New(cfg, g.d.recovered, paxos.Time(h.cfg.Clock.Boot()))
	g.d.recovered = paxos.Recovered{}
}

// writeStates logs what was recovered, durably, before anybody hears of it.
func (h *Host) writeStates() error {
	var recs []wal.Record
	for _, g := range h.groups {
		recs = append(recs, wal.Record{Type: wal.State, Group: uint64(g.id), Body: g.logState().encode()})
	}
	written := newAnswer[error]()
	h.log.Append(recs, written.give)
	h.cfg.Sched.Wait(nil, written.done, nil, nil)
	return written.v
}

// logState is the group's state to log.
func (g *Group) logState() logState {
	return logState{promised: g.d.promised, chosen: uint64(g.d.chosen), truncated: uint64(g.d.truncated),
		placing: g.d.placing, damaged: g.d.damaged && !g.d.old, lost: g.d.lost && !g.d.old}
}

// groupLog is a group's part of the log, as the core reads it.
type groupLog struct {
	log   *wal.Log
	group uint64
}

var _ paxos.Log = groupLog{}

// Entries implements paxos.Log.
func (l groupLog) Entries(lo, hi paxos.Slot, maxBytes int) ([]paxos.Entry, error) {
	var out []paxos.Entry
	var bad error
	err := l.log.Read(l.group, uint64(lo), uint64(hi)-1, maxBytes, func(_ uint64, body []byte) bool {
		var e paxos.Entry
		if e, bad = decodeEntry(body); bad != nil {
			return false
		}
		out = append(out, e)
		return true
	})
	return out, errors.Join(err, bad)
}

// call sends a request and decodes its reply.
func (h *Host) call(ctx context.Context, to sys.NodeID, req []byte) (*replicapb.Reply, error) {
	b, err := h.cfg.Transport.Call(ctx, to, req)
	if err != nil {
		return nil, err
	}
	reply := &replicapb.Reply{}
	if err := pb.Unmarshal(b, reply); err != nil {
		return nil, sys.E(sys.Op("replica.call"), sys.Corrupt, err)
	}
	return reply, nil
}

// Call implements Handler.
func (h *Host) Call(ctx context.Context, from sys.NodeID, req []byte) ([]byte, error) {
	const op = sys.Op("replica.Call")
	var r replicapb.Request
	if err := pb.Unmarshal(req, &r); err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	g := h.Group(sys.GroupID(r.Group))
	if g == nil {
		return nil, sys.E(op, sys.NotExist, fmt.Sprintf("group %d is not served here", r.Group))
	}
	var reply *replicapb.Reply
	var err error
	switch {
	case r.GetChunk() != nil:
		reply, err = g.receiveChunk(ctx, from, r.GetChunk())
	case r.GetOffer() != nil:
		reply, err = g.receiveOffer(ctx, from, r.GetOffer())
	case r.GetPromise() != nil:
		reply, err = g.tellPromise(ctx)
	default:
		err = sys.E(op, sys.NotSupported, "an unknown request: this node runs an older koinon")
	}
	if err != nil {
		return nil, err
	}
	return pb.Marshal(reply), nil
}
