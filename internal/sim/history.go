package sim

import "github.com/koinon/koinon/paxos"

// history is the truth, as far as anybody has seen it.
type history struct {
	digests  []uint64                      // digest after slot i+1
	ballots  map[slotBallot]*proposal      // what has been accepted and proposed, by slot and ballot
	bySlot   map[paxos.Slot][]paxos.Ballot // the ballots of a slot not applied yet, in the order in which they came
	promised map[paxos.Ballot]uint64       // who has promised a ballot, one bit for each identity
	told     map[paxos.Ballot]uint64       // who of these has reported all it had to
	changes  paxos.History                 // all configurations ever proposed
	configs  paxos.History                 // all that have been applied
	finished paxos.Slot                    // the highest slot whose effect a client has seen
	written  map[string]paxos.Slot         // acknowledged writes
	applied  map[string]paxos.Slot         // all writes applied, the first slot of each
}

type slotBallot struct {
	slot   paxos.Slot
	ballot paxos.Ballot
}

// proposal is what is known of a slot at a ballot. Masks have one bit for each identity.
type proposal struct {
	value    string
	kind     paxos.EntryKind
	accepted uint64 // whose disks have held it
	sent     bool
	promised uint64 // who had promised the ballot when the proposal was first sent
	told     uint64 // who of these had told what they had accepted
}

func newHistory(voters []paxos.NodeID) history {
	return history{
		ballots:  map[slotBallot]*proposal{},
		bySlot:   map[paxos.Slot][]paxos.Ballot{},
		promised: map[paxos.Ballot]uint64{},
		told:     map[paxos.Ballot]uint64{},
		configs:  paxos.Initial(voters),
		written:  map[string]paxos.Slot{},
		applied:  map[string]paxos.Slot{},
	}
}

// newest returns the last configuration applied.
func (h *history) newest() *paxos.Configuration { return &h.configs[len(h.configs)-1].Configuration }

// governing returns the configuration of a slot, which is known when everything before the slot has been applied.
func (h *history) governing(s paxos.Slot) *paxos.Configuration {
	for i := len(h.configs) - 1; i > 0; i-- {
		if h.configs[i].From <= s {
			return &h.configs[i].Configuration
		}
	}
	return &h.configs[0].Configuration
}

// proposal returns what is known of an entry's slot at its ballot, and checks that there is one value only.
func (h *history) proposal(w *group, id paxos.NodeID, e *paxos.Entry) *proposal {
	key := slotBallot{e.Slot, e.Ballot}
	p := h.ballots[key]
	if p == nil {
		p = &proposal{value: string(e.Data), kind: e.Kind}
		h.ballots[key] = p
		if int(e.Slot) > len(h.digests) {
			h.bySlot[e.Slot] = append(h.bySlot[e.Slot], e.Ballot)
		}
		if e.Kind == paxos.Configure {
			h.changes = append(h.changes, paxos.History{}.Apply(e)...)
		}
	}
	if p.value != string(e.Data) || p.kind != e.Kind {
		w.Fail("node %d: slot %d has two values at ballot %v", id, e.Slot, e.Ballot)
	}
	return p
}

// noteAccepted records that a disk holds an entry.
func (h *history) noteAccepted(w *group, id paxos.NodeID, e *paxos.Entry) {
	h.proposal(w, id, e).accepted |= 1 << id
}

// noteProposed records that a leader has sent an entry.
func (h *history) noteProposed(w *group, id paxos.NodeID, e *paxos.Entry) {
	p := h.proposal(w, id, e)
	if p.sent {
		return
	}
	p.sent, p.promised, p.told = true, h.promised[e.Ballot]|1<<id, h.told[e.Ballot]|1<<id
	if int(e.Slot) <= len(h.digests) {
		h.checkProposed(w, e.Slot, e.Ballot, p)
	}
}

// checkProposed checks that phase 1 was over when a slot was proposed: with a quorum of the configuration that governs it.
func (h *history) checkProposed(w *group, s paxos.Slot, b paxos.Ballot, p *proposal) {
	c := h.governing(s)
	if p.sent && !isQuorum(c, p.promised) {
		w.Fail("slot %d was proposed at %v without promises of a quorum of %v (%b)", s, b, *c, p.promised)
	}
	if p.sent && 2*votersIn(c, p.told) < len(c.Voters) {
		w.Fail("slot %d was proposed at %v without reports from every quorum of %v (%b)", s, b, *c, p.told)
	}
}

// checkChosen checks, when a slot is applied for the first time, that its value had been accepted at some ballot by a
// quorum of the configuration that governs it, on their disks.
func (h *history) checkChosen(w *group, id paxos.NodeID, e *paxos.Entry) {
	chosen := false
	for _, b := range h.bySlot[e.Slot] {
		p := h.ballots[slotBallot{e.Slot, b}]
		h.checkProposed(w, e.Slot, b, p)
		chosen = chosen || p.value == string(e.Data) && p.kind == e.Kind && isQuorum(h.governing(e.Slot), p.accepted)
	}
	delete(h.bySlot, e.Slot)
	if !chosen {
		w.Fail("node %d: slot %d applied, but no quorum of %v has accepted it", id, e.Slot, *h.governing(e.Slot))
	}
}

// noteApplied checks that every replica applies the same history.
func (h *history) noteApplied(w *group, id paxos.NodeID, e *paxos.Entry, digest uint64) {
	switch k := int(e.Slot) - 1; {
	case k < len(h.digests):
		if h.digests[k] != digest {
			w.Fail("node %d: the history up to slot %d differs from what another replica has applied", id, e.Slot)
		}
	case k == len(h.digests):
		h.checkChosen(w, id, e)
		h.digests = append(h.digests, digest)
		w.stats.Slots++
		w.Mark('a', uint64(e.Slot), digest)
		w.Trace("slot %d: %v of %v at %d", e.Slot, e, e.Ballot, id)
		switch e.Kind {
		case paxos.Command:
			h.applied[string(e.Data)] = e.Slot
		case paxos.Configure:
			w.stats.Configurations++
			after := h.configs.Apply(e)
			h.configs = append(h.configs, after[len(after)-1])
		}
	default:
		w.Fail("node %d: slot %d applied, but nobody has applied slot %d", id, e.Slot, len(h.digests)+1)
	}
}

// noteFinished records that a client has seen the state at a slot.
func (h *history) noteFinished(w *group, s paxos.Slot) {
	if s > h.finished {
		h.finished = s
		w.checkLeases()
	}
}

// checkLeases checks that a read that began now would see everything finished, at whichever replica, with the lease that
// it has now or with one that was looked up earlier.
func (w *group) checkLeases() {
	if w.shape.jumps {
		return
	}
	for _, r := range w.replicas {
		if !r.up || w.Now < r.pausedUntil {
			continue
		}
		until, slot := r.node.LeaseRead()
		if until == 0 && r.clock() < r.lent {
			until, slot = r.lent, r.node.Status().Chosen
		}
		if r.clock() < until && max(slot, r.state.applied) < w.history.finished {
			w.Fail("node %d holds a lease for reads at %d, but slot %d was seen", r.id, slot, w.history.finished)
		}
	}
}
