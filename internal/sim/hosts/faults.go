package hosts

import (
	"context"
	"slices"

	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// scheduleFaults starts everything that goes wrong by itself.
func (c *cluster) scheduleFaults() {
	every := func(mean world.Instant, do func()) {
		c.Every(mean, func() bool { return !c.healed }, do)
	}
	every(c.shape.crashEvery, c.crashOne)
	every(c.shape.blackoutEvery, c.blackout)
	every(c.shape.pauseEvery, c.pauseOne)
	every(c.shape.transferEvery, c.transfer)
	every(c.shape.diskEvery, c.troubleDisk)
	every(c.shape.cutEvery, c.net.partition)
	every(c.shape.wipeEvery, c.wipe)
	every(world.Second, func() { c.someNode().skewClock() })
	if c.shape.changeEvery > 0 {
		every(c.shape.changeEvery, c.changeMembers)
	}
}

// crashOne ends a process: mostly at once, now and then as told.
func (c *cluster) crashOne() {
	n := c.someNode()
	if c.Chance(0.2) {
		n.stop()
		return
	}
	often := c.shape.damageChance
	if n.first() {
		often = 0.8
	}
	spare := c.Chance(often) && c.expendable(n)
	n.crash()
	if spare && n.losePart() {
		n.spoilt = true
		c.countLoss()
		c.Mark('!', uint64(n.id))
	}
	c.restartAfter(n, c.Pick(world.Millisecond, 500*world.Millisecond))
}

// blackout crashes all machines at the same time.
func (c *cluster) blackout() {
	c.stats.Blackouts++
	for _, n := range c.nodes {
		n.crash()
		c.restartAfter(n, c.Pick(world.Millisecond, 200*world.Millisecond))
	}
}

func (c *cluster) restartAfter(n *node, d world.Instant) {
	c.After(d, n.start)
}

// pauseOne freezes a process.
func (c *cluster) pauseOne() {
	if n := c.someNode(); n.life != nil {
		n.life.pause(c.Pick(10*world.Millisecond, 700*world.Millisecond))
	}
}

// troubleDisk makes a disk slow, or full, for a while, or its next sync fail.
func (c *cluster) troubleDisk() {
	n := c.someNode()
	if n.life == nil {
		return
	}
	d := n.disk
	lasts := c.Pick(50*world.Millisecond, 800*world.Millisecond)
	c.Mark('d', uint64(n.id), uint64(lasts))
	switch c.Rand.IntN(4) {
	case 0:
		c.stats.FailedSyncs++
		d.failing = true
	case 1:
		c.stats.FullDisks++
		d.full.Store(true)
		c.After(lasts, func() { d.full.Store(false) })
	default:
		c.stats.SlowDisks++
		d.slowUntil = c.Now + lasts
	}
}

// losePart damages a node's directory, and reports whether it has found something to damage.
func (n *node) losePart() bool {
	s := &n.c.stats
	if _, err := n.disk.Stat(dir + "/VERSION"); err != nil {
		return false // it has not begun
	}
	kind := n.c.Rand.IntN(6)
	if n.first() && n.disk.oldState != nil && kind > 0 {
		kind = 2
	}
	switch kind {
	case 0:
		s.LostLogs++
		n.disk.loseLog()
	case 1:
		s.LostStates++
		n.disk.loseState(nil)
	case 2, 3:
		if n.disk.oldState == nil {
			return false
		}
		s.OldStates++
		n.disk.loseState(n.disk.oldState)
	default:
		if !n.disk.damage() {
			return false
		}
		s.Damages++
	}
	return true
}

// first reports whether a group has grown from this node: its old state is that of
// the only voter.
func (n *node) first() bool { return n.id == 1 && n.c.shape.voters == 1 }

// wipe replaces the disk of a node by an empty one, and perhaps another's too.
func (c *cluster) wipe() {
	n := c.someNode()
	if !c.expendable(n) {
		return
	}
	if slices.ContainsFunc(c.nodes, func(o *node) bool { return o != n && o.spoilt }) {
		c.stats.LostTogether++
	}
	c.stats.Wipes++
	c.countLoss()
	n.crash()
	n.newDisk()
	n.wiped, n.spoilt = true, true
	c.Mark('x', uint64(n.id))
	c.restartAfter(n, c.Pick(world.Millisecond, 300*world.Millisecond))
	if c.Chance(0.5) {
		c.wipe()
	}
}

// noteRepair notes that a node holds again all that it may have promised.
func (n *node) noteRepair() {
	g := n.group()
	switch {
	case g == nil:
	case g.Status().Damaged == "":
		n.spoilt, n.wiped = false, false
	case !n.spoilt:
		n.c.Fail("node %d has lost nothing, and says: %s", n.id, g.Status().Damaged)
	}
}

// expendable reports whether what a node has promised may be lost: every majority
// of voters who may still decide has one then that has lost nothing.
func (c *cluster) expendable(n *node) bool {
	bearsNot := func(voters []sys.NodeID) bool { return len(voters) < 2 || !c.bears(voters, n) }
	safe := uint64(0) // known durably to be chosen, by one who is whole
	for _, o := range c.nodes {
		if g := o.group(); g != nil && o != n && !o.spoilt {
			s := g.Status()
			if len(s.NextVoters) > 0 && bearsNot(s.NextVoters) {
				return false
			}
			safe = max(safe, s.Flushed)
		}
	}
	for i := len(c.made) - 1; i >= 0; i-- {
		if ch := c.made[i]; bearsNot(ch.voters) {
			return false
		} else if ch.inForce > 0 && ch.inForce <= safe {
			break // whoever voted before has nothing to say any more
		}
	}
	return true
}

func (c *cluster) countLoss() {
	if c.shape.voters == 1 {
		c.stats.LostGrown++
	}
}

// bears reports whether half of the voters or more have lost nothing, also when n,
// which may be nil, loses its disk.
func (c *cluster) bears(voters []sys.NodeID, n *node) bool {
	spoilt := 0
	for _, id := range voters {
		if o := c.nodes[id-1]; o.spoilt || o == n {
			spoilt++
		}
	}
	return 2*spoilt <= len(voters)
}

// transfer has the leader hand its leadership to somebody.
func (c *cluster) transfer() {
	n := c.leader()
	if n == nil {
		return
	}
	c.stats.Transfers++
	to := sys.NodeID(1 + c.Rand.IntN(len(c.nodes)))
	g := n.group()
	n.life.proc.Go(func() {
		err := g.Transfer(context.Background(), to)
		c.Trace("node %d: leadership to %d: %v", n.id, to, err)
	})
}

// change is one that an administrator has asked for.
type change struct {
	voters, learners []sys.NodeID
	inForce          uint64 // the first slot that it, or a later one, governs; 0 as long as that is not known
}

// changeMembers has the leader change who is in the group.
func (c *cluster) changeMembers() {
	n := c.leader()
	if n == nil || len(c.asked) > 1 {
		return
	}
	g := n.group()
	s := g.Status()
	ch := c.otherMembers(s.Voters, s.Learners)
	if !c.bears(ch.voters, nil) || !c.bears(s.Voters, nil) {
		return
	}
	c.asked[ch], c.made = true, append(c.made, ch)
	c.Mark('m', uint64(n.id), uint64(len(ch.voters)), uint64(len(ch.learners)))
	ctx, cancel := context.WithCancel(context.Background())
	c.After(c.Pick(100*world.Millisecond, 2*world.Second), cancel)
	// It may take effect after everybody has forgotten that it was asked for.
	c.After(3*world.Second, func() { delete(c.asked, ch) })
	n.life.proc.Go(func() {
		err := g.Reconfigure(ctx, ch.voters, ch.learners)
		c.Trace("node %d: members %v, %v: %v", n.id, ch.voters, ch.learners, err)
		at := slices.Index(c.made, ch)
		switch sys.KindOf(err) {
		case sys.NotLeader, sys.Busy:
			if at >= 0 {
				c.made = slices.Delete(c.made, at, at+1)
			}
			fallthrough
		case sys.Unavailable, sys.Interrupted:
			c.stats.ChangesRefused++
		default:
			if err != nil {
				c.Fail("node %d: members %v, learners %v: %v", n.id, ch.voters, ch.learners, err)
			}
			c.stats.Changes++
			delete(c.asked, ch)
			if h, err := paxos.DecodeHistory(g.Members()); err == nil && len(h) > 0 {
				ch.inForce = uint64(h[0].From)
			}
		}
	})
}

// otherMembers changes members a little.
func (c *cluster) otherMembers(voters, learners []sys.NodeID) *change {
	ch := &change{voters: slices.Clone(voters), learners: slices.Clone(learners)}
	for range 1 + c.Rand.IntN(2) {
		switch k := c.Rand.IntN(10); {
		case k < 3 || len(ch.voters) == 1 && len(ch.learners) == 0:
			if n := c.stranger(ch); n != nil {
				ch.learners = append(ch.learners, n.id)
			}
		case k < 7 && len(ch.learners) > 0:
			id := world.OneOf(c.World, ch.learners...)
			ch.learners, ch.voters = without(ch.learners, id), append(ch.voters, id)
		case k == 7 && len(ch.learners) > 0:
			ch.learners = without(ch.learners, world.OneOf(c.World, ch.learners...))
		case len(ch.voters) > c.shape.votersMin:
			id := world.OneOf(c.World, ch.voters...)
			ch.voters = without(ch.voters, id)
			if c.Chance(0.3) {
				ch.learners = append(ch.learners, id)
			}
		}
	}
	return ch
}

// stranger returns a node that is no member, a new one perhaps, or nil.
func (c *cluster) stranger(ch *change) *node {
	for _, n := range c.nodes {
		if !slices.Contains(ch.voters, n.id) && !slices.Contains(ch.learners, n.id) && !n.spoilt && c.Chance(0.6) {
			return n
		}
	}
	if len(c.nodes) == nodesMax {
		return nil
	}
	c.stats.Joins++
	n := newNode(c, true)
	n.start()
	return n
}

func without(ids []sys.NodeID, id sys.NodeID) []sys.NodeID {
	return slices.DeleteFunc(slices.Clone(ids), func(o sys.NodeID) bool { return o == id })
}

// heal ends all faults and brings everybody back.
func (c *cluster) heal() {
	c.healed = true
	c.net.heal()
	c.shape.syncSlow, c.shape.readError = 0, 0
	for _, n := range c.nodes {
		n.disk.slowUntil, n.disk.failing = 0, false
		n.disk.full.Store(false)
		n.start()
		n.life.proc.PausedUntil = 0
	}
}

// checkProgress checks that the healed group works, and then, left alone, comes
// to agree.
func (c *cluster) checkProgress() {
	for range 2 { // it goes on, once a snapshot whose sender is gone is given up, and does not stop again
		before := c.history.finished
		c.await("progress after everything was healed", 10*world.Second, func() bool { return before.less(c.history.finished) })
		c.RunUntil(c.Now + 300*world.Millisecond)
	}
	c.quiet = true
	c.await("agreement of the members", 30*world.Second, c.agreed)
	c.checkEnd()
}

// await lets time pass until ok.
func (c *cluster) await(what string, most world.Instant, ok func() bool) {
	for deadline := c.Now + most; !ok(); c.RunUntil(c.Now + 20*world.Millisecond) {
		if c.Now > deadline {
			c.Fail("waited in vain for %s; %s", what, c.describe())
		}
	}
}

// members returns the nodes that are members, by the leader's word.
func (c *cluster) members() (all []*node) {
	l := c.leader()
	if l == nil {
		return nil
	}
	s := l.group().Status()
	for _, id := range slices.Concat(s.Voters, s.Learners) {
		all = append(all, c.nodes[id-1])
	}
	return all
}

// agreed reports whether every member is whole and has applied everything.
func (c *cluster) agreed() bool {
	members := c.members()
	if len(members) == 0 {
		return false
	}
	want := c.leader().group().Status()
	for _, n := range members {
		g := n.group()
		if g == nil {
			return false
		}
		if s := g.Status(); s.Damaged != "" || s.Applied != want.Chosen || s.Chosen != want.Chosen || len(s.NextVoters) > 0 {
			return false
		}
	}
	return true
}

// checkEnd compares what the members hold with each other and with what clients
// were told.
func (c *cluster) checkEnd() {
	h := &c.history
	var first []string
	for _, n := range c.members() {
		rows := n.rows()
		if first == nil {
			first = rows
		}
		if !slices.Equal(rows, first) {
			c.Fail("node %d does not hold what node %d holds:\n%q\n%q", n.id, c.members()[0].id, rows, first)
		}
		if _, digest := decodeLast(c.lastOf(n.group())); digest != h.final {
			c.Fail("node %d: the digest of all commands is %x, expected %x", n.id, digest, h.final)
		}
	}
	for op, at := range h.acked {
		if h.byOp[op] != at {
			c.Fail("operation %d was acknowledged at %v, found at %v", op, at, h.byOp[op])
		}
	}
}

// lastOf reads the last position from a replica's own state.
func (c *cluster) lastOf(g *replica.Group) (last []byte) {
	c.must(g.ReadLocal(nsLedger, func(r rsm.Reader) error {
		v, err := r.Get(lastKey)
		last = slices.Clone(v)
		return err
	}))
	return last
}

// rows reads all of a node's state.
func (n *node) rows() (rows []string) {
	for _, ns := range []rsm.Namespace{rsm.NSSession, nsLedger} {
		n.c.must(n.group().ReadLocal(ns, func(r rsm.Reader) error {
			return r.Scan(nil, nil, func(key, value []byte) bool {
				rows = append(rows, string(key)+"="+string(value))
				return true
			})
		}))
	}
	return rows
}

// describe says where everybody is.
func (c *cluster) describe() string {
	var b []byte
	for _, n := range c.nodes {
		b = appendNode(b, n)
	}
	return string(b)
}
