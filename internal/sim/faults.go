package sim

import (
	"fmt"
	"maps"
	"slices"

	"github.com/koinon/koinon/paxos"
)

// scheduleFaults starts everything that goes wrong by itself.
func (w *world) scheduleFaults() {
	w.every(w.shape.crashEvery, func() {
		r := w.someReplica()
		r.crash()
		down := w.pick(millisecond, 600*millisecond)
		if w.chance(0.3) {
			down = w.pick(microsecond, 20*millisecond)
		}
		w.restartAfter(r, down)
	})
	w.every(w.shape.pauseEvery, func() {
		w.someReplica().pause(w.pick(10*millisecond, 800*millisecond))
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
func (w *world) troubleDisk() {
	r := w.someReplica()
	until := w.now + w.pick(50*millisecond, 800*millisecond)
	switch w.rng.IntN(3) {
	case 0:
		w.stats.SlowDisks++
		r.slowUntil = until
	case 1:
		w.stats.FullDisks++
		r.fullUntil = until
	case 2:
		w.stats.FullDisks++
		r.crash()
		w.restartAfter(r, until-w.now)
	}
}

// someReplica is any one, the leader more often than others.
func (w *world) someReplica() *replica {
	if w.chance(0.4) {
		for _, r := range w.replicas {
			if r.up && r.role == paxos.Leader {
				return r
			}
		}
	}
	return w.replicas[w.rng.IntN(len(w.replicas))]
}

// transfer asks a leader, if there is one, to hand over.
func (w *world) transfer() {
	to := w.replicas[w.rng.IntN(len(w.replicas))].id
	for _, r := range w.replicas {
		if r.up && r.role == paxos.Leader && w.now >= r.pausedUntil {
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
func (w *world) ambush() {
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
	w.after(2*w.shape.electionTimeout+w.pick(0, w.shape.electionTimeout), func() {
		if w.net.generation != gen || w.healed {
			return
		}
		for _, r := range granting {
			w.net.cutPair(leader.id, r.id)
			r.crash()
			w.restartAfter(r, w.pick(microsecond, 10*millisecond))
		}
		w.net.joinAfter(w.pick(200*millisecond, 600*millisecond))
	})
}

// restartAfter brings a crashed replica back.
func (w *world) restartAfter(r *replica, d instant) {
	life := r.life
	w.after(d, func() {
		if r.life == life && !r.up && !r.dead {
			r.start()
		}
	})
}

// every repeats a fault at random times until the world is healed.
func (w *world) every(mean instant, do func()) {
	w.after(w.pick(mean/4, 2*mean), func() {
		if !w.healed {
			do()
			w.every(mean, do)
		}
	})
}

// heal ends all faults and brings everybody back.
func (w *world) heal() {
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
		if w.now < r.pausedUntil {
			inbox := r.inbox
			r.pausedUntil, r.inbox = 0, nil
			for _, do := range inbox {
				r.run(do)
			}
		}
	}
}

// checkProgress checks that the healed group works, and then, left alone, comes to agree.
func (w *world) checkProgress() {
	h := &w.history
	before := h.finished
	w.runUntil(w.now + 4*second) // an election may take many small pages
	middle := h.finished
	w.runUntil(w.now + second)
	if middle <= before || h.finished <= middle {
		w.fail("no progress after everything was healed: slot %d when it was, %d later, %d in the end; %s", before, middle, h.finished, w.describe())
	}
	w.quiet = true
	for deadline := w.now + 60*second; !w.agreed(); {
		if w.now > deadline {
			w.fail("the group does not come to agree: %d slots; %s", len(h.digests), w.describe())
		}
		w.runUntil(w.now + 100*millisecond)
	}
	for _, data := range slices.Sorted(maps.Keys(h.written)) {
		if slot := h.written[data]; h.applied[data] != slot {
			w.fail("write %q was acknowledged at slot %d, found at %d", data, slot, h.applied[data])
		}
	}
}

// agreed reports whether every member is whole and has applied everything.
func (w *world) agreed() bool {
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
func (w *world) describe() string {
	var out []byte
	for _, r := range w.replicas {
		out = fmt.Appendf(out, "\n  node %d up=%v dead=%v paused=%v state=%d disk=%d/%d", r.id, r.up, r.dead, w.now < r.pausedUntil, r.state.applied, r.disk.truncated, r.disk.state.applied)
		if r.up {
			out = fmt.Appendf(out, " %+v", r.node.Status())
		}
	}
	return string(out)
}
