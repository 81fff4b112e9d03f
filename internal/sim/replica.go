package sim

import (
	"errors"
	"math/rand/v2"

	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/paxos"
)

// replica is a node with its driver, disk and clock.
type replica struct {
	w      *group
	id     paxos.NodeID
	voters []paxos.NodeID

	clockBase paxos.Time // reading at clockFrom
	clockFrom world.Instant
	clockRate float64

	disk disk
	dead bool // its disk is lost, and its identity with it

	// What a crash takes away.
	life     int // which life this is; what was started in another one is ignored
	up       bool
	node     *paxos.Node
	state    state
	writes   []*write // not yet durable
	syncing  bool
	toApply  []paxos.Entry
	applying bool
	reads    []*pendingRead
	waiting  []*op // writes proposed here, by slot ascending
	role     paxos.Role
	lent     paxos.Time // until when readers were told that there is no other leader

	slowUntil   world.Instant // the disk takes long for everything
	fullUntil   world.Instant // no space on the disk: commands are refused
	pausedUntil world.Instant
	inbox       []func() // what came during the pause
}

func newReplica(w *group, id paxos.NodeID, n int) *replica {
	r := &replica{w: w, id: id, clockRate: 1}
	for v := 1; v <= n; v++ {
		r.voters = append(r.voters, paxos.NodeID(v))
	}
	if n > 0 {
		r.disk.state.configs = paxos.Initial(r.voters)
	}
	r.disk.noteChosen = w.Chance(0.5)
	r.clockBase = paxos.Time(w.Pick(0, 1000*world.Second))
	r.skewClock()
	return r
}

// clock reads the replica's own clock.
func (r *replica) clock() paxos.Time {
	return r.clockBase + paxos.Time(float64(r.w.Now-r.clockFrom)*r.clockRate)
}

// skewClock lets the clock go on at another rate, as wrong as is allowed.
func (r *replica) skewClock() {
	r.clockBase, r.clockFrom, r.clockRate = r.clock(), r.w.Now, 1
	if d := r.w.shape.driftPPM; d > 0 {
		r.clockRate = 1 + float64(r.w.Rand.IntN(2*d+1)-d)/1e6
	}
}

// jumpClock puts the clock forward, by little or by more than any timeout, or lets it stand still, as that of a machine
// that was suspended does when it does not count that time.
func (r *replica) jumpClock() {
	r.w.stats.ClockJumps++
	r.clockBase, r.clockFrom = r.clock(), r.w.Now
	if r.w.Chance(0.4) {
		r.clockRate = 0 // until it is set again
	} else {
		r.clockBase += paxos.Time(r.w.Pick(0, []world.Instant{20 * world.Millisecond, r.w.shape.electionTimeout, 5 * world.Second}[r.w.Rand.IntN(3)]))
	}
	r.w.Mark('c', uint64(r.id), uint64(r.clockBase))
}

func (r *replica) start() {
	w := r.w
	r.life++
	r.up = true
	r.state = r.disk.state
	if w.Chance(0.2) { // the machine was started anew, and counts from anywhere
		r.clockBase, r.clockFrom = paxos.Time(w.Pick(0, 1000*world.Second)), w.Now
	}
	cfg := paxos.Config{
		ID: r.id, Voters: r.voters,
		Alpha: w.shape.alpha, MaxMessageBytes: w.shape.messageBytes, CacheBytes: w.shape.cacheBytes,
		ElectionTimeout: paxos.Time(w.shape.electionTimeout), Heartbeat: paxos.Time(w.shape.heartbeat),
		Lease: paxos.Time(w.shape.electionTimeout * 4 / 5), MaxDriftPPM: max(1, w.shape.driftPPM),
		Rand: rand.New(rand.NewPCG(w.Rand.Uint64(), uint64(r.id))), Log: r,
	}
	if w.opt.Bugs != 0 {
		cfg.Sabotage(w.opt.Bugs)
	}
	r.node = paxos.New(cfg, r.disk.recovered(), r.clock())
	r.role = paxos.Follower
	w.Mark('+', uint64(r.id), uint64(r.life), uint64(r.disk.state.applied))
	r.tick(r.life)
}

