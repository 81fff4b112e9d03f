//go:build linux

package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon"
)

// clientEnv makes the test binary a client process of a history.
const clientEnv = "KOINON_TEST_CLIENT"

// clientSpec says what a client process does. It works until its standard input
// ends, and writes records to its standard output.
type clientSpec struct {
	Client int // number of its first worker; each worker has one of its own
	// Workers run at once, each one action after the other.
	Workers int
	Seed    uint64
	Prefix  string // of the keys
	Keys    int
	// Reads makes all actions reads; Stale, those of any node, passed off as
	// linearizable ones.
	Reads, Stale bool
	// Restless workers give operations little time and then begin anew, with
	// connections to whoever answers: they find a new leader while others still
	// wait for the old one, which may have been stopped.
	Restless bool
}

// Bounds of an action. Some are short, so that outcomes stay unknown.
const (
	actionMin   = 50 * time.Millisecond
	actionMax   = 1500 * time.Millisecond
	restlessMax = 250 * time.Millisecond
	thinkMax    = 8 * time.Millisecond // between two actions
	lastReadMax = 20 * time.Second
)

// clientMain is the client process.
func clientMain(spec string) error {
	var s clientSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kv, err := openKeys(ctx)
	if err != nil {
		return err
	}
	// One write per line: what has been written stays when this is killed.
	log := json.NewEncoder(os.Stdout)
	if err := log.Encode(record{}); err != nil { // it is ready
		return err
	}
	stop := make(chan struct{})
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin) // until the test closes it
		close(stop)
		read <- err
	}()
	var mu sync.Mutex
	write := func(r record) error {
		mu.Lock()
		defer mu.Unlock()
		return log.Encode(r)
	}
	errs := make([]error, s.Workers)
	var wg sync.WaitGroup
	for i := range s.Workers {
		w := &historyWorker{clientSpec: s, kv: kv, write: write, client: s.Client + i, values: map[string]string{}, revs: map[string]uint64{},
			rng: rand.New(rand.NewPCG(s.Seed, uint64(s.Client+i)))}
		wg.Go(func() { errs[i] = errors.Join(w.run(stop), w.leave()) })
	}
	wg.Wait()
	if !s.Reads { // those may be cut off
		closing, cancelClose := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancelClose()
		if err := kv.Close(closing); err != nil {
			return err
		}
	}
	return errors.Join(append(errs, <-read)...)
}

func openKeys(ctx context.Context) (*koinon.KV, error) {
	return koinon.OpenKV(ctx, koinon.Options{Logger: slog.New(slog.DiscardHandler)})
}

// historyWorker is one client of a history.
type historyWorker struct {
	clientSpec
	kv     *koinon.KV
	own    []*koinon.KV // that it opened itself
	write  func(record) error
	client int
	seq    int
	rng    *rand.Rand
	values map[string]string // that it saw last
	revs   map[string]uint64
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("the time expected, found %v", err))
	}
	return ts.Nano()
}

func (w *historyWorker) run(stop <-chan struct{}) error {
	think := time.NewTimer(0)
	defer think.Stop()
	for {
		select {
		case <-stop:
			return w.readAll()
		case <-think.C:
		}
		limit := actionMin + time.Duration(w.rng.Int64N(int64(actionMax-actionMin)))
		if w.Restless {
			limit = min(limit, restlessMax)
		}
		settled, err := w.do(w.choose(), limit)
		if err != nil {
			return err
		}
		if w.Restless && !settled {
			w.reopen()
		}
		think.Reset(time.Duration(w.rng.Int64N(int64(thinkMax))))
	}
}

// reopen begins anew, if somebody answers.
func (w *historyWorker) reopen() {
	ctx, cancel := context.WithTimeout(context.Background(), restlessMax)
	defer cancel()
	if kv, err := openKeys(ctx); err == nil {
		w.kv, w.own = kv, append(w.own, kv)
	}
}

