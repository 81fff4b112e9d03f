package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// alpha is how many slots may be in flight, and how many slots after its own a
// change of members takes effect. It is part of the protocol: the same on every
// node and for all time.
const alpha = 64

// membersRow is replicapb.Members: who is in the group, as the state at its
// applied slot knows it.
type membersRow struct {
	history paxos.History
	joined  bool   // a configuration has named this node
	placed  uint64 // slot of the snapshot that the state began with
}

func (r membersRow) encode() []byte {
	b := appendBytes(nil, 1, r.history.Encode())
	if r.joined {
		b = appendUint(b, 2, 1)
	}
	if r.placed > 0 {
		b = appendUint(b, 3, r.placed)
	}
	return b
}

func decodeMembers(b []byte) (r membersRow, err error) {
	err = eachField(b, func(f field) (err error) {
		switch f.num {
		case 1:
			r.history, err = paxos.DecodeHistory(f.bytes)
		case 2:
			r.joined = f.value != 0
		case 3:
			r.placed = f.value
		}
		return err
	})
	return r, err
}

// named reports whether one of the configurations has a node as a member.
func named(h paxos.History, id sys.NodeID) bool {
	return slices.ContainsFunc(h, func(c paxos.ConfigAt) bool { return c.Member(paxos.NodeID(id)) })
}

