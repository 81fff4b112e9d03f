package meta

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// victim finds what a command is to take out of a directory and checks that
// the caller may.
func (s *step) victim(parent sys.Ino, name []byte) (dir *metapb.Attr, d *metapb.Dentry, a *metapb.Attr, err error) {
	dir, d, err = s.vacancy(parent, name)
	if err != nil {
		return nil, nil, nil, err
	}
	if d == nil {
		return nil, nil, nil, refuseName(sys.NotExist, name, "")
	}
	if err := s.check(dir, wantWrite|wantExec); err != nil {
		return nil, nil, nil, err
	}
	if a, err = s.target(parent, name, d); err != nil {
		return nil, nil, nil, err
	}
	return dir, d, a, s.checkSticky(dir, a)
}

// unlink takes away a name of what is not a directory.
func (s *step) unlink(c *metapb.Unlink) (*metapb.Result, error) {
	dir, _, a, err := s.victim(sys.Ino(c.Parent), c.Name)
	if err != nil {
		return nil, err
	}
	if isDir(a) {
		return nil, refuseName(sys.IsDir, c.Name, "")
	}

	if err := s.removeEntry(dir, c.Name); err != nil {
		return nil, err
	}
	if err := s.dropLink(a, sys.Ino(dir.Ino), c.Name); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a}, nil
}

// rmdir takes away an empty directory.
func (s *step) rmdir(c *metapb.Rmdir) (*metapb.Result, error) {
	dir, _, a, err := s.victim(sys.Ino(c.Parent), c.Name)
	if err != nil {
		return nil, err
	}
	if !isDir(a) {
		return nil, refuseName(sys.NotDir, c.Name, "")
	}
	if err := s.checkEmpty(a, c.Name); err != nil {
		return nil, err
	}

	dir.Nlink--
	if err := s.removeEntry(dir, c.Name); err != nil {
		return nil, err
	}
	if err := s.dropDir(a); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a}, nil
}

func (s *step) checkEmpty(a *metapb.Attr, name []byte) error {
	empty := true
	err := s.tx.ScanDentries(sys.Ino(a.Ino), 0, func([]byte, *metapb.Dentry) bool {
		empty = false
		return false
	})
	if err != nil {
		return err
	}
	if !empty {
		return refuseName(sys.NotEmpty, name, "")
	}
	return nil
}

// removeEntry deletes an entry and writes the directory that had it.
func (s *step) removeEntry(dir *metapb.Attr, name []byte) error {
	s.touchDir(dir)
	if err := s.tx.SetDentry(sys.Ino(dir.Ino), name, nil); err != nil {
		return err
	}
	return s.tx.SetInode(sys.Ino(dir.Ino), dir)
}

// dropLink counts one link less of what is not a directory. After the last one
// the inode is in quarantine.
func (s *step) dropLink(a *metapb.Attr, parent sys.Ino, name []byte) error {
	a.Nlink--
	a.CtimeNs = s.now
	if a.Nlink == 0 {
		if err := s.enterQuarantine(a, parent, name); err != nil {
			return err
		}
	}
	return s.tx.SetInode(sys.Ino(a.Ino), a)
}

// dropDir deletes an empty directory whose entry is gone.
func (s *step) dropDir(a *metapb.Attr) error {
	a.Nlink = 0
	return s.erase(a)
}

// erase deletes an inode that has neither entries nor chunks any more.
func (s *step) erase(a *metapb.Attr) error {
	ino := sys.Ino(a.Ino)
	if a.Xattrs > 0 {
		if err := s.tx.SetXattrs(ino, nil); err != nil {
			return err
		}
	}
	if err := s.tx.SetInode(ino, nil); err != nil {
		return err
	}
	if err := s.count(CounterBytes, -int64(a.Size)); err != nil {
		return err
	}
	return s.count(CounterInodes, -1)
}
