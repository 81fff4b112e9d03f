package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// resultsMax is how many results a session may leave unacknowledged.
	resultsMax = 1 << 14
	// acksMin is how many results are deleted at once when their session has
	// acknowledged them: it costs a statement.
	acksMin = 64
)

// carried is what one transaction carries.
type carried struct {
	l       *Leader
	tx      *Tx
	rows    *writes
	nowNs   int64
	ran     int
	results map[sys.SessionID]map[uint64][]byte
	acks    map[sys.SessionID]uint64
	ended   []sys.SessionID
}

// run runs one command on the rows as those before it left them, unless it was
// run before.
func (b *carried) run(w *waiting) error {
	r := w.req
	w.reply, w.err = meta.Reply{}, nil
	if r.Session != 0 {
		if r.Seq == 0 || r.Ack >= r.Seq {
			w.err = sys.E(sys.Op("mysql.Do"), sys.Invalid, fmt.Sprintf("session %d: seq %d with ack %d", r.Session, r.Seq, r.Ack))
			return nil
		}
		known, ok := b.l.sessions[r.Session][r.Seq]
		if !ok {
			known, ok = b.results[r.Session][r.Seq]
		}
		if ok {
			w.reply.Result = known
			return nil
		}
		if len(b.l.sessions[r.Session]) >= resultsMax {
			w.err = sys.E(sys.Op("mysql.Do"), sys.Busy, fmt.Sprintf("session %d has %d results it does not acknowledge", r.Session, resultsMax))
			return nil
		}
	}
	cmd := &metapb.Command{}
	if err := pb.Unmarshal(r.Body, cmd); err != nil {
		return err
	}
	cmd.TimeNs = b.nowNs
	b.nowNs++
	res, outcome, err := meta.Run(b.tx, cmd)
	if err != nil {
		return err
	}
	b.ran++
	raw := pb.Marshal(res)
	w.reply = meta.Reply{Result: raw, Outcome: outcome}
	if r.Session != 0 {
		keepResult(b.results, r.Session, r.Seq, raw)
		b.acks[r.Session] = max(b.acks[r.Session], r.Ack)
	}
	if r.Ends != 0 {
		b.ended = append(b.ended, r.Ends)
	}
	b.l.applied(b.l.seq.Load()+1, r, outcome)
	return nil
}

// script is the transaction as text. The fence's row is what makes it the
// leader's, and, autocommit being off, begins it: its seq must not be NULL, which it becomes under another epoch, or
// when this very transaction has been committed before. A Galera server that
// gives up a transaction for another server's may tell so one statement late,
// when what follows is in no transaction or in another one: so it is looked at
// again before the end.
func (b *carried) script(seq uint64) (*script, error) {
	s := &script{}
	s.add(fmt.Sprintf("UPDATE fence SET seq=IF(epoch=%d AND seq=%d,%d,NULL), time_ns=%d WHERE id=1",
		b.l.epoch, seq, seq+1, b.nowNs))
	if err := b.rows.write(s, &b.l.e.tails, b.l.cache); err != nil {
		return nil, err
	}
	for id, ack := range b.acks {
		// From the first that is there: rows that were deleted a moment ago are
		// still in the server's way.
		first := ack + 1
		for n := range b.l.sessions[id] {
			first = min(first, n)
		}
		if ack+1-first < acksMin {
			delete(b.acks, id)
		} else {
			s.add(fmt.Sprintf("DELETE FROM results WHERE session=%d AND seq BETWEEN %d AND %d", uint64(id), first, ack))
		}
	}
	for id, results := range b.results {
		for n, result := range results {
			s.row("INSERT INTO results (session, seq, result) VALUES ", "", uint64(id), n, result)
		}
	}
	s.end()
	for _, id := range b.ended {
		s.add(fmt.Sprintf("DELETE FROM results WHERE session=%d", uint64(id)))
	}
	if b.l.e.galera {
		s.add(fmt.Sprintf("UPDATE fence SET seq=IF(epoch=%d AND seq=%d,seq,NULL) WHERE id=1", b.l.epoch, seq+1))
	}
	s.add("COMMIT")
	s.cut()
	return s, nil
}

