package meta

import (
	"errors"
	"fmt"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Read answers a query and writes nothing. A refusal is in the Answer; an
// error is trouble of the engine.
func Read(tx Tx, q *metapb.Query) (*metapb.Answer, error) {
	s := &step{tx: tx, cred: q.GetCred()}
	ans := &metapb.Answer{}
	op, err := s.read(q, ans)
	if err == nil {
		return ans, nil
	}
	if no, ok := errors.AsType[*refusal](err); ok {
		return &metapb.Answer{Failure: no.failure(op)}, nil
	}
	return nil, fmt.Errorf("%s: %w", op, err)
}

func (s *step) read(q *metapb.Query, ans *metapb.Answer) (op string, err error) {
	switch c := q.GetOp().(type) {
	case *metapb.Query_Lookup:
		return answers("meta.Lookup", s.lookup, c.Lookup, ans)
	case *metapb.Query_GetAttr:
		return answers("meta.GetAttr", s.getAttr, c.GetAttr, ans)
	case *metapb.Query_Open:
		return answers("meta.Open", s.open, c.Open, ans)
	case *metapb.Query_GetChunks:
		return answers("meta.GetChunks", s.getChunks, c.GetChunks, ans)
	case *metapb.Query_ReadDir:
		return answers("meta.ReadDir", s.readDir, c.ReadDir, ans)
	case *metapb.Query_GetXattr:
		return answers("meta.GetXattr", s.getXattr, c.GetXattr, ans)
	case *metapb.Query_ListXattr:
		return answers("meta.ListXattr", s.listXattr, c.ListXattr, ans)
	case *metapb.Query_StatFs:
		return answers("meta.StatFS", s.statFS, c.StatFs, ans)
	case *metapb.Query_ScanInodes:
		return answers("meta.ScanInodes", s.scanInodes, c.ScanInodes, ans)
	case *metapb.Query_Access:
		return answers("meta.Access", s.access, c.Access, ans)
	case *metapb.Query_ScanRows:
		return answers("meta.ScanRows", s.scanRows, c.ScanRows, ans)
	case *metapb.Query_TreeState:
		return answers("meta.TreeState", s.treeState, c.TreeState, ans)
	case *metapb.Query_ReadFreed:
		return answers("meta.ReadFreed", s.readFreed, c.ReadFreed, ans)
	}
	return "meta.Read", &refusal{kind: sys.NotSupported, cause: "a query that this version does not know"}
}

func answers[Q any](op string, run func(*Q, *metapb.Answer) error, q *Q, ans *metapb.Answer) (string, error) {
	if q == nil {
		q = new(Q)
	}
	return op, run(q, ans)
}

// readable returns an inode to look at, hidden ones for root only.
func (s *step) readable(ino sys.Ino) (*metapb.Attr, error) {
	if hidden(ino) && !s.root() {
		return nil, refuse(sys.Permission, ino, "a hidden inode of the tree")
	}
	a, err := s.tx.Inode(ino)
	if err != nil {
		return nil, err
	}
	if a == nil || a.Purging {
		return nil, missing(ino, sys.Stale, "it was deleted")
	}
	return a, nil
}

func (s *step) lookup(q *metapb.Lookup, ans *metapb.Answer) error {
	dir, d, err := s.vacancy(sys.Ino(q.Parent), q.Name)
	if err != nil {
		return err
	}
	if d == nil {
		return refuseName(sys.NotExist, q.Name, "")
	}
	ans.Attr, err = s.target(sys.Ino(dir.Ino), q.Name, d)
	return err
}

func (s *step) getAttr(q *metapb.GetAttr, ans *metapb.Answer) (err error) {
	ans.Attr, err = s.readable(sys.Ino(q.Ino))
	return err
}

// open checks permission once for all that is done with the open file.
func (s *step) open(q *metapb.Open, ans *metapb.Answer) error {
	ino := sys.Ino(q.Ino)
	a, err := s.readable(ino)
	if err != nil {
		return err
	}
	if err := s.checkWant(a, q.Want); err != nil {
		return err
	}
	if isDir(a) && q.Want&wantWrite != 0 {
		return refuse(sys.IsDir, ino, "")
	}
	ans.Attr = a
	if !isRegular(a) || hidden(ino) {
		return nil
	}
	c, err := s.tx.Chunk(ino, 0)
	if c != nil {
		ans.Chunks = []*metapb.NumberedChunk{{Chunk: c}}
	}
	return err
}

func (s *step) access(q *metapb.Access, ans *metapb.Answer) error {
	a, err := s.readable(sys.Ino(q.Ino))
	if err != nil {
		return err
	}
	ans.Attr = a
	return s.checkWant(a, q.Want)
}

func (s *step) checkWant(a *metapb.Attr, want uint32) error {
	if want > wantRead|wantWrite|wantExec {
		return refuse(sys.Invalid, sys.Ino(a.Ino), "want has the bits 4, 2 and 1")
	}
	return s.check(a, want)
}

func (s *step) getChunks(q *metapb.GetChunks, ans *metapb.Answer) error {
	ino := sys.Ino(q.Ino)
	a, err := s.readable(ino)
	if err != nil {
		return err
	}
	if isDir(a) {
		return refuse(sys.IsDir, ino, "")
	}
	if !isRegular(a) || q.Count == 0 || q.Count > GetChunksMax || q.First >= ChunksMax {
		return refuse(sys.Invalid, ino, "1 to 256 chunks of a regular file are read at a time")
	}
	ans.Attr = a
	return s.tx.ScanChunks(ino, q.First, func(n uint32, c *metapb.Chunk) bool {
		if n-q.First >= q.Count {
			return false
		}
		ans.Chunks = append(ans.Chunks, &metapb.NumberedChunk{Number: n, Chunk: c})
		return true
	})
}

// readDir lists a directory. A listing that goes on after the cookie of the
// last entry it saw meets every entry that is there all the time exactly once.
func (s *step) readDir(q *metapb.ReadDir, ans *metapb.Answer) error {
	ino := sys.Ino(q.Ino)
	dir, err := s.readable(ino)
	if err != nil {
		return err
	}
	if !isDir(dir) {
		return refuse(sys.NotDir, ino, "")
	}
	if err := s.check(dir, wantRead); err != nil {
		return err
	}
	limit := int(min(q.Limit, ReadDirMax))
	if limit == 0 {
		limit = ReadDirMax
	}
	ans.Attr, ans.End = dir, true
	err = s.tx.ScanDentries(ino, q.After, func(name []byte, d *metapb.Dentry) bool {
		if len(ans.Entries) == limit {
			ans.End = false
			return false
		}
		ans.Entries = append(ans.Entries, &metapb.Entry{
			Name: append([]byte(nil), name...), Ino: d.Ino, Type: d.Type, Cookie: d.Cookie, Origin: d.Origin,
		})
		return true
	})
	if err != nil || !q.Attrs || !s.allows(dir, wantExec) {
		return err
	}
	for _, e := range ans.Entries {
		if e.Attr, err = s.tx.Inode(sys.Ino(e.Ino)); err != nil {
			return err
		}
	}
	return nil
}

func (s *step) statFS(_ *metapb.StatFS, ans *metapb.Answer) error {
	var fault error
	read := func(name Counter) int64 {
		n, err := s.tx.Counter(name, 0)
		fault = errors.Join(fault, err)
		return n
	}
	ans.UsedBytes = uint64(read(CounterBytes))
	ans.UsedInodes = uint64(read(CounterInodes))
	ans.LastIno = uint64(read(CounterIno))
	ans.LastSlice = uint64(read(CounterSlice))
	ans.RetentionNs = read(CounterRetention)
	ans.InlineMax = sys.InlineMax
	if t, ok := s.tx.(Inliner); ok {
		ans.InlineMax = t.InlineMax()
	}
	return fault
}
