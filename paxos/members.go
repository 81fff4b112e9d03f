package paxos

import (
	"math/bits"
	"slices"
)

// This file is which configurations a node knows, who its peers are, and what is a quorum.
//
// Every slot is an instance of Paxos of its own, with quorums from the configuration that governs it. Which one that is
// follows from the entries up to Alpha slots before, and nobody proposes in a slot without knowing these to be chosen:
// all nodes agree about the quorums of a slot before anything can be chosen in it.

// self is this node's own place among its peers.
const self = 0

// peer is what a node keeps about a member, or about itself. Members keep their place, which is a bit in masks, as long
// as a configuration names them; the place of one that is gone has the ID 0 and goes to the next one that comes.
type peer struct {
	id       NodeID
	heardAt  Time   // when it last answered at our ballot
	grantAt  Time   // our clock when we sent the newest heartbeat that it has answered: its lease counts from here
	ackSeq   uint64 // the newest heartbeat round that it has answered
	chosen   Slot
	resentAt Time
	page     Slot // next page of promises wanted; zero when none is
	stalled  bool // there was no room for the last page
	snapshot bool // the driver is sending it a snapshot
}

// config is a configuration with its voters as a mask over the peers.
type config struct {
	ConfigAt
	voters uint64
}

// isQuorum reports whether the nodes of mask are a quorum of a configuration. Every decision about quorums is taken here.
func (n *Node) isQuorum(c *config, mask uint64) bool {
	count, all := bits.OnesCount64(mask&c.voters), bits.OnesCount64(c.voters)
	if n.cfg.bugs.has(BugMinorityQuorum) {
		return count >= all/2
	}
	return count > all/2
}

// elects reports whether the votes that have come in elect this node for the slots of a configuration. A quorum has
// promised, so that nothing more is chosen at older ballots; and every quorum has a member who has told what it accepted,
// so that what was chosen is known. Who is mute counts for the first alone. With an odd number of voters the second asks
// for a quorum as well, with an even number for half: one of two voters that has lost nothing knows all that was chosen.
// (Howard, Malkhi, Spiegelman: Flexible Paxos, 2016.)
func (n *Node) elects(c *config) bool {
	told, all := n.votes, bits.OnesCount64(c.voters)
	if n.cfg.bugs.has(BugMuteTells) {
		told |= n.mute
	}
	enough := 2*bits.OnesCount64(told&c.voters) >= all || n.cfg.bugs.has(BugMinorityQuorum)
	return enough && n.isQuorum(c, n.votes|n.mute)
}

// elected reports whether the votes elect this node for every slot from the next one to be chosen on.
func (n *Node) elected() bool { return len(n.configs) > 0 && n.unpromised() == nil }

// everyQuorum reports whether mask holds a quorum of every configuration that governs a slot from the next one to be
// chosen on, as far as this node knows: in force, chosen for later, and on its way.
//
// Whoever has been elected since, with a ballot newer than ours, has asked one of these quorums. For it needed one
// of every configuration of its own suffix. That begins at most after the slots that we know, once we know all that our
// predecessors have had chosen (suffixEnd); where it begins before, the entries that lead to our configurations were
// reported to it, for they are chosen, and a quorum of each configuration on the way said so. Therefore a quorum that is
// still bound to us, by a lease or by the answer to a round, excludes another leader at that time.
func (n *Node) everyQuorum(mask uint64) bool {
	for i := range n.configs {
		if !n.isQuorum(&n.configs[i], mask) {
			return false
		}
	}
	for i := range n.tentative {
		if !n.isQuorum(&n.tentative[i], mask) {
			return false
		}
	}
	return len(n.configs) > 0
}

// changing reports whether a configuration is known that is not in force yet.
func (n *Node) changing() bool { return len(n.configs) > 1 || len(n.tentative) > 0 }

// governing returns the configuration of a slot above chosen.
func (n *Node) governing(s Slot) *config {
	for i := len(n.tentative) - 1; i >= 0; i-- {
		if c := &n.tentative[i]; c.From <= s {
			return c
		}
	}
	for i := len(n.configs) - 1; i > 0; i-- {
		if c := &n.configs[i]; c.From <= s {
			return c
		}
	}
	return &n.configs[0]
}

// electorate are the voters of all configurations known.
func (n *Node) electorate() (mask uint64) {
	for i := range n.configs {
		mask |= n.configs[i].voters
	}
	for i := range n.tentative {
		mask |= n.tentative[i].voters
	}
	return mask
}

// mayLead reports whether this node is a voter, of the configuration in force or of one that is chosen.
func (n *Node) mayLead() bool {
	for i := range n.configs {
		if n.configs[i].voters&(1<<self) != 0 {
			return true
		}
	}
	return false
}

// member reports whether a configuration known names a node.
func (n *Node) member(id NodeID) bool {
	for i := range n.configs {
		if n.configs[i].Member(id) {
			return true
		}
	}
	for i := range n.tentative {
		if n.tentative[i].Member(id) {
			return true
		}
	}
	return false
}

// setConfigs replaces what is known to be chosen.
func (n *Node) setConfigs(h History) {
	for len(h) > 1 && h[1].From <= n.chosen+1 {
		h = h[1:]
	}
	n.configs = make([]config, len(h))
	for i := range h {
		n.configs[i].ConfigAt = h[i]
	}
	n.left = false
	n.configsChanged()
}

