package embedded

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// owned takes the number that a key begins with apart from the rest, which has
// a known length.
func owned(key []byte, rest int) (sys.Ino, []byte, error) {
	if len(key) != 8+rest {
		return 0, nil, sys.E(sys.Op("embedded.owned"), sys.Corrupt, fmt.Sprintf("key %x: expected %d bytes", key, 8+rest))
	}
	return sys.Ino(binary.BigEndian.Uint64(key)), key[8:], nil
}

// AllDentries is of meta.RowScanner.
func (t *Tx) AllDentries(parent sys.Ino, cookie uint64, fn func(sys.Ino, []byte, *metapb.Dentry) bool) error {
	lo := bytes.Clone(t.key.place(parent, cookie))
	return t.scan(lo[:1], lo, func(k, v []byte) (bool, error) {
		parent, _, err := owned(k, 8)
		if err != nil {
			return false, err
		}
		p := &metapb.Place{}
		if err := decode(k, v, p); err != nil {
			return false, err
		}
		if p.Dentry == nil {
			return false, sys.E(sys.Op("embedded.AllDentries"), sys.Corrupt, fmt.Sprintf("row %x has no entry", k))
		}
		return fn(parent, p.Name, p.Dentry), nil
	})
}

// AllChunks is of meta.RowScanner.
func (t *Tx) AllChunks(ino sys.Ino, n uint32, fn func(sys.Ino, uint32, *metapb.Chunk) bool) error {
	lo := bytes.Clone(t.key.chunk(ino, n))
	return t.scan(lo[:1], lo, func(k, v []byte) (bool, error) {
		ino, number, err := owned(k, 4)
		if err != nil {
			return false, err
		}
		c := &metapb.Chunk{}
		if err := decode(k, v, c); err != nil {
			return false, err
		}
		return fn(ino, binary.BigEndian.Uint32(number), c), nil
	})
}

// AllXattrs is of meta.RowScanner.
func (t *Tx) AllXattrs(ino sys.Ino, fn func(sys.Ino, *metapb.Xattrs) bool) error {
	lo := bytes.Clone(t.key.ino(rowXattrs, ino))
	return t.scan(lo[:1], lo, func(k, v []byte) (bool, error) {
		ino, _, err := owned(k, 0)
		if err != nil {
			return false, err
		}
		x := &metapb.Xattrs{}
		if err := decode(k, v, x); err != nil {
			return false, err
		}
		return fn(ino, x), nil
	})
}
