package replica

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// Namespace 0 holds sessions:
//
//	'n'                      the last session ID given out (8 bytes)
//	's' session              SessionRow
//	'e' session slot         uvarint ack, then of each of the session's commands
//	                         in the slot's entry: uvarint seq, uvarint length, result
//	'r' session seq          uvarint ack, result: as builds before 'e' wrote them
//
// A row of results carries what the session has acknowledged, so that an entry
// costs a session one row written and, as a rule, one removed, however many of
// its commands the entry holds.
const (
	keyLastSession = 'n'
	keySession     = 's'
	keyResults     = 'e'
	keyResult      = 'r'
)

// sessionWindow is how far a session's seq may be ahead of what it has
// acknowledged, which bounds the results kept for it.
const sessionWindow = 1 << 14

func sessionKey(id sys.SessionID) []byte {
	return binary.BigEndian.AppendUint64([]byte{keySession}, uint64(id))
}

// resultRow names a row of results: kind is keyResults or keyResult, n the slot
// or seq behind the session.
type resultRow struct {
	kind byte
	n    uint64
	last uint64 // the highest seq in it
}

func (r resultRow) key(id sys.SessionID) []byte {
	b := make([]byte, 0, 17)
	b = append(b, r.kind)
	b = binary.BigEndian.AppendUint64(b, uint64(id))
	return binary.BigEndian.AppendUint64(b, r.n)
}

// session mirrors a session's rows in memory. Only the applier uses what stands
// before heard.
type session struct {
	id        sys.SessionID
	ack       uint64
	results   map[uint64][]byte
	rows      []resultRow // in the order in which they were written
	fresh     []byte      // results of the current entry, as their row will hold them
	freshLast uint64
	heard     atomic.Int64 // env.Clock.Boot of its last sign of life, ns
}

// sessions are a group's. The map is changed by the applier and read by
// others too.
type sessions struct {
	mu   sync.RWMutex
	byID map[sys.SessionID]*session
	last sys.SessionID
}

func (s *sessions) get(id sys.SessionID) *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byID[id]
}

func (s *sessions) count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byID)
}

// touchAll counts now as a sign of life of every session: a new leader does
// not know when its predecessor heard of them.
func (s *sessions) touchAll(now time.Duration) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, x := range s.byID {
		x.heard.Store(int64(now))
	}
}

// idle returns the sessions without a sign of life since before, in order.
func (s *sessions) idle(before time.Duration) []uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ids []uint64
	for id, x := range s.byID {
		if x.heard.Load() < int64(before) {
			ids = append(ids, uint64(id))
		}
	}
	slices.Sort(ids)
	return ids
}

