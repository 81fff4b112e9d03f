package commit

import (
	"fmt"
	"slices"
)

// Part is what a transaction asks of one participant. The payload is shared from Begin on and must not be written to.
type Part struct {
	Party   Party
	Payload []byte
}

// Outcome tells how a transaction was decided.
type Outcome struct {
	Tx        Tx
	Committed bool
	By        Party  // an abort's cause: who refused, or was waited for in vain; zero when it was none of them
	Reason    string // why it was aborted
}

// CoordinatorReady is what the driver of a coordinator has to do next. The slices belong to the caller.
type CoordinatorReady struct {
	// Agree are records for the log. Once one has been applied to the table, Agreed must be called. Forgets are in no
	// hurry.
	Agree []Record
	// Send are messages that may leave at once.
	Send []Message
	// Outcomes are decisions, final and durable: whoever waits for one may be told.
	Outcomes []Outcome
	// Deposed says that another coordinator has taken over. This one does nothing any more but to report the outcomes of
	// commits that were on their way into the log.
	Deposed bool
}

type phase uint8

const (
	preparing  phase = iota // votes are being collected
	agreeing                // all are yes; the commit is on its way into the log
	committing              // it is in the log; acknowledgements are being collected
	forgetting              // all have acknowledged; the forget is on its way into the log
)

type transaction struct {
	tx       Tx
	phase    phase
	parts    []part
	waiting  int  // answers still missing: votes or acknowledgements
	deadline Time // for votes
	resendAt Time
	wait     Time // before the next resend
}

type part struct {
	Part
	answered bool
	readOnly bool
	lost     bool // while the commit was on its way into the log
}

// Coordinator is one incarnation of the coordinator: what the leader of a group keeps in memory about its transactions.
// It is not safe for concurrent use.
type Coordinator struct {
	cfg     Config
	epoch   uint64
	last    uint64 // number of the newest transaction
	deposed bool
	txs     map[Tx]*transaction
	order   []*transaction // those in txs, and some that have ended, in the order they came
	lanes   map[Party]*lane
	nextAt  Time // nothing is due before
	out     CoordinatorReady
}

// lane holds the transactions of the epoch that have begun with a participant, from the oldest that it still has a part
// in. Ascending.
type lane struct{ txs []laneEntry }

type laneEntry struct {
	seq  uint64
	done bool
}

// NewCoordinator makes the coordinator of an epoch that has been opened in the log. Commits are those in the table when
// the open was applied: the new coordinator goes on telling their participants.
func NewCoordinator(cfg Config, epoch uint64, commits []Commit, now Time) *Coordinator {
	if epoch == 0 {
		broken("an opened epoch expected, found 0")
	}
	c := &Coordinator{cfg: cfg.withDefaults(), epoch: epoch, txs: map[Tx]*transaction{}, lanes: map[Party]*lane{}}
	if c.cfg.bugs.has(BugForgetCommits) {
		return c
	}
	for _, k := range commits {
		if k.Tx.Epoch >= epoch && !c.cfg.bugs.has(BugReuseEpoch) {
			broken("commits of epochs before %d expected, found %v", epoch, k.Tx)
		}
		t := &transaction{tx: k.Tx, parts: make([]part, len(k.Parties))}
		for i, p := range k.Parties {
			t.parts[i].Party = p
		}
		c.add(now, t)
		c.tell(t)
	}
	return c
}

// Begin starts a transaction and asks its participants to prepare. The outcome comes by Ready.
// It returns ErrDeposed, ErrParties, or ErrBusy.
func (c *Coordinator) Begin(now Time, parts []Part) (Tx, error) {
	if c.deposed {
		return Tx{}, ErrDeposed
	}
	t := &transaction{parts: make([]part, len(parts)), waiting: len(parts), deadline: now + c.cfg.PrepareTimeout}
	for i, p := range parts {
		t.parts[i].Part = p
	}
	slices.SortFunc(t.parts, func(a, b part) int {
		if a.Party < b.Party {
			return -1
		}
		return 1
	})
	for i, p := range t.parts {
		if i > 0 && p.Party == t.parts[i-1].Party {
			return Tx{}, fmt.Errorf("%w: %d appears twice", ErrParties, p.Party)
		}
		if l := c.lanes[p.Party]; l != nil && len(l.txs) >= c.cfg.Window {
			return Tx{}, fmt.Errorf("%w: participant %d", ErrBusy, p.Party)
		}
	}
	if len(parts) == 0 {
		return Tx{}, ErrParties
	}
	c.last++
	t.tx = Tx{c.epoch, c.last}
	c.add(now, t)
	c.nextAt = min(c.nextAt, t.deadline)
	for i := range t.parts {
		p := t.parts[i].Party
		if c.lanes[p] == nil {
			c.lanes[p] = &lane{}
		}
		c.lanes[p].txs = append(c.lanes[p].txs, laneEntry{seq: c.last})
		c.send(MsgPrepare, t, i)
	}
	return t.tx, nil
}

