package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// Tx is the rows of the tree as one command, batch of commands or query sees
// them: those of the database, over which lies what has been written through
// the Tx and is not there yet. A query's Tx takes no writes.
type Tx struct {
	ctx   context.Context
	st    *statements
	tx    *sql.Tx // nil: each statement sees what is committed by then
	over  *writes // nil for a query
	cache *cache  // nil for a query
	// ahead are attributes that came with the entries of a directory, each
	// handed out once.
	ahead map[sys.Ino]*metapb.Attr
}

var (
	_ meta.Tx           = (*Tx)(nil)
	_ meta.OwnerScanner = (*Tx)(nil)
	_ meta.RowScanner   = (*Tx)(nil)
)

func (t *Tx) query(s *sql.Stmt, args ...any) (*sql.Rows, error) {
	if t.tx != nil {
		s = t.tx.StmtContext(t.ctx, s)
	}
	return s.QueryContext(t.ctx, args...)
}

// all hands every row of an answer to each.
func (t *Tx) all(each func(*sql.Rows) error, s *sql.Stmt, args ...any) (err error) {
	rows, err := t.query(s, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// changes returns what lies over the database; a write in a query is a fault
// of the rules.
func (t *Tx) changes() *writes {
	if t.over == nil {
		panic("mysql: expected a query to write nothing, found a write")
	}
	return t.over
}

// Inode is of meta.Tx.
func (t *Tx) Inode(ino sys.Ino) (*metapb.Attr, error) {
	if t.over != nil {
		if a, ok := t.over.inodes[ino]; ok {
			return a.CloneVT(), nil
		}
		if a := t.cache.inode(ino); a != nil || t.cache.noInode(ino) {
			return a, nil
		}
	}
	if a, ok := t.ahead[ino]; ok {
		delete(t.ahead, ino)
		return a, nil
	}
	var found *metapb.Attr
	err := t.all(func(r *sql.Rows) error {
		found = &metapb.Attr{}
		return r.Scan(attrFields(found)...)
	}, t.st.inode, uint64(ino))
	if err == nil && t.over != nil && found != nil {
		t.cache.keep(ino, found.CloneVT())
	}
	return found, err
}

// SetInode is of meta.Tx.
func (t *Tx) SetInode(ino sys.Ino, a *metapb.Attr) error {
	t.changes().inodes[ino] = a.CloneVT()
	return nil
}

// Dentry is of meta.Tx.
func (t *Tx) Dentry(parent sys.Ino, name []byte) (*metapb.Dentry, error) {
	if t.over != nil {
		if d, ok := t.over.entries[parent][string(name)]; ok {
			return d.CloneVT(), nil
		}
		if d, known := t.cache.entry(parent, name); known {
			return d, nil
		}
	}
	var found *metapb.Dentry
	err := t.all(func(r *sql.Rows) (err error) {
		var o origin
		found = &metapb.Dentry{}
		err = r.Scan(append(o.fields(), &found.Cookie, &found.Ino, &found.Type)...)
		found.Origin = o.message()
		return err
	}, t.st.entry, uint64(parent), name)
	if err == nil && t.over != nil && parent != sys.QuarantineIno {
		t.cache.keepEntry(parent, string(name), found.CloneVT())
	}
	return found, err
}

// SetDentry is of meta.Tx.
func (t *Tx) SetDentry(parent sys.Ino, name []byte, d *metapb.Dentry) error {
	if d != nil && d.Cookie == 0 {
		return fmt.Errorf("mysql: cookie of %q in %d: expected one, found 0", name, parent)
	}
	w := t.changes()
	if w.entries[parent] == nil {
		w.entries[parent] = map[string]*metapb.Dentry{}
	}
	w.entries[parent][string(name)] = d.CloneVT()
	return nil
}

// namedEntry is an entry with its name.
type namedEntry struct {
	name []byte
	d    *metapb.Dentry
}

// ScanDentries is of meta.Tx.
func (t *Tx) ScanDentries(parent sys.Ino, after uint64, fn func(name []byte, d *metapb.Dentry) bool) error {
	if after == math.MaxUint64 {
		return nil
	}
	s := scan[namedEntry]{page: func(from uint64, limit int) ([]keyed[namedEntry], error) {
		return t.entryPage(parent, from, limit)
	}}
	if t.over != nil {
		changed := t.over.entries[parent]
		for name, d := range changed {
			if d != nil {
				s.over = append(s.over, keyed[namedEntry]{d.Cookie, namedEntry{[]byte(name), d.CloneVT()}})
			}
		}
		s.hidden = func(e keyed[namedEntry]) bool { _, ok := changed[string(e.val.name)]; return ok }
	}
	return s.run(after+1, func(e keyed[namedEntry]) bool { return fn(e.val.name, e.val.d) })
}

func (t *Tx) entryPage(parent sys.Ino, from uint64, limit int) (page []keyed[namedEntry], err error) {
	if t.over != nil {
		if page, known := t.cache.list(parent, from, limit); known {
			return page, nil
		}
	}
	err = t.all(func(r *sql.Rows) error {
		var o origin
		var present bool
		e := namedEntry{d: &metapb.Dentry{}}
		a := &metapb.Attr{}
		fields := append(o.fields(), &e.d.Cookie, &e.d.Ino, &e.d.Type, &e.name, &present)
		if err := r.Scan(append(fields, attrFields(a)...)...); err != nil {
			return err
		}
		e.d.Origin = o.message()
		if t.ahead != nil && present {
			t.ahead[sys.Ino(e.d.Ino)] = a
		}
		page = append(page, keyed[namedEntry]{e.d.Cookie, e})
		return nil
	}, t.st.entries, uint64(parent), from, limit)
	return page, err
}

// Chunk is of meta.Tx.
func (t *Tx) Chunk(ino sys.Ino, n uint32) (*metapb.Chunk, error) {
	if t.over != nil {
		if c, ok := t.over.chunks[ino][n]; ok {
			return c.CloneVT(), nil
		}
		if t.cache.noChunks(ino) {
			return nil, nil
		}
	}
	var found *metapb.Chunk
	err := t.all(func(r *sql.Rows) (err error) {
		_, found, err = readChunk(r)
		return err
	}, t.st.chunk, uint64(ino), n)
	return found, err
}

// SetChunk is of meta.Tx.
func (t *Tx) SetChunk(ino sys.Ino, n uint32, c *metapb.Chunk) error {
	w := t.changes()
	if w.chunks[ino] == nil {
		w.chunks[ino] = map[uint32]*metapb.Chunk{}
	}
	w.chunks[ino][n] = c.CloneVT()
	return nil
}

// ScanChunks is of meta.Tx.
func (t *Tx) ScanChunks(ino sys.Ino, from uint32, fn func(n uint32, c *metapb.Chunk) bool) error {
	s := scan[*metapb.Chunk]{page: func(from uint64, limit int) (page []keyed[*metapb.Chunk], err error) {
		if t.over != nil && t.cache.noChunks(ino) {
			return nil, nil
		}
		err = t.all(func(r *sql.Rows) error {
			n, c, err := readChunk(r)
			page = append(page, keyed[*metapb.Chunk]{uint64(n), c})
			return err
		}, t.st.chunks, uint64(ino), from, limit)
		return page, err
	}}
	if t.over != nil {
		changed := t.over.chunks[ino]
		for n, c := range changed {
			if c != nil {
				s.over = append(s.over, keyed[*metapb.Chunk]{uint64(n), c.CloneVT()})
			}
		}
		s.hidden = func(c keyed[*metapb.Chunk]) bool { _, ok := changed[uint32(c.key)]; return ok }
	}
	return s.run(uint64(from), func(c keyed[*metapb.Chunk]) bool { return fn(uint32(c.key), c.val) })
}

func badLayout(n uint32, err error) error {
	return sys.E(sys.Op("mysql.Chunk"), sys.Corrupt, fmt.Errorf("the layout of a row of chunks, number %d: %w", n, err))
}

// readChunk reads a row of chunks. The bytes have a column of their own.
func readChunk(r *sql.Rows) (n uint32, c *metapb.Chunk, err error) {
	var inline, layout []byte
	if err := r.Scan(&n, &inline, &layout); err != nil {
		return 0, nil, err
	}
	c = &metapb.Chunk{}
	if err := pb.Unmarshal(layout, c); err != nil {
		return 0, nil, badLayout(n, err)
	}
	if len(inline) > 0 {
		c.Inline = inline
	}
	return n, c, nil
}

// Xattrs is of meta.Tx.
func (t *Tx) Xattrs(ino sys.Ino) (*metapb.Xattrs, error) {
	if t.over != nil {
		if x, ok := t.over.xattrs[ino]; ok {
			return x.CloneVT(), nil
		}
	}
	var found *metapb.Xattrs
	err := t.all(func(r *sql.Rows) error {
		x := &metapb.Xattr{}
		if err := r.Scan(&x.Name, &x.Value); err != nil {
			return err
		}
		if found == nil {
			found = &metapb.Xattrs{}
		}
		found.Xattrs = append(found.Xattrs, x)
		return nil
	}, t.st.xattrs, uint64(ino))
	return found, err
}

// SetXattrs is of meta.Tx.
func (t *Tx) SetXattrs(ino sys.Ino, x *metapb.Xattrs) error {
	t.changes().xattrs[ino] = x.CloneVT()
	return nil
}

// inlineMax is up to which size a file's bytes are rows. A server writes each byte
// of them several times: into its log, and, of a row beyond half a page of 16 KiB,
// into pages of its own. Files of 16 KiB were written up to 1.4 times as fast with
// their bytes elsewhere, smaller ones not (docs/benchmarks.md).
const inlineMax = 4 << 10

// InlineMax is of meta.Inliner.
func (t *Tx) InlineMax() uint32 { return inlineMax }

// ScanInodes is of meta.Tx.
func (t *Tx) ScanInodes(after sys.Ino, fn func(a *metapb.Attr) bool) error {
	if after == math.MaxUint64 {
		return nil
	}
	s := scan[*metapb.Attr]{page: func(from uint64, limit int) (page []keyed[*metapb.Attr], err error) {
		err = t.all(func(r *sql.Rows) error {
			a := &metapb.Attr{}
			err := r.Scan(attrFields(a)...)
			page = append(page, keyed[*metapb.Attr]{a.Ino, a})
			return err
		}, t.st.inodes, from, limit)
		return page, err
	}}
	if t.over != nil {
		for ino, a := range t.over.inodes {
			if a != nil {
				s.over = append(s.over, keyed[*metapb.Attr]{uint64(ino), a.CloneVT()})
			}
		}
		s.hidden = func(a keyed[*metapb.Attr]) bool { _, ok := t.over.inodes[sys.Ino(a.key)]; return ok }
	}
	return s.run(uint64(after)+1, func(a keyed[*metapb.Attr]) bool { return fn(a.val) })
}

// Counter is of meta.Tx.
func (t *Tx) Counter(name meta.Counter, delta int64) (int64, error) {
	n, known := int64(0), false
	if t.over != nil {
		if n, known = t.over.counters[name]; !known {
			n, known = t.cache.counter(name)
		}
	}
	if !known {
		err := t.all(func(r *sql.Rows) error { return r.Scan(&n) }, t.st.counter, name.String())
		if err != nil {
			return 0, err
		}
		if t.over != nil {
			t.cache.keepCounter(name, n)
		}
	}
	if delta == 0 {
		return n, nil
	}
	n += delta
	t.changes().counters[name] = n
	return n, nil
}

// NextOwner is of meta.OwnerScanner. It sees the database only, as queries do.
func (t *Tx) NextOwner(after sys.Ino) (sys.Ino, bool, error) {
	var lowest sql.Null[uint64]
	err := t.all(func(r *sql.Rows) error { return r.Scan(&lowest) },
		t.st.owner, uint64(after), uint64(after), uint64(after))
	return sys.Ino(lowest.V), lowest.Valid, err
}
