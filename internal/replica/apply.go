package replica

import (
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// outcome is what a proposer gets.
type outcome struct {
	result   []byte
	local    any
	err      error
	repeated bool // the command had been applied before
}

// applier runs a group's chosen entries on its state. Its goroutine is the
// only one that writes the state.
type applier struct {
	g        *Group
	db       *pebble.DB
	machines map[rsm.Namespace]rsm.Machine
	order    []rsm.Namespace // of machines, ascending
	sessions *sessions

	mu         sync.Mutex
	queue      []paxos.Entry
	queueBytes int
	tasks      []func() error // run between two entries
	wake       chan struct{}

	// begun says that the group has gone on from Config.Voters, and its state is
	// lost if it does not say to whom.
	begun bool

	// Only the goroutine uses these.
	over    *overlay
	txs     [256]*namespaceTx
	batch   entryBatch
	now     time.Duration // env.Clock.Boot when the current entries began
	at      appliedRow
	members membersRow // of the state at at
	// membersNew says that members has to be written with the next batch.
	membersNew bool
	settled    []settlement
	fresh      []*session // with results of the current entry
	digests    []digestAt
	localKey   []byte // of the Applied row
	membersKey []byte
}

// appliedRow is replicapb.Applied: what the state contains.
type appliedRow struct {
	slot   uint64
	timeNs int64
	digest uint64
}

func (r appliedRow) encode() []byte {
	b := appendUint(make([]byte, 0, 32), 1, r.slot)
	b = appendUint(b, 2, uint64(r.timeNs))
	return appendFixed64(b, 3, r.digest)
}

func decodeApplied(b []byte) (r appliedRow, err error) {
	err = eachField(b, func(f field) error {
		switch f.num {
		case 1:
			r.slot = f.value
		case 2:
			r.timeNs = int64(f.value)
		case 3:
			r.digest = f.value
		}
		return nil
	})
	return r, err
}

// appliedKey is the key of a group's Applied row.
func appliedKey(g sys.GroupID) []byte { return append(namespacePrefix(g, nsLocal), 'a') }

// settlement is an own entry whose outcomes wait for the state to be visible.
type settlement struct {
	batch    *proposals
	outcomes []outcome
}

// The bounds of one Pebble batch when many entries wait.
const (
	applyEntries = 64
	applyRows    = 8192
)

func newApplier(g *Group, db *pebble.DB, machines map[rsm.Namespace]rsm.Machine) *applier {
	a := &applier{g: g, db: db, machines: machines, sessions: &g.sessions, over: newOverlay(db),
		wake: make(chan struct{}, 1), localKey: appliedKey(g.id), membersKey: membersKey(g.id)}
	for ns := range machines {
		a.order = append(a.order, ns)
	}
	slices.Sort(a.order)
	return a
}

// load reads what the state contains.
func (a *applier) load() error {
	at, err := readApplied(a.db, a.localKey)
	if err != nil {
		return err
	}
	a.at = at
	if err := a.loadMembers(); err != nil {
		return err
	}
	a.g.joined.Store(a.members.joined)
	if err := a.sessions.load(a.db, a.g.id, a.g.host.cfg.Clock.Boot()); err != nil {
		return err
	}
	if a.g.host.cfg.bugs.has(BugForgetResults) {
		for _, s := range a.sessions.byID {
			clear(s.results)
		}
	}
	return nil
}

func readApplied(r pebble.Reader, key []byte) (appliedRow, error) {
	v, closer, err := r.Get(key)
	if err == pebble.ErrNotFound {
		return appliedRow{}, nil
	}
	if err != nil {
		return appliedRow{}, sys.E(sys.Op("replica.readApplied"), err)
	}
	row, err := decodeApplied(v)
	if err != nil {
		err = sys.E(sys.Op("replica.readApplied"), sys.Corrupt, err)
	}
	if cerr := closer.Close(); err == nil && cerr != nil {
		err = cerr
	}
	return row, err
}

// A follower applies when this many entries or bytes wait, or at the next tick:
// nobody waits for it, and every turn of the applier costs a Pebble batch.
const (
	lazyEntries = 32
	lazyBytes   = 256 << 10
)

// push queues chosen entries. Lazy ones wait for nudge, or for more of them.
func (a *applier) push(entries []paxos.Entry, lazy bool) {
	a.mu.Lock()
	if len(a.queue) == 0 {
		a.queue = entries
	} else {
		a.queue = append(a.queue, entries...)
	}
	for i := range entries {
		a.queueBytes += len(entries[i].Data)
	}
	lazy = lazy && len(a.queue) < lazyEntries && a.queueBytes < lazyBytes
	a.mu.Unlock()
	if !lazy {
		signal(a.wake)
	}
}

// nudge has what waits applied.
func (a *applier) nudge() {
	a.mu.Lock()
	waiting := len(a.queue) > 0
	a.mu.Unlock()
	if waiting {
		signal(a.wake)
	}
}

// do runs a task between two entries.
func (a *applier) do(task func() error) {
	a.mu.Lock()
	a.tasks = append(a.tasks, task)
	a.mu.Unlock()
	signal(a.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run is the applier's goroutine.
func (a *applier) run() {
	h := a.g.host
	for {
		a.mu.Lock()
		entries, tasks := a.queue, a.tasks
		a.queue, a.tasks, a.queueBytes = nil, nil, 0
		a.mu.Unlock()
		for _, task := range tasks {
			if err := task(); err != nil {
				h.fail(err)
				return
			}
		}
		for len(entries) > 0 {
			n, err := a.apply(entries)
			if err != nil {
				h.fail(err)
				return
			}
			entries = entries[n:]
			select {
			case <-h.stop:
				return
			default:
			}
		}
		if h.cfg.Sched.Wait(nil, a.wake, h.stop, nil) == env.GotB {
			return
		}
	}
}

// apply runs as many of the entries as one Pebble batch should hold, makes
// them visible, and answers their proposers. It returns how many.
func (a *applier) apply(entries []paxos.Entry) (int, error) {
	a.now = a.g.host.cfg.Clock.Boot()
	before := a.at
	n := 0
	for n < len(entries) && n < applyEntries && len(a.over.rows) < applyRows {
		e := &entries[n]
		n++
		if uint64(e.Slot) <= a.at.slot {
			continue // a snapshot has brought it
		}
		if uint64(e.Slot) != a.at.slot+1 {
			panic(fmt.Sprintf("replica: apply: slot %d expected, found %d", a.at.slot+1, e.Slot))
		}
		if err := a.entry(e); err != nil {
			return n, err
		}
	}
	b := a.db.NewBatch()
	if err := a.over.flush(b); err != nil {
		return n, err
	}
	at := a.at
	if a.g.host.cfg.bugs.has(BugAppliedBehind) {
		at = before
	}
	if err := b.Set(a.localKey, at.encode(), nil); err != nil {
		return n, err
	}
	if a.membersNew {
		if err := b.Set(a.membersKey, a.members.encode(), nil); err != nil {
			return n, err
		}
		a.membersNew = false
		a.g.joined.Store(a.members.joined)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return n, sys.E(sys.Op("replica.apply"), err)
	}
	if err := b.Close(); err != nil {
		return n, err
	}
	a.over.reset()
	a.g.appliedTo(a.at.slot)
	answered := 0
	for i, s := range a.settled {
		s.batch.settle(s.outcomes)
		answered += len(s.outcomes)
		a.settled[i] = settlement{}
	}
	a.settled = a.settled[:0]
	if answered > 0 {
		a.g.answered(answered)
	}
	for _, d := range a.digests {
		a.g.ownDigest(d)
	}
	a.digests = a.digests[:0]
	return n, nil
}

// entry runs the commands of one entry.
func (a *applier) entry(e *paxos.Entry) error {
	sum := crc32.Checksum(e.Data, castagnoli)
	if e.Kind == paxos.Command {
		if err := a.batch.decode(e.Data); err != nil {
			panic(fmt.Sprintf("replica: apply: an EntryBatch expected in slot %d, found %v", e.Slot, err))
		}
		if a.g.host.cfg.bugs.has(BugLocalTime) {
			a.batch.timeNs = a.g.host.cfg.Clock.Wall().UnixNano()
		}
		a.at.timeNs = max(a.at.timeNs, a.batch.timeNs)
		own := a.g.takeOwn(a.batch.origin)
		var outs []outcome
		if own != nil {
			outs = make([]outcome, len(a.batch.commands))
		}
		for i := range a.batch.commands {
			c := &a.batch.commands[i]
			st := rsm.Stamp{Slot: uint64(e.Slot), Index: uint32(i), TimeNs: a.at.timeNs, Session: c.Session, Seq: c.Seq}
			out, err := a.command(c, st)
			if err != nil {
				return err
			}
			sum = crc32.Update(sum, castagnoli, out.result)
			if own != nil {
				outs[i] = out
			}
		}
		a.keepResults(uint64(e.Slot))
		if own != nil {
			a.settled = append(a.settled, settlement{own, outs})
		}
		a.g.host.applies.Add(uint64(len(a.batch.commands)))
	}
	a.applyMembers(e)
	a.at.slot = uint64(e.Slot)
	a.at.digest = mixDigest(a.at.digest, uint64(e.Slot), sum)
	if a.at.slot%a.g.host.cfg.DigestEvery == 0 {
		a.digests = append(a.digests, digestAt{a.at.slot, a.at.digest})
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mixDigest rolls an entry's checksum into the digest (the finalizer of
// splitmix64).
func mixDigest(digest, slot uint64, sum uint32) uint64 {
	x := digest ^ (uint64(sum) | slot<<32)
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// tx returns the namespace's Tx of the current entries.
func (a *applier) tx(ns rsm.Namespace) *namespaceTx {
	tx := a.txs[ns]
	if tx == nil {
		tx = &namespaceTx{a: a, o: a.over, ns: ns, prefix: namespacePrefix(a.g.id, ns)}
		a.txs[ns] = tx
	}
	return tx
}

// command runs one command; an error is trouble of the engine.
func (a *applier) command(c *rsm.Command, st rsm.Stamp) (outcome, error) {
	var s *session
	if c.Session != 0 {
		var out outcome
		var done bool
		if s, out, done = a.begin(c); done {
			if out.repeated {
				a.g.host.deduped.Add(1)
			}
			return out, nil
		}
	}
	out, err := a.execute(c, st)
	if err != nil || s == nil {
		return out, err
	}
	if out.err == nil {
		a.finish(s, c, out.result)
	}
	return out, a.tx(rsm.NSSession).err
}

func (a *applier) execute(c *rsm.Command, st rsm.Stamp) (outcome, error) {
	if c.NS == rsm.NSSession {
		result, err := a.applySession(st, c.Body)
		if err != nil && sys.KindOf(err) == sys.Other {
			return outcome{}, err
		}
		return outcome{result: result, err: err}, nil
	}
	m := a.machines[c.NS]
	if m == nil {
		return outcome{err: sys.E(sys.Op("replica.Apply"), sys.NotSupported,
			fmt.Sprintf("namespace %d: this replica runs an older koinon", c.NS))}, nil
	}
	tx := a.tx(c.NS)
	result, local := m.Apply(tx, st, c.Body)
	if err := a.trouble(); err != nil {
		return outcome{}, err
	}
	// The hooks run before the batch is committed, so before anybody can read
	// what the command wrote.
	tx.Applied(st, local)
	return outcome{result: result, local: local}, nil
}

// trouble is the first trouble of the engine in any namespace: a command may
// change several.
func (a *applier) trouble() error {
	for _, ns := range a.order {
		if tx := a.txs[ns]; tx != nil && tx.err != nil {
			return tx.err
		}
	}
	return nil
}
