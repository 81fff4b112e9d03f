package remote

import (
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote/remotepb"
	"github.com/koinon/koinon/internal/sys"
)

// effects is what a command of our own may change, as far as its caller can
// tell. What else it changes, the leader revokes like anybody's.
type effects struct {
	inos  []sys.Ino
	names []effect
	began uint64 // tick
	// sole is a directory that nobody else changes, in which a promise is kept:
	// what is known of it stays known.
	sole sys.Ino
	// body is what the file's chunk 0 is known to be afterwards, when known.
	body    []*metapb.NumberedChunk
	version uint64 // of the file, if nobody else changed it in between
	known   bool
}

// effect is a name that the command makes (becomes is set from the result when
// made is true), moves or removes.
type effect struct {
	dir  sys.Ino
	name string
	made bool // the result's inode is there afterwards
	gone bool // nothing is there afterwards
}

func effectsOf(cmd *metapb.Command) effects {
	var e effects
	ino := func(i uint64) { e.add(sys.Ino(i)) }
	entry := func(dir uint64, n []byte, made, gone bool) {
		ino(dir)
		e.names = append(e.names, effect{sys.Ino(dir), string(n), made, gone})
	}
	switch op := cmd.Op.(type) {
	case *metapb.Command_Mknod:
		entry(op.Mknod.Parent, op.Mknod.Name, true, false)
	case *metapb.Command_Unlink:
		entry(op.Unlink.Parent, op.Unlink.Name, false, true)
	case *metapb.Command_Rmdir:
		entry(op.Rmdir.Parent, op.Rmdir.Name, false, true)
	case *metapb.Command_Rename:
		entry(op.Rename.Parent, op.Rename.Name, false, !op.Rename.Exchange)
		entry(op.Rename.NewParent, op.Rename.NewName, false, false)
	case *metapb.Command_Link:
		ino(op.Link.Ino)
		entry(op.Link.Parent, op.Link.Name, true, false)
	case *metapb.Command_SetAttr:
		ino(op.SetAttr.Ino)
	case *metapb.Command_SetXattr:
		ino(op.SetXattr.Ino)
	case *metapb.Command_RemoveXattr:
		ino(op.RemoveXattr.Ino)
	case *metapb.Command_Commit:
		ino(op.Commit.Ino)
	case *metapb.Command_Fallocate:
		ino(op.Fallocate.Ino)
	case *metapb.Command_Merge:
		ino(op.Merge.Ino)
	}
	return e
}

func (e *effects) add(ino sys.Ino) {
	if !contains(e.inos, ino) {
		e.inos = append(e.inos, ino)
	}
}

// begin gives up what cmd may change, before it is sent.
func (c *cache) begin(cmd *metapb.Command) effects {
	e := effectsOf(cmd)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range e.names { // the inode that the name stood for changes too
		if dir := c.inos[n.dir]; dir != nil && !n.made {
			if v, ok := dir.names[n.name]; ok && v.ino != 0 {
				e.add(v.ino)
			}
		}
	}
	if mk := cmd.GetMknod(); mk.GetIno() != 0 {
		if dir := c.inos[sys.Ino(mk.Parent)]; dir != nil && dir.sole && c.valid() {
			e.sole = sys.Ino(mk.Parent)
		}
	}
	c.predict(cmd, &e)
	c.tick++
	e.began = c.tick
	for _, ino := range e.inos {
		s := &c.stirs[stirSlot(ino)]
		s.last = c.tick
		if ino == e.sole {
			continue
		}
		s.flying++
		if known := c.inos[ino]; known != nil {
			known.attr = nil
			c.dropChunks(known)
		}
	}
	for _, n := range e.names {
		if dir := c.inos[n.dir]; dir != nil {
			dir.dropName(n.name)
		}
	}
	return e
}