// history is what is known to be chosen.
func (n *Node) history() History {
	h := make(History, len(n.configs))
	for i := range n.configs {
		h[i] = n.configs[i].ConfigAt
	}
	return h
}

// Configs returns the configurations that this node knows to be chosen: the one in force for the next slot, then those of
// later slots. It is empty as long as a joining node knows nothing. The slices are shared and read only.
func (n *Node) Configs() History { return n.history() }

// ConfigsAccepted returns the configurations that this node has accepted and does not know to be chosen, of ascending slots:
// each of them may be chosen, or never be. With Configs they are all that a quorum can have decided with this node's vote.
func (n *Node) ConfigsAccepted() (h History) {
	for s := n.chosen + 1; s < n.window.hi; s++ {
		if st := n.window.at(s); st.held() && st.entry.Kind == Configure {
			h = append(h, configOf(&st.entry))
		}
	}
	return h
}

// configOf reads a Configure entry.
func configOf(e *Entry) ConfigAt {
	c, alpha, err := decodeConfigure(e.Data)
	if err != nil {
		broken("a configuration expected at slot %d, found %v", e.Slot, err)
	}
	return ConfigAt{From: e.Slot + alpha, Configuration: c}
}

// configsChanged gives every member a place, takes those of others away, and works out the masks.
func (n *Node) configsChanged() {
	for i := range n.peers {
		if p := &n.peers[i]; i != self && p.id != 0 && !n.member(p.id) {
			n.dropPeer(i)
		}
	}
	for i := range n.configs {
		n.configs[i].voters = n.places(&n.configs[i])
	}
	for i := range n.tentative {
		n.tentative[i].voters = n.places(&n.tentative[i])
	}
}

// places returns the voters of a configuration as a mask, and gives places to all its members.
func (n *Node) places(c *config) (voters uint64) {
	for _, id := range c.Voters {
		voters |= 1 << n.place(id)
	}
	for _, id := range c.Learners {
		i := n.place(id)
		if n.cfg.bugs.has(BugLearnerVotes) {
			voters |= 1 << i
		}
	}
	return voters
}

// place returns the place of a node, a new one if it has none.
func (n *Node) place(id NodeID) int {
	if i := n.index(id); i >= 0 {
		return i
	}
	fresh := peer{id: id, heardAt: n.now}
	for i := range n.peers {
		if n.peers[i].id == 0 {
			n.peers[i] = fresh
			return i
		}
	}
	if len(n.peers) == 64 {
		broken("at most 64 members in all configurations that are not over expected, found more")
	}
	n.peers = append(n.peers, fresh)
	return len(n.peers) - 1
}

// dropPeer frees a place and takes its bit from everything that still counts.
func (n *Node) dropPeer(i int) {
	n.peers[i] = peer{}
	n.votes &^= 1 << i
	n.mute &^= 1 << i
	for s := max(n.chosen+1, n.window.lo); s < n.window.hi; s++ {
		n.window.at(s).votes &^= 1 << i
	}
}

// index returns the place of a node, or -1.
func (n *Node) index(id NodeID) int {
	for i := range n.peers {
		if n.peers[i].id == id {
			return i
		}
	}
	return -1
}

// choose moves chosen on by one slot, whose entry is given.
func (n *Node) choose(e *Entry) {
	n.chosen++
	if e.Kind == Configure {
		n.adopt(e)
	}
	if len(n.configs) > 1 && n.configs[1].From <= n.chosen+1 {
		n.activate()
	}
}

// adopt takes a configuration from tentative to chosen.
func (n *Node) adopt(e *Entry) {
	chosen := configOf(e)
	n.configs = append(n.configs, config{ConfigAt: chosen})
	n.tentative = slices.DeleteFunc(n.tentative, func(c config) bool { return c.From <= chosen.From })
	n.left, n.out.configs = false, true
	n.configsChanged()
	n.membersChanged()
}

// activate lets the next configuration govern from the next slot on.
func (n *Node) activate() {
	for len(n.configs) > 1 && n.configs[1].From <= n.chosen+1 {
		n.configs = n.configs[1:]
	}
	n.out.configs = true
	if n.role == Leader {
		n.farewell()
	}
	n.configsChanged()
	n.membersChanged()
}

// seekChanges makes tentative of every Configure that this candidate or leader has found above chosen, the newest of
// each slot. It reports false when their members are too many for one node to ask.
func (n *Node) seekChanges() bool {
	n.tentative = nil
	for s := n.chosen + 1; s <= max(n.window.last(), n.found.last()); s++ {
		if e := n.reported(s); e != nil && e.Kind == Configure {
			n.tentative = append(n.tentative, config{ConfigAt: configOf(e)})
		}
	}
	if n.cfg.bugs.has(BugOneConfigPhase1) {
		n.tentative = nil
	}
	if (len(n.configs)+len(n.tentative))*membersMax >= 64 && n.countMembers() >= 64 {
		n.tentative = nil
		return false
	}
	n.configsChanged()
	return true
}

// countMembers returns how many places are needed.
func (n *Node) countMembers() int {
	ids := map[NodeID]bool{}
	for _, list := range [][]config{n.configs, n.tentative} {
		for i := range list {
			for _, id := range list[i].Voters {
				ids[id] = true
			}
			for _, id := range list[i].Learners {
				ids[id] = true
			}
		}
	}
	return len(ids)
}
