package metatest

import (
	"context"
	"sync"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// local is a Client right on a Tx. It sends commands and answers through their
// encoding, as a wire would, and fails the test when a refused command has
// written something or when a query writes.
type local struct {
	tb  tb
	tx  meta.Tx
	mu  sync.Mutex
	now int64
}

// localStart is the time of the first command, in ns since the epoch.
const localStart = 1_000_000_000_000

func (l *local) Do(_ context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	sent := recode(cmd, &metapb.Command{})
	sent.TimeNs = localStart + l.now*1000
	w := &watched{Tx: l.tx}
	res, err := meta.Apply(w, sent)
	if err != nil {
		return nil, err
	}
	res = recode(res, &metapb.Result{})
	if f := res.GetFailure(); f != nil {
		if w.writes > 0 {
			l.tb.Errorf("%v: refused (%v) after %d writes", cmd, f.Err(), w.writes)
		}
		return nil, f.Err()
	}
	return res, nil
}

func (l *local) Query(_ context.Context, q *metapb.Query) (*metapb.Answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &watched{Tx: l.tx}
	if owners, ok := l.tx.(meta.OwnerScanner); ok {
		w.owners = owners
	}
	ans, err := meta.Read(w, recode(q, &metapb.Query{}))
	if err != nil {
		return nil, err
	}
	if w.writes > 0 {
		l.tb.Errorf("%v: a query has written %d times", q, w.writes)
	}
	ans = recode(ans, &metapb.Answer{})
	if f := ans.GetFailure(); f != nil {
		return nil, f.Err()
	}
	return ans, nil
}

// recode copies a message through its encoding.
func recode[M pb.Message](from, to M) M {
	if err := pb.Unmarshal(pb.Marshal(from), to); err != nil {
		panic(err)
	}
	return to
}

// watched counts writes.
type watched struct {
	meta.Tx
	owners meta.OwnerScanner // nil when the engine cannot
	writes int
}

// Unwrap returns the engine.
func (w *watched) Unwrap() meta.Tx { return w.Tx }

// NextOwner passes on to the engine, or finds nothing.
func (w *watched) NextOwner(after sys.Ino) (sys.Ino, bool, error) {
	if w.owners == nil {
		return 0, false, nil
	}
	return w.owners.NextOwner(after)
}

func (w *watched) SetInode(ino sys.Ino, a *metapb.Attr) error {
	w.writes++
	return w.Tx.SetInode(ino, a)
}

func (w *watched) SetDentry(parent sys.Ino, name []byte, d *metapb.Dentry) error {
	w.writes++
	return w.Tx.SetDentry(parent, name, d)
}

func (w *watched) SetChunk(ino sys.Ino, n uint32, c *metapb.Chunk) error {
	w.writes++
	return w.Tx.SetChunk(ino, n, c)
}

func (w *watched) SetXattrs(ino sys.Ino, x *metapb.Xattrs) error {
	w.writes++
	return w.Tx.SetXattrs(ino, x)
}

func (w *watched) Counter(name meta.Counter, delta int64) (int64, error) {
	if delta != 0 {
		w.writes++
	}
	return w.Tx.Counter(name, delta)
}
