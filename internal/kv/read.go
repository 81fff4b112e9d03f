package kv

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// The bounds of one answer. A revision of a watch is never torn, so an answer
// may exceed pageBytes by one.
const (
	pageBytes   = 1 << 20
	pageEntries = 1000
	pageRows    = 10_000 // looked at
	waitersMax  = 100    // told of one lock
)

// Read answers a query from a view. A refusal is in the Answer; an error is
// trouble of the store.
func Read(r rsm.Reader, q *kvpb.Query) (*kvpb.Answer, error) {
	raw, err := r.Get([]byte{rowState})
	if err != nil {
		return nil, err
	}
	v := &view{r: r, state: decodeState(raw)}
	a := &kvpb.Answer{}
	var refusal error
	switch op := q.Op.(type) {
	case *kvpb.Query_Get:
		refusal = v.get(op.Get, a)
	case *kvpb.Query_List:
		refusal = v.list(op.List, a)
	case *kvpb.Query_Locks:
		a.Revision = v.state.rev
		v.locks(op.Locks, a)
	default:
		refusal = refuse(sys.NotSupported, "not a query this node knows: are all nodes of one version?")
	}
	if v.trouble != nil {
		return nil, v.trouble
	}
	if refusal != nil {
		a = &kvpb.Answer{Failure: failure(refusal), Revision: v.state.rev}
		if sys.Is(refusal, sys.Stale) {
			a.Oldest = v.state.compacted
		}
	}
	return a, nil
}

// view is a consistent view while a query runs on it.
type view struct {
	r       rsm.Reader
	state   state
	trouble error // of the store, the first
}

func (v *view) row(key []byte) []byte {
	raw, err := v.r.Get(key)
	v.trouble = firstError(v.trouble, err)
	return raw
}