// crash stops the replica. Of what was on its way to the disk some may have arrived.
func (r *replica) crash() {
	if !r.up {
		return
	}
	w := r.w
	w.stats.Crashes++
	survivors := w.Rand.IntN(len(r.writes) + 1)
	for _, wr := range r.writes[:survivors] {
		r.commit(wr)
	}
	if survivors < len(r.writes) && w.Chance(0.5) {
		// The next one is torn: what is behind the tear is cut when the log is opened.
		w.stats.Torn++
		wr := *r.writes[survivors]
		wr.accept = wr.accept[:w.Rand.IntN(len(wr.accept)+1)]
		r.commit(&wr)
	}
	w.Mark('-', uint64(r.id), uint64(survivors))
	r.up, r.node, r.writes, r.syncing = false, nil, nil, false
	r.toApply, r.applying, r.reads = nil, false, nil
	for _, o := range r.waiting {
		o.finish(outcomeUnknown, 0)
	}
	r.waiting, r.inbox, r.pausedUntil, r.fullUntil, r.lent = nil, nil, 0, 0, 0
	r.life++
	if w.Chance(w.shape.damage) {
		r.damage()
	}
}

// damage loses entries of the log above the checkpoint, unless that would leave too few replicas to know everything.
func (r *replica) damage() {
	if len(r.disk.entries) == 0 || !r.w.expendable(r, false) {
		return
	}
	r.w.stats.Damages++
	r.disk.damaged = true
	r.disk.cut(r.disk.state.applied) // the rest of the log cannot be trusted, the checkpoint can
	if len(r.disk.entries) == 0 {
		return
	}
	from := r.w.Rand.IntN(len(r.disk.entries))
	count := 1 + r.w.Rand.IntN(len(r.disk.entries)-from)
	clear(r.disk.entries[from : from+count])
	r.w.Mark('!', uint64(r.id), uint64(from), uint64(count))
}

// run does something at the replica now, or when its pause is over.
func (r *replica) run(do func()) {
	switch {
	case !r.up:
	case r.w.Now < r.pausedUntil:
		r.inbox = append(r.inbox, do)
	default:
		do()
		r.drain()
	}
}

// later does something at the replica after a while, unless it has crashed by then.
func (r *replica) later(d world.Instant, do func()) {
	life := r.life
	r.w.After(d, func() {
		if r.life == life {
			r.run(do)
		}
	})
}

func (r *replica) pause(d world.Instant) {
	if !r.up || r.w.Now < r.pausedUntil {
		return
	}
	r.w.stats.Pauses++
	r.w.Mark('p', uint64(r.id), uint64(d))
	r.pausedUntil = r.w.Now + d
	life := r.life
	r.w.After(d, func() {
		if r.life != life {
			return
		}
		inbox := r.inbox
		r.inbox = nil
		for _, do := range inbox {
			r.run(do)
		}
	})
}

func (r *replica) receive(m paxos.Message) {
	r.run(func() {
		// Answers of those who have left meanwhile, or are not known yet, are refused.
		if err := r.node.Step(r.clock(), m); err != nil && !errors.Is(err, paxos.ErrUnknownPeer) {
			r.w.Fail("node %d refused %v from %d: %v", r.id, m.Kind, m.From, err)
		}
	})
}

func (r *replica) tick(life int) {
	if r.life != life || !r.up {
		return
	}
	if r.w.Now >= r.pausedUntil {
		r.node.SetReluctant(r.w.Now < r.fullUntil)
		r.node.Tick(r.clock())
		r.drain()
		r.w.checkLeases()
		r.maybeTruncate()
	}
	r.w.After(r.w.shape.tick, func() { r.tick(life) })
}

// drain does what the node wants done.
func (r *replica) drain() {
	for r.up && r.node.HasReady() {
		r.handle(r.node.Ready())
	}
	if r.up && r.role == paxos.Leader {
		r.noteLease()
	}
}

// noteLease remembers until when readers may go by a lease. One that is given up, for a transfer or by a leader that
// has left the group, is out of use at once; any other one has to hold.
func (r *replica) noteLease() {
	until, _ := r.node.LeaseRead()
	if r.lent = max(r.lent, until); until == 0 && !r.node.Status().Voter {
		r.lent = 0
	}
}