func (c *Coordinator) add(now Time, t *transaction) {
	c.txs[t.tx] = t
	c.order = append(c.order, t)
	c.again(now, t)
}

// again plans the next resend, from the first interval on.
func (c *Coordinator) again(now Time, t *transaction) {
	t.wait = c.cfg.Resend
	t.resendAt = now + t.wait
	c.nextAt = min(c.nextAt, t.resendAt)
}

// Abort gives a transaction up. It returns ErrDecided when that is not possible any more: the outcome, which may be
// a commit, comes or has come by Ready.
func (c *Coordinator) Abort(tx Tx, reason string) error {
	t := c.txs[tx]
	if t == nil || t.phase != preparing {
		return ErrDecided
	}
	c.abort(t, 0, reason)
	return nil
}

// Lost says that a participant will never be heard of again under this name, and can do nothing any more that would be
// seen. Its transactions that are undecided are aborted; of those that are committed it is waited for no longer.
func (c *Coordinator) Lost(p Party) {
	for _, t := range slices.Clone(c.order) {
		if c.txs[t.tx] != t {
			continue
		}
		i := t.find(p)
		switch {
		case i < 0 || t.parts[i].readOnly:
		case t.phase == preparing:
			c.abort(t, p, "lost")
		case t.phase == agreeing:
			t.parts[i].lost = true
		case t.phase == committing:
			c.acked(t, i)
		}
	}
}

// Owes reports whether a participant has not said yet that it knows of a commit: of one transaction or, when tx is zero, of
// any that an earlier coordinator has left. A transaction that is over is owed nothing.
func (c *Coordinator) Owes(p Party, tx Tx) bool {
	owes := func(t *transaction) bool {
		return slices.ContainsFunc(t.parts, func(q part) bool { return q.Party == p && !q.readOnly && (!q.answered || t.phase < committing) })
	}
	if tx != (Tx{}) {
		t := c.txs[tx]
		return t != nil && owes(t)
	}
	for _, t := range c.txs {
		if t.tx.Epoch != c.epoch && owes(t) {
			return true
		}
	}
	return false
}

// Idle reports whether there is no transaction that has not ended: then time changes nothing.
func (c *Coordinator) Idle() bool { return len(c.txs) == 0 }

// Step takes in a message. It returns ErrBadMessage for one that no participant sends.
func (c *Coordinator) Step(now Time, m Message) error {
	if m.Kind != MsgVote && m.Kind != MsgAck || m.Tx.Epoch == 0 || m.Tx.Seq == 0 ||
		m.Kind == MsgVote && (m.Vote < Yes || m.Vote > ReadOnly) || m.Tx.Epoch == c.epoch && m.Tx.Seq > c.last && !c.cfg.bugs.has(BugReuseEpoch) {
		return fmt.Errorf("%w: %v", ErrBadMessage, m)
	}
	if m.Tx.Epoch > c.epoch && !c.cfg.bugs.has(BugUnknownLater) {
		c.depose()
	}
	if c.deposed {
		return nil
	}
	t := c.txs[m.Tx]
	if t == nil {
		if m.Vote == Yes {
			c.out.Send = append(c.out.Send, c.message(MsgUnknown, m.Tx, m.Party))
		}
		return nil
	}
	i := t.find(m.Party)
	switch {
	case i < 0:
		// A participant that has voted read-only has no part in a commit that was found in the table.
		if t.phase == preparing {
			return fmt.Errorf("%w: of one that has no part: %v", ErrBadMessage, m)
		}
	case m.Kind == MsgVote:
		c.vote(t, i, m)
	case t.phase == preparing:
		broken("acknowledgements after the commit expected, found %v before", m)
	case t.phase == committing:
		c.acked(t, i)
	}
	return nil
}