// electorate are the voters of all configurations of a history, in order.
func electorate(h paxos.History) (ids []sys.NodeID) {
	for _, c := range h {
		ids = append(ids, nodeIDs(c.Voters)...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func nodeIDs(ids []paxos.NodeID) []sys.NodeID {
	out := make([]sys.NodeID, len(ids))
	for i, id := range ids {
		out[i] = sys.NodeID(id)
	}
	return out
}

func paxosIDs(ids []sys.NodeID) []paxos.NodeID {
	out := make([]paxos.NodeID, len(ids))
	for i, id := range ids {
		out[i] = paxos.NodeID(id)
	}
	return out
}

// membersKey is the key of a group's Members row.
func membersKey(g sys.GroupID) []byte { return append(namespacePrefix(g, nsLocal), 'm') }

// readMembers reads a Members row. Without one the error is pebble.ErrNotFound.
func readMembers(r pebble.Reader, key []byte) (row membersRow, err error) {
	v, closer, err := r.Get(key)
	if err != nil {
		return row, err
	}
	if row, err = decodeMembers(v); err != nil {
		err = sys.E(sys.Op("replica.readMembers"), sys.Corrupt, err)
	}
	return row, errors.Join(err, closer.Close())
}

// loadMembers reads who is in the group. A directory of its first start has no
// row: then it is written, durably, so that Config.Voters counts once only. Where
// the group has gone on from these, the row is lost, and the others know.
func (a *applier) loadMembers() error {
	const op = sys.Op("replica.loadMembers")
	h := a.g.host
	var err error
	if a.members, err = readMembers(a.db, a.membersKey); err != pebble.ErrNotFound {
		return err
	}
	switch {
	case a.begun && len(h.cfg.Voters) == 1 && !h.cfg.Others:
		return sys.E(op, sys.Corrupt, sys.Subject(h.cfg.Dir), "its state is lost: "+onlyAdvice)
	case a.begun:
		a.members = membersRow{}
	case len(h.cfg.Voters) > 0:
		var ids []sys.NodeID
		for _, p := range h.cfg.Voters {
			ids = append(ids, p.ID)
		}
		a.members = membersRow{history: paxos.Initial(paxosIDs(ids)), joined: true}
	case a.at.slot > 0:
		return sys.E(op, sys.Invalid, sys.Subject(h.cfg.Dir),
			"the directory was written by an older koinon and does not say who votes: start this node once with its voters")
	}
	if err := a.db.Set(a.membersKey, a.members.encode(), pebble.NoSync); err != nil {
		return sys.E(op, err)
	}
	return a.db.Flush()
}

// applyMembers takes an entry into the history.
func (a *applier) applyMembers(e *paxos.Entry) {
	before := len(a.members.history)
	a.members.history = a.members.history.Apply(e)
	if e.Kind == paxos.Configure || len(a.members.history) != before {
		a.members.joined = a.members.joined || named(a.members.history, a.g.host.cfg.Self)
		a.membersNew = true
	}
}

// setConfigs publishes the configurations that the core knows.
func (g *Group) setConfigs(h paxos.History) {
	g.configs.Store(&h)
	g.host.only.Store(g.host.alone(h))
}

// inForce returns the configuration in force, without members as long as a node
// that joins knows nothing.
func (g *Group) inForce() paxos.Configuration {
	if h := *g.configs.Load(); len(h) > 0 {
		return h[0].Configuration
	}
	return paxos.Configuration{}
}

// alone reports whether this node is the only voter of a history.
func (h *Host) alone(hist paxos.History) bool {
	ids := electorate(hist)
	return len(ids) == 1 && ids[0] == h.cfg.Self
}

// changeWaiter waits for a configuration to be in force.
type changeWaiter struct {
	want    paxos.Configuration
	refused bool // nothing was proposed: why is the answer
	*answer[error]
}

// Reconfigure makes the group's members these: a majority of the voters
// decides, learners receive everything. It is the leader's to do and returns
// when the configuration is in force; it is then, too, when these are the
// members already. A new voter must have been a learner and be less than 64
// slots behind. Any number of members may come and go at once; commands go on
// meanwhile. To ask again for what is under way waits for it.
//
// Errors: sys.NotLeader (LeaderOf tells who is); sys.Invalid, what is wrong with
// the members; sys.Busy, another change is under way; sys.Unavailable, a new
// voter has not caught up, or too few of the new voters answer: nothing was
// changed; sys.Unavailable with a LeaderError whose Proposed is set and
// sys.Interrupted: the change may yet take effect, ask Status or again.
func (g *Group) Reconfigure(ctx context.Context, voters, learners []sys.NodeID) error {
	const op = sys.Op("replica.Reconfigure")
	h := g.host
	want := paxos.Configuration{Voters: paxosIDs(voters), Learners: paxosIDs(learners)}
	slices.Sort(want.Voters)
	slices.Sort(want.Learners)
	if err := want.Validate(); err != nil {
		return sys.E(op, sys.Invalid, err)
	}
	retry := h.cfg.Sched.NewTimer(h.cfg.Heartbeat)
	defer retry.Stop()
	for {
		w := &changeWaiter{want: want, answer: newAnswer[error]()}
		g.call(func(now paxos.Time) {
			if err := g.proposeMembers(now, w); err != nil {
				w.refused = true
				w.give(err)
			}
		})
		switch h.cfg.Sched.Wait(nil, w.done, ctx.Done(), h.stop) {
		case env.GotB:
			return sys.E(op, sys.Interrupted, fmt.Errorf("the change of members may yet take effect: %w", ctx.Err()))
		case env.GotC:
			return h.stopped(op)
		}
		switch {
		case !w.refused:
			return w.v
		case w.v != paxos.ErrUnconfirmed && w.v != paxos.ErrBusy:
			return g.refusedChange(w.v)
		}
		retry.Reset(h.cfg.Heartbeat)
		switch h.cfg.Sched.Wait(retry, ctx.Done(), h.stop, nil) {
		case env.GotA:
			return sys.E(op, sys.Interrupted, fmt.Errorf("nothing was changed: %w (%w)", ctx.Err(), w.v))
		case env.GotB:
			return h.stopped(op)
		}
	}
}

// refusedChange is the error of a change that was not made.
func (g *Group) refusedChange(err error) error {
	const op = sys.Op("replica.Reconfigure")
	switch err {
	case paxos.ErrNoChange:
		return nil
	case paxos.ErrNotLeader:
		return notLeader(op, g.view.Load().leader)
	case paxos.ErrChangeInFlight:
		return sys.E(op, sys.Busy, err)
	}
	return sys.E(op, sys.Unavailable, err)
}

// proposeMembers has the core propose a configuration, and remembers who waits
// for it.
func (g *Group) proposeMembers(now paxos.Time, w *changeWaiter) error {
	if g.d.node == nil {
		return paxos.ErrNotLeader
	}
	slot, err := g.d.node.ProposeConfig(now, w.want)
	if err == paxos.ErrChangeInFlight && g.changingTo(w.want) {
		err = nil // the same again: wait with the one who asked first
	}
	if err != nil {
		return err
	}
	g.d.changes = append(g.d.changes, w)
	g.host.cfg.Logger.Info("the members change", "group", g.id, "to", w.want, "slot", slot)
	return nil
}

// changingTo reports whether the last configuration under way is want.
func (g *Group) changingTo(want paxos.Configuration) bool {
	st := g.d.node.Status()
	if st.Changing != nil {
		return st.Changing.Equal(want)
	}
	return len(st.Configs) > 1 && st.Configs[len(st.Configs)-1].Configuration.Equal(want)
}

// takeConfigs takes in that the core knows other configurations.
func (g *Group) takeConfigs(hist paxos.History) {
	if !hist[0].Equal(g.inForce()) {
		g.host.cfg.Logger.Info("members in force", "group", g.id, "members", hist[0].Configuration, "from", hist[0].From)
	}
	g.setConfigs(hist)
	g.d.changes = slices.DeleteFunc(g.d.changes, func(w *changeWaiter) bool {
		if !hist[0].Equal(w.want) {
			return false
		}
		w.give(nil)
		return true
	})
}

// failChanges answers those who wait for a change: leadership is lost.
func (g *Group) failChanges(leader sys.NodeID) {
	for _, w := range g.d.changes {
		w.give(sys.E(sys.Op("replica.Reconfigure"), sys.Unavailable, &rsm.LeaderError{Leader: leader, Proposed: true}))
	}
	g.d.changes = nil
}

// removed reports whether this node has been a member and is none any more: by
// its own log, or because another member has told it so (left). A node that is
// behind may only not know yet that it has come back, so a while without a
// leader has to pass.
func (g *Group) removed(now paxos.Time, left bool) bool {
	hist := *g.configs.Load()
	outside := len(hist) > 0 && g.joined.Load() && g.d.leader == 0 && (left || !named(hist, g.host.cfg.Self))
	switch {
	case !outside:
		g.d.outsideSince = 0
	case g.d.outsideSince == 0:
		g.d.outsideSince = now
	}
	return outside && now-g.d.outsideSince >= paxos.Time(2*g.host.cfg.ElectionTimeout)
}
