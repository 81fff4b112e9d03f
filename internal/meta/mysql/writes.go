package mysql

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// writes are rows that are to be in the database: what commands have written
// and no transaction has carried there yet. A nil row is to be deleted.
type writes struct {
	inodes   map[sys.Ino]*metapb.Attr
	entries  map[sys.Ino]map[string]*metapb.Dentry
	chunks   map[sys.Ino]map[uint32]*metapb.Chunk
	xattrs   map[sys.Ino]*metapb.Xattrs
	counters map[meta.Counter]int64
}

func newWrites() *writes {
	return &writes{
		inodes: map[sys.Ino]*metapb.Attr{}, entries: map[sys.Ino]map[string]*metapb.Dentry{},
		chunks: map[sys.Ino]map[uint32]*metapb.Chunk{}, xattrs: map[sys.Ino]*metapb.Xattrs{},
		counters: map[meta.Counter]int64{},
	}
}

// loads says that a step of a load is among the writes.
func (w *writes) loads() bool {
	for _, c := range []meta.Counter{meta.CounterLoad, meta.CounterBatches, meta.CounterMoves} {
		if _, ok := w.counters[c]; ok {
			return true
		}
	}
	return false
}

// scriptMax is how long the text of one round trip becomes before it is cut,
// in bytes. Servers take 16 MiB unless told otherwise; one row has up to twice
// its limit of 256 KiB.
const scriptMax = 1 << 20

// script is SQL text: statements with their values in them, numbers as digits
// and bytes as hexadecimal, so that nothing needs quoting.
type script struct {
	done [][]byte // parts of a round trip each
	text []byte
	open string // what ends the statement that is being written; "" between statements
}

// rows adds one row to a statement of many: head (row), (row) tail.
func (s *script) row(head, tail string, values ...any) {
	if s.open != "" {
		s.text = append(s.text, ',')
	} else {
		s.text = append(s.text, head...)
		s.open = tail + ";"
	}
	s.text = append(s.text, '(')
	for i, v := range values {
		if i > 0 {
			s.text = append(s.text, ',')
		}
		s.text = appendValue(s.text, v)
	}
	s.text = append(s.text, ')')
	if len(s.text) >= scriptMax {
		s.end()
		s.cut()
	}
}

// change adds the statement that makes one inode's row another.
func (s *script) change(was, is *metapb.Attr) {
	s.end()
	old, now := attrValues(was), attrValues(is)
	between := "UPDATE inodes SET "
	for i, v := range now {
		if b, ok := v.([]byte); ok && bytes.Equal(b, old[i].([]byte)) || !ok && v == old[i] {
			continue
		}
		s.text = append(append(append(s.text, between...), attrNames[i]...), '=')
		s.text = appendValue(s.text, v)
		between = ","
	}
	if between == "," {
		s.text = append(strconv.AppendUint(append(s.text, " WHERE id="...), is.Ino, 10), ';')
	}
}

// end ends the statement that is being written, if any.
func (s *script) end() {
	s.text = append(s.text, s.open...)
	s.open = ""
}

// add adds a whole statement.
func (s *script) add(statement string) {
	s.end()
	s.text = append(append(s.text, statement...), ';')
}

func (s *script) cut() {
	if len(s.text) > 0 {
		s.done = append(s.done, s.text)
		s.text = nil
	}
}

func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, "NULL"...)
	case uint64:
		return strconv.AppendUint(b, v, 10)
	case uint32:
		return strconv.AppendUint(b, uint64(v), 10)
	case int64:
		return strconv.AppendInt(b, v, 10)
	case bool:
		return strconv.AppendBool(b, v)
	case []byte:
		return append(hex.AppendEncode(append(b, "x'"...), v), '\'')
	}
	panic(fmt.Sprintf("mysql: expected a value of a column, found %T", v))
}

// onto is what follows the rows of an INSERT so that they replace others.
func onto(columns ...string) string {
	b := " ON DUPLICATE KEY UPDATE "
	for i, c := range columns {
		if i > 0 {
			b += ","
		}
		b += c + "=VALUES(" + c + ")"
	}
	return b
}

const (
	insertInode = "INSERT INTO inodes (" + attrColumns + ") VALUES "
	insertEntry = "INSERT INTO entries (parent, cookie, name, inode, type, " + originColumns + ") VALUES "
	insertChunk = "INSERT INTO chunks (inode, chunk, bytes, slices, layout) VALUES "
	insertXattr = "INSERT INTO xattrs (inode, name, value) VALUES "
	insertCount = "INSERT INTO counters (name, value) VALUES "
)

