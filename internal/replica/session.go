package replica

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/sys"
	"google.golang.org/protobuf/proto"
)

// Namespace 0 holds sessions:
//
//	'n'                      the last session ID given out (8 bytes)
//	's' session              SessionRow
//	'r' session seq          uvarint ack, then the command's result
//
// A result's row carries what its command acknowledged, so that a command
// costs one row written and, as a rule, one removed.
const (
	keyLastSession = 'n'
	keySession     = 's'
	keyResult      = 'r'
)

// sessionWindow is how far a session's seq may be ahead of what it has
// acknowledged, which bounds the results kept for it.
const sessionWindow = 1 << 14

func sessionKey(id sys.SessionID) []byte {
	return binary.BigEndian.AppendUint64([]byte{keySession}, uint64(id))
}

func resultKey(id sys.SessionID, seq uint64) []byte {
	b := make([]byte, 0, 17)
	b = append(b, keyResult)
	b = binary.BigEndian.AppendUint64(b, uint64(id))
	return binary.BigEndian.AppendUint64(b, seq)
}

// session mirrors a session's rows in memory. Only the applier uses results
// and ack.
type session struct {
	id      sys.SessionID
	ack     uint64
	results map[uint64][]byte
	heard   atomic.Int64 // env.Clock.Boot of its last sign of life, ns
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
	v := &view{reader: db, prefix: namespacePrefix(group, NSSession)}
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
		if err := proto.Unmarshal(value, &row); err != nil {
			return corrupt()
		}
		x := entry(sys.SessionID(binary.BigEndian.Uint64(key[1:])))
		x.ack = max(x.ack, row.Ack)
	case len(key) == 17 && key[0] == keyResult:
		ack, n := binary.Uvarint(value)
		if n <= 0 {
			return corrupt()
		}
		x := entry(sys.SessionID(binary.BigEndian.Uint64(key[1:])))
		x.ack = max(x.ack, ack)
		x.results[binary.BigEndian.Uint64(key[9:])] = slices.Clone(value[n:])
	default:
		return corrupt()
	}
	return nil
}

// begin looks a command up in its session. done says that the answer is known:
// the command was applied before, or it must not be.
func (a *applier) begin(c *Command) (s *session, out outcome, done bool) {
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
func (a *applier) finish(s *session, c *Command, result []byte) {
	tx := a.tx(NSSession)
	if c.Ack > s.ack {
		a.acknowledge(tx, s, c.Ack)
	}
	row := binary.AppendUvarint(make([]byte, 0, len(result)+binary.MaxVarintLen64), s.ack)
	n := len(row)
	row = append(row, result...)
	s.results[c.Seq] = row[n:]
	tx.Set(resultKey(s.id, c.Seq), row)
	s.heard.Store(int64(a.now))
}

// acknowledge forgets results up to ack.
func (a *applier) acknowledge(tx *Tx, s *session, ack uint64) {
	if ack-s.ack <= uint64(len(s.results)) {
		for seq := s.ack + 1; seq <= ack; seq++ {
			if _, ok := s.results[seq]; ok {
				delete(s.results, seq)
				tx.Delete(resultKey(s.id, seq))
			}
		}
	} else {
		var gone []uint64
		for seq := range s.results {
			if seq <= ack {
				gone = append(gone, seq)
			}
		}
		slices.Sort(gone)
		for _, seq := range gone {
			delete(s.results, seq)
			tx.Delete(resultKey(s.id, seq))
		}
	}
	s.ack = ack
}

// applySession runs a command of namespace 0.
func (a *applier) applySession(st Stamp, body []byte) (result []byte, err error) {
	const op = sys.Op("replica.Session")
	var cmd replicapb.SessionCommand
	if err := proto.Unmarshal(body, &cmd); err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	switch {
	case cmd.GetOpen() != nil:
		id, err := a.openSession(st, cmd.GetOpen().Name)
		if err != nil {
			return nil, err
		}
		return proto.Marshal(&replicapb.SessionResult{Session: uint64(id)})
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

func (a *applier) openSession(st Stamp, name string) (sys.SessionID, error) {
	row, err := proto.MarshalOptions{Deterministic: true}.Marshal(
		&replicapb.SessionRow{Name: name, OpenedNs: st.TimeNs})
	if err != nil {
		return 0, err
	}
	s := &session{results: map[uint64][]byte{}}
	s.heard.Store(int64(a.now))
	a.sessions.mu.Lock()
	a.sessions.last++
	s.id = a.sessions.last
	a.sessions.byID[s.id] = s
	a.sessions.mu.Unlock()
	tx := a.tx(NSSession)
	tx.Set([]byte{keyLastSession}, binary.BigEndian.AppendUint64(nil, uint64(s.id)))
	tx.Set(sessionKey(s.id), row)
	return s.id, tx.err
}

// endSession removes a session with its results and tells the machines. That
// it is gone already is fine.
func (a *applier) endSession(st Stamp, id sys.SessionID) error {
	s := a.sessions.get(id)
	if s == nil {
		return nil
	}
	tx := a.tx(NSSession)
	seqs := make([]uint64, 0, len(s.results))
	for seq := range s.results {
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	for _, seq := range seqs {
		tx.Delete(resultKey(id, seq))
	}
	tx.Delete(sessionKey(id))
	a.sessions.mu.Lock()
	delete(a.sessions.byID, id)
	a.sessions.mu.Unlock()
	for _, ns := range a.order {
		if e, ok := a.machines[ns].(SessionEnder); ok {
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
	body, err := proto.Marshal(endCommand(true, ids))
	if err != nil {
		panic("replica: a session command that can be encoded expected, found " + err.Error())
	}
	if err := g.enqueue(&Command{NS: NSSession, Body: body}, nil); err != nil {
		g.host.cfg.Logger.Debug("idle sessions are not ended yet", "group", g.id, "err", err)
	}
}
