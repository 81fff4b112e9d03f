package meta

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// The tables in the order in which ScanRows lists them. Their numbers are part
// of metapb.Cursor.
const (
	tableCounters = iota
	tableInodes
	tableEntries
	tableChunks
	tableXattrs
	tableEnd
)

// rowsCost bounds one answer to ScanRows, in bytes; its last row may exceed it.
const rowsCost = 1 << 20

// rowsOf returns what tx, or a Tx within it, can list whole tables with.
func rowsOf(tx Tx) (RowScanner, error) {
	for {
		if rows, ok := tx.(RowScanner); ok {
			return rows, nil
		}
		outer, ok := tx.(interface{ Unwrap() Tx })
		if !ok {
			return nil, &refusal{kind: sys.NotSupported, cause: "this engine lists no rows"}
		}
		tx = outer.Unwrap()
	}
}

// scanRows lists rows of all tables while the budget lasts.
func (s *step) scanRows(q *metapb.ScanRows, ans *metapb.Answer) error {
	if !s.root() {
		return refuse(sys.Permission, sys.RootIno, "only root lists all rows")
	}
	if err := s.ready(); err != nil {
		return err
	}
	l := &lister{ans: ans, budget: rowsCost}
	from := q.GetFrom()
	if from == nil {
		from = &metapb.Cursor{}
	}
	for table := from.Table; table < tableEnd && ans.Next == nil; table++ {
		if err := s.scanTable(l, from); err != nil {
			return err
		}
		from = &metapb.Cursor{Table: table + 1}
	}
	ans.End = ans.Next == nil
	return nil
}

// lister collects rows for an answer.
type lister struct {
	ans    *metapb.Answer
	budget int
}

// add takes a row, or notes that the answer is full and goes on there.
func (l *lister) add(row *metapb.Row, table uint32, ino sys.Ino, key uint64) (more bool) {
	if l.budget <= 0 {
		l.ans.Next = &metapb.Cursor{Table: table, Ino: uint64(ino), Key: key}
		return false
	}
	l.budget -= 32 + pb.Size(row)
	l.ans.Rows = append(l.ans.Rows, row)
	return true
}

func (s *step) scanTable(l *lister, from *metapb.Cursor) error {
	rows, err := rowsOf(s.tx)
	if err != nil {
		return err
	}
	ino := sys.Ino(from.Ino)
	switch table := from.Table; table {
	case tableCounters:
		for c := CounterIno; c <= CounterRetention; c++ {
			n, err := s.tx.Counter(c, 0)
			if err != nil {
				return err
			}
			l.add(&metapb.Row{Row: &metapb.Row_Counter{Counter: &metapb.CounterRow{Counter: uint32(c), Value: n}}}, table, 0, 0)
		}
		return nil
	case tableInodes:
		return s.tx.ScanInodes(max(ino, 1)-1, func(a *metapb.Attr) bool {
			return l.add(&metapb.Row{Row: &metapb.Row_Inode{Inode: a}}, table, sys.Ino(a.Ino), 0)
		})
	case tableEntries:
		return rows.AllDentries(ino, from.Key, func(parent sys.Ino, name []byte, d *metapb.Dentry) bool {
			e := &metapb.EntryRow{Parent: uint64(parent), Name: append([]byte(nil), name...), Dentry: d}
			return l.add(&metapb.Row{Row: &metapb.Row_Entry{Entry: e}}, table, parent, d.Cookie)
		})
	case tableChunks:
		return rows.AllChunks(ino, uint32(from.Key), func(ino sys.Ino, n uint32, c *metapb.Chunk) bool {
			r := &metapb.ChunkRow{Ino: uint64(ino), Number: n, Chunk: c}
			return l.add(&metapb.Row{Row: &metapb.Row_Chunk{Chunk: r}}, table, ino, uint64(n))
		})
	default:
		return rows.AllXattrs(ino, func(ino sys.Ino, x *metapb.Xattrs) bool {
			r := &metapb.XattrsRow{Ino: uint64(ino), Xattrs: x}
			return l.add(&metapb.Row{Row: &metapb.Row_Xattrs{Xattrs: r}}, table, ino, 0)
		})
	}
}

// treeState tells whether there is a tree.
func (s *step) treeState(_ *metapb.TreeState, ans *metapb.Answer) (err error) {
	if ans.Attr, err = s.tx.Inode(sys.RootIno); err != nil {
		return err
	}
	if ans.Moves, err = s.tx.Counter(CounterMoves, 0); err != nil {
		return err
	}
	load, err := s.tx.Counter(CounterLoad, 0)
	ans.Load = uint64(load)
	return err
}
