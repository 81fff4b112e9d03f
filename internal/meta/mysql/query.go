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
	v, err := e.View(ctx)
	if err != nil {
		return nil, err
	}
	a, err := v.Query(ctx, q)
	return a, errors.Join(err, v.Close())
}

// View is the tree as it was at one point. It is used by one goroutine.
type View struct {
	e  *Engine
	at int // the host in use when it was opened
	tx *sql.Tx
}

// View opens a view, which the caller closes: it holds a connection, and the
// server keeps what changes meanwhile.
func (e *Engine) View(ctx context.Context) (*View, error) {
	var last error
	for range e.hosts.addrs {
		at := e.hosts.now()
		// The transaction outlives ctx, which is that of its opening.
		tx, err := e.db.BeginTx(context.WithoutCancel(ctx), &sql.TxOptions{ReadOnly: true})
		if err == nil {
			return &View{e: e, at: at, tx: tx}, nil
		}
		last = err
		if !elsewhere(err) {
			break
		}
		e.moveOn(at, err)
	}
	return nil, e.explain("mysql.Query", last)
}

// Query reads the view. A refusal is in the Answer.
func (v *View) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	t := &Tx{ctx: ctx, st: v.e.st, tx: v.tx, ahead: map[sys.Ino]*metapb.Attr{}}
	a, err := meta.Read(t, q)
	if err != nil {
		v.e.moveOn(v.at, err)
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
