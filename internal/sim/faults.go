package sim

import (
	"fmt"
	"maps"
	"slices"

	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/paxos"
)

// scheduleFaults starts everything that goes wrong by itself.
func (w *group) scheduleFaults() {
	w.every(w.shape.crashEvery, func() {
		r := w.someReplica()
		r.crash()
		down := w.Pick(world.Millisecond, 600*world.Millisecond)
		if w.Chance(0.3) {
			down = w.Pick(world.Microsecond, 20*world.Millisecond)
		}
		w.restartAfter(r, down)
	})
	w.every(w.shape.pauseEvery, func() {
		w.someReplica().pause(w.Pick(10*world.Millisecond, 800*world.Millisecond))
	})
	if len(w.replicas) > 1 {
		w.every(w.shape.cutEvery, w.net.partition)
	}
	w.every(w.shape.transferEvery, w.transfer)
	w.every(2*w.shape.transferEvery, w.ambush)
	w.every(w.shape.clockEvery, func() { w.someReplica().skewClock() })
	if w.shape.jumps {
		w.every(w.shape.clockEvery, func() { w.someReplica().jumpClock() })
	}
	w.every(w.shape.diskEvery, w.troubleDisk)
	if w.shape.changeEvery > 0 {
		w.every(w.shape.changeEvery, w.changeMembers)
		w.every(w.shape.reformatEvery, w.reformat)
		w.every(w.shape.coupEvery, w.coup)
	}
}

// troubleDisk makes a disk slow for a while, or full: then commands are refused until there is space, or a write fails
// and the process stops.
func (w *group) troubleDisk() {
	r := w.someReplica()
	until := w.Now + w.Pick(50*world.Millisecond, 800*world.Millisecond)
	switch w.Rand.IntN(3) {
	case 0:
		w.stats.SlowDisks++
		r.slowUntil = until
	case 1:
		w.stats.FullDisks++
		r.fullUntil = until
	case 2:
		w.stats.FullDisks++
		r.crash()
		w.restartAfter(r, until-w.Now)
	}
}

// someReplica is any one, the leader more often than others.
func (w *group) someReplica() *replica {
	if w.Chance(0.4) {
		for _, r := range w.replicas {
			if r.up && r.role == paxos.Leader {
				return r
			}
		}
	}
	return w.replicas[w.Rand.IntN(len(w.replicas))]
}

// transfer asks a leader, if there is one, to hand over.
func (w *group) transfer() {
	to := w.replicas[w.Rand.IntN(len(w.replicas))].id
	for _, r := range w.replicas {
		if r.up && r.role == paxos.Leader && w.Now >= r.pausedUntil {
			if err := r.node.Transfer(r.clock(), to); err == nil && to != r.id {
				w.stats.Transfers++
				r.lent = 0
			}
			r.drain()
			return
		}
	}
}

// ambush attacks a lease where it hurts: those who do not grant it have long lost the leader, and then those who do are
// cut off and restarted while it still runs.
func (w *group) ambush() {
	leader := w.leader()
	if leader == nil {
		return
	}
	voters := len(leader.node.Status().Configs[0].Voters)
	if voters < 3 {
		return
	}
	var granting []*replica
	w.net.join()
	for _, r := range w.replicas {
		switch {
		case r == leader:
		case len(granting) < voters/2 && slices.Contains(leader.node.Status().Configs[0].Voters, r.id):
			granting = append(granting, r)
		default:
			w.net.cutPair(leader.id, r.id)
		}
	}
	w.net.generation++
	gen := w.net.generation
	w.After(2*w.shape.electionTimeout+w.Pick(0, w.shape.electionTimeout), func() {
		if w.net.generation != gen || w.healed {
			return
		}
		for _, r := range granting {
			w.net.cutPair(leader.id, r.id)
			r.crash()
			w.restartAfter(r, w.Pick(world.Microsecond, 10*world.Millisecond))
		}
		w.net.joinAfter(w.Pick(200*world.Millisecond, 600*world.Millisecond))
	})
}

// restartAfter brings a crashed replica back.
func (w *group) restartAfter(r *replica, d world.Instant) {
	life := r.life
	w.After(d, func() {
		if r.life == life && !r.up && !r.dead {
			r.start()
		}
	})
}

// every repeats a fault at random times until the world is healed.
func (w *group) every(mean world.Instant, do func()) {
	w.Every(mean, func() bool { return !w.healed }, do)
}

// heal ends all faults and brings everybody back.
func (w *group) heal() {
	w.healed = true
	w.net.heal()
	w.shape.syncSlow = 0
	for _, r := range w.replicas {
		r.slowUntil, r.fullUntil = 0, 0
		if w.shape.jumps {
			r.skewClock() // it may stand still
		}
		if !r.up && !r.dead {
			r.start()
		}
		if w.Now < r.pausedUntil {
			inbox := r.inbox
			r.pausedUntil, r.inbox = 0, nil
			for _, do := range inbox {
				r.run(do)
			}
		}
	}
}

// checkProgress checks that the healed group works, and then, left alone, comes to agree.
func (w *group) checkProgress() {
	h := &w.history
	before := h.finished
	w.RunUntil(w.Now + 4*world.Second) // an election may take many small pages
	middle := h.finished
	w.RunUntil(w.Now + world.Second)
	if middle <= before || h.finished <= middle {
		w.Fail("no progress after everything was healed: slot %d when it was, %d later, %d in the end; %s", before, middle, h.finished, w.describe())
	}
	w.quiet = true
	for deadline := w.Now + 60*world.Second; !w.agreed(); {
		if w.Now > deadline {
			w.Fail("the group does not come to agree: %d slots; %s", len(h.digests), w.describe())
		}
		w.RunUntil(w.Now + 100*world.Millisecond)
	}
	for _, data := range slices.Sorted(maps.Keys(h.written)) {
		if slot := h.written[data]; h.applied[data] != slot {
			w.Fail("write %q was acknowledged at slot %d, found at %d", data, slot, h.applied[data])
		}
	}
}

// agreed reports whether every member is whole and has applied everything.
func (w *group) agreed() bool {
	for _, r := range w.replicas {
		if r.dead || !w.history.newest().Member(r.id) {
			continue
		}
		if int(r.state.applied) != len(w.history.digests) || r.disk.damaged || r.node.Status().Chosen != r.state.applied {
			return false
		}
	}
	return true
}

// describe says where everybody is.
func (w *group) describe() string {
	var out []byte
	for _, r := range w.replicas {
		out = fmt.Appendf(out, "\n  node %d up=%v dead=%v paused=%v state=%d disk=%d/%d", r.id, r.up, r.dead, w.Now < r.pausedUntil, r.state.applied, r.disk.truncated, r.disk.state.applied)
		if r.up {
			out = fmt.Appendf(out, " %+v", r.node.Status())
		}
	}
	return string(out)
}
