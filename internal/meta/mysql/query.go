package mysql

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// queryMax bounds a query: whoever asks is to hear in time that the server hangs,
// and another one has been tried by then.
const queryMax = hostSilence + hostTimeout

// Query reads the tree as it is at one point between call and return. A
// refusal is in the Answer.
func (e *Engine) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, queryMax)
	defer cancel()
	v, err := e.View(ctx)
	if err != nil {
		return nil, err
	}
	a, err := v.Query(ctx, q)
	return a, errors.Join(err, v.Close())
}

// Query is Engine.Query for as long as the leader is in office, which the caller
// finds out afterwards. Nobody else changes the rows: what it knows it need not
// ask, and when it does not change any either meanwhile, single statements read one point without a transaction, which
// would cost two more round trips.
func (l *Leader) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	began := l.began.Load()
	if began != l.seq.Load() || l.e.lagging() {
		return l.e.Query(ctx, q)
	}
	if a := l.answer(q); a != nil {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(ctx, queryMax)
	defer cancel()
	a, err := meta.Read(&Tx{ctx: ctx, st: l.e.st, ahead: map[sys.Ino]*metapb.Attr{}}, q)
	if err != nil || l.began.Load() != began {
		return l.e.Query(ctx, q)
	}
	return a, nil
}

// View is the tree as it was at one point. It is used by one goroutine.
type View struct {
	e    *Engine
	turn int // of the host that it is at
	tx   *sql.Tx
	end  context.CancelFunc // of what tx lives in
}

// View opens a view, which the caller closes: it holds a connection, and the
// server keeps what changes meanwhile.
func (e *Engine) View(ctx context.Context) (*View, error) {
	var err error
	for range e.hosts.addrs {
		turn, began := e.hosts.now(), time.Now()
		v := &View{e: e, turn: turn}
		if err = v.begin(ctx); err == nil {
			e.answered()
			return v, nil
		}
		// That somebody has no time left says little of the server.
		if !elsewhere(err) || ctx.Err() != nil && time.Since(began) < 2*hostTimeout {
			break
		}
		e.moveOn(turn, err)
	}
	return nil, e.explain("mysql.Query", err)
}

// begin begins a transaction that reads what has been acknowledged.
func (v *View) begin(ctx context.Context) (err error) {
	// It outlives ctx, which is that of its opening.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	opened := context.AfterFunc(ctx, end)
	defer func() {
		if !opened() && err == nil {
			err = errors.Join(ctx.Err(), v.Close())
		}
		if err != nil {
			end()
		}
	}()
	v.end = end
	if v.tx, err = v.e.db.BeginTx(life, &sql.TxOptions{ReadOnly: true}); err != nil {
		if ctx.Err() != nil { // which is why life ended
			err = ctx.Err()
		}
		return err
	}
	if !v.e.lagging() {
		return nil
	}
	seen, seq := v.e.seen.Load(), uint64(0)
	err = v.tx.QueryRowContext(ctx, "SELECT seq FROM fence WHERE id=1").Scan(&seq)
	if err == nil && seq < seen {
		err = errLags
	}
	if err != nil {
		return errors.Join(err, v.tx.Rollback())
	}
	return nil
}

// Query reads the view. A refusal is in the Answer.
func (v *View) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	t := &Tx{ctx: ctx, st: v.e.st, tx: v.tx, ahead: map[sys.Ino]*metapb.Attr{}}
	a, err := meta.Read(t, q)
	if err != nil {
		v.e.moveOn(v.turn, err)
		return nil, v.e.explain("mysql.Query", err)
	}
	return a, nil
}

// Close lets go of the view. That the server is away is fine.
func (v *View) Close() error {
	defer v.end()
	err := v.tx.Rollback()
	if errors.Is(err, sql.ErrTxDone) || lost(err) {
		return nil
	}
	return err
}
