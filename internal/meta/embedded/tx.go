package embedded

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// Reader is what a query needs of a consistent view: a replica.Reader has it.
// What Get and Scan hand out is only read, and not after the next call.
type Reader interface {
	// Get returns nil when there is no such key.
	Get(key []byte) ([]byte, error)
	// Scan goes through the keys in [lo, hi) in order until fn returns false;
	// hi nil is the end.
	Scan(lo, hi []byte, fn func(key, value []byte) bool) error
}

// Store is the ordered keys and values of one command: a rsm.Tx. It keeps
// no key that it is given, but a value belongs to it from Set on.
type Store interface {
	Reader
	Set(key, value []byte)
	Delete(key []byte)
}

var _ Store = (rsm.Tx)(nil)

// Tx is the rows of the tree on a Store. It is used for one command or query.
type Tx struct {
	store   Store
	key     key
	trouble error // the store's first error
}

var (
	_ meta.Tx           = (*Tx)(nil)
	_ meta.OwnerScanner = (*Tx)(nil)
	_ meta.RowScanner   = (*Tx)(nil)
)

// NewTx returns the rows on a store.
func NewTx(store Store) *Tx { return &Tx{store: store} }

// readOnly is a Store for queries. The rules write nothing in a query.
type readOnly struct{ Reader }

func (readOnly) Set(key, _ []byte) {
	panic(fmt.Sprintf("embedded: expected a query to write nothing, found a write of %x", key))
}

func (readOnly) Delete(key []byte) {
	panic(fmt.Sprintf("embedded: expected a query to write nothing, found a delete of %x", key))
}

// get reads a row into m. It is false when there is none.
func (t *Tx) get(key []byte, m pb.Message) (bool, error) {
	v, err := t.load(key)
	if err != nil || v == nil {
		return false, err
	}
	return true, decode(key, v, m)
}

func (t *Tx) load(key []byte) ([]byte, error) {
	v, err := t.store.Get(key)
	if err != nil && t.trouble == nil {
		t.trouble = err
	}
	return v, err
}

func decode(key, value []byte, m pb.Message) error {
	if err := pb.Unmarshal(value, m); err != nil {
		return sys.E(sys.Op("embedded.decode"), sys.Corrupt, sys.Subject(fmt.Sprintf("row %x", key)), err)
	}
	return nil
}

func (t *Tx) set(key []byte, m pb.Message) error {
	t.store.Set(key, pb.Marshal(m))
	return nil
}

// Inode is of meta.Tx.
func (t *Tx) Inode(ino sys.Ino) (*metapb.Attr, error) {
	a := &metapb.Attr{}
	found, err := t.get(t.key.ino(rowInode, ino), a)
	if !found {
		return nil, err
	}
	return a, err
}

// SetInode is of meta.Tx.
func (t *Tx) SetInode(ino sys.Ino, a *metapb.Attr) error {
	k := t.key.ino(rowInode, ino)
	if a == nil {
		t.store.Delete(k)
		return nil
	}
	return t.set(k, a)
}

// Dentry is of meta.Tx.
func (t *Tx) Dentry(parent sys.Ino, name []byte) (*metapb.Dentry, error) {
	k, err := t.key.dentry(parent, name)
	if err != nil {
		return nil, err
	}
	d := &metapb.Dentry{}
	found, err := t.get(k, d)
	if !found {
		return nil, err
	}
	return d, err
}

// SetDentry is of meta.Tx. An entry is in two rows: one to find it by its name
// and one to list it.
func (t *Tx) SetDentry(parent sys.Ino, name []byte, d *metapb.Dentry) error {
	old, err := t.Dentry(parent, name)
	if err != nil {
		return err
	}
	k, err := t.key.dentry(parent, name)
	if err != nil {
		return err
	}
	if d == nil {
		if old != nil {
			t.store.Delete(k)
			t.store.Delete(t.key.place(parent, old.Cookie))
		}
		return nil
	}
	if d.Cookie == 0 || old != nil && old.Cookie != d.Cookie {
		return fmt.Errorf("embedded: cookie of %q in %d: expected %d, found %d", name, parent, old.GetCookie(), d.Cookie)
	}
	if err := t.set(k, d); err != nil {
		return err
	}
	return t.set(t.key.place(parent, d.Cookie), &metapb.Place{Name: name, Dentry: d})
}

// scan goes through the rows from lo on that begin with prefix. fn gets each
// key without the prefix.
func (t *Tx) scan(prefix, lo []byte, fn func(key, value []byte) (bool, error)) error {
	var bad error
	n := len(prefix)
	err := t.store.Scan(lo, t.key.after(prefix), func(k, v []byte) bool {
		var more bool
		more, bad = fn(k[n:], v)
		return more && bad == nil
	})
	if err != nil && t.trouble == nil {
		t.trouble = err
	}
	return errors.Join(err, bad)
}