func (t *transaction) find(p Party) int {
	for i := range t.parts {
		if t.parts[i].Party == p {
			return i
		}
	}
	return -1
}

func (c *Coordinator) vote(t *transaction, i int, m Message) {
	p := &t.parts[i]
	switch {
	case m.Vote == Yes && t.phase == committing && !p.answered && !p.readOnly:
		c.send(MsgCommit, t, i)
	case m.Vote == Yes && t.phase < committing && c.cfg.bugs.has(BugUnknownPending) && p.answered:
		c.send(MsgUnknown, t, i)
	case t.phase != preparing || p.answered && !c.cfg.bugs.has(BugCountVotes):
	case m.Vote == No:
		p.answered = true
		c.abort(t, m.Party, m.Reason)
	default:
		p.answered = true
		if m.Vote == ReadOnly {
			p.readOnly = true
			c.leave(t.tx, m.Party)
		}
		if t.waiting--; t.waiting == 0 {
			c.decide(t)
		}
	}
}

// decide is called with all votes in, none of them no.
func (c *Coordinator) decide(t *transaction) {
	parties := make([]Party, 0, len(t.parts))
	for i := range t.parts {
		p := &t.parts[i]
		if !p.answered && !c.cfg.bugs.has(BugCountVotes|BugVoteMissing) {
			broken("all votes expected before the commit of %v, that of %d is missing", t.tx, p.Party)
		}
		if !p.readOnly {
			parties = append(parties, p.Party)
		}
	}
	if len(parties) == 0 { // nobody changes anything, so nothing needs to be remembered
		c.out.Outcomes = append(c.out.Outcomes, Outcome{Tx: t.tx, Committed: true})
		c.drop(t)
		return
	}
	t.phase = agreeing
	c.out.Agree = append(c.out.Agree, Record{Kind: RecordCommit, Tx: t.tx, Parties: parties})
	if c.cfg.bugs.has(BugCommitUnagreed) {
		c.tell(t)
	}
}

// Agreed says that a record of Ready has been applied to the table, and whether it took effect. Records come in the log's
// order, those that were proposed twice perhaps twice.
func (c *Coordinator) Agreed(now Time, r Record, took bool) {
	t := c.txs[r.Tx]
	switch {
	case r.Kind == RecordForget:
		if t != nil && t.phase == forgetting {
			c.drop(t)
		}
	case r.Kind != RecordCommit:
		broken("a record of Ready expected, found %v", r)
	case !took:
		if t != nil && t.phase == agreeing {
			c.abort(t, 0, "the coordinator was deposed")
		}
		c.depose()
	case t == nil:
		// A second copy of a commit that had ended.
		c.out.Agree = append(c.out.Agree, Record{Kind: RecordForget, Tx: r.Tx})
	case t.phase == preparing:
		broken("a proposed commit expected, %v was never proposed", r)
	case t.phase == agreeing:
		c.out.Outcomes = append(c.out.Outcomes, Outcome{Tx: t.tx, Committed: true})
		t.parts = slices.DeleteFunc(t.parts, func(p part) bool { return p.readOnly })
		c.tell(t)
		c.again(now, t)
	}
}

// tell begins the second phase of a transaction that is committed.
func (c *Coordinator) tell(t *transaction) {
	t.phase, t.waiting = committing, len(t.parts)
	for i := range t.parts {
		t.parts[i].answered = false
		t.parts[i].Payload = nil
	}
	for i := range t.parts {
		if t.parts[i].lost {
			c.acked(t, i)
		} else {
			c.send(MsgCommit, t, i)
		}
	}
}

func (c *Coordinator) acked(t *transaction, i int) {
	if t.parts[i].answered {
		return
	}
	t.parts[i].answered = true
	c.leave(t.tx, t.parts[i].Party)
	t.waiting--
	if t.waiting == 0 || c.cfg.bugs.has(BugForgetEarly) {
		t.phase = forgetting
		c.out.Agree = append(c.out.Agree, Record{Kind: RecordForget, Tx: t.tx})
	}
}

// abort decides against a transaction that has not been proposed, or whose proposal took no effect. Nothing needs to be
// written: what nobody remembers is aborted.
func (c *Coordinator) abort(t *transaction, by Party, reason string) {
	c.drop(t)
	for i := range t.parts {
		if p := &t.parts[i]; p.Party != by && !p.readOnly {
			c.send(MsgAbort, t, i)
		}
	}
	c.out.Outcomes = append(c.out.Outcomes, Outcome{Tx: t.tx, By: by, Reason: reason})
}

