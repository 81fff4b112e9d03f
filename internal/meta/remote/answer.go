package remote

import (
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// answer serves a query from the cache, nil when it cannot.
func (c *cache) answer(q *metapb.Query) (*metapb.Answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.valid() {
		return nil, nil
	}
	switch op := q.Op.(type) {
	case *metapb.Query_Lookup:
		return c.lookup(q.Cred, sys.Ino(op.Lookup.Parent), op.Lookup.Name)
	case *metapb.Query_GetAttr:
		if a := c.attrOf(sys.Ino(op.GetAttr.Ino)); a != nil {
			return &metapb.Answer{Attr: a}, nil
		}
	case *metapb.Query_Open:
		return c.open(q.Cred, op.Open)
	case *metapb.Query_Access:
		e := c.inos[sys.Ino(op.Access.Ino)]
		if e != nil && e.attr != nil {
			if err := meta.CheckAccess(e.attr, q.Cred, op.Access.Want); err != nil {
				return nil, err
			}
			return &metapb.Answer{Attr: e.attr.CloneVT()}, nil
		}
	case *metapb.Query_GetXattr:
		if a := c.attrOf(sys.Ino(op.GetXattr.Ino)); a != nil && a.Xattrs == 0 {
			return nil, sys.E(sys.Op("meta.GetXattr"), sys.NoXattr)
		}
	case *metapb.Query_ListXattr:
		if a := c.attrOf(sys.Ino(op.ListXattr.Ino)); a != nil && a.Xattrs == 0 {
			return &metapb.Answer{}, nil
		}
	}
	return nil, nil
}

func (c *cache) lookup(cred *metapb.Cred, parent sys.Ino, n []byte) (*metapb.Answer, error) {
	dir := c.inos[parent]
	if dir == nil {
		return nil, nil
	}
	v, ok := dir.find(string(n))
	if !ok {
		return nil, nil
	}
	if cred.GetUid() != 0 {
		if dir.attr == nil {
			return nil, nil
		}
		if err := meta.CheckAccess(dir.attr, cred, 1); err != nil {
			return nil, err
		}
	}
	if v.ino == 0 {
		return nil, sys.E(sys.Op("meta.Lookup"), sys.NotExist)
	}
	if a := c.attrOf(v.ino); a != nil {
		return &metapb.Answer{Attr: a}, nil
	}
	return nil, nil
}

// vacant says whether the session may promise to make a file, instead of making
// it: it has the directory to itself, which has no such name, and the caller
// may make one. A directory that passes on its group is left to the tree.
func (c *cache) vacant(cred *metapb.Cred, dir sys.Ino, n []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.inos[dir]
	if !c.valid() || e == nil || !e.sole || e.attr == nil || e.attr.Mode&sys.ModeSetgid != 0 {
		return false
	}
	v, known := e.find(string(n))
	return known && v.ino == 0 && meta.CheckAccess(e.attr, cred, 3) == nil
}

func (c *cache) open(cred *metapb.Cred, op *metapb.Open) (*metapb.Answer, error) {
	e := c.inos[sys.Ino(op.Ino)]
	if e == nil || e.attr == nil || !e.opened {
		return nil, nil
	}
	if op.Want != 0 && cred.GetUid() != 0 {
		if err := meta.CheckAccess(e.attr, cred, op.Want); err != nil {
			return nil, err
		}
	}
	return &metapb.Answer{Attr: e.attr.CloneVT(), Chunks: e.chunks}, nil
}

// learn caches the answer of a query that left at tick.
func (c *cache) learn(q *metapb.Query, a *metapb.Answer, inos []uint64, term, seq, tick uint64) {
	if len(inos) == 0 {
		return
	}
	granted := make(map[sys.Ino]bool, len(inos))
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fresh(term, seq) {
		return
	}
	for _, i := range inos {
		if ino := sys.Ino(i); c.still(ino, tick) {
			granted[ino] = true
		}
	}
	keep := func(attr *metapb.Attr) {
		if attr != nil && granted[sys.Ino(attr.Ino)] {
			c.at(sys.Ino(attr.Ino)).attr = attr.CloneVT()
		}
	}
	keep(a.Attr)
	switch op := q.Op.(type) {
	case *metapb.Query_Lookup:
		if parent := sys.Ino(op.Lookup.Parent); granted[parent] {
			v := name{}
			if a.Attr != nil {
				v = name{sys.Ino(a.Attr.Ino), a.Attr.Type}
			}
			c.at(parent).setName(string(op.Lookup.Name), v)
		}
	case *metapb.Query_Open:
		if ino := sys.Ino(op.Open.Ino); granted[ino] && a.Attr != nil {
			c.setChunks(c.at(ino), a.Chunks)
		}
	case *metapb.Query_ReadDir:
		c.learnList(op.ReadDir, a, granted)
		for _, e := range a.Entries {
			keep(e.Attr)
		}
	}
}

func (c *cache) learnList(op *metapb.ReadDir, a *metapb.Answer, granted map[sys.Ino]bool) {
	if !granted[sys.Ino(op.Ino)] {
		return
	}
	e := c.at(sys.Ino(op.Ino))
	follows := op.After == e.listed && !e.complete
	for _, d := range a.Entries {
		e.setName(string(d.Name), name{sys.Ino(d.Ino), d.Type})
		if follows {
			e.listed = d.Cookie
		}
	}
	if follows && a.End {
		e.complete = true
	}
}