// tails are what follows the rows of each INSERT.
type tails struct{ inode, entry, chunk, count string }

func newTails() tails {
	return tails{
		inode: onto("type", "mode", "uid", "gid", "size", "nlink", "atime_ns", "mtime_ns", "ctime_ns", "rdev", "parent",
			"version", "next_cookie", "target", "xattrs", "deadline_ns", "purging", "stored"),
		entry: onto("cookie", "inode", "type", "origin_parent", "origin_name", "removed_ns"),
		chunk: onto("bytes", "slices", "layout"),
		count: onto("value"),
	}
}

// write adds to s what brings the rows into the database: what goes first, so
// that a name may come back with another cookie. Where c knows that a row is
// there or is not, that is used: to ask costs the server more.
func (w *writes) write(s *script, t *tails, c *cache) error {
	w.deletes(s)
	for ino, a := range w.inodes {
		if was := c.inodes[ino]; a != nil && was != nil {
			s.change(was, a)
		}
	}
	for name, n := range w.counters {
		if c.counters[name] != 0 {
			s.add(fmt.Sprintf("UPDATE counters SET value=%d WHERE name=x'%x'", n, name.String()))
		}
	}
	for _, fresh := range []bool{true, false} {
		if err := w.insert(s, t, c, fresh); err != nil {
			return err
		}
	}
	for ino, x := range w.xattrs {
		for _, x := range x.GetXattrs() {
			s.row(insertXattr, "", uint64(ino), x.Name, x.Value)
		}
	}
	s.end()
	return nil
}

// insert adds the rows that are known not to be there yet, or those of which
// that is not known.
func (w *writes) insert(s *script, t *tails, c *cache, fresh bool) error {
	tail := func(onto string) string {
		if fresh {
			return ""
		}
		return onto
	}
	for ino, a := range w.inodes {
		if a != nil && c.inodes[ino] == nil && c.noInode(ino) == fresh {
			s.row(insertInode, tail(t.inode), attrValues(a)...)
		}
	}
	s.end()
	for parent, dir := range w.entries {
		for name, d := range dir {
			if d == nil || c.noEntry(parent, name) != fresh {
				continue
			}
			row := []any{uint64(parent), d.Cookie, []byte(name), d.Ino, d.Type, nil, nil, nil}
			if o := d.Origin; o != nil {
				row[5], row[6], row[7] = o.Parent, o.Name, o.RemovedNs
			}
			s.row(insertEntry, tail(t.entry), row...)
		}
	}
	s.end()
	for ino, chunks := range w.chunks {
		if (c.noChunks(ino) || c.noInode(ino)) != fresh {
			continue
		}
		for n, chunk := range chunks {
			if chunk == nil {
				continue
			}
			layout := pb.Marshal(&metapb.Chunk{Slices: chunk.Slices, Ranges: chunk.Ranges, FreedNs: chunk.FreedNs})
			s.row(insertChunk, tail(t.chunk), uint64(ino), n, chunk.Inline, uint32(len(chunk.Slices)), layout)
		}
	}
	s.end()
	for name, n := range w.counters {
		if !fresh && c.counters[name] == 0 {
			s.row(insertCount, t.count, []byte(name.String()), n)
		}
	}
	s.end()
	return nil
}

func (w *writes) deletes(s *script) {
	for ino, a := range w.inodes {
		if a == nil {
			s.row("DELETE FROM inodes WHERE id IN (", ")", uint64(ino))
		}
	}
	s.end()
	// One by one: servers look for rows of several columns in a list by reading
	// the whole table.
	for parent, dir := range w.entries {
		for name, d := range dir {
			if d == nil {
				s.add(fmt.Sprintf("DELETE FROM entries WHERE parent=%d AND name=x'%x'", uint64(parent), name))
			}
		}
	}
	for ino, chunks := range w.chunks {
		for n, c := range chunks {
			if c == nil {
				s.add(fmt.Sprintf("DELETE FROM chunks WHERE inode=%d AND chunk=%d", uint64(ino), n))
			}
		}
	}
	for ino := range w.xattrs {
		s.row("DELETE FROM xattrs WHERE inode IN (", ")", uint64(ino))
	}
	s.end()
}
