package koinon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/kv"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/sys"
)

// The limits of keys, values and transactions; sizes are in bytes.
const (
	KeyMax     = kv.KeyMax
	ValueMax   = kv.ValueMax
	TxnMax     = kv.TxnMax     // of all keys and values of a transaction
	ChangesMax = kv.ChangesMax // of a transaction, and as many conditions
)

// The errors of KV, for errors.Is. A key that is not there is fs.ErrNotExist.
var (
	// ErrUnknown says that it is not known whether a change takes effect: the
	// context ended, or the connection broke, before the answer came. It is
	// not tried again by itself. With any other error a change had no effect.
	ErrUnknown = errors.New("the outcome is not known")
	// ErrMismatch says that a condition did not hold; nothing was changed.
	ErrMismatch = errors.New("the condition does not hold")
	// ErrCompacted says that the history asked for is gone: see CompactedError.
	ErrCompacted = errors.New("history is compacted")
	// ErrLocked says that a lock is held by somebody else.
	ErrLocked = errors.New("locked")
	// ErrSessionLost says that a session has ended, and with it its locks and
	// ephemeral keys.
	ErrSessionLost = errors.New("the session has ended")
)

// KV is the coordination service of a cluster: a flat map of keys with
// revisions, watches and locks. Every change gets the next revision, one for
// the whole map. Reads and changes are linearizable, and a change takes effect
// at most once. Methods may be called concurrently.
type KV struct {
	c     kvClient
	close func(ctx context.Context) error
}

// kvClient is what KV needs of the cluster.
type kvClient interface {
	Do(ctx context.Context, cmd *kvpb.Command) (*kvpb.Result, error)
	Query(ctx context.Context, q *kvpb.Query) (*kvpb.Answer, error)
	Watch(ctx context.Context, key []byte, prefix bool, from uint64) (*kvpb.WatchReply, error)
	NewSession(ctx context.Context, ttl time.Duration) (*kv.Session, error)
}

var _ kvClient = (*kv.Client)(nil)

// OpenKV reaches the cluster through any of its nodes. Close ends it.
func OpenKV(ctx context.Context, opt Options) (*KV, error) {
	cfg, opt, err := opt.load()
	if err != nil {
		return nil, err
	}
	keys, err := client.ConnectKeys(ctx, cfg, opt.Logger)
	if err != nil {
		return nil, err
	}
	return &KV{c: keys, close: keys.Close}, nil
}

// Close leaves the cluster. Sessions that are open end, and with them locks and
// ephemeral keys. What is called afterwards fails with fs.ErrClosed.
func (k *KV) Close(ctx context.Context) error { return k.close(ctx) }

// Entry is a key at some revision.
type Entry struct {
	Key      string // any bytes
	Value    []byte // nil when only keys were asked for
	Size     int    // of the value
	Revision uint64 // of the last change
	Created  uint64 // revision since which the key has been there
	Version  uint64 // counts the changes since then, from 1
	Session  uint64 // that the key is bound to, 0 for none
}

func newEntry(e *kvpb.Entry) Entry {
	return Entry{Key: string(e.GetKey()), Value: e.GetValue(), Size: int(e.GetSize()), Revision: e.GetModRevision(),
		Created: e.GetCreateRevision(), Version: e.GetVersion(), Session: e.GetSession()}
}

// ReadOptions say what a read shows. The zero value is the newest state.
type ReadOptions struct {
	// Revision asks for the state as it was then; 0 is the newest.
	Revision uint64
	// Stale lets any node answer from what it has. It needs no majority, and
	// may miss changes, even ones that an earlier read showed.
	Stale bool
}

// Get reads one key. The error is fs.ErrNotExist when it is not there.
func (k *KV) Get(ctx context.Context, key string, opt ReadOptions) (Entry, error) {
	a, err := k.c.Query(ctx, &kvpb.Query{Stale: opt.Stale, Op: &kvpb.Query_Get{Get: &kvpb.Get{Key: []byte(key), Revision: opt.Revision}}})
	if err != nil {
		return Entry{}, kvError(err)
	}
	if len(a.Entries) == 0 {
		return Entry{}, kvError(sys.E(sys.Op("kv.Get"), sys.NotExist, "there is no such key"))
	}
	return newEntry(a.Entries[0]), nil
}