// commit carries the rows into the database. The same text goes there as often
// as it takes: what it was computed from has not changed while the fence holds.
func (l *Leader) commit(ctx context.Context, b *carried) error {
	seq := l.seq.Load()
	s, err := b.script(seq)
	if err != nil {
		return err
	}
	l.began.Store(seq + 1)
	var before error // of an earlier try
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		turn := l.e.hosts.now()
		if l.e.lagging() && turn != l.turn { // it may rest on what a replica holds
			return errMoved
		}
		err := l.send(ctx, s)
		if number(err) == errNull {
			var committed bool
			if committed, err = l.verdict(ctx, seq); err == nil && !committed {
				err = errGivenUp
			}
		}
		if err == nil {
			break
		}
		if before != nil && errors.Is(err, context.DeadlineExceeded) { // that there is no time left is not why
			return before
		}
		if ctx.Err() != nil || !passing(err) {
			return err
		}
		before = err
		l.e.cfg.Log.Debug("a transaction is sent again", "err", l.e.explain("mysql.Commit", err))
		l.e.moveOn(turn, err)
		sleep(ctx, pause)
	}
	l.publish(b, seq+1)
	return nil
}

// verdict tells why the fence refused the transaction after seq: it had been
// committed before, with a reply that was lost; or it has not, and may be sent
// again; or a later leader is in office.
func (l *Leader) verdict(ctx context.Context, seq uint64) (committed bool, err error) {
	var epoch, at uint64
	err = l.inTx(ctx, func(conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, "SELECT epoch, seq FROM fence WHERE id=1").Scan(&epoch, &at)
	})
	switch {
	case err != nil:
		return false, err
	case epoch > l.epoch:
		return false, l.deposed()
	case epoch == l.epoch && (at == seq || at == seq+1):
		return at == seq+1, nil
	}
	// Nobody but this leader moves the fence of its epoch.
	l.loaded = false
	return false, sys.E(sys.Op("mysql.Fence"), sys.Unavailable, fmt.Sprintf("expected epoch %d and transaction %d or the next one, found %d and %d: "+
		"the database has lost what it had acknowledged, or was changed by hand", l.epoch, seq, epoch, at))
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (l *Leader) publish(b *carried, seq uint64) {
	l.cache.learn(b.rows)
	for id, ack := range b.acks {
		for n := range l.sessions[id] {
			if n <= ack {
				delete(l.sessions[id], n)
			}
		}
	}
	for id, results := range b.results {
		for n, result := range results {
			keepResult(l.sessions, id, n, result)
		}
	}
	for _, id := range b.ended {
		delete(l.sessions, id)
	}
	l.lastNs = b.nowNs
	l.seq.Store(seq)
	l.e.seen.Store(seq)
}

// send sends a transaction. After an error nothing of it is left open.
func (l *Leader) send(ctx context.Context, s *script) error {
	return l.withConn(ctx, func(conn *sql.Conn) error {
		for _, part := range s.done {
			if _, err := conn.ExecContext(ctx, string(part)); err != nil {
				return err
			}
		}
		return nil
	})
}

// inTx runs fn in a transaction of the leader's connection.
func (l *Leader) inTx(ctx context.Context, fn func(*sql.Conn) error) error {
	return l.withConn(ctx, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, "START TRANSACTION"); err != nil {
			return err
		}
		if err := fn(conn); err != nil {
			return err
		}
		_, err := conn.ExecContext(ctx, "COMMIT")
		return err
	})
}

// withConn runs fn on the leader's connection. After an error no transaction
// is left open.
func (l *Leader) withConn(ctx context.Context, fn func(*sql.Conn) error) (err error) {
	conn, err := l.e.writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := conn.Close(); !errors.Is(cerr, sql.ErrConnDone) { // which it is when it was dropped
			err = errors.Join(err, cerr)
		}
	}()
	if err := fn(conn); err != nil {
		return errors.Join(err, rollback(conn))
	}
	return nil
}

// errDrop makes the pool give up a connection.
var errDrop = driver.ErrBadConn

// rollbackWait is how long a server may take to end a transaction in order.
const rollbackWait = time.Second

// rollback ends an open transaction, with its connection if need be.
func rollback(conn *sql.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), rollbackWait)
	defer cancel()
	if _, err := conn.ExecContext(ctx, "ROLLBACK"); err == nil {
		return nil
	}
	// A raw function that fails this way makes the pool drop the connection.
	err := conn.Raw(func(any) error { return errDrop })
	if errors.Is(err, errDrop) || errors.Is(err, sql.ErrConnDone) {
		return nil
	}
	return err
}
