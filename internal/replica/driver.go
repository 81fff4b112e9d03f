package replica

import (
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/replica/wal"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// driver is the host's loop: it steps all groups and does nothing slow.
type driver struct {
	wake chan struct{}

	inbox inbox

	mu      sync.Mutex
	durable []*pass // log writes that are done, in order

	// Only the driver's goroutine uses these.
	outstanding int // passes handed to the log and not yet taken back
	awaited     int // of these, the ones that turn the driver when they are durable
	current     *pass
	peers       *[]sys.NodeID // that outgoing is for
	outgoing    []*outgoing   // ascending
	scratch     []byte
	bodies      []byte // entry heads of the current pass
	lastLoop    time.Duration
	lastTick    time.Duration
	lastIdle    time.Duration // when sessions were last checked
	full        fullDisks
}

// groupDriver is what the driver keeps of one group.
type groupDriver struct {
	node      *paxos.Node // nil until the replica may take part
	changes   []*changeWaiter
	reads     map[uint64][]*readWaiter
	readNext  uint64
	truncated paxos.Slot
	damaged   bool
	// repairing says that it is damaged no more, which is not durable yet: a crash now would bring the damage back.
	repairing bool
	lost      bool // the promise is not known: node is nil
	// old says that it is lost by what the mark says, and nothing else: then the log does not have it, so that it is not, where the
	// mark is removed.
	old       bool
	recovered paxos.Recovered
	reported  paxos.Slot // applied, as the core knows it
	cutAt     paxos.Time // when truncate last looked
	// proposedAt is when the last entry was proposed.
	proposedAt paxos.Time
	handedAt   paxos.Time // when leadership was last handed over, 0: never
	// outsideSince is since when the node seems to be no member any more, 0: it is one.
	outsideSince paxos.Time
	stateDirty   bool         // LogState has to be written with the next pass
	promised     paxos.Ballot // to be logged
	chosen       paxos.Slot   // to be logged
	placing      uint64       // to be logged
	role         paxos.Role
	leader       paxos.NodeID
	ballot       paxos.Ballot
	appended     bool // the current pass has entries of the group
}

// pass is what one turn of the driver hands to the log: what is to be told to
// the core, and to others, when it is durable.
type pass struct {
	records []wal.Record
	heads   []int // where the records' heads start in bodies, -1 without one
	seqs    []passSeq
	frames  []outFrame
	cuts    []passCut
	// repaired are the groups whose damage is over once this is durable.
	repaired []*Group
	inForce  []passConfig
	noted    []*answer[error] // who waits for this
	// quiet says that nobody waits to hear that it is durable: the driver is
	// told when it turns next.
	quiet bool
}

type passSeq struct {
	g   *Group
	seq uint64
}

// passConfig is a configuration whose being in force is durable with the pass.
type passConfig struct {
	g    *Group
	from uint64
}

type passCut struct {
	group sys.GroupID
	upTo  uint64
}

type outFrame struct {
	to    sys.NodeID
	lane  Lane
	frame []byte
}

const (
	// frameBytes is when a frame is sent and another one begun.
	frameBytes = 1 << 20
	// bulkBytes is the size of a message from which on it goes on the bulk
	// lane. Smaller ones keep their order with the heartbeats.
	bulkBytes = 32 << 10
	// stalled is a pause of the driver after which time is shown to the core
	// only when messages that arrived meanwhile had a chance to be read.
	stalled = 60 * time.Millisecond
	// idleTicks is how many times Tick lasts between two ticks while nothing
	// goes on: waking up costs an idle node more than all that it then does.
	// With the defaults heartbeats, due after 50 ms, leave after 60.
	idleTicks = 3
	// idleCheck is how often sessions are looked through for idle ones.
	idleCheck = time.Second
)

func (h *Host) wakeDriver() { signal(h.drv.wake) }

// drive is the driver's goroutine.
func (h *Host) drive() {
	armed := h.cfg.Tick
	timer := h.cfg.Sched.NewTimer(armed)
	defer timer.Stop()
	for {
		tick := false
		switch h.cfg.Sched.Wait(timer, h.drv.wake, h.stop, nil) {
		case env.Fired:
			tick, armed = true, 0
		case env.GotB:
			return
		}
		// What others are about to ask shares a turn, and what it sends and writes.
		h.cfg.Sched.Yield()
		now := h.cfg.Clock.Boot()
		if now-h.drv.lastTick >= h.cfg.Tick {
			tick = true
		}
		if now-h.drv.lastLoop > stalled && h.drv.lastLoop != 0 {
			tick = false
		}
		h.drv.lastLoop = now
		h.turn(paxos.Time(now), tick)
		next := h.cfg.Tick
		if h.idle() {
			next *= idleTicks
		}
		if tick || armed == 0 || next < armed {
			armed = next
			timer.Reset(armed)
		}
	}
}

// idle says that nothing is under way that a tick drives on.
func (h *Host) idle() bool {
	if h.drv.outstanding > 0 {
		return false
	}
	for _, g := range h.groups {
		if g.d.node == nil || g.d.leader == 0 || g.d.damaged || len(g.d.changes) > 0 || len(g.d.reads) > 0 ||
			uint64(g.d.chosen) > g.applied.Load() {
			return false
		}
		g.mu.Lock()
		proposing := len(g.inflight) > 0 || len(g.queue) > 0
		g.mu.Unlock()
		if proposing {
			return false
		}
	}
	return true
}

// turn takes in all that happened and sets going all that follows from it.
func (h *Host) turn(now paxos.Time, tick bool) {
	d := &h.drv
	d.followPeers(h.peers.Load())
	h.takeDurable()
	d.inbox.drain(func(from sys.NodeID, m *groupMessage) { h.step(now, from, m) })
	for _, g := range h.groups {
		g.takeCalls(now)
		if g.d.node == nil {
			continue
		}
		g.reportApplied()
		g.askReadIndex(now)
		g.propose(now)
		if tick {
			g.d.node.Tick(now)
		}
	}
	for again := true; again; {
		again = false
		for _, g := range h.groups {
			for g.d.node != nil && g.d.node.HasReady() {
				g.handle(g.d.node.Ready())
			}
		}
		if h.flushOutgoing() && h.drv.current != nil {
			// The messages are on their way before the own log takes the processor.
			h.cfg.Sched.Yield()
		}
		again = h.submit()
	}
	for _, g := range h.groups {
		if g.d.node != nil {
			g.publish(tick)
		}
		if tick {
			g.applier.nudge()
		}
	}
	if tick {
		d.lastTick = time.Duration(now)
		h.tickGroups(now)
	}
}

// step gives one message to its group.
func (h *Host) step(now paxos.Time, from sys.NodeID, m *groupMessage) {
	g := h.Group(m.group)
	if g == nil || g.d.node == nil {
		return
	}
	if m.digest.slot != 0 {
		if g.d.leader == paxos.NodeID(from) {
			g.remoteDigest(m.digest)
		}
		return
	}
	h.drv.full.heard(from, m.full)
	if m.msg.From != paxos.NodeID(from) {
		h.cfg.Logger.Warn("a message names a wrong sender", "group", m.group, "from", from, "named", m.msg.From)
		return
	}
	if err := g.d.node.Step(now, m.msg); err != nil {
		h.cfg.Logger.Debug("a message was ignored", "group", m.group, "from", from, "err", err)
	}
}

// takeDurable tells the core what the log has made durable.
func (h *Host) takeDurable() {
	d := &h.drv
	d.mu.Lock()
	done := d.durable
	d.durable = nil
	d.mu.Unlock()
	for _, p := range done {
		d.outstanding--
		if !p.quiet {
			d.awaited--
		}
		h.passDone(p)
	}
}

func (h *Host) passDone(p *pass) {
	for _, s := range p.seqs {
		s.g.d.node.Persisted(s.seq)
	}
	for _, c := range p.cuts {
		h.log.Truncate(uint64(c.group), c.upTo)
	}
	for _, g := range p.repaired {
		g.d.repairing = false
	}
	for _, c := range p.inForce {
		c.g.noteInForce(c.from)
	}
	for _, w := range p.noted {
		w.give(nil)
	}
}

// submit hands the current pass to the log. It reports true when there was
// nothing to wait for, so that the core may have more to say.
func (h *Host) submit() (again bool) {
	d := &h.drv
	p := d.current
	if p == nil {
		return false
	}
	d.current = nil
	for _, g := range h.groups {
		if g.d.stateDirty || g.d.appended && !h.cfg.bugs.has(BugPromiseNotLogged) {
			p.addState(g)
		}
	}
	if len(p.records) == 0 && d.outstanding == 0 {
		h.sendFrames(p.frames)
		h.passDone(p)
		return true
	}
	for i, at := range p.heads {
		if at >= 0 {
			p.records[i].Body = d.bodies[at : at+len(p.records[i].Body)]
		}
	}
	d.outstanding++
	p.quiet = len(p.noted) == 0 && !slices.ContainsFunc(p.seqs, func(s passSeq) bool { return s.g.d.role != paxos.Follower })
	if !p.quiet {
		d.awaited++
	}
	durable := func(err error) {
		if err != nil && !h.cfg.bugs.has(BugIgnoreSyncError) {
			h.fail(err)
			return
		}
		// Sent from here and not by the driver: that saves a turn on the way
		// of every vote.
		h.sendFrames(p.frames)
		d.mu.Lock()
		d.durable = append(d.durable, p)
		d.mu.Unlock()
		if !p.quiet {
			h.wakeDriver()
		}
	}
	if h.cfg.bugs.has(BugVoteBeforeSync) {
		durable(nil)
		durable = func(error) {}
	}
	h.log.Append(p.records, durable)
	d.bodies = d.bodies[:0]
	return false
}

// pass returns the pass in the making.
func (h *Host) pass() *pass {
	if h.drv.current == nil {
		h.drv.current = &pass{}
	}
	return h.drv.current
}

// addEntry adds an accepted entry to the pass.
func (p *pass) addEntry(d *driver, g *Group, e *paxos.Entry) {
	at := len(d.bodies)
	d.bodies = appendEntryHead(d.bodies, e)
	// The head's place may move while bodies grows: submit sets it.
	p.records = append(p.records, wal.Record{Type: wal.Entry, Group: uint64(g.id), Slot: uint64(e.Slot),
		Body: d.bodies[at:], More: e.Data})
	p.heads = append(p.heads, at)
	g.d.appended = true
}

// addState adds a group's LogState to the pass. It goes with every write, so
// that whatever damage the log meets, the promise is known.
func (p *pass) addState(g *Group) {
	p.records = append(p.records, wal.Record{Type: wal.State, Group: uint64(g.id), Body: g.logState().encode()})
	p.heads = append(p.heads, -1)
	g.d.stateDirty, g.d.appended = false, false
}

// handle does what the core asks for.
func (g *Group) handle(rd paxos.Ready) {
	h := g.host
	g.d.promised, g.d.chosen = rd.Promised, rd.Chosen
	if rd.Configs != nil {
		g.takeConfigs(rd.Configs) // before a leader that has removed itself steps down
		g.d.stateDirty = true     // without the voters of before nobody could tell again that these govern
		h.pass().inForce = append(h.pass().inForce, passConfig{g, uint64(rd.Configs[0].From)})
	}
	// First of all, so that who waits for what a lost leadership promised is
	// answered before the state goes on with what the next leader brings.
	g.setRole(rd)
	// Before Send: no replica may hear that a slot is chosen, and show it to a
	// reader, before our own readers know that they must see it.
	g.publish(false)
	for i := range rd.Send {
		h.queueMessage(g, &rd.Send[i])
	}
	if rd.Damaged != g.d.damaged {
		g.d.damaged, g.d.stateDirty = rd.Damaged, true
		if !rd.Damaged {
			g.d.repairing = true
			p := h.pass()
			p.repaired = append(p.repaired, g)
			h.cfg.Logger.Info("the replica is repaired and votes again", "group", g.id)
		}
	}
	g.d.stateDirty = g.d.stateDirty || rd.HardChanged && !h.cfg.bugs.has(BugPromiseNotLogged)
	if rd.Seq != 0 || g.d.stateDirty {
		p := h.pass()
		for i := range rd.Accept {
			p.addEntry(&h.drv, g, &rd.Accept[i])
		}
		if rd.Seq != 0 {
			p.seqs = append(p.seqs, passSeq{g, rd.Seq})
		}
		p.addFrames(g, rd.SendAfter)
	}
	if len(rd.Apply) > 0 {
		g.applier.push(rd.Apply, g.d.role == paxos.Follower)
	}
	for _, r := range rd.Reads {
		g.answerRead(r)
	}
	for _, s := range rd.SnapshotTo {
		h.startSnapshot(g, s)
	}
}

// addFrames encodes messages that leave when the pass is durable.
func (p *pass) addFrames(g *Group, msgs []paxos.Message) {
	d := &g.host.drv
	for i := range msgs {
		var frame []byte
		frame, d.scratch = appendMessage(nil, &groupMessage{group: g.id, msg: msgs[i], full: d.full.self}, d.scratch)
		to, lane := sys.NodeID(msgs[i].To), laneOf(len(frame))
		// Messages to one peer share a frame.
		k := slices.IndexFunc(p.frames, func(f outFrame) bool {
			return f.to == to && f.lane == lane && len(f.frame) < frameBytes
		})
		if k >= 0 {
			p.frames[k].frame = append(p.frames[k].frame, frame...)
		} else {
			p.frames = append(p.frames, outFrame{to, lane, frame})
		}
	}
}

func laneOf(size int) Lane {
	if size >= bulkBytes {
		return LaneBulk
	}
	return LaneUrgent
}

// queueMessage encodes a message for the peer's next frame.
func (h *Host) queueMessage(g *Group, m *paxos.Message) {
	d := &h.drv
	out := d.outgoingTo(sys.NodeID(m.To))
	if out == nil {
		return // not a peer, or not any more
	}
	size := 0
	for i := range m.Entries {
		size += len(m.Entries[i].Data)
	}
	lane := laneOf(size)
	f := &out.frames[lane]
	*f = slices.Grow(*f, size+64*(len(m.Entries)+2))
	*f, d.scratch = appendMessage(*f, &groupMessage{group: g.id, msg: *m, full: d.full.self}, d.scratch)
	if len(*f) >= frameBytes {
		h.sendOutgoing(out, lane)
	}
}

// flushOutgoing sends what was queued, one frame per peer and lane, and
// reports whether there was any.
func (h *Host) flushOutgoing() (sent bool) {
	for _, out := range h.drv.outgoing {
		for lane := range lanes {
			if len(out.frames[lane]) > 0 {
				h.sendOutgoing(out, lane)
				sent = true
			}
		}
	}
	return sent
}

func (h *Host) sendOutgoing(out *outgoing, lane Lane) {
	f := &out.frames[lane]
	h.cfg.Transport.Send(out.to, lane, *f)
	*f = (*f)[:0]
	if cap(*f) > 2*frameBytes {
		*f = nil
	}
}

func (h *Host) sendFrames(frames []outFrame) {
	for _, f := range frames {
		h.cfg.Transport.Send(f.to, f.lane, f.frame)
	}
}

// takeCalls runs what others want from the driver.
func (g *Group) takeCalls(now paxos.Time) {
	g.mu.Lock()
	calls := g.calls
	g.calls = nil
	g.mu.Unlock()
	for _, fn := range calls {
		fn(now)
	}
}

// reportApplied tells the core how far the state is.
func (g *Group) reportApplied() {
	g.mu.Lock()
	applied, installed := g.applied.Load(), g.installed
	g.installed = installedSnapshot{}
	g.mu.Unlock()
	if installed.slot != 0 {
		// The state is durable up to here, so the log may begin after it.
		g.d.node.InstalledSnapshot(installed.slot, installed.configs)
		g.cut(installed.slot)
	}
	g.d.node.Applied(paxos.Slot(applied))
	g.d.reported = paxos.Slot(applied)
}

// cut notes that the log ends at upTo from below: written with the next pass,
// and the segments are released when that is durable.
func (g *Group) cut(upTo paxos.Slot) {
	if upTo <= g.d.truncated {
		return
	}
	g.d.truncated, g.d.stateDirty = upTo, true
	p := g.host.pass()
	p.cuts = append(p.cuts, passCut{g.id, uint64(upTo)})
}

// askReadIndex starts one round for all who wait for a read.
func (g *Group) askReadIndex(now paxos.Time) {
	ws := g.takeReaders()
	if len(ws) == 0 {
		return
	}
	g.d.readNext++
	switch err := g.d.node.ReadIndex(now, g.d.readNext); err {
	case nil:
		g.d.reads[g.d.readNext] = ws
	case paxos.ErrBusy:
		failReaders(ws, sys.E(sys.Op("replica.Read"), sys.Busy, err))
	default:
		failReaders(ws, notLeader("replica.Read", sys.NodeID(g.d.leader)))
	}
}

func (g *Group) answerRead(r paxos.Read) {
	ws := g.d.reads[r.ID]
	delete(g.d.reads, r.ID)
	if r.Lost || g.d.role != paxos.Leader {
		failReaders(ws, notLeader("replica.Read", sys.NodeID(g.d.leader)))
		return
	}
	g.awaitApplied(ws, uint64(r.Slot), g.d.ballot)
}

// propose gives the commands that wait to the core, as entries.
func (g *Group) propose(now paxos.Time) {
	h := g.host
	if g.d.role != paxos.Leader {
		g.failQueue(sys.NodeID(g.d.leader))
		return
	}
	for {
		if g.gathers(h.drv.awaited > 0, now-g.d.proposedAt < paxos.Time(h.cfg.Tick)) {
			return // an answer, the log, or the next tick turns the driver again
		}
		p := g.takeQueue(h.cfg.Pipeline)
		if p == nil {
			return
		}
		data := appendUint(p.buf, 2, uint64(h.cfg.Clock.Wall().UnixNano()))
		switch _, _, err := g.d.node.Propose(now, data); err {
		case nil:
			g.d.proposedAt = now
			h.entries.Add(1)
			g.batches.add(uint64(len(p.waiters)))
		case paxos.ErrBusy:
			g.putBack(p)
			return
		default:
			g.putBack(p)
			g.failProposals(sys.NodeID(g.d.leader), nil)
			return
		}
	}
}

// setRole takes in a change of role or leader.
func (g *Group) setRole(rd paxos.Ready) {
	h := g.host
	role, leader, ballot := rd.Role, rd.Leader, paxos.Ballot{}
	if role == paxos.Leader {
		ballot = rd.Promised // a leader has promised nothing above its own
	}
	if role == g.d.role && leader == g.d.leader && ballot == g.d.ballot {
		return
	}
	if leader != g.d.leader && leader != 0 {
		h.elections.Add(1)
	}
	was := g.d.role
	wasBallot := g.d.ballot
	g.d.role, g.d.leader, g.d.ballot = role, leader, ballot
	if role != paxos.Follower {
		g.applier.nudge()
	}
	if role == paxos.Leader && was != paxos.Leader {
		g.sessions.touchAll(h.cfg.Clock.Boot())
	}
	g.publish(true)
	if was == paxos.Leader && ballot != wasBallot {
		g.failProposals(sys.NodeID(leader), nil)
		g.failApplyWait(notLeader("replica.Read", sys.NodeID(leader)))
		g.failChanges(sys.NodeID(leader))
	}
	// A follower has promised its leader's ballot, so the round is that of the
	// leadership for every role.
	h.cfg.Logger.Info("leadership", "group", g.id, "role", role, "leader", leader, "round", rd.Promised.Round)
	signal(h.notify)
}

// publish lets callers see role and lease; all also the rest of Status.
func (g *Group) publish(all bool) {
	lease, slot := g.d.node.LeaseRead()
	if uint64(slot) > g.leaseSlot.Load() {
		g.leaseSlot.Store(uint64(slot))
	}
	v := leaderView{role: roleOf(g.d.role), leader: sys.NodeID(g.d.leader), ballot: g.d.ballot, lease: lease}
	if *g.view.Load() != v {
		g.view.Store(&v)
	}
	if all {
		g.publishStatus()
	}
}

func roleOf(r paxos.Role) rsm.Role {
	switch r {
	case paxos.Leader:
		return rsm.Leader
	case paxos.Candidate, paxos.PreCandidate:
		return rsm.Candidate
	}
	return rsm.Follower
}

// broadcastDigest sends an own digest to the followers.
func (h *Host) broadcastDigest(g *Group, dg digestAt) {
	if g.d.role != paxos.Leader {
		return
	}
	c := g.inForce()
	for _, out := range h.drv.outgoing {
		if c.Member(paxos.NodeID(out.to)) {
			out.frames[LaneUrgent], h.drv.scratch = appendMessage(out.frames[LaneUrgent],
				&groupMessage{group: g.id, digest: dg}, h.drv.scratch)
		}
	}
}

// tickGroups does what is due now and then: cutting the log, handing leadership
// over from a full disk, and ending idle sessions.
func (h *Host) tickGroups(now paxos.Time) {
	check := time.Duration(now)-h.drv.lastIdle >= min(idleCheck, h.cfg.SessionTTL/4)
	if check {
		h.drv.lastIdle = time.Duration(now)
	}
	h.noteSpace(now)
	for _, g := range h.groups {
		if g.d.node == nil {
			continue
		}
		h.truncate(g, now)
		h.handOver(g, now)
		if check && g.d.role == paxos.Leader && g.view.Load().lease != 0 {
			g.endIdle(time.Duration(now) - h.cfg.SessionTTL)
		}
	}
}