// load reads the sessions from the state.
func (s *sessions) load(db *pebble.DB, group sys.GroupID, now time.Duration) error {
	byID := map[sys.SessionID]*session{}
	var last sys.SessionID
	var bad error
	v := &view{reader: db, prefix: namespacePrefix(group, rsm.NSSession)}
	// Results sort before sessions, so those are met first.
	err := v.Scan(nil, nil, func(key, value []byte) bool {
		bad = loadRow(byID, &last, key, value)
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return err
	}
	for _, x := range byID {
		x.heard.Store(int64(now))
		for seq := range x.results {
			if seq <= x.ack {
				delete(x.results, seq)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID, s.last = byID, last
	return nil
}

func loadRow(byID map[sys.SessionID]*session, last *sys.SessionID, key, value []byte) error {
	corrupt := func() error {
		return sys.E(sys.Op("replica.sessions"), sys.Corrupt, fmt.Sprintf("row %x", key))
	}
	entry := func(id sys.SessionID) *session {
		x := byID[id]
		if x == nil {
			x = &session{id: id, results: map[uint64][]byte{}}
			byID[id] = x
		}
		return x
	}
	switch {
	case len(key) == 1 && key[0] == keyLastSession && len(value) == 8:
		*last = sys.SessionID(binary.BigEndian.Uint64(value))
	case len(key) == 9 && key[0] == keySession:
		var row replicapb.SessionRow
		if err := pb.Unmarshal(value, &row); err != nil {
			return corrupt()
		}
		x := entry(sys.SessionID(binary.BigEndian.Uint64(key[1:])))
		x.ack = max(x.ack, row.Ack)
	case len(key) == 17 && (key[0] == keyResults || key[0] == keyResult):
		x := entry(sys.SessionID(binary.BigEndian.Uint64(key[1:])))
		if !x.loadResults(resultRow{kind: key[0], n: binary.BigEndian.Uint64(key[9:])}, slices.Clone(value)) {
			return corrupt()
		}
	default:
		return corrupt()
	}
	return nil
}

// loadResults takes in a row of results. It is false when the row makes no sense.
func (s *session) loadResults(row resultRow, value []byte) bool {
	ack, n := binary.Uvarint(value)
	if n <= 0 {
		return false
	}
	s.ack = max(s.ack, ack)
	value = value[n:]
	if row.kind == keyResult {
		row.last = row.n
		s.results[row.n] = value
		value = nil
	}
	for len(value) > 0 {
		seq, n := binary.Uvarint(value)
		if n <= 0 {
			return false
		}
		size, k := binary.Uvarint(value[n:])
		if k <= 0 || size > uint64(len(value)-n-k) {
			return false
		}
		value = value[n+k:]
		s.results[seq] = value[:size:size]
		value = value[size:]
		row.last = max(row.last, seq)
	}
	s.rows = append(s.rows, row)
	return true
}

// begin looks a command up in its session. done says that the answer is known:
// the command was applied before, or it must not be.
func (a *applier) begin(c *rsm.Command) (s *session, out outcome, done bool) {
	const op = sys.Op("replica.Apply")
	s = a.sessions.get(c.Session)
	switch {
	case s == nil:
		return nil, outcome{err: sys.E(op, sys.SessionGone, sessionSubject(c.Session))}, true
	case c.Seq == 0 || c.Ack >= c.Seq:
		return s, outcome{err: sys.E(op, sys.Invalid, sessionSubject(c.Session),
			fmt.Sprintf("seq %d with ack %d", c.Seq, c.Ack))}, true
	case c.Seq <= s.ack:
		return s, outcome{err: sys.E(op, sys.Invalid, sessionSubject(c.Session),
			fmt.Sprintf("seq %d was acknowledged before, up to %d", c.Seq, s.ack))}, true
	}
	if r, ok := s.results[c.Seq]; ok {
		return s, outcome{result: r, repeated: true}, true
	}
	if c.Seq > max(s.ack, c.Ack)+sessionWindow {
		return s, outcome{err: sys.E(op, sys.Busy, sessionSubject(c.Session),
			fmt.Sprintf("seq %d is more than %d ahead of what was acknowledged, %d", c.Seq, sessionWindow, s.ack))}, true
	}
	return s, outcome{}, false
}

func sessionSubject(id sys.SessionID) sys.Subject {
	return sys.Subject(fmt.Sprintf("session %d", uint64(id)))
}

// finish records a command's result in its session.
func (a *applier) finish(s *session, c *rsm.Command, result []byte) {
	if c.Ack > s.ack {
		a.acknowledge(a.tx(rsm.NSSession), s, c.Ack)
	}
	if len(s.fresh) == 0 {
		a.fresh = append(a.fresh, s)
	}
	s.fresh = binary.AppendUvarint(s.fresh, c.Seq)
	s.fresh = binary.AppendUvarint(s.fresh, uint64(len(result)))
	s.fresh = append(s.fresh, result...)
	s.freshLast = max(s.freshLast, c.Seq)
	s.results[c.Seq] = slices.Clone(result)
	s.heard.Store(int64(a.now))
}

// keepResults writes what finish has gathered of the entry in slot.
func (a *applier) keepResults(slot uint64) {
	for i, s := range a.fresh {
		a.fresh[i] = nil
		if len(s.fresh) == 0 {
			continue // the session ended within the entry
		}
		row := resultRow{kind: keyResults, n: slot, last: s.freshLast}
		value := binary.AppendUvarint(make([]byte, 0, len(s.fresh)+binary.MaxVarintLen64), s.ack)
		a.tx(rsm.NSSession).Set(row.key(s.id), append(value, s.fresh...))
		s.rows = append(s.rows, row)
		s.fresh, s.freshLast = s.fresh[:0], 0
	}
	a.fresh = a.fresh[:0]
}

// acknowledge forgets results up to ack, and removes the rows at the front that
// hold nothing else.
func (a *applier) acknowledge(tx *namespaceTx, s *session, ack uint64) {
	if ack-s.ack <= uint64(len(s.results)) {
		for seq := s.ack + 1; seq <= ack; seq++ {
			delete(s.results, seq)
		}
	} else {
		maps.DeleteFunc(s.results, func(seq uint64, _ []byte) bool { return seq <= ack })
	}
	s.ack = ack
	n := 0
	for n < len(s.rows) && s.rows[n].last <= ack {
		tx.Delete(s.rows[n].key(s.id))
		n++
	}
	s.rows = slices.Delete(s.rows, 0, n)
}

// applySession runs a command of namespace 0.
func (a *applier) applySession(st rsm.Stamp, body []byte) (result []byte, err error) {
	const op = sys.Op("replica.Session")
	var cmd replicapb.SessionCommand
	if err := pb.Unmarshal(body, &cmd); err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	switch {
	case cmd.GetOpen() != nil:
		id, err := a.openSession(st, cmd.GetOpen().Name)
		if err != nil {
			return nil, err
		}
		return pb.Marshal(&replicapb.SessionResult{Session: uint64(id)}), nil
	case cmd.GetEnd() != nil:
		for _, id := range cmd.GetEnd().Sessions {
			if err := a.endSession(st, sys.SessionID(id)); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	return nil, sys.E(op, sys.NotSupported, "an unknown command: this replica runs an older koinon")
}

func (a *applier) openSession(st rsm.Stamp, name string) (sys.SessionID, error) {
	row := pb.Marshal(&replicapb.SessionRow{Name: name, OpenedNs: st.TimeNs})
	s := &session{results: map[uint64][]byte{}}
	s.heard.Store(int64(a.now))
	a.sessions.mu.Lock()
	a.sessions.last++
	s.id = a.sessions.last
	a.sessions.byID[s.id] = s
	a.sessions.mu.Unlock()
	tx := a.tx(rsm.NSSession)
	tx.Set([]byte{keyLastSession}, binary.BigEndian.AppendUint64(nil, uint64(s.id)))
	tx.Set(sessionKey(s.id), row)
	return s.id, tx.err
}

// endSession removes a session with its results and tells the machines. That
// it is gone already is fine.
func (a *applier) endSession(st rsm.Stamp, id sys.SessionID) error {
	s := a.sessions.get(id)
	if s == nil {
		return nil
	}
	tx := a.tx(rsm.NSSession)
	for _, row := range s.rows {
		tx.Delete(row.key(id))
	}
	s.fresh = s.fresh[:0] // of commands in the same entry
	tx.Delete(sessionKey(id))
	a.sessions.mu.Lock()
	delete(a.sessions.byID, id)
	a.sessions.mu.Unlock()
	for _, ns := range a.order {
		if e, ok := a.machines[ns].(rsm.SessionEnder); ok {
			mtx := a.tx(ns)
			e.SessionEnded(mtx, st, id)
			if mtx.err != nil {
				return mtx.err
			}
		}
	}
	return tx.err
}

// endIdle ends the sessions that nothing was heard of since before. The leader
// decides it by its own clock; that it is agreed makes it true everywhere.
func (g *Group) endIdle(before time.Duration) {
	ids := g.sessions.idle(before)
	if len(ids) == 0 {
		return
	}
	body := pb.Marshal(endCommand(true, ids))
	if err := g.enqueue(&rsm.Command{NS: rsm.NSSession, Body: body}, nil); err != nil {
		g.host.cfg.Logger.Debug("idle sessions are not ended yet", "group", g.id, "err", err)
	}
}