// ListOptions say which keys to list.
type ListOptions struct {
	ReadOptions
	Prefix   string
	After    string // only keys above it, when not empty
	Limit    int    // of one page; 0 is as many as fit
	KeysOnly bool
}

// Page is some of the keys of a list, in order of their bytes.
type Page struct {
	Entries  []Entry
	Revision uint64 // that the page shows
	// Next is the After of the next page, empty when this is the last. Pages
	// asked for with the first one's Revision are one consistent state.
	Next string
}

// List reads one page of the keys with a prefix.
func (k *KV) List(ctx context.Context, opt ListOptions) (Page, error) {
	op := &kvpb.List{Prefix: []byte(opt.Prefix), After: []byte(opt.After), Limit: uint32(max(0, opt.Limit)), KeysOnly: opt.KeysOnly, Revision: opt.Revision}
	a, err := k.c.Query(ctx, &kvpb.Query{Stale: opt.Stale, Op: &kvpb.Query_List{List: op}})
	if err != nil {
		return Page{}, kvError(err)
	}
	p := Page{Revision: a.Revision, Entries: make([]Entry, 0, len(a.Entries))}
	for _, e := range a.Entries {
		p.Entries = append(p.Entries, newEntry(e))
	}
	if a.More {
		p.Next = string(a.Next)
	}
	return p, nil
}

// Put sets a key and returns the revision of the change.
func (k *KV) Put(ctx context.Context, key string, value []byte) (revision uint64, err error) {
	return commit(ctx, k.c, Txn{Then: []Change{Put(key, value)}})
}

// Delete removes a key and returns the revision of the change. The error is
// fs.ErrNotExist when it was not there.
func (k *KV) Delete(ctx context.Context, key string) (revision uint64, err error) {
	return deleteKey(ctx, k.c, key)
}

// Txn is some changes that are made together, in one revision, if all
// conditions hold.
type Txn struct {
	If   []Condition
	Then []Change // of distinct keys
}

// Condition is what must hold when a transaction is carried out.
type Condition struct{ pb *kvpb.Compare }

// Absent holds when there is no such key.
func Absent(key string) Condition { return AtRevision(key, 0) }

// AtRevision holds when the key's last change is that of a revision.
func AtRevision(key string, revision uint64) Condition {
	return Condition{&kvpb.Compare{Key: []byte(key), Want: &kvpb.Compare_ModRevision{ModRevision: revision}}}
}

// HasValue holds when the key is there with a value.
func HasValue(key string, value []byte) Condition {
	return Condition{&kvpb.Compare{Key: []byte(key), Want: &kvpb.Compare_Value{Value: value}}}
}

// StillLocked holds when a lock is held under a fencing token: a holder that
// has lost it without knowing changes nothing.
func StillLocked(name string, fence uint64) Condition {
	return Condition{&kvpb.Compare{Key: []byte(name), Want: &kvpb.Compare_Fence{Fence: fence}}}
}

// Change is one change of a transaction.
type Change struct{ pb *kvpb.Change }

// Put sets a key. The value must not be changed until the transaction returns.
func Put(key string, value []byte) Change {
	return Change{&kvpb.Change{Key: []byte(key), Change: &kvpb.Change_Put{Put: &kvpb.Put{Value: value}}}}
}

// PutEphemeral sets a key that goes with the session that sets it.
func PutEphemeral(key string, value []byte) Change {
	c := Put(key, value)
	c.pb.GetPut().Ephemeral = true
	return c
}

// Delete removes a key; that there is none is fine.
func Delete(key string) Change {
	return Change{&kvpb.Change{Key: []byte(key), Change: &kvpb.Change_Delete{Delete: &kvpb.Delete{}}}}
}

// MismatchError is the error of a transaction whose conditions do not hold. It
// is ErrMismatch.
type MismatchError struct {
	// Found is, of each key whose condition does not hold, the revision of its
	// last change; 0 when it is not there.
	Found map[string]uint64
	// Locks is, of each lock that is not held under its token, the token under
	// which it is; 0 when nobody holds it.
	Locks map[string]uint64
}