// predict tells the bytes of a small file that was written from its start, so
// that whoever wrote it can read it without asking.
func (c *cache) predict(cmd *metapb.Command, e *effects) {
	switch op := cmd.Op.(type) {
	case *metapb.Command_Mknod:
		e.known = sys.FileType(op.Mknod.Type) == sys.TypeRegular
		if body := op.Mknod.Body; body != nil {
			e.known = e.known && onlyInline(body)
			e.body = inlined(body)
		}
	case *metapb.Command_Commit:
		was := c.inos[sys.Ino(op.Commit.Ino)]
		e.known = was != nil && was.opened && was.attr != nil && was.attr.Size == 0 && len(was.chunks) == 0 &&
			onlyInline(op.Commit)
		if e.known {
			e.version = was.attr.Version + 1
			e.body = inlined(op.Commit)
		}
	}
}

// onlyInline says that an empty file has c's inline bytes, and nothing else,
// after it.
func onlyInline(c *metapb.Commit) bool {
	return c.InlineOff == 0 && len(c.Inline) > 0 && len(c.Slices) == 0 && c.Size == nil
}

// inlined copies c's inline bytes.
func inlined(c *metapb.Commit) []*metapb.NumberedChunk {
	return []*metapb.NumberedChunk{{Chunk: &metapb.Chunk{Inline: append([]byte(nil), c.Inline...)}}}
}

// end takes over what the command did. touched are the inodes as they are
// after it, g says which of them are under lease; both are empty after a failure.
func (c *cache) end(e effects, res *metapb.Result, touched []*metapb.Attr, g *remotepb.Grant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	alone := true
	for _, ino := range e.inos {
		if ino == e.sole {
			continue
		}
		s := &c.stirs[stirSlot(ino)]
		s.flying--
		alone = alone && s.flying == 0 && s.last <= e.began
	}
	for _, ino := range e.inos {
		c.stirs[stirSlot(ino)].last = c.tick
	}
	if dir := c.inos[e.sole]; dir != nil && !slices.Contains(g.GetInos(), uint64(e.sole)) {
		dir.attr = nil // it may not be known any more
	}
	if res == nil || res.Failure != nil || !c.fresh(g.GetTerm(), g.GetSeq()) {
		return
	}
	for _, dir := range g.Sole {
		c.at(sys.Ino(dir)).sole = true
	}
	if !alone {
		return
	}
	ok := make(map[sys.Ino]bool, len(g.Inos))
	for _, i := range g.Inos {
		ok[sys.Ino(i)] = true
	}
	for _, a := range touched {
		if known := c.inos[sys.Ino(a.Ino)]; sys.Ino(a.Ino) == e.sole && known != nil && known.attr.GetVersion() > a.Version {
			continue // of another promise that was kept at the same time
		}
		if ok[sys.Ino(a.Ino)] && (contains(e.inos, sys.Ino(a.Ino)) || c.stirs[stirSlot(sys.Ino(a.Ino))].last <= e.began) {
			c.at(sys.Ino(a.Ino)).attr = a.CloneVT()
		}
	}
	if ino := sys.Ino(res.GetAttr().GetIno()); e.known && ok[ino] && (res.Created || e.body != nil && res.Attr.Version == e.version) {
		if i := c.inos[ino]; i != nil && i.attr != nil {
			c.setChunks(i, e.body)
		}
	}
	for _, n := range e.names {
		if !ok[n.dir] {
			continue
		}
		switch {
		case n.made && res.Attr != nil:
			c.at(n.dir).setName(n.name, name{sys.Ino(res.Attr.Ino), res.Attr.Type})
		case n.gone:
			c.at(n.dir).setName(n.name, name{})
		}
	}
	if res.Created && res.Attr != nil && sys.FileType(res.Attr.Type) == sys.TypeDir && ok[sys.Ino(res.Attr.Ino)] {
		c.at(sys.Ino(res.Attr.Ino)).complete = true // a directory just made is empty
	}
}