func (r *replica) handle(rd paxos.Ready) {
	w := r.w
	if rd.Role != r.role {
		w.Mark('r', uint64(r.id), uint64(rd.Role), rd.Promised.Round, uint64(rd.Promised.Node))
		if rd.Role == paxos.Leader {
			w.stats.Elections++
		}
		r.role = rd.Role
	}
	if !rd.Damaged && r.disk.damaged {
		r.disk.damaged = false
	}
	for _, m := range rd.Send {
		r.emit(m)
	}
	if rd.Seq != 0 {
		r.writes = append(r.writes, &write{seq: rd.Seq, hard: rd.HardChanged, promised: rd.Promised, chosen: rd.Chosen, accept: rd.Accept, after: rd.SendAfter})
		r.sync()
	} else if len(rd.SendAfter) > 0 || len(rd.Accept) > 0 || rd.HardChanged {
		w.Fail("node %d: a Ready without a number has something to be made durable", r.id)
	}
	if len(rd.Apply) > 0 {
		r.toApply = append(r.toApply, rd.Apply...)
		r.applySome()
	}
	for _, rr := range rd.Reads {
		r.readConfirmed(rr)
	}
	for _, sr := range rd.SnapshotTo {
		r.sendSnapshot(sr)
	}
}

// sync writes what waits to the disk, in one go.
func (r *replica) sync() {
	if r.syncing || len(r.writes) == 0 {
		return
	}
	r.syncing = true
	batch := len(r.writes)
	d := r.w.Pick(100*world.Microsecond, 3*world.Millisecond)
	if r.w.Chance(r.w.shape.syncSlow) || r.w.Now < r.slowUntil {
		d = r.w.Pick(10*world.Millisecond, 300*world.Millisecond)
	}
	r.later(d, func() {
		r.syncing = false
		done := r.writes[:batch]
		r.writes = r.writes[batch:]
		for _, wr := range done {
			r.commit(wr)
		}
		for _, wr := range done {
			for _, m := range wr.after {
				r.emit(m)
			}
		}
		r.node.Persisted(done[len(done)-1].seq)
		r.sync()
	})
}

// commit makes a write durable and checks that what the disk has promised does not fall.
func (r *replica) commit(wr *write) {
	if wr.hard && wr.promised.Less(r.disk.promised) {
		r.w.Fail("node %d: promised falls from %v to %v", r.id, r.disk.promised, wr.promised)
	}
	for i := range wr.accept {
		r.w.history.noteAccepted(r.w, r.id, &wr.accept[i])
	}
	r.disk.commit(wr)
}

// emit checks that a message does not promise more than the disk holds, and sends it.
func (r *replica) emit(m paxos.Message) {
	d := &r.disk
	bound := m.Kind == paxos.MsgPromise || m.Kind == paxos.MsgAccepted || m.Kind == paxos.MsgHeartbeatReply || m.Kind == paxos.MsgPrepare
	if bound && (!m.Reject || m.Mute) && d.promised.Less(m.Ballot) {
		r.w.Fail("node %d: %v at %v leaves before the promise is durable (%v is)", r.id, m.Kind, m.Ballot, d.promised)
	}
	switch {
	case m.Kind == paxos.MsgPromise && m.Mute:
		r.w.history.promised[m.Ballot] |= 1 << r.id
	case m.Kind == paxos.MsgPromise && !m.Reject && m.Next == 0:
		r.w.history.promised[m.Ballot] |= 1 << r.id
		r.w.history.told[m.Ballot] |= 1 << r.id
	case m.Kind == paxos.MsgAccept:
		for i := range m.Entries {
			r.w.history.noteProposed(r.w, r.id, &m.Entries[i])
		}
	}
	if m.Kind == paxos.MsgAccepted && !m.Reject {
		chosen := r.node.Status().Chosen
		for s := m.Slot; s < m.Next; s++ {
			if e := d.get(s); s > chosen && (e == nil || e.Ballot.Less(m.Ballot)) {
				r.w.Fail("node %d: Accepted of slot %d at %v leaves before it is durable", r.id, s, m.Ballot)
			}
		}
	}
	r.w.net.send(m)
}