// drop forgets a transaction.
func (c *Coordinator) drop(t *transaction) {
	for i := range t.parts {
		c.leave(t.tx, t.parts[i].Party)
	}
	delete(c.txs, t.tx)
	if len(c.order) > 2*len(c.txs)+16 {
		c.order = slices.DeleteFunc(c.order, func(t *transaction) bool { return c.txs[t.tx] != t })
	}
}

// leave notes that a participant has no part any more in a transaction.
func (c *Coordinator) leave(tx Tx, p Party) {
	l := c.lanes[p]
	if l == nil || tx.Epoch != c.epoch {
		return
	}
	at, found := slices.BinarySearchFunc(l.txs, tx.Seq, func(e laneEntry, seq uint64) int {
		return Tx{Seq: e.seq}.Compare(Tx{Seq: seq})
	})
	if !found {
		return
	}
	l.txs[at].done = true
	for len(l.txs) > 0 && l.txs[0].done {
		l.txs = l.txs[1:]
	}
	if len(l.txs) == 0 {
		delete(c.lanes, p)
	}
}

// low is the number of the first transaction in which a participant still has a part.
func (c *Coordinator) low(p Party) uint64 {
	if l := c.lanes[p]; l != nil {
		return l.txs[0].seq
	}
	return c.last + 1
}

func (c *Coordinator) message(k MessageKind, tx Tx, p Party) Message {
	return Message{Kind: k, Party: p, Tx: tx, Epoch: c.epoch, Low: c.low(p)}
}

func (c *Coordinator) send(k MessageKind, t *transaction, i int) {
	m := c.message(k, t.tx, t.parts[i].Party)
	if k == MsgPrepare {
		m.Payload = t.parts[i].Payload
	}
	c.out.Send = append(c.out.Send, m)
}

// depose stops the coordinator. What it has not proposed can never be committed.
func (c *Coordinator) depose() {
	if c.deposed {
		return
	}
	c.deposed, c.out.Deposed = true, true
	for _, t := range slices.Clone(c.order) {
		if c.txs[t.tx] == t && t.phase == preparing {
			c.abort(t, 0, "the coordinator was deposed")
		}
	}
}

// Tick lets time pass: late transactions are aborted, and messages are sent again to those that have not answered.
func (c *Coordinator) Tick(now Time) {
	if c.deposed || now < c.nextAt {
		return
	}
	c.nextAt = now + c.cfg.ResendMax
	for _, t := range slices.Clone(c.order) {
		if c.txs[t.tx] == t {
			c.tick(now, t)
		}
	}
}

func (c *Coordinator) tick(now Time, t *transaction) {
	late := now >= t.deadline
	switch {
	case late && t.phase == preparing && c.cfg.bugs.has(BugVoteMissing) && t.waiting == 1:
		c.decide(t)
		return
	case late && t.phase == preparing, late && t.phase == agreeing && c.cfg.bugs.has(BugAbortWhileAgreeing):
		by := Party(0)
		if i := slices.IndexFunc(t.parts, func(p part) bool { return !p.answered }); i >= 0 {
			by = t.parts[i].Party
		}
		c.abort(t, by, "no vote in time")
		return
	case now >= t.resendAt && (t.phase == preparing || t.phase == committing):
		kind := MsgPrepare
		if t.phase == committing {
			kind = MsgCommit
		}
		for i := range t.parts {
			if !t.parts[i].answered {
				c.send(kind, t, i)
			}
		}
		t.wait = min(2*t.wait, c.cfg.ResendMax)
		t.resendAt = now + t.wait
	}
	if t.phase == preparing {
		c.nextAt = min(c.nextAt, t.deadline)
	}
	if t.phase == preparing || t.phase == committing {
		c.nextAt = min(c.nextAt, t.resendAt)
	}
}

// HasReady reports whether Ready has anything to say.
func (c *Coordinator) HasReady() bool {
	o := &c.out
	return len(o.Agree) > 0 || len(o.Send) > 0 || len(o.Outcomes) > 0 || o.Deposed
}

// Ready returns what the driver has to do next. It must be called only to do it: what it returns is not returned again.
func (c *Coordinator) Ready() CoordinatorReady {
	r := c.out
	c.out = CoordinatorReady{}
	return r
}
