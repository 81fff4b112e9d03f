package replica

import (
	"encoding/binary"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// nsLocal holds what belongs to this replica and not to the state.
const nsLocal rsm.Namespace = 0xff

// A key of the state is the group (8 bytes, big endian), the namespace (1
// byte) and the machine's own key.
const prefixBytes = 9

func groupPrefix(g sys.GroupID) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 0, prefixBytes), uint64(g))
}

// groupRange is where the group's rows of all namespaces are.
func groupRange(g sys.GroupID) pebble.KeyRange {
	if g+1 == 0 {
		return pebble.KeyRange{Start: groupPrefix(g), End: slices.Repeat([]byte{0xff}, prefixBytes+1)}
	}
	return pebble.KeyRange{Start: groupPrefix(g), End: groupPrefix(g + 1)}
}

// freeze returns the group's state as it is, for long: what is put in the place
// of the state meanwhile does not reach it.
func (g *Group) freeze() frozen {
	return g.host.db.NewEventuallyFileOnlySnapshot([]pebble.KeyRange{groupRange(g.id)})
}

type frozen = *pebble.EventuallyFileOnlySnapshot

// namespacePrefix returns the bytes in front of the keys of a namespace.
func namespacePrefix(g sys.GroupID, ns rsm.Namespace) []byte {
	return append(groupPrefix(g), byte(ns))
}

// bounds puts the prefix in front of a range's ends. hi nil is the end of the
// namespace.
func bounds(prefix, lo, hi []byte) (from, to []byte) {
	from = slices.Concat(prefix, lo)
	if hi != nil {
		return from, slices.Concat(prefix, hi)
	}
	to = slices.Clone(prefix)
	to[prefixBytes-1]++ // at most nsLocal-1 becomes nsLocal
	return from, to
}

// namespaceTx is the rsm.Tx of a namespace.
type namespaceTx struct {
	a      *applier
	o      *overlay
	ns     rsm.Namespace
	prefix []byte // of the namespace
	key    []byte // scratch
	err    error  // first trouble of the engine
}

// In implements rsm.Tx.
func (tx *namespaceTx) In(ns rsm.Namespace) rsm.Tx { return tx.a.tx(ns) }

// Applied implements rsm.Tx.
func (tx *namespaceTx) Applied(st rsm.Stamp, local any) {
	for _, fn := range tx.a.g.hooksOf(tx.ns) {
		fn(st, local)
	}
}

func (tx *namespaceTx) full(key []byte) []byte {
	tx.key = append(append(tx.key[:0], tx.prefix...), key...)
	return tx.key
}

// Get implements rsm.Tx.
func (tx *namespaceTx) Get(key []byte) ([]byte, error) {
	v, err := tx.o.get(tx.full(key))
	if err != nil && tx.err == nil {
		tx.err = err
	}
	return v, err
}

// Set implements rsm.Tx.
func (tx *namespaceTx) Set(key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	tx.o.put(tx.full(key), value)
}

// Delete implements rsm.Tx.
func (tx *namespaceTx) Delete(key []byte) { tx.o.put(tx.full(key), nil) }

// Scan implements rsm.Tx.
func (tx *namespaceTx) Scan(lo, hi []byte, fn func(key, value []byte) bool) error {
	from, to := bounds(tx.prefix, lo, hi)
	err := tx.o.scan(from, to, func(k, v []byte) bool { return fn(k[prefixBytes:], v) })
	if err != nil && tx.err == nil {
		tx.err = err
	}
	return err
}

// overlay holds what the commands of an entry have read and written, in front
// of the database. A row that many commands of an entry write is written to
// the database once.
type overlay struct {
	db    *pebble.DB
	index map[string]int // key to place in rows
	rows  []overlayRow
	// sorted are the keys of the dirty rows in order, as far as dirtied were
	// merged into it: only scans need the order.
	sorted  []string
	dirtied []string
	arena   []byte // holds values that were read
}

// overlayRow is one row: value nil is absent.
type overlayRow struct {
	key   string
	value []byte
	dirty bool
}

const arenaBytes = 64 << 10

func newOverlay(db *pebble.DB) *overlay {
	return &overlay{db: db, index: map[string]int{}}
}

// reset forgets everything.
func (o *overlay) reset() {
	clear(o.index)
	clear(o.rows)
	o.rows = o.rows[:0]
	clear(o.sorted)
	clear(o.dirtied)
	o.sorted, o.dirtied = o.sorted[:0], o.dirtied[:0]
	o.arena = o.arena[:0]
}

