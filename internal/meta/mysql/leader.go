package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/sys"
)

// batchMax is how many commands one transaction carries at most.
const batchMax = 256

// Leader runs commands in the database for one leadership. Its methods may be
// called concurrently.
type Leader struct {
	e       *Engine
	epoch   uint64
	applied meta.Applied
	queue   chan *waiting
	stop    context.CancelFunc
	ended   chan struct{} // closed when nobody runs commands any more
	done    sync.WaitGroup
	seq     atomic.Uint64 // the last transaction that is committed
	began   atomic.Uint64 // the last one that is sent; seq while none is on its way
	cache   *cache

	// Only the goroutine that runs commands uses these.
	loaded   bool // what follows is what the database holds
	turn     int  // of the host that it was read from
	sessions map[sys.SessionID]map[uint64][]byte
	lastNs   int64
	fenced   error  // a later leader is in office
	told     string // what the log says about the present trouble
}

type waiting struct {
	req   *meta.Request
	reply meta.Reply
	err   error
	done  chan struct{}
}

// Lead takes office: it raises the fence to epoch, after which no transaction
// of a lower one commits, and returns a leader, which the caller closes. It
// fails with NotLeader when the fence is higher. applied may be nil.
func (e *Engine) Lead(ctx context.Context, epoch uint64, applied meta.Applied) (*Leader, error) {
	if applied == nil {
		applied = func(uint64, *meta.Request, *meta.Outcome) {}
	}
	l := &Leader{e: e, epoch: epoch, applied: applied, cache: newCache(), queue: make(chan *waiting, batchMax), ended: make(chan struct{})}
	turn := e.hosts.now()
	if err := l.load(ctx); err != nil {
		e.moveOn(turn, err)
		return nil, e.explain("mysql.Lead", err)
	}
	run, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.done.Go(func() { l.run(run) })
	return l, nil
}

// Close ends the leader. Commands that are waiting fail.
func (l *Leader) Close() {
	l.stop()
	l.done.Wait()
}

// Seq counts the transactions that are committed. What a query that begins
// later reads is at least as new.
func (l *Leader) Seq() uint64 { return l.seq.Load() }

// Do runs a command. When it fails with Unavailable, the command may have been
// run; the same request again tells.
func (l *Leader) Do(ctx context.Context, req *meta.Request) (meta.Reply, error) {
	const op = sys.Op("mysql.Do")
	w := &waiting{req: req, done: make(chan struct{})}
	select {
	case l.queue <- w:
	case <-l.ended:
		return meta.Reply{}, l.deposed()
	case <-ctx.Done():
		return meta.Reply{}, l.e.explain(op, ctx.Err())
	}
	select {
	case <-w.done:
		return w.reply, w.err
	case <-l.ended:
	case <-ctx.Done():
		return meta.Reply{}, l.e.explain(op, ctx.Err()) // it may still be run
	}
	select { // who was answered before the end has the answer
	case <-w.done:
		return w.reply, w.err
	default:
		return meta.Reply{}, sys.E(op, sys.Unavailable, l.deposed())
	}
}

// load raises the fence and reads what the leader knows without asking. It
// comes again after a transaction of which nobody knows what became: that one
// cannot commit any more.
func (l *Leader) load(ctx context.Context) error {
	sessions := map[sys.SessionID]map[uint64][]byte{}
	var seq uint64
	var lastNs int64
	turn := l.e.hosts.now()
	err := l.inTx(ctx, func(conn *sql.Conn) error {
		var epoch uint64
		err := conn.QueryRowContext(ctx, "SELECT epoch, seq, time_ns FROM fence WHERE id=1 FOR UPDATE").Scan(&epoch, &seq, &lastNs)
		if err != nil {
			return err
		}
		if epoch > l.epoch {
			return l.deposed()
		}
		seq++
		if _, err := conn.ExecContext(ctx, fmt.Sprintf("UPDATE fence SET epoch=%d, seq=%d WHERE id=1", l.epoch, seq)); err != nil {
			return err
		}
		return each(ctx, conn, "SELECT session, seq, result FROM results", func(r *sql.Rows) error {
			var session, seq uint64
			var result []byte
			if err := r.Scan(&session, &seq, &result); err != nil {
				return err
			}
			keepResult(sessions, sys.SessionID(session), seq, result)
			return nil
		})
	})
	if err != nil {
		return err
	}
	if seen := l.e.seen.Swap(seq); seq <= seen {
		l.e.cfg.Log.Error("the database has lost transactions that it had acknowledged", "from", seq, "to", seen)
	}
	l.cache.reset()
	l.sessions, l.lastNs, l.loaded, l.turn = sessions, lastNs, true, turn
	l.seq.Store(seq)
	l.began.Store(seq)
	return nil
}