// leave ends what reopen began, when all is well again.
func (w *historyWorker) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), lastReadMax)
	defer cancel()
	var errs []error
	for _, kv := range w.own {
		errs = append(errs, kv.Close(ctx))
	}
	return errors.Join(errs...)
}

// readAll reads every key at the end: what was lost is missed by then.
func (w *historyWorker) readAll() error {
	for i := range w.Keys {
		if w.Reads {
			return nil
		}
		if _, err := w.do(action{Kind: "get", Key: w.key(i)}, lastReadMax); err != nil {
			return err
		}
	}
	return nil
}

func (w *historyWorker) key(i int) string { return fmt.Sprintf("%sk%d", w.Prefix, i) }

func (w *historyWorker) choose() action {
	a := action{Kind: "get", Key: w.key(w.rng.IntN(w.Keys))}
	if w.Reads {
		return a
	}
	p := w.rng.IntN(100)
	if w.client%2 == 0 {
		p -= 60 // changes wait where nobody can make them; these go on asking
	}
	switch {
	case p < 20:
		return a
	case p < 50:
		a.Kind = "put"
	case p < 73 && w.values[a.Key] != "":
		a.Kind, a.Old = "swap", w.values[a.Key]
	case p < 92:
		a.Kind, a.At = "change", w.revs[a.Key]
	default:
		a.Kind = "delete"
		return a
	}
	a.Value = fmt.Sprintf("%d.%d", w.client, w.seq+1)
	return a
}

// do carries an action out and writes both records of it. settled says that
// there was an answer.
func (w *historyWorker) do(a action, limit time.Duration) (settled bool, _ error) {
	w.seq++
	if err := w.write(record{Client: w.client, Seq: w.seq, Time: monotonic(), Begin: &a}); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	o := w.ask(ctx, a)
	end := record{Client: w.client, Seq: w.seq, Time: monotonic(), End: &o}
	switch o.Is {
	case done:
		w.revs[a.Key], w.values[a.Key] = o.Revision, o.Value+a.Value
	case absent:
		w.revs[a.Key], w.values[a.Key] = 0, ""
	case mismatch:
		w.revs[a.Key] = o.Revision
	}
	if a.Kind == "delete" && o.Is == done {
		w.revs[a.Key], w.values[a.Key] = 0, ""
	}
	return o.Is != unknown && o.Is != failed, w.write(end)
}

func (w *historyWorker) ask(ctx context.Context, a action) (o outcome) {
	var err error
	txn := koinon.Txn{Then: []koinon.Change{koinon.Put(a.Key, []byte(a.Value))}}
	switch a.Kind {
	case "get":
		var e koinon.Entry
		e, err = w.kv.Get(ctx, a.Key, koinon.ReadOptions{Stale: w.Stale})
		o = outcome{Value: string(e.Value), Revision: e.Revision, Created: e.Created, Version: e.Version}
	case "put":
		o.Revision, err = w.kv.Put(ctx, a.Key, []byte(a.Value))
	case "delete":
		o.Revision, err = w.kv.Delete(ctx, a.Key)
	case "swap":
		txn.If = []koinon.Condition{koinon.HasValue(a.Key, []byte(a.Old))}
		o.Revision, err = w.kv.Commit(ctx, txn)
	case "change":
		txn.If = []koinon.Condition{koinon.AtRevision(a.Key, a.At)}
		o.Revision, err = w.kv.Commit(ctx, txn)
	}
	o.Is = done
	if m, ok := errors.AsType[*koinon.MismatchError](err); ok {
		return outcome{Is: mismatch, Revision: m.Found[a.Key]}
	}
	switch {
	case err == nil:
		return o
	case errors.Is(err, koinon.ErrUnknown):
		return outcome{Is: unknown, Why: err.Error()}
	case errors.Is(err, fs.ErrNotExist):
		return outcome{Is: absent}
	}
	return outcome{Is: failed, Why: err.Error()}
}
