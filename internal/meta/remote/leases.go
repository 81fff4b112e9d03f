package remote

import (
	"context"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// touchSlots is the size of the table that remembers when an inode was last
// changed. Two inodes that share a slot only cost a lease now and then.
const touchSlots = 1 << 14

// holderInosMax bounds what one session may cache; past it, it is told to give
// up everything and starts again.
const holderInosMax = 1 << 20

// leases is the leader's table of who caches what. Its methods may be called
// concurrently.
type leases struct {
	clock env.Clock

	mu      sync.Mutex
	term    uint64        // of the leadership; 0 when not leading
	since   time.Duration // Boot time at which it began
	holders map[sys.SessionID]*holder
	byIno   map[sys.Ino][]*holder
	pending map[sys.Ino]*revocation
	seq     uint64 // counts revocations and resets of all sessions; never goes back
	changes uint64 // counts changes, in the order of the log
	touched [touchSlots]touch
	coming  map[command][]sys.Ino // what the senders of commands under way gave up
	caches  sessionSet            // sessions of the state that have not renewed with this leader
	soles   map[sys.Ino]*sole
	uses    map[sys.Ino]use
	rest    [touchSlots]time.Duration // Boot time until which a directory stays nobody's alone
	// promises are the sessions that may still have to make files which they
	// promised under an earlier leader.
	promises sessionSet
}

// touch is the last change of the inodes that share a place in the table.
type touch struct{ slot, change uint64 }

// command names a command under way.
type command struct {
	session sys.SessionID
	seq     uint64
}

// holder is a session as this leader knows it.
type holder struct {
	session sys.SessionID
	renewed time.Duration // Boot time of its last renewal's arrival
	inos    map[sys.Ino]struct{}
	soles   map[sys.Ino]struct{} // directories that it has to itself
	seq     uint64               // of the last revocation queued
	queue   []queued             // not confirmed yet, in order of seq
	wake    chan struct{}        // has room for one; closed when the holder is forgotten
	reset   bool                 // it must drop everything before it is granted more
}

type queued struct {
	seq uint64
	rev *revocation
}

// revocation is a change of one inode that others may still see the old value
// of.
type revocation struct {
	ino    sys.Ino
	open   map[*holder]int // how many confirmations each still owes
	closed chan struct{}
	void   bool // the leadership ended first; set before closed is closed
}

// errNotLeading sends the caller to the leader, or back here a little later.
var errNotLeading = sys.E(sys.Op("meta.Leases"), sys.NotLeader, "this node does not lead any more, or has only just begun to")

func newLeases(clock env.Clock) *leases {
	return &leases{clock: clock, holders: map[sys.SessionID]*holder{}, byIno: map[sys.Ino][]*holder{},
		pending: map[sys.Ino]*revocation{}, coming: map[command][]sys.Ino{},
		soles: map[sys.Ino]*sole{}, uses: map[sys.Ino]use{}, caches: sessionSet{done: make(chan struct{})}, promises: sessionSet{done: make(chan struct{})}}
}

// lead starts a leadership: nothing is known of leases given by earlier
// leaders, so until sessions have all renewed or Term is over, settle waits.
func (l *leases) lead(term uint64, sessions []sys.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
	l.term, l.since = term, l.clock.Boot()
	l.caches, l.promises = awaitAll(sessions), awaitAll(sessions)
}

// leads says whether the table is that of the given leadership.
func (l *leases) leads(term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term == term
}

// follow ends a leadership.
func (l *leases) follow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
	l.term = 0
}

// drop forgets everything. Whoever waits for a revocation is told that this
// node cannot see it through.
func (l *leases) drop() {
	for _, r := range l.pending {
		r.void = true
		close(r.closed)
	}
	for _, s := range l.soles {
		if s.recall != nil {
			s.recall.void = true
			close(s.recall.closed)
		}
	}
	for _, h := range l.holders {
		close(h.wake)
	}
	l.holders = map[sys.SessionID]*holder{}
	l.byIno = map[sys.Ino][]*holder{}
	l.pending = map[sys.Ino]*revocation{}
	l.touched = [touchSlots]touch{}
	l.soles = map[sys.Ino]*sole{}
	l.rest = [touchSlots]time.Duration{}
}

// settle waits until no lease of an earlier leader can be in force. It fails
// when the table is not, or no longer, that of the given leadership, as do
// barrier and grant: another leader may have given leases in between.
func (l *leases) settle(ctx context.Context, term uint64) error {
	return l.waitFor(ctx, term, func() chan struct{} { return l.caches.done })
}