func (v *view) scan(lo, hi []byte, fn func(key, value []byte) bool) {
	v.trouble = firstError(v.trouble, v.r.Scan(lo, hi, fn))
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// revision checks which revision a query is to read, 0 for the newest.
func (v *view) revision(rev uint64) (uint64, error) {
	switch {
	case rev == 0:
		return v.state.rev, nil
	case rev > v.state.rev:
		return 0, refuse(sys.Invalid, "revision %d has not come yet, the newest is %d", rev, v.state.rev)
	case rev < v.state.compacted:
		return 0, compacted(rev, v.state.compacted)
	}
	return rev, nil
}

func compacted(rev, oldest uint64) error {
	return refuse(sys.Stale, "revision %d is compacted, history begins at %d: read the newest and go on from there", rev, oldest)
}

func (v *view) get(op *kvpb.Get, a *kvpb.Answer) (err error) {
	if err = checkKey("key", op.Key); err != nil {
		return err
	}
	if a.Revision, err = v.revision(op.Revision); err != nil {
		return err
	}
	var k kvpb.Key
	if raw := v.row(named(rowKey, op.Key)); raw == nil {
		return nil
	} else {
		decode(raw, &k)
	}
	if e := v.entry(op.Key, &k, a.Revision, false); e != nil {
		a.Entries = append(a.Entries, e)
	}
	return nil
}

// entry is a key as it was at a revision, nil when it was absent.
func (v *view) entry(key []byte, k *kvpb.Key, rev uint64, keysOnly bool) *kvpb.Entry {
	e := &kvpb.Entry{Key: slices.Clone(key)}
	if k.ModRevision <= rev {
		if k.Deleted {
			return nil
		}
		e.ModRevision, e.CreateRevision, e.Version, e.Session, e.Size = k.ModRevision, k.CreateRevision, k.Version, k.Session, k.Size
		if !keysOnly {
			e.Value = v.version(key, k.ModRevision).GetValue()
		}
		return e
	}
	var was kvpb.Version
	prefix := sized(rowVersion, key)
	v.scan(versionKey(key, rev), after(prefix), func(row, value []byte) bool {
		e.ModRevision = ^beUint64(row[len(prefix):])
		decode(value, &was)
		return false
	})
	if e.ModRevision == 0 || was.Deleted {
		return nil
	}
	e.CreateRevision, e.Version, e.Session, e.Size = was.CreateRevision, was.Version, was.Session, uint64(len(was.Value))
	if !keysOnly {
		e.Value = was.Value
	}
	return e
}

func (v *view) version(key []byte, rev uint64) *kvpb.Version {
	raw := v.row(versionKey(key, rev))
	if raw == nil && v.trouble == nil {
		panic(fmt.Sprintf("kv: expected a version of key %q at revision %d, found none", key, rev))
	}
	was := &kvpb.Version{}
	decode(raw, was)
	return was
}

// page decides when an answer is full.
type page struct{ limit, entries, bytes, rows int }

func newPage(limit uint32) *page {
	if limit == 0 || limit > pageEntries {
		limit = pageEntries
	}
	return &page{limit: int(limit)}
}

func (p *page) full() bool {
	return p.entries >= p.limit || p.bytes >= pageBytes || p.rows >= pageRows
}

func (p *page) add(bytes int) {
	p.entries++
	p.bytes += bytes
}

// span is the rows of names with a prefix, above a name.
func span(row byte, prefix, above []byte) (lo, hi []byte) {
	lo, hi = named(row, prefix), after(named(row, prefix))
	if len(above) > 0 {
		if behind := append(named(row, above), 0); bytes.Compare(behind, lo) > 0 {
			lo = behind
		}
	}
	return lo, hi
}

func (v *view) list(op *kvpb.List, a *kvpb.Answer) (err error) {
	if a.Revision, err = v.revision(op.Revision); err != nil {
		return err
	}
	p := newPage(op.Limit)
	lo, hi := span(rowKey, op.Prefix, op.After)
	v.scan(lo, hi, func(row, value []byte) bool {
		if p.full() {
			a.More = true
			return false
		}
		p.rows++
		a.Next = append(a.Next[:0], row[1:]...)
		var k kvpb.Key
		decode(value, &k)
		if e := v.entry(row[1:], &k, a.Revision, op.KeysOnly); e != nil {
			p.add(len(e.Key) + len(e.Value))
			a.Entries = append(a.Entries, e)
		}
		return v.trouble == nil
	})
	if !a.More {
		a.Next = nil
	}
	return nil
}

func (v *view) locks(op *kvpb.Locks, a *kvpb.Answer) {
	p := newPage(op.Limit)
	lo, hi := span(rowLock, op.Prefix, op.After)
	v.scan(lo, hi, func(row, value []byte) bool {
		if p.full() {
			a.More = true
			return false
		}
		a.Next = append(a.Next[:0], row[1:]...)
		lock := &kvpb.Lock{}
		decode(value, lock)
		lock.Name, lock.Owner = slices.Clone(row[1:]), v.owner(lock.Session)
		v.waiters(lock)
		p.add(64 * (2 + len(lock.Waiters)))
		a.Locks = append(a.Locks, lock)
		return v.trouble == nil
	})
	if !a.More {
		a.Next = nil
	}
}

func (v *view) waiters(lock *kvpb.Lock) {
	prefix := sized(rowWaiter, lock.Name)
	v.scan(prefix, after(prefix), func(row, value []byte) bool {
		if lock.Waiting++; lock.Waiting <= waitersMax {
			var w kvpb.Waiter
			decode(value, &w)
			lock.Waiters = append(lock.Waiters, &kvpb.Lock{Session: w.Session, SinceNs: w.SinceNs,
				Fence: beUint64(row[len(prefix):]), Owner: v.owner(w.Session)})
		}
		return true
	})
}

func (v *view) owner(session uint64) string {
	var lease kvpb.Lease
	if raw := v.row(numbered(rowLease, session)); raw != nil {
		decode(raw, &lease)
	}
	return lease.Owner
}

// readHistory collects the changes from a revision on that concern a watch, as
// many whole revisions as an answer holds. reply.Revision is up to where it
// looked, more says that there is something behind.
func readHistory(r rsm.Reader, req *kvpb.WatchRequest, from uint64) (reply *kvpb.WatchReply, more bool, err error) {
	raw, err := r.Get([]byte{rowState})
	if err != nil {
		return nil, false, err
	}
	v := &view{r: r, state: decodeState(raw)}
	if from <= v.state.compacted {
		return &kvpb.WatchReply{Failure: failure(compacted(from, v.state.compacted+1)), Oldest: v.state.compacted + 1}, false, nil
	}
	reply = &kvpb.WatchReply{Revision: v.state.rev}
	p := newPage(0)
	at := uint64(0)
	v.scan(stepKey(from, 0), []byte{rowStep + 1}, func(row, value []byte) bool {
		rev := beUint64(row[1:])
		if rev != at && p.full() {
			reply.Revision, more = at, true
			return false
		}
		at = rev
		p.rows++
		var step kvpb.Step
		decode(value, &step)
		if bytes.Equal(step.Key, req.Key) || req.Prefix && bytes.HasPrefix(step.Key, req.Key) {
			e := v.event(rev, &step)
			p.add(len(e.Entry.Key) + len(e.Entry.Value))
			reply.Events = append(reply.Events, e)
		}
		return v.trouble == nil
	})
	return reply, more, v.trouble
}

func (v *view) event(rev uint64, step *kvpb.Step) *kvpb.Event {
	was := v.version(step.Key, rev)
	return &kvpb.Event{Deleted: was.Deleted, Replaced: step.Replaced, Entry: &kvpb.Entry{
		Key: step.Key, Value: was.Value, ModRevision: rev, CreateRevision: was.CreateRevision, Version: was.Version,
		Session: was.Session, Size: uint64(len(was.Value))}}
}
