package sim

import (
	"errors"
	"math/bits"
	"slices"

	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/paxos"
)

// This file is the administrator: who adds members, promotes, demotes and removes them, and replaces lost disks.

const (
	replicasMax = 14 // identities in one run
	membersMax  = 7
)

// leader returns a replica that takes itself for the leader and is awake, or nil.
func (w *group) leader() *replica {
	for _, r := range w.replicas {
		if r.up && r.role == paxos.Leader && w.Now >= r.pausedUntil {
			return r
		}
	}
	return nil
}

// join starts a replica with an empty disk that nobody knows yet.
func (w *group) join() *replica {
	r := newReplica(w, paxos.NodeID(len(w.replicas)+1), 0)
	w.replicas = append(w.replicas, r)
	w.net.grow()
	w.Mark('j', uint64(r.id))
	r.start()
	return r
}

// changeMembers has a leader propose some other configuration.
func (w *group) changeMembers() {
	r := w.leader()
	if r == nil {
		return
	}
	status := r.node.Status()
	w.proposeMembers(r, w.otherMembers(status.Configs[len(status.Configs)-1].Configuration, r.id))
}

// proposeMembers reports whether a leader took a configuration on.
func (w *group) proposeMembers(r *replica, c paxos.Configuration) bool {
	if !w.bears(&c, nil, false) {
		return false // who proposes that has only himself to blame
	}
	slot, err := r.node.ProposeConfig(r.clock(), c)
	w.Trace("node %d: members %v: slot %d, %v", r.id, c, slot, err)
	switch {
	case err == nil:
		w.stats.Changes++
		w.Mark('m', uint64(r.id), uint64(slot), uint64(len(c.Voters)), uint64(len(c.Learners)))
	case errors.Is(err, paxos.ErrLagging) || errors.Is(err, paxos.ErrNoQuorum) || errors.Is(err, paxos.ErrChangeInFlight):
		w.stats.ChangesRefused++
	case errors.Is(err, paxos.ErrBusy), errors.Is(err, paxos.ErrUnconfirmed), errors.Is(err, paxos.ErrNoChange):
	default:
		w.Fail("node %d: members %v: %v", r.id, c, err)
	}
	r.drain()
	return err == nil
}

// coup attacks the lease of a leader that hands the majority over to learners: they have not heard of it for so long
// that no lease binds them, and learn from others that they decide now.
func (w *group) coup() {
	l := w.leader()
	if l == nil {
		return
	}
	c := l.node.Configs()[0].Configuration
	if len(c.Voters) < 3 || !slices.Contains(c.Voters, l.id) {
		return
	}
	if len(c.Learners) < 2 {
		c.Learners = slices.Clone(c.Learners)
		for len(c.Learners) < 2 {
			id := w.candidateMember(&c)
			if id == 0 {
				return
			}
			c.Learners = append(c.Learners, id)
		}
		w.proposeMembers(l, c)
		return
	}
	next := paxos.Configuration{Voters: append([]paxos.NodeID{l.id}, c.Learners[:2]...)}
	w.net.join()
	for _, id := range c.Learners[:2] {
		w.net.cutPair(l.id, id)
	}
	w.net.joinAfter(2 * w.shape.electionTimeout)
	w.lullUntil = w.Now + w.shape.electionTimeout*3/4 // or else the learners would lag too far
	w.After(w.shape.electionTimeout*3/4, func() {
		if l != w.leader() || w.healed || !w.bears(&next, nil, false) {
			return
		}
		if !w.proposeMembers(l, next) {
			return
		}
		w.stats.Coups++
		for _, id := range next.Voters[1:] {
			for k := range 4 { // what was asked long ago comes now
				w.After(w.Pick(world.Millisecond, w.shape.electionTimeout/8)+world.Instant(k)*w.shape.electionTimeout/8, func() { w.lateCatchUp(id, c.Voters) })
			}
		}
	})
}

// lateCatchUp lets a question that a node has asked before arrive at others.
func (w *group) lateCatchUp(id paxos.NodeID, at []paxos.NodeID) {
	r := w.replicas[id-1]
	if !r.up || w.healed {
		return
	}
	for _, to := range at {
		w.net.carry(paxos.Message{Kind: paxos.MsgCatchUp, From: id, To: to, Slot: r.state.applied + 1})
	}
}

// otherMembers changes a configuration a little, or a lot.
func (w *group) otherMembers(c paxos.Configuration, leader paxos.NodeID) paxos.Configuration {
	c.Voters, c.Learners = slices.Clone(c.Voters), slices.Clone(c.Learners)
	for _, v := range c.Voters {
		if w.replicas[v-1].dead && len(c.Voters) > 1 { // repair comes first, mostly
			c.Voters = without(c.Voters, v)
			if w.Chance(0.7) {
				return c
			}
		}
	}
	for range 1 + w.Rand.IntN(2) {
		w.oneChange(&c, leader)
	}
	return c
}