// waitFor waits for what the sessions of the state owe a new leader, or until
// no lease of an earlier one can be in force. which is called with mu held.
func (l *leases) waitFor(ctx context.Context, term uint64, which func() chan struct{}) error {
	l.mu.Lock()
	now, settled, left := l.term, which(), l.since+Term+drift-l.clock.Boot()
	l.mu.Unlock()
	if now != term {
		return errNotLeading
	}
	select {
	case <-settled:
		return nil
	default:
	}
	if left <= 0 {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-settled:
	case <-timer.C:
	case <-ctx.Done():
		return sys.E(sys.Op("meta.settle"), sys.Interrupted, context.Cause(ctx))
	}
	return nil
}

func touchSlot(ino sys.Ino) int { return int((uint64(ino) * 0x9e3779b97f4a7c15) >> (64 - 14)) }

// expect notes what the sender of a command has given up beforehand, until
// the command is done.
func (l *leases) expect(session sys.SessionID, seq uint64, dropped []sys.Ino) (done func()) {
	k := command{session, seq}
	l.mu.Lock()
	l.coming[k] = dropped
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		delete(l.coming, k)
		l.mu.Unlock()
	}
}

// changed queues revocations of inos for every session that may cache them,
// but for the sender's own of those it gave up beforehand. It is called as the
// change at slot is applied, before any reader can see it. The number it
// returns orders the change among others; it is 0 when this node does not lead.
func (l *leases) changed(slot uint64, sender sys.SessionID, seq uint64, inos []sys.Ino) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term == 0 {
		return 0
	}
	dropped := l.coming[command{sender, seq}]
	l.changes++
	for _, ino := range inos {
		l.touched[touchSlot(ino)] = touch{slot, l.changes}
		keep := l.byIno[ino][:0]
		for _, h := range l.byIno[ino] {
			if h.session == sender && contains(dropped, ino) {
				delete(h.inos, ino)
				continue
			}
			l.revoke(h, ino)
			keep = append(keep, h)
		}
		delete(l.byIno, ino)
		for _, h := range keep {
			delete(h.inos, ino)
		}
	}
	return l.changes
}

func contains(inos []sys.Ino, ino sys.Ino) bool {
	for _, i := range inos {
		if i == ino {
			return true
		}
	}
	return false
}

func (l *leases) revoke(h *holder, ino sys.Ino) {
	r := l.pending[ino]
	if r == nil {
		r = &revocation{ino: ino, open: map[*holder]int{}, closed: make(chan struct{})}
		l.pending[ino] = r
	}
	l.enqueue(h, r)
}