// ScanDentries is of meta.Tx.
func (t *Tx) ScanDentries(parent sys.Ino, after uint64, fn func(name []byte, d *metapb.Dentry) bool) error {
	if after == math.MaxUint64 {
		return nil
	}
	lo := bytes.Clone(t.key.place(parent, after+1))
	return t.scan(lo[:9], lo, func(k, v []byte) (bool, error) {
		p := &metapb.Place{}
		if err := decode(k, v, p); err != nil {
			return false, err
		}
		if p.Dentry == nil {
			return false, sys.E(sys.Op("embedded.ScanDentries"), sys.Corrupt, fmt.Sprintf("row %x has no entry", k))
		}
		return fn(p.Name, p.Dentry), nil
	})
}

// Chunk is of meta.Tx.
func (t *Tx) Chunk(ino sys.Ino, n uint32) (*metapb.Chunk, error) {
	c := &metapb.Chunk{}
	found, err := t.get(t.key.chunk(ino, n), c)
	if !found {
		return nil, err
	}
	return c, err
}

// SetChunk is of meta.Tx.
func (t *Tx) SetChunk(ino sys.Ino, n uint32, c *metapb.Chunk) error {
	k := t.key.chunk(ino, n)
	if c == nil {
		t.store.Delete(k)
		return nil
	}
	return t.set(k, c)
}

// ScanChunks is of meta.Tx.
func (t *Tx) ScanChunks(ino sys.Ino, from uint32, fn func(n uint32, c *metapb.Chunk) bool) error {
	lo := bytes.Clone(t.key.chunk(ino, from))
	return t.scan(lo[:9], lo, func(k, v []byte) (bool, error) {
		c := &metapb.Chunk{}
		if err := decode(k, v, c); err != nil {
			return false, err
		}
		if len(k) != 4 {
			return false, sys.E(sys.Op("embedded.ScanChunks"), sys.Corrupt, fmt.Sprintf("key %x of inode %d", k, ino))
		}
		return fn(binary.BigEndian.Uint32(k), c), nil
	})
}

// Xattrs is of meta.Tx.
func (t *Tx) Xattrs(ino sys.Ino) (*metapb.Xattrs, error) {
	x := &metapb.Xattrs{}
	found, err := t.get(t.key.ino(rowXattrs, ino), x)
	if !found {
		return nil, err
	}
	return x, err
}

// SetXattrs is of meta.Tx.
func (t *Tx) SetXattrs(ino sys.Ino, x *metapb.Xattrs) error {
	k := t.key.ino(rowXattrs, ino)
	if x == nil {
		t.store.Delete(k)
		return nil
	}
	return t.set(k, x)
}

// ScanInodes is of meta.Tx.
func (t *Tx) ScanInodes(after sys.Ino, fn func(a *metapb.Attr) bool) error {
	if after == math.MaxUint64 {
		return nil
	}
	lo := bytes.Clone(t.key.ino(rowInode, after+1))
	return t.scan(lo[:1], lo, func(k, v []byte) (bool, error) {
		a := &metapb.Attr{}
		if err := decode(k, v, a); err != nil {
			return false, err
		}
		return fn(a), nil
	})
}

// Counter is of meta.Tx.
func (t *Tx) Counter(name meta.Counter, delta int64) (int64, error) {
	k := t.key.counter(name)
	v, err := t.load(k)
	if err != nil {
		return 0, err
	}
	var n int64
	if v != nil {
		if len(v) != 8 {
			return 0, sys.E(sys.Op("embedded.Counter"), sys.Corrupt, sys.Subject(name.String()), "not 8 bytes")
		}
		n = int64(binary.BigEndian.Uint64(v))
	}
	if delta == 0 {
		return n, nil
	}
	n += delta
	t.store.Set(k, binary.BigEndian.AppendUint64(nil, uint64(n)))
	return n, nil
}

// NextOwner is of meta.OwnerScanner.
func (t *Tx) NextOwner(after sys.Ino) (lowest sys.Ino, ok bool, err error) {
	if after == math.MaxUint64 {
		return 0, false, nil
	}
	for _, row := range []byte{rowPlace, rowDentry, rowChunk, rowXattrs} {
		lo := bytes.Clone(t.key.ino(row, after+1))
		err := t.scan(lo[:1], lo, func(k, _ []byte) (bool, error) {
			if ino := sys.Ino(binary.BigEndian.Uint64(k)); !ok || ino < lowest {
				lowest, ok = ino, true
			}
			return false, nil
		})
		if err != nil {
			return 0, false, err
		}
	}
	return lowest, ok, nil
}