// applySome applies the next few entries, after a while.
func (r *replica) applySome() {
	if r.applying || len(r.toApply) == 0 {
		return
	}
	r.applying = true
	d := r.w.Pick(10*world.Microsecond, 2*world.Millisecond)
	if r.w.Chance(0.01) {
		d = r.w.Pick(world.Millisecond, 50*world.Millisecond)
	}
	r.later(d, func() {
		r.applying = false
		count := min(len(r.toApply), 1+r.w.Rand.IntN(32))
		for _, e := range r.toApply[:count] {
			r.apply(&e)
		}
		r.toApply = r.toApply[count:]
		r.node.Applied(r.state.applied)
		r.serveReads()
		if r.w.Chance(0.05) {
			r.checkpoint()
		}
		r.applySome()
	})
}

func (r *replica) apply(e *paxos.Entry) {
	if e.Slot <= r.state.applied {
		return // a snapshot was faster
	}
	if e.Slot != r.state.applied+1 {
		r.w.Fail("node %d: slot %d to apply expected, found %d", r.id, r.state.applied+1, e.Slot)
	}
	r.state = state{applied: e.Slot, digest: digestOf(r.state.digest, e), configs: r.state.configs.Apply(e)}
	r.w.history.noteApplied(r.w, r.id, e, r.state.digest)
	for len(r.waiting) > 0 && r.waiting[0].slot <= e.Slot {
		o := r.waiting[0]
		r.waiting = r.waiting[1:]
		if o.slot == e.Slot && string(o.data) == string(e.Data) {
			o.finish(outcomeDone, e.Slot)
		} else {
			o.finish(outcomeUnknown, 0)
		}
	}
}

// checkpoint makes the state machine durable as it is.
func (r *replica) checkpoint() { r.disk.state = r.state }

// maybeTruncate cuts the log behind the checkpoint now and then.
func (r *replica) maybeTruncate() {
	if !r.up || !r.w.Chance(0.02) {
		return
	}
	r.truncate(int(r.disk.state.applied) - r.w.shape.keep)
}

func (r *replica) truncate(upTo int) {
	if upTo <= int(r.disk.truncated) {
		return
	}
	r.w.stats.Truncations++
	r.w.Mark('t', uint64(r.id), uint64(upTo))
	r.disk.cut(paxos.Slot(upTo))
	r.node.Truncate(paxos.Slot(upTo))
	r.drain()
}

// sendSnapshot copies the state to a peer. Like a message it may be lost, but the sender is told.
func (r *replica) sendSnapshot(sr paxos.SnapshotRequest) {
	w := r.w
	if r.state.applied < sr.After {
		w.Fail("node %d: a snapshot beyond %d was asked for, applied is %d", r.id, sr.After, r.state.applied)
	}
	snap := r.state
	w.After(w.Pick(world.Millisecond, 100*world.Millisecond), func() {
		if !w.net.cut[r.id-1][sr.To-1] && !w.Chance(w.net.loss) {
			w.replicas[sr.To-1].install(snap)
		}
	})
	if w.Chance(0.3) { // the log is cut while the snapshot is on its way
		r.checkpoint()
		r.truncate(int(r.disk.state.applied))
	}
	ok := !w.Chance(0.1)
	r.later(w.Pick(100*world.Millisecond, 200*world.Millisecond), func() { r.node.SnapshotDone(sr.To, snap.applied, ok) })
}

func (r *replica) install(snap state) {
	r.run(func() {
		if snap.applied <= r.state.applied {
			return
		}
		r.w.stats.Snapshots++
		r.w.Mark('i', uint64(r.id), uint64(snap.applied))
		r.state = snap
		r.disk.state = snap
		r.disk.cut(snap.applied)
		for len(r.waiting) > 0 && r.waiting[0].slot <= snap.applied {
			r.waiting[0].finish(outcomeUnknown, 0)
			r.waiting = r.waiting[1:]
		}
		r.node.InstalledSnapshot(snap.applied, snap.configs)
		r.serveReads()
	})
}

// Entries is paxos.Log.
func (r *replica) Entries(lo, hi paxos.Slot, maxBytes int) ([]paxos.Entry, error) {
	if !r.w.healed && r.w.Chance(r.w.shape.readError) {
		return nil, errGone
	}
	return r.disk.read(lo, hi, maxBytes)
}