func (o *overlay) get(key []byte) ([]byte, error) {
	if i, ok := o.index[string(key)]; ok {
		return o.rows[i].value, nil
	}
	v, closer, err := o.db.Get(key)
	if err == pebble.ErrNotFound {
		o.add(string(key), nil, false)
		return nil, nil
	}
	if err != nil {
		return nil, sys.E(sys.Op("replica.Get"), err)
	}
	out := o.keep(v)
	if err := closer.Close(); err != nil {
		return nil, sys.E(sys.Op("replica.Get"), err)
	}
	o.add(string(key), out, false)
	return out, nil
}

// keep copies a value that was read into the arena.
func (o *overlay) keep(v []byte) []byte {
	if len(v) > arenaBytes/4 {
		return slices.Clone(v)
	}
	if o.arena == nil || cap(o.arena)-len(o.arena) < len(v) { // never nil, which means absent
		// The full arena stays alive as long as a row points into it.
		o.arena = make([]byte, 0, arenaBytes)
	}
	at := len(o.arena)
	o.arena = append(o.arena, v...)
	return o.arena[at:len(o.arena):len(o.arena)]
}

func (o *overlay) add(key string, value []byte, dirty bool) {
	o.index[key] = len(o.rows)
	o.rows = append(o.rows, overlayRow{key: key, value: value, dirty: dirty})
	if dirty {
		o.dirtied = append(o.dirtied, key)
	}
}

// put writes a row; value nil deletes it.
func (o *overlay) put(key, value []byte) {
	i, ok := o.index[string(key)]
	if !ok {
		o.add(string(key), value, true)
		return
	}
	r := &o.rows[i]
	r.value = value
	if !r.dirty {
		r.dirty = true
		o.dirtied = append(o.dirtied, r.key)
	}
}

// order brings sorted up to date.
func (o *overlay) order() []string {
	if len(o.dirtied) > 0 {
		slices.Sort(o.dirtied)
		if n := len(o.sorted); n == 0 || o.sorted[n-1] < o.dirtied[0] {
			o.sorted = append(o.sorted, o.dirtied...)
		} else {
			o.sorted = append(o.sorted, o.dirtied...)
			slices.Sort(o.sorted)
		}
		o.dirtied = o.dirtied[:0]
	}
	return o.sorted
}

// scan merges the dirty rows in [from, to) with the database's.
func (o *overlay) scan(from, to []byte, fn func(key, value []byte) bool) error {
	all := o.order()
	i, _ := slices.BinarySearch(all, string(from))
	j, _ := slices.BinarySearch(all, string(to))
	// Copied, because fn may write.
	mine := slices.Clone(all[i:max(i, j)])
	it, err := o.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return sys.E(sys.Op("replica.Scan"), err)
	}
	more := it.First()
	for more || len(mine) > 0 {
		if len(mine) > 0 && (!more || mine[0] <= string(it.Key())) {
			if more && mine[0] == string(it.Key()) {
				more = it.Next()
			}
			r := o.rows[o.index[mine[0]]]
			mine = mine[1:]
			if r.value != nil && !fn([]byte(r.key), r.value) {
				return it.Close()
			}
			continue
		}
		if !fn(it.Key(), it.Value()) {
			return it.Close()
		}
		more = it.Next()
	}
	if err := it.Close(); err != nil {
		return sys.E(sys.Op("replica.Scan"), err)
	}
	return nil
}

// flush writes the dirty rows to a batch, in which each is encoded in place.
func (o *overlay) flush(b *pebble.Batch) error {
	for i := range o.rows {
		r := &o.rows[i]
		if !r.dirty {
			continue
		}
		var op *pebble.DeferredBatchOp
		if r.value == nil {
			op = b.DeleteDeferred(len(r.key))
		} else {
			op = b.SetDeferred(len(r.key), len(r.value))
			copy(op.Value, r.value)
		}
		copy(op.Key, r.key)
		if err := op.Finish(); err != nil {
			return err
		}
	}
	return nil
}

// view is a consistent view of one namespace of the applied state.
type view struct {
	reader pebble.Reader
	prefix []byte
	key    []byte
}

var _ rsm.Reader = (*view)(nil)

// Get implements Reader.
func (v *view) Get(key []byte) ([]byte, error) {
	v.key = append(append(v.key[:0], v.prefix...), key...)
	val, closer, err := v.reader.Get(v.key)
	if err == pebble.ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, sys.E(sys.Op("replica.Get"), err)
	}
	out := append(make([]byte, 0, max(len(val), 1)), val...)
	return out, closer.Close()
}

// Scan implements Reader.
func (v *view) Scan(lo, hi []byte, fn func(key, value []byte) bool) error {
	from, to := bounds(v.prefix, lo, hi)
	it, err := v.reader.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return sys.E(sys.Op("replica.Scan"), err)
	}
	for more := it.First(); more; more = it.Next() {
		if !fn(it.Key()[prefixBytes:], it.Value()) {
			break
		}
	}
	if err := it.Close(); err != nil {
		return sys.E(sys.Op("replica.Scan"), err)
	}
	return nil
}