func keepResult(sessions map[sys.SessionID]map[uint64][]byte, id sys.SessionID, seq uint64, result []byte) {
	if sessions[id] == nil {
		sessions[id] = map[uint64][]byte{}
	}
	sessions[id][seq] = result
}

// querier is a *sql.DB or *sql.Conn.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func each(ctx context.Context, db querier, query string, fn func(*sql.Rows) error) (err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (l *Leader) deposed() error {
	return sys.E(sys.Op("mysql.Fence"), sys.NotLeader, fmt.Sprintf("a later leader than that of epoch %d is in office", l.epoch))
}

// run runs commands until ctx ends, as many in one transaction as are waiting.
func (l *Leader) run(ctx context.Context) {
	for {
		var batch []*waiting
		select {
		case w := <-l.queue:
			batch = append(batch, w)
		case <-ctx.Done():
			close(l.ended)
			return
		}
	more:
		for len(batch) < batchMax {
			select {
			case w := <-l.queue:
				batch = append(batch, w)
			default:
				break more
			}
		}
		l.runBatch(ctx, batch)
		for _, w := range batch {
			close(w.done)
		}
	}
}

// runBatch runs commands in one transaction, again and again while the server
// is away or refuses it.
func (l *Leader) runBatch(ctx context.Context, batch []*waiting) {
	ctx, cancel := context.WithTimeout(ctx, l.e.cfg.Wait)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		turn := l.e.hosts.now()
		err := l.tryBatch(ctx, batch)
		if err == nil {
			l.told = ""
			return
		}
		if sys.KindOf(err) == sys.NotLeader {
			l.fenced = err
		}
		l.tell(l.e.explain("mysql.Do", err))
		l.e.moveOn(turn, err)
		sleep(ctx, pause)
		if l.fenced != nil || ctx.Err() != nil {
			l.loaded = false // nobody knows whether the last transaction came through
			for _, w := range batch {
				w.reply, w.err = meta.Reply{}, l.e.explain("mysql.Do", err)
			}
			return
		}
	}
}

// tell logs why a transaction does not go through, once for as long as that
// does not change.
func (l *Leader) tell(err error) {
	level := slog.LevelDebug
	if err.Error() != l.told {
		level, l.told = slog.LevelWarn, err.Error()
	}
	l.e.cfg.Log.Log(context.Background(), level, "the database refuses a transaction", "err", err)
}

func (l *Leader) tryBatch(ctx context.Context, batch []*waiting) error {
	if l.fenced != nil {
		return l.fenced
	}
	if !l.loaded || l.e.lagging() && l.e.hosts.now() != l.turn {
		if err := l.load(ctx); err != nil {
			return err
		}
	}
	b := &carried{l: l, rows: newWrites(), results: map[sys.SessionID]map[uint64][]byte{}, acks: map[sys.SessionID]uint64{}}
	b.tx = &Tx{ctx: ctx, st: l.e.st, over: b.rows, cache: l.cache}
	b.nowNs = max(l.e.cfg.Clock.Wall().UnixNano(), l.lastNs+1)
	for _, w := range batch {
		if err := b.run(w); err != nil {
			return err
		}
	}
	if b.ran == 0 {
		return nil
	}
	err := l.commit(ctx, b)
	if number(err) == errDuplicate { // somebody has changed the tables by hand: they are read anew
		l.loaded = false
	}
	return err
}