func (w *group) oneChange(c *paxos.Configuration, leader paxos.NodeID) {
	pick := func(ids []paxos.NodeID) paxos.NodeID { return ids[w.Rand.IntN(len(ids))] }
	switch k := w.Rand.IntN(10); {
	case k < 3 || len(c.Voters) == 1 && len(c.Learners) == 0: // a new learner, or one that was here before
		if id := w.candidateMember(c); id != 0 {
			c.Learners = append(c.Learners, id)
		}
	case k < 7 && len(c.Learners) > 0:
		id := pick(c.Learners)
		c.Learners, c.Voters = without(c.Learners, id), append(c.Voters, id)
	case k == 7 && len(c.Learners) > 0:
		c.Learners = without(c.Learners, pick(c.Learners))
	case len(c.Voters) > 2:
		id := pick(c.Voters)
		if w.Chance(0.3) && slices.Contains(c.Voters, leader) {
			id = leader
		}
		c.Voters = without(c.Voters, id)
		if w.Chance(0.3) && !w.replicas[id-1].dead {
			c.Learners = append(c.Learners, id)
		}
	}
}

// candidateMember returns a replica that is no member, a new one perhaps, or 0.
func (w *group) candidateMember(c *paxos.Configuration) paxos.NodeID {
	if len(c.Voters)+len(c.Learners) >= membersMax {
		return 0
	}
	for _, r := range w.replicas {
		if !r.dead && !c.Member(r.id) && w.Chance(0.5) {
			return r.id
		}
	}
	if len(w.replicas) == replicasMax {
		return 0
	}
	return w.join().id
}

func without(ids []paxos.NodeID, id paxos.NodeID) []paxos.NodeID {
	return slices.DeleteFunc(slices.Clone(ids), func(o paxos.NodeID) bool { return o == id })
}

// reformat takes a replica's disk away for good. It is replaced by one under a new identity, if an administrator says so.
func (w *group) reformat() {
	r := w.someReplica()
	if r.dead || !w.expendable(r, true) {
		return
	}
	w.stats.Reformats++
	r.crash()
	r.disk = disk{}
	r.dead = true
	w.Mark('x', uint64(r.id))
}

// expendable reports whether a replica's votes may be lost, or the replica itself: every configuration that may still have
// to decide something must bear it.
func (w *group) expendable(r *replica, dies bool) bool {
	newest := w.history.newest()
	for _, o := range w.replicas {
		if o.dead || !newest.Member(o.id) && o != r {
			continue
		}
		for _, c := range o.knownConfigs() {
			if !w.bears(&c, r, dies) {
				return false
			}
		}
	}
	for _, c := range w.history.changes {
		if c.From > paxos.Slot(len(w.history.digests)) && !w.bears(&c.Configuration, r, dies) {
			return false
		}
	}
	return true
}

// bears reports whether a configuration has a majority that is there, and at most one voter that has lost something, of
// which half or more have not, when r, which may be nil, loses something too, or dies.
func (w *group) bears(c *paxos.Configuration, r *replica, dies bool) bool {
	there, whole := 0, 0
	for _, v := range c.Voters {
		x := w.replicas[v-1]
		if !x.dead && (x != r || !dies) {
			there++
		}
		if !x.dead && x != r && !x.disk.damaged {
			whole++
		}
	}
	all := len(c.Voters)
	return r != nil && !slices.Contains(c.Voters, r.id) || 2*there > all && 2*whole >= all && whole >= all-1
}

// knownConfigs returns the configurations that a replica goes by, on disk or in memory.
func (r *replica) knownConfigs() []paxos.Configuration {
	h := slices.Clone(r.disk.state.configs)
	if r.up {
		h = append(h, r.node.Configs()...)
	}
	for i := range r.disk.entries {
		if e := &r.disk.entries[i]; e.Kind == paxos.Configure {
			h = append(h, paxos.History{}.Apply(e)...)
		}
	}
	out := make([]paxos.Configuration, len(h))
	for i := range h {
		out[i] = h[i].Configuration
	}
	return out
}

// isQuorum reports whether the nodes of a mask, by identity, are a majority of a configuration's voters.
func isQuorum(c *paxos.Configuration, mask uint64) bool { return votersIn(c, mask) > len(c.Voters)/2 }

// votersIn returns how many nodes of a mask, by identity, are voters of a configuration.
func votersIn(c *paxos.Configuration, mask uint64) int {
	voters := uint64(0)
	for _, id := range c.Voters {
		voters |= 1 << id
	}
	return bits.OnesCount64(mask & voters)
}