// Error names the first key, or else lock.
func (e *MismatchError) Error() string {
	found, what, text := e.Found, "key", "it was last changed at revision %d"
	if len(found) == 0 {
		found, what, text = e.Locks, "lock", "it is held under the token %d"
	}
	if len(found) == 0 {
		return ErrMismatch.Error()
	}
	name := slices.Min(slices.Collect(maps.Keys(found)))
	if n := len(e.Found) + len(e.Locks); n > 1 {
		return fmt.Sprintf("%d keys and locks are not as expected, %s %q among them", n, what, name)
	}
	state := fmt.Sprintf(text, found[name])
	if found[name] == 0 {
		state = map[string]string{"key": "it is not there", "lock": "nobody holds it"}[what]
	}
	return fmt.Sprintf("%s %q is not as expected: %s", what, name, state)
}

// mismatch is the error of conditions of which some, in their order, do not hold.
func mismatch(conditions []*kvpb.Compare, found []*kvpb.KeyState) *MismatchError {
	e := &MismatchError{Found: map[string]uint64{}, Locks: map[string]uint64{}}
	for _, c := range conditions {
		if len(found) == 0 {
			break
		}
		f := found[0]
		_, lock := c.Want.(*kvpb.Compare_Fence)
		if !bytes.Equal(f.Key, c.Key) || lock && f.ModRevision != 0 || !lock && f.Fence != 0 {
			continue // this one holds
		}
		if found = found[1:]; lock {
			e.Locks[string(f.Key)] = f.Fence
		} else {
			e.Found[string(f.Key)] = f.ModRevision
		}
	}
	return e
}

// Is makes it ErrMismatch.
func (e *MismatchError) Is(target error) bool { return target == ErrMismatch }

// Commit carries a transaction out. It returns the revision of the changes, or
// the newest one when nothing was changed. A condition that does not hold gives
// a *MismatchError.
func (k *KV) Commit(ctx context.Context, t Txn) (revision uint64, err error) {
	return commit(ctx, k.c, t)
}

// doer runs commands: a client, or a session.
type doer interface {
	Do(ctx context.Context, cmd *kvpb.Command) (*kvpb.Result, error)
}

func commit(ctx context.Context, d doer, t Txn) (uint64, error) {
	res, err := run(ctx, d, t)
	return res.GetRevision(), err
}

func run(ctx context.Context, d doer, t Txn) (*kvpb.Result, error) {
	txn := &kvpb.Txn{}
	for _, c := range t.If {
		txn.Compares = append(txn.Compares, c.pb)
	}
	for _, c := range t.Then {
		txn.Changes = append(txn.Changes, c.pb)
	}
	res, err := d.Do(ctx, &kvpb.Command{Op: &kvpb.Command_Txn{Txn: txn}})
	if err != nil {
		return nil, kvError(err)
	}
	if res.Mismatch {
		return nil, mismatch(txn.Compares, res.Found)
	}
	return res, nil
}

func deleteKey(ctx context.Context, d doer, key string) (uint64, error) {
	res, err := run(ctx, d, Txn{Then: []Change{Delete(key)}})
	if err == nil && res.Replaced[0] == 0 {
		err = kvError(sys.E(sys.Op("kv.Delete"), sys.NotExist, "there is no such key"))
	}
	return res.GetRevision(), err
}

// CompactedError is the error of a read or watch of history that is gone. It is
// ErrCompacted.
type CompactedError struct {
	Oldest uint64 // the oldest revision that can be read, or watched from
	err    error
}

// Error says what to do.
func (e *CompactedError) Error() string { return e.err.Error() }

// Unwrap returns the error as the cluster gave it.
func (e *CompactedError) Unwrap() error { return e.err }

// Is makes it ErrCompacted.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

// kvCause is an error of the coordination service.
type kvCause struct {
	cause
	is error // nil for none
}

// Error is the whole story; cause would leave out what is not there.
func (e *kvCause) Error() string { return e.err.Error() }

// Is answers for the errors of this package and those of io/fs.
func (e *kvCause) Is(target error) bool {
	return e.is != nil && target == e.is || e.cause.Is(target)
}

// kvError makes what callers see of an error.
func kvError(err error) error {
	if err == nil {
		return nil
	}
	if c, ok := errors.AsType[*kv.CompactedError](err); ok {
		return &CompactedError{Oldest: c.Oldest, err: err}
	}
	e := &kvCause{cause: cause{err: err, kind: sys.KindOf(err)}}
	if _, held := errors.AsType[*kv.HeldError](err); held {
		e.is = ErrLocked
	} else if kv.IsUnknown(err) {
		e.is = ErrUnknown
	} else if sys.Is(err, sys.SessionGone) {
		e.is = ErrSessionLost
	}
	return e
}
