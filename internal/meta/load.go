package meta

import (
	"fmt"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// A tree is loaded from a dump in steps. The first takes the root away and the
// last brings it, so that a tree which is loaded halfway has none; without a
// root no name leads anywhere, and what looks after the tree does nothing.

// clearMax is how many rows one LoadClear deletes at most.
const clearMax = 4096

// notLoaded is what everything answers while there is no root.
func notLoaded() error {
	return refuse(sys.Busy, sys.RootIno, "there is no tree here: a load of it has not ended, or another engine has it; "+
		"run `koinon meta load FILE`, or start the nodes with the engine that has it (docs/operating/engines.md)")
}

// ready refuses what must not run without a tree.
func (s *step) ready() error {
	root, err := s.tx.Inode(sys.RootIno)
	if err == nil && root == nil {
		err = notLoaded()
	}
	return err
}

// missing is the refusal for an inode that is not there.
func missing(ino sys.Ino, kind sys.Kind, cause string) error {
	if ino == sys.RootIno {
		return notLoaded()
	}
	return refuse(kind, ino, cause)
}

func (s *step) loadTree(c *metapb.Load) (*metapb.Result, error) {
	switch l := c.GetStep().(type) {
	case *metapb.Load_Begin:
		return s.loadBegin(int64(c.Id))
	case *metapb.Load_Clear:
		return s.loadClear(int64(c.Id), int(min(l.Clear.GetLimit(), clearMax)))
	case *metapb.Load_Rows:
		return s.loadRows(int64(c.Id), l.Rows)
	case *metapb.Load_End:
		return s.loadEnd(int64(c.Id), l.End)
	case *metapb.Load_Away:
		return s.loadAway(l.Away)
	}
	return nil, refuse(sys.Invalid, sys.RootIno, "a step of a load that this version does not know")
}

func (s *step) loadBegin(id int64) (*metapb.Result, error) {
	if id <= 0 {
		return nil, refuse(sys.Invalid, sys.RootIno, "a load needs an ID")
	}
	root, err := s.tx.Inode(sys.RootIno)
	if err != nil {
		return nil, err
	}
	have, err := s.tx.Counter(CounterLoad, 0)
	if err != nil {
		return nil, err
	}
	if root == nil && have == id { // it came before
		return &metapb.Result{}, nil
	}
	if root != nil {
		if err := s.checkNew(); err != nil {
			return nil, err
		}
		if err := s.tx.SetInode(sys.RootIno, nil); err != nil {
			return nil, err
		}
	}
	for c := CounterIno; c <= CounterRetention; c++ {
		if err := s.setCounter(c, 0); err != nil {
			return nil, err
		}
	}
	if err := s.setCounter(CounterBatches, 0); err != nil {
		return nil, err
	}
	return &metapb.Result{}, s.setCounter(CounterLoad, id)
}

// checkNew refuses a tree in which something was ever written.
func (s *step) checkNew() error {
	for c, most := range map[Counter]int64{CounterInodes: 1, CounterSlice: 0, CounterFreed: 0, CounterIno: int64(sys.FirstIno) - 1} {
		n, err := s.tx.Counter(c, 0)
		if err != nil {
			return err
		}
		if n > most {
			return refuse(sys.NotEmpty, sys.RootIno, "a dump is loaded only where there is no tree yet, or a new one in which nothing was ever made: "+
				"make a new cluster, or name an empty database; nothing was changed")
		}
	}
	return nil
}

func (s *step) setCounter(c Counter, value int64) error {
	have, err := s.tx.Counter(c, 0)
	if err != nil {
		return err
	}
	return s.count(c, value-have)
}

// loading refuses a step unless its load is under way.
func (s *step) loading(id int64) error {
	root, err := s.tx.Inode(sys.RootIno)
	if err != nil {
		return err
	}
	have, err := s.tx.Counter(CounterLoad, 0)
	if err != nil {
		return err
	}
	if root != nil || have != id || id == 0 {
		return refuse(sys.Busy, sys.RootIno, "this load is not under way: another has begun or ended since; run one at a time")
	}
	return nil
}

// loadClear deletes what is left of an earlier tree.
func (s *step) loadClear(id int64, limit int) (*metapb.Result, error) {
	if err := s.loading(id); err != nil {
		return nil, err
	}
	rows, err := rowsOf(s.tx)
	if err != nil {
		return nil, err
	}
	var dead []func() error
	add := func(del func() error) bool {
		dead = append(dead, del)
		return len(dead) < limit
	}
	for _, scan := range []func() error{
		func() error {
			return s.tx.ScanInodes(0, func(a *metapb.Attr) bool {
				return add(func() error { return s.tx.SetInode(sys.Ino(a.Ino), nil) })
			})
		},
		func() error {
			return rows.AllDentries(0, 0, func(parent sys.Ino, name []byte, _ *metapb.Dentry) bool {
				name = append([]byte(nil), name...)
				return add(func() error { return s.tx.SetDentry(parent, name, nil) })
			})
		},
		func() error {
			return rows.AllChunks(0, 0, func(ino sys.Ino, n uint32, _ *metapb.Chunk) bool {
				return add(func() error { return s.tx.SetChunk(ino, n, nil) })
			})
		},
		func() error {
			return rows.AllXattrs(0, func(ino sys.Ino, _ *metapb.Xattrs) bool {
				return add(func() error { return s.tx.SetXattrs(ino, nil) })
			})
		},
	} {
		if len(dead) >= limit {
			break
		}
		if err := scan(); err != nil {
			return nil, err
		}
	}
	for _, del := range dead {
		if err := del(); err != nil {
			return nil, err
		}
	}
	return &metapb.Result{Purged: uint32(len(dead))}, nil
}

func (s *step) loadRows(id int64, c *metapb.LoadRows) (*metapb.Result, error) {
	if err := s.loading(id); err != nil {
		return nil, err
	}
	last, err := s.tx.Counter(CounterBatches, 0)
	if err != nil {
		return nil, err
	}
	if int64(c.Batch) <= last && c.Batch > 0 { // it came before
		return &metapb.Result{}, nil
	}
	if int64(c.Batch) != last+1 {
		return nil, refuse(sys.Invalid, sys.RootIno, fmt.Sprintf("expected batch %d of the load, found %d", last+1, c.Batch))
	}
	// Nothing is written before all of it has been looked at.
	names := map[string]bool{}
	for _, r := range c.Rows {
		if err := s.checkRow(r, names); err != nil {
			return nil, err
		}
	}
	for _, r := range c.Rows {
		if err := s.setRow(r); err != nil {
			return nil, err
		}
	}
	return &metapb.Result{}, s.count(CounterBatches, 1)
}

// checkRow refuses what no engine keeps, so that a bad dump is an answer and
// never trouble of an engine.
func (s *step) checkRow(r *metapb.Row, names map[string]bool) error {
	bad := func(ino uint64, cause string) error { return refuse(sys.Corrupt, sys.Ino(ino), "the dump has "+cause) }
	switch r := r.GetRow().(type) {
	case *metapb.Row_Inode:
		a := r.Inode
		if a.GetIno() == 0 || sys.Ino(a.Ino) == sys.RootIno || a.Type > 0xff || a.Mode > 0o7777 || len(a.Target) > sys.SymlinkMax {
			return bad(a.GetIno(), "an inode that cannot be")
		}
	case *metapb.Row_Entry:
		e := r.Entry
		if err := checkName(e.GetName()); err != nil || e.GetDentry().GetCookie() == 0 || e.Parent == 0 || e.Dentry.Type > 0xff {
			return bad(e.GetParent(), "an entry that cannot be")
		}
		if o := e.Dentry.Origin; o != nil && len(o.Name) > sys.NameMax {
			return bad(e.Parent, "an entry that cannot be")
		}
		key := fmt.Sprintf("%d/%s", e.Parent, e.Name)
		d, err := s.tx.Dentry(sys.Ino(e.Parent), e.Name)
		if err != nil {
			return err
		}
		if d != nil || names[key] {
			return bad(e.Parent, "an entry twice")
		}
		names[key] = true
	case *metapb.Row_Chunk:
		if k := r.Chunk; k.GetIno() == 0 || k.Chunk == nil || len(k.Chunk.Inline) > sys.InlineMax {
			return bad(k.GetIno(), "a chunk that cannot be")
		}
	case *metapb.Row_Xattrs:
		x := r.Xattrs
		size := 0
		for _, x := range x.GetXattrs().GetXattrs() {
			size += len(x.Name) + len(x.Value)
			if len(x.Name) == 0 || len(x.Name) > sys.XattrName || len(x.Value) > sys.XattrValue {
				size = XattrRowMax + 1
			}
		}
		if x.GetIno() == 0 || size == 0 || size > XattrRowMax {
			return bad(x.GetIno(), "extended attributes that cannot be")
		}
	case *metapb.Row_Counter:
		if c := Counter(r.Counter.GetCounter()); r.Counter.Counter > 0xff || c < CounterIno || c > CounterRetention || r.Counter.Value < 0 {
			return bad(0, "a counter that cannot be")
		}
	default:
		return bad(0, "a row that this version does not know: load it with the version that wrote it, or a newer one")
	}
	return nil
}

func (s *step) setRow(r *metapb.Row) error {
	switch r := r.GetRow().(type) {
	case *metapb.Row_Inode:
		return s.tx.SetInode(sys.Ino(r.Inode.Ino), r.Inode)
	case *metapb.Row_Entry:
		return s.tx.SetDentry(sys.Ino(r.Entry.Parent), r.Entry.Name, r.Entry.Dentry)
	case *metapb.Row_Chunk:
		return s.tx.SetChunk(sys.Ino(r.Chunk.Ino), r.Chunk.Number, r.Chunk.Chunk)
	case *metapb.Row_Xattrs:
		return s.tx.SetXattrs(sys.Ino(r.Xattrs.Ino), r.Xattrs.Xattrs)
	case *metapb.Row_Counter:
		return s.setCounter(Counter(r.Counter.Counter), r.Counter.Value)
	}
	return nil
}

func (s *step) loadEnd(id int64, c *metapb.LoadEnd) (*metapb.Result, error) {
	root, err := s.tx.Inode(sys.RootIno)
	if err != nil {
		return nil, err
	}
	if have, err := s.tx.Counter(CounterLoad, 0); err != nil || root != nil && have == id { // it came before
		return &metapb.Result{Attr: root}, err
	}
	if err := s.loading(id); err != nil {
		return nil, err
	}
	if last, err := s.tx.Counter(CounterBatches, 0); err != nil || uint64(last) != c.GetBatch() {
		if err == nil {
			err = refuse(sys.Invalid, sys.RootIno, fmt.Sprintf("expected %d batches of the load, found %d", c.GetBatch(), last))
		}
		return nil, err
	}
	root = c.GetRoot()
	if sys.Ino(root.GetIno()) != sys.RootIno || !isDir(root) {
		return nil, refuse(sys.Corrupt, sys.RootIno, "the dump has no root")
	}
	for _, ino := range []sys.Ino{sys.QuarantineIno, sys.FreedIno, sys.PendingIno} {
		if a, err := s.tx.Inode(ino); err != nil || a == nil {
			if err == nil {
				err = refuse(sys.Corrupt, ino, "the dump lacks it")
			}
			return nil, err
		}
	}
	if err := s.setCounter(CounterMoves, c.GetMoves()); err != nil {
		return nil, err
	}
	if err := s.tx.SetInode(sys.RootIno, root); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: root.CloneVT()}, nil
}

func (s *step) loadAway(c *metapb.LoadAway) (*metapb.Result, error) {
	root, err := s.tx.Inode(sys.RootIno)
	if err != nil {
		return nil, err
	}
	if root != nil {
		if err := s.tx.SetInode(sys.RootIno, nil); err != nil {
			return nil, err
		}
	}
	if err := s.setCounter(CounterLoad, 0); err != nil { // no load is under way here
		return nil, err
	}
	return &metapb.Result{}, s.setCounter(CounterMoves, c.GetMoves())
}
