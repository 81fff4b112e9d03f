package mysql

import (
	"database/sql"
	"math"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// How many rows a page of a whole table has: a chunk may hold the bytes of a
// small file.
const (
	entriesPage = 1024
	chunksPage  = 128
)

// pair is the key of a table of two columns.
type pair struct{ ino, key uint64 }

type paired[V any] struct {
	pair
	val V
}

// wholeTable goes through a table from a key on. The servers read a range of two
// columns well only when it is asked for in two parts: the rest of one inode,
// and those above it.
func wholeTable[V any](t *Tx, from pair, size int, rest, above *sql.Stmt,
	read func(*sql.Rows) (paired[V], error), fn func(paired[V]) bool,
) error {
	for {
		var page []paired[V]
		add := func(r *sql.Rows) error {
			row, err := read(r)
			page = append(page, row)
			return err
		}
		err := t.all(add, rest, from.ino, from.key, size)
		if err == nil && len(page) < size {
			err = t.all(add, above, from.ino, size-len(page))
		}
		if err != nil {
			return err
		}
		for _, row := range page {
			if !fn(row) {
				return nil
			}
		}
		if len(page) < size {
			return nil
		}
		from = page[size-1].pair
		if from.key == math.MaxUint64 {
			from = pair{from.ino + 1, 0}
		} else {
			from.key++
		}
	}
}

// AllDentries is of meta.RowScanner. It sees the database only, as queries do.
func (t *Tx) AllDentries(parent sys.Ino, cookie uint64, fn func(sys.Ino, []byte, *metapb.Dentry) bool) error {
	read := func(r *sql.Rows) (row paired[namedEntry], err error) {
		var o origin
		row.val.d = &metapb.Dentry{}
		err = r.Scan(append(o.fields(), &row.ino, &row.key, &row.val.d.Ino, &row.val.d.Type, &row.val.name)...)
		row.val.d.Cookie, row.val.d.Origin = row.key, o.message()
		return row, err
	}
	return wholeTable(t, pair{uint64(parent), cookie}, entriesPage, t.st.entriesRest, t.st.entriesAbove, read,
		func(row paired[namedEntry]) bool { return fn(sys.Ino(row.ino), row.val.name, row.val.d) })
}

// AllChunks is of meta.RowScanner. It sees the database only, as queries do.
func (t *Tx) AllChunks(ino sys.Ino, n uint32, fn func(sys.Ino, uint32, *metapb.Chunk) bool) error {
	read := func(r *sql.Rows) (row paired[*metapb.Chunk], err error) {
		var inline, layout []byte
		if err := r.Scan(&row.ino, &row.key, &inline, &layout); err != nil {
			return row, err
		}
		row.val = &metapb.Chunk{}
		if err := pb.Unmarshal(layout, row.val); err != nil {
			return row, badLayout(uint32(row.key), err)
		}
		if len(inline) > 0 {
			row.val.Inline = inline
		}
		return row, nil
	}
	return wholeTable(t, pair{uint64(ino), uint64(n)}, chunksPage, t.st.chunksRest, t.st.chunksAbove, read,
		func(row paired[*metapb.Chunk]) bool { return fn(sys.Ino(row.ino), uint32(row.key), row.val) })
}

// AllXattrs is of meta.RowScanner. It sees the database only, as queries do.
func (t *Tx) AllXattrs(ino sys.Ino, fn func(sys.Ino, *metapb.Xattrs) bool) error {
	for at := uint64(ino); ; at++ {
		var next sql.Null[uint64]
		if err := t.all(func(r *sql.Rows) error { return r.Scan(&next) }, t.st.xattrsNext, at); err != nil || !next.Valid {
			return err
		}
		at = next.V
		x, err := t.Xattrs(sys.Ino(at))
		if err != nil {
			return err
		}
		if x != nil && !fn(sys.Ino(at), x) || at == math.MaxUint64 {
			return nil
		}
	}
}
