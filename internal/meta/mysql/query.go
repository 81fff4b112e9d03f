package mysql

import (
	"context"
	"database/sql"
	"errors"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Query reads the tree as it is at one point between call and return. A
// refusal is in the Answer.
func (e *Engine) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, silence) // who asks is told in time why there is no answer
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
	ctx, cancel := context.WithTimeout(ctx, silence)
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
}

// View opens a view, which the caller closes: it holds a connection, and the
// server keeps what changes meanwhile.
func (e *Engine) View(ctx context.Context) (*View, error) {
	var err error
	for range e.hosts.addrs {
		turn := e.hosts.now()
		var tx *sql.Tx
		if tx, err = e.begin(ctx); err == nil {
			return &View{e: e, turn: turn, tx: tx}, nil
		}
		if !elsewhere(err) {
			break
		}
		e.moveOn(turn, err)
	}
	return nil, e.explain("mysql.Query", err)
}

// Database is the engine as others use it that know no engine.
func (e *Engine) Database() meta.Database { return database{e} }

type database struct{ *Engine }

// Lead implements meta.Database.
func (d database) Lead(ctx context.Context, epoch uint64, applied meta.Applied) (meta.DatabaseLeader, error) {
	l, err := d.Engine.Lead(ctx, epoch, applied)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// View implements meta.Database.
func (d database) View(ctx context.Context) (meta.DatabaseView, error) {
	v, err := d.Engine.View(ctx)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// begin begins a transaction that reads what has been acknowledged.
func (e *Engine) begin(ctx context.Context) (*sql.Tx, error) {
	// It outlives ctx, which is that of its opening.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	opened := context.AfterFunc(ctx, end)
	tx, err := e.db.BeginTx(life, &sql.TxOptions{ReadOnly: true})
	if !opened() && err == nil {
		err = errors.Join(context.Cause(ctx), tx.Rollback())
	}
	if err != nil {
		end()
		return nil, err
	}
	if !e.lagging() {
		return tx, nil
	}
	seen, seq := e.seen.Load(), uint64(0)
	err = tx.QueryRowContext(ctx, "SELECT seq FROM fence WHERE id=1").Scan(&seq)
	if err == nil && seq < seen {
		err = errLags
	}
	if err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
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
	err := v.tx.Rollback()
	if errors.Is(err, sql.ErrTxDone) || lost(err) {
		return nil
	}
	return err
}
