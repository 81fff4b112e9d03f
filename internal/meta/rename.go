package meta

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// place is a name in a directory, what is there, and its inode.
type place struct {
	dir   *metapb.Attr // shared by both places when they are in one directory
	name  []byte
	entry *metapb.Dentry // nil when nothing is there
	attr  *metapb.Attr   // nil when nothing is there
}

// rename is renameat2(2).
func (s *step) rename(c *metapb.Rename) (*metapb.Result, error) {
	if c.NoReplace && c.Exchange {
		return nil, refuseName(sys.Invalid, c.NewName, "both no_replace and exchange")
	}
	from, to, err := s.places(c)
	if err != nil {
		return nil, err
	}
	if to.entry != nil {
		if c.NoReplace {
			return nil, refuseName(sys.Exist, c.NewName, "")
		}
		if to.entry.Ino == from.entry.Ino {
			return &metapb.Result{Attr: from.attr}, nil
		}
	} else if c.Exchange {
		return nil, refuseName(sys.NotExist, c.NewName, "")
	}
	if err := s.checkMove(from, to); err != nil {
		return nil, err
	}
	if c.Exchange {
		if err := s.checkMove(to, from); err != nil {
			return nil, err
		}
		return s.exchange(from, to)
	}
	if err := s.checkReplace(from, to); err != nil {
		return nil, err
	}
	return s.move(from, to)
}

// places looks both names up and checks that the caller may change both
// directories.
func (s *step) places(c *metapb.Rename) (from, to *place, err error) {
	from, to = &place{name: c.Name}, &place{name: c.NewName}
	if from.dir, from.entry, err = s.vacancy(sys.Ino(c.Parent), c.Name); err != nil {
		return nil, nil, err
	}
	if to.dir, to.entry, err = s.vacancy(sys.Ino(c.NewParent), c.NewName); err != nil {
		return nil, nil, err
	}
	if to.dir.Ino == from.dir.Ino {
		to.dir = from.dir
	}
	if from.entry == nil {
		return nil, nil, refuseName(sys.NotExist, c.Name, "")
	}
	for _, p := range []*place{from, to} {
		if err := s.check(p.dir, wantWrite|wantExec); err != nil {
			return nil, nil, err
		}
		if p.entry == nil {
			continue
		}
		if p.attr, err = s.target(sys.Ino(p.dir.Ino), p.name, p.entry); err != nil {
			return nil, nil, err
		}
		if err := s.checkSticky(p.dir, p.attr); err != nil {
			return nil, nil, err
		}
	}
	return from, to, nil
}

// checkMove refuses to move a directory to where it cannot be. Its ".." is
// written, so the caller must be allowed to write it.
func (s *step) checkMove(from, to *place) error {
	if !isDir(from.attr) || from.dir == to.dir {
		return nil
	}
	if err := s.check(from.attr, wantWrite); err != nil {
		return err
	}
	joins := to.attr == nil || !isDir(to.attr)
	if joins && to.dir.Nlink >= sys.LinkMax {
		return refuseName(sys.TooManyLinks, to.name, "the directory has too many subdirectories")
	}
	for up := to.dir; up.Ino != uint64(sys.RootIno); {
		if up.Ino == from.attr.Ino {
			return refuseName(sys.Invalid, from.name, "a directory cannot be moved into itself")
		}
		parent, err := s.tx.Inode(sys.Ino(up.Parent))
		if err != nil {
			return err
		}
		if parent == nil || parent.Ino == up.Ino {
			return refuse(sys.NotExist, sys.Ino(up.Ino), "the directory was deleted")
		}
		up = parent
	}
	return nil
}

// checkReplace refuses a target that the source cannot take the place of.
func (s *step) checkReplace(from, to *place) error {
	switch {
	case to.attr == nil:
		return nil
	case isDir(from.attr) && !isDir(to.attr):
		return refuseName(sys.NotDir, to.name, "a directory replaces only a directory")
	case !isDir(from.attr) && isDir(to.attr):
		return refuseName(sys.IsDir, to.name, "")
	case isDir(to.attr):
		return s.checkEmpty(to.attr, to.name)
	}
	return nil
}

// exchange swaps two entries. Each keeps its place in its directory.
func (s *step) exchange(from, to *place) (*metapb.Result, error) {
	if from.dir != to.dir {
		s.adopt(from.attr, from.dir, to.dir)
		s.adopt(to.attr, to.dir, from.dir)
	}
	for _, p := range []*place{from, to} {
		p.attr.CtimeNs = s.now
		if err := s.tx.SetInode(sys.Ino(p.attr.Ino), p.attr); err != nil {
			return nil, err
		}
	}
	if err := s.addEntry(from.dir, from.name, to.attr, &from.entry.Cookie); err != nil {
		return nil, err
	}
	if err := s.addEntry(to.dir, to.name, from.attr, &to.entry.Cookie); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: from.attr}, nil
}

// move takes the source's entry away and puts it where the target is or was
// not. The new entry has the place of the one it replaces, or that of the old
// one in the same directory: whoever lists the directory meanwhile sees the
// file, and does not see it again and again while renaming what was listed.
func (s *step) move(from, to *place) (*metapb.Result, error) {
	var keep *uint64
	switch {
	case to.entry != nil:
		keep = &to.entry.Cookie
	case from.dir == to.dir:
		keep = &from.entry.Cookie
	}
	if from.dir != to.dir {
		s.adopt(from.attr, from.dir, to.dir)
	}
	if to.attr != nil && isDir(to.attr) {
		to.dir.Nlink--
	}
	from.attr.CtimeNs = s.now
	if err := s.tx.SetInode(sys.Ino(from.attr.Ino), from.attr); err != nil {
		return nil, err
	}
	if err := s.removeEntry(from.dir, from.name); err != nil {
		return nil, err
	}
	if err := s.addEntry(to.dir, to.name, from.attr, keep); err != nil {
		return nil, err
	}
	if to.attr != nil {
		if err := s.dropReplaced(to); err != nil {
			return nil, err
		}
	}
	return &metapb.Result{Attr: from.attr}, nil
}

// adopt gives a directory another parent.
func (s *step) adopt(a, old, parent *metapb.Attr) {
	if !isDir(a) {
		return
	}
	a.Parent = parent.Ino
	old.Nlink--
	parent.Nlink++
}

func (s *step) dropReplaced(to *place) error {
	if isDir(to.attr) {
		return s.dropDir(to.attr)
	}
	return s.dropLink(to.attr, sys.Ino(to.dir.Ino), to.name)
}
