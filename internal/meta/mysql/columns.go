package mysql

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/meta/metapb"
)

// attrColumns are the columns of inodes in the order of attrFields.
const attrColumns = "id, type, mode, uid, gid, size, nlink, atime_ns, mtime_ns, ctime_ns, rdev, parent, version, " +
	"next_cookie, target, xattrs, deadline_ns, purging, stored"

func attrFields(a *metapb.Attr) []any {
	return []any{
		&a.Ino, &a.Type, &a.Mode, &a.Uid, &a.Gid, &a.Size, &a.Nlink, &a.AtimeNs, &a.MtimeNs, &a.CtimeNs, &a.Rdev,
		&a.Parent, &a.Version, &a.NextCookie, &a.Target, &a.Xattrs, &a.DeadlineNs, &a.Purging, &a.Stored,
	}
}

var attrNames = strings.Split(attrColumns, ", ")

// attrValues are a row of inodes in the order of attrColumns.
func attrValues(a *metapb.Attr) []any {
	return []any{
		a.Ino, a.Type, a.Mode, a.Uid, a.Gid, a.Size, a.Nlink, a.AtimeNs, a.MtimeNs, a.CtimeNs, a.Rdev,
		a.Parent, a.Version, a.NextCookie, a.Target, a.Xattrs, a.DeadlineNs, a.Purging, a.Stored,
	}
}

// attrOrZero are the columns of an inode that may not be there.
func attrOrZero() string {
	columns := slices.Clone(attrNames)
	for i, c := range columns {
		zero := "0"
		if c == "target" {
			zero = "''"
		}
		columns[i] = "COALESCE(i." + c + ", " + zero + ")"
	}
	return strings.Join(columns, ", ")
}

// origin are the columns of where an inode in quarantine was linked.
type origin struct {
	parent  sql.Null[uint64]
	name    []byte
	removed sql.Null[int64]
}

const originColumns = "origin_parent, origin_name, removed_ns"

func (o *origin) fields() []any { return []any{&o.parent, &o.name, &o.removed} }

func (o *origin) message() *metapb.Origin {
	if !o.parent.Valid {
		return nil
	}
	return &metapb.Origin{Parent: o.parent.V, Name: o.name, RemovedNs: o.removed.V}
}

// statements are the prepared reads. They belong to the pool they were
// prepared on, which prepares them again on each of its connections.
type statements struct {
	inode, inodes, entry, entries, chunk, chunks, xattrs, counter, owner *sql.Stmt
	// Of whole tables.
	entriesRest, entriesAbove, chunksRest, chunksAbove, xattrsNext *sql.Stmt
}

const (
	selectEntries = "SELECT " + originColumns + ", parent, cookie, inode, type, name FROM entries "
	selectChunks  = "SELECT inode, chunk, bytes, layout FROM chunks "
)

func prepare(ctx context.Context, db *sql.DB) (*statements, error) {
	st := &statements{}
	for _, p := range []struct {
		to   **sql.Stmt
		text string
	}{
		{&st.inode, "SELECT " + attrColumns + " FROM inodes WHERE id = ?"},
		{&st.inodes, "SELECT " + attrColumns + " FROM inodes WHERE id >= ? ORDER BY id LIMIT ?"},
		{&st.entry, "SELECT " + originColumns + ", cookie, inode, type FROM entries WHERE parent = ? AND name = ?"},
		{&st.entries, "SELECT e.origin_parent, e.origin_name, e.removed_ns, e.cookie, e.inode, e.type, e.name, " +
			"i.id IS NOT NULL, " + attrOrZero() + " FROM entries e LEFT JOIN inodes i ON i.id = e.inode " +
			"WHERE e.parent = ? AND e.cookie >= ? ORDER BY e.cookie LIMIT ?"},
		{&st.chunk, "SELECT chunk, bytes, layout FROM chunks WHERE inode = ? AND chunk = ?"},
		{&st.chunks, "SELECT chunk, bytes, layout FROM chunks WHERE inode = ? AND chunk >= ? ORDER BY chunk LIMIT ?"},
		{&st.xattrs, "SELECT name, value FROM xattrs WHERE inode = ? ORDER BY name"},
		{&st.counter, "SELECT value FROM counters WHERE name = ?"},
		{&st.owner, "SELECT MIN(ino) FROM (SELECT MIN(parent) AS ino FROM entries WHERE parent > ? " +
			"UNION ALL SELECT MIN(inode) FROM chunks WHERE inode > ? " +
			"UNION ALL SELECT MIN(inode) FROM xattrs WHERE inode > ?) AS owners"},
		{&st.entriesRest, selectEntries + "WHERE parent = ? AND cookie >= ? ORDER BY cookie LIMIT ?"},
		{&st.entriesAbove, selectEntries + "WHERE parent > ? ORDER BY parent, cookie LIMIT ?"},
		{&st.chunksRest, selectChunks + "WHERE inode = ? AND chunk >= ? ORDER BY chunk LIMIT ?"},
		{&st.chunksAbove, selectChunks + "WHERE inode > ? ORDER BY inode, chunk LIMIT ?"},
		{&st.xattrsNext, "SELECT MIN(inode) FROM xattrs WHERE inode >= ?"},
	} {
		s, err := db.PrepareContext(ctx, p.text)
		if err != nil {
			return nil, errors.Join(err, st.close())
		}
		*p.to = s
	}
	return st, nil
}

func (st *statements) close() error {
	var all error
	for _, s := range []*sql.Stmt{
		st.inode, st.inodes, st.entry, st.entries, st.chunk, st.chunks, st.xattrs, st.counter, st.owner,
		st.entriesRest, st.entriesAbove, st.chunksRest, st.chunksAbove, st.xattrsNext,
	} {
		if s != nil {
			all = errors.Join(all, s.Close())
		}
	}
	return all
}