// enqueue has h told of r with its next renewal.
func (l *leases) enqueue(h *holder, r *revocation) {
	r.open[h]++
	l.seq++
	h.seq = l.seq
	h.queue = append(h.queue, queued{h.seq, r})
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// confirm takes h's answer that it gave up everything to seq.
func (l *leases) confirm(h *holder, seq uint64) {
	n := 0
	for n < len(h.queue) && h.queue[n].seq <= seq {
		l.resolve(h, h.queue[n].rev)
		n++
	}
	h.queue = h.queue[n:]
}

// resolve counts one confirmation of r by h.
func (l *leases) resolve(h *holder, r *revocation) {
	if r.open[h]--; r.open[h] > 0 {
		return
	}
	delete(r.open, h)
	if len(r.open) > 0 {
		return
	}
	if l.pending[r.ino] == r {
		delete(l.pending, r.ino)
		close(r.closed)
	} else if s := l.soles[r.ino]; s != nil && s.recall == r {
		l.giveBack(r.ino, s)
		close(r.closed)
	}
}

// barrier waits until no session can still see the old value of any of inos;
// with none given, of anything.
func (l *leases) barrier(ctx context.Context, term uint64, inos ...sys.Ino) error {
	var waits []*revocation
	l.mu.Lock()
	if l.term != term {
		l.mu.Unlock()
		return errNotLeading
	}
	if len(l.pending) > 0 {
		if inos == nil {
			for _, r := range l.pending {
				waits = append(waits, r)
			}
		}
		for _, ino := range inos {
			if r := l.pending[ino]; r != nil {
				waits = append(waits, r)
			}
		}
	}
	l.mu.Unlock()
	for _, r := range waits {
		if err := l.await(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// await waits for one revocation, and expires the sessions that do not answer.
func (l *leases) await(ctx context.Context, r *revocation) error {
	for {
		l.mu.Lock()
		var left time.Duration
		for h := range r.open {
			left = max(left, h.renewed+Term+drift-l.clock.Boot())
		}
		l.mu.Unlock()
		timer := time.NewTimer(max(left, 0))
		select {
		case <-r.closed:
			timer.Stop()
			if r.void {
				return errNotLeading
			}
			return nil
		case <-ctx.Done():
			timer.Stop()
			return sys.E(sys.Op("meta.revoke"), sys.Interrupted, context.Cause(ctx))
		case <-timer.C:
			l.expire(r)
		}
	}
}

// expire forgets the sessions that r waits for and whose lease has run out.
func (l *leases) expire(r *revocation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Boot()
	for h := range r.open {
		if now >= h.renewed+Term+drift {
			l.forget(h)
		}
	}
}

// forget takes back everything from h. If it lives it learns so at its next
// renewal, because the leader does not know it any more.
func (l *leases) forget(h *holder) {
	for ino := range h.inos {
		l.unhold(h, ino)
	}
	l.confirm(h, h.seq)
	for dir := range h.soles {
		l.giveBack(dir, l.soles[dir])
	}
	l.seq++ // what was granted before is too old to be cached
	if l.holders[h.session] == h {
		delete(l.holders, h.session)
	}
	close(h.wake)
}

func (l *leases) unhold(h *holder, ino sys.Ino) {
	hs := l.byIno[ino]
	for i, o := range hs {
		if o == h {
			hs[i] = hs[len(hs)-1]
			hs = hs[:len(hs)-1]
			break
		}
	}
	if len(hs) == 0 {
		delete(l.byIno, ino)
	} else {
		l.byIno[ino] = hs
	}
}

// seenAt is how new what the caller saw is: a view of everything up to slot, or
// the outcome of one change.
type seenAt touch

func (s seenAt) before(t touch) bool {
	if s.change != 0 {
		return t.change > s.change
	}
	return t.slot > s.slot
}

// grant gives session leases on those of inos that have not changed after what
// was seen. seq goes to the client with them.
func (l *leases) grant(term uint64, session sys.SessionID, seen seenAt, inos []sys.Ino) (granted []uint64, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[session]
	if h == nil || h.reset || l.term != term {
		return nil, 0
	}
	if len(h.inos)+len(inos) > holderInosMax {
		h.reset = true
		select {
		case h.wake <- struct{}{}:
		default:
		}
		return nil, 0
	}
	for _, ino := range inos {
		if s := l.soles[ino]; s != nil && s.holder != h || seen.before(l.touched[touchSlot(ino)]) {
			continue
		}
		if _, held := h.inos[ino]; !held {
			h.inos[ino] = struct{}{}
			l.byIno[ino] = append(l.byIno[ino], h)
		}
		granted = append(granted, uint64(ino))
	}
	return granted, l.seq
}

// renewal is what a renewal is answered with.
type renewal struct {
	term, seq uint64
	inos      []uint64
	reset     bool
}

// renew keeps the session's lease and waits for something to revoke. owes says
// that the session has files to make which it promised under an earlier leader.
func (l *leases) renew(ctx context.Context, session sys.SessionID, term, acked uint64, owes bool) renewal {
	l.mu.Lock()
	h := l.admit(session, term)
	if h == nil {
		defer l.mu.Unlock()
		return renewal{term: l.term, reset: true}
	}
	h.renewed = l.clock.Boot()
	if term == l.term {
		l.confirm(h, acked)
		l.caches.arrived(session)
		if !owes {
			l.promises.arrived(session)
		}
	}
	wake := h.wake
	idle := len(h.queue) == 0 && !h.reset && term == l.term && !owes
	l.mu.Unlock()
	if idle {
		timer := time.NewTimer(renewHold)
		select {
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.news(session, h, term)
}

// admit finds the session's holder, or makes one for a session that is new to
// this leader: having told it so, whatever it cached before is void.
func (l *leases) admit(session sys.SessionID, term uint64) *holder {
	if l.term == 0 {
		return nil
	}
	h := l.holders[session]
	if h != nil && term == l.term {
		return h
	}
	if h != nil {
		l.forget(h)
	}
	l.seq++
	h = &holder{session: session, seq: l.seq, inos: map[sys.Ino]struct{}{}, soles: map[sys.Ino]struct{}{}, wake: make(chan struct{}, 1)}
	if term == l.term {
		h.reset = true // it was forgotten: it must drop what it has before it caches again
	}
	l.holders[session] = h
	return h
}

func (l *leases) news(session sys.SessionID, h *holder, term uint64) renewal {
	if l.holders[session] != h {
		return renewal{term: l.term, reset: true}
	}
	out := renewal{term: l.term, seq: h.seq, reset: h.reset || term != l.term}
	if h.reset {
		for dir := range h.soles {
			if s := l.soles[dir]; s.recall == nil {
				l.askBack(dir, s)
			}
		}
		for ino := range h.inos {
			l.unhold(h, ino)
		}
		h.inos = map[sys.Ino]struct{}{}
		l.seq++
		h.seq, h.reset = l.seq, false
		out.seq = h.seq
	}
	seen := map[sys.Ino]struct{}{}
	for _, q := range h.queue {
		if _, dup := seen[q.rev.ino]; !dup {
			seen[q.rev.ino] = struct{}{}
			out.inos = append(out.inos, uint64(q.rev.ino))
		}
	}
	return out
}
