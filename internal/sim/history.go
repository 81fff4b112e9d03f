package sim

import "github.com/koinon/koinon/paxos"

// history is the truth, as far as anybody has seen it.
type history struct {
	digests  []uint64               // digest after slot i+1
	accepted map[acceptedKey]string // what any disk has held for a slot at a ballot
	finished paxos.Slot             // the highest slot whose effect a client has seen
	written  map[string]paxos.Slot  // acknowledged writes
	applied  map[string]paxos.Slot  // all writes applied, the first slot of each
}

type acceptedKey struct {
	slot   paxos.Slot
	ballot paxos.Ballot
}

// noteAccepted checks that a slot never has two values at one ballot, on any disk.
func (h *history) noteAccepted(w *world, id paxos.NodeID, e *paxos.Entry) {
	if h.accepted == nil {
		h.accepted = map[acceptedKey]string{}
	}
	key, value := acceptedKey{e.Slot, e.Ballot}, string(e.Data)
	if old, ok := h.accepted[key]; ok && old != value {
		w.fail("node %d: slot %d has two values at ballot %v", id, e.Slot, e.Ballot)
	}
	h.accepted[key] = value
}

// noteApplied checks that every replica applies the same history.
func (h *history) noteApplied(w *world, id paxos.NodeID, e *paxos.Entry, digest uint64) {
	switch k := int(e.Slot) - 1; {
	case k < len(h.digests):
		if h.digests[k] != digest {
			w.fail("node %d: the history up to slot %d differs from what another replica has applied", id, e.Slot)
		}
	case k == len(h.digests):
		h.digests = append(h.digests, digest)
		w.stats.Slots++
		w.mark('a', uint64(e.Slot), digest)
		w.trace("slot %d: %v %q of %v at %d", e.Slot, e.Kind, e.Data, e.Ballot, id)
		if e.Kind == paxos.Command {
			if h.applied == nil {
				h.applied = map[string]paxos.Slot{}
			}
			h.applied[string(e.Data)] = e.Slot
		}
	default:
		w.fail("node %d: slot %d applied, but nobody has applied slot %d", id, e.Slot, len(h.digests)+1)
	}
}

// noteFinished records that a client has seen the state at a slot.
func (h *history) noteFinished(w *world, s paxos.Slot) {
	if s > h.finished {
		h.finished = s
		w.checkLeases()
	}
}

// checkLeases checks that a lease read that began now would see everything finished, at whichever replica.
func (w *world) checkLeases() {
	for _, r := range w.replicas {
		if !r.up || w.now < r.pausedUntil {
			continue
		}
		until, slot := r.node.LeaseRead()
		if r.clock() < until && max(slot, r.state.applied) < w.history.finished {
			w.fail("node %d holds a lease for reads at %d, but slot %d was seen", r.id, slot, w.history.finished)
		}
	}
}
