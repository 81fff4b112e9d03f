package meta

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// mknod makes an inode and its first entry.
func (s *step) mknod(c *metapb.Mknod) (*metapb.Result, error) {
	dir, existing, err := s.vacancy(sys.Ino(c.Parent), c.Name)
	if err != nil {
		return nil, err
	}
	if existing != nil {
		return s.openExisting(c, existing)
	}
	if err := s.check(dir, wantWrite|wantExec); err != nil {
		return nil, err
	}
	if err := s.checkMknod(dir, c); err != nil {
		return nil, err
	}
	if err := s.checkNumber(c); err != nil {
		return nil, err
	}
	a := s.newInode(0, sys.FileType(c.Type), c.Mode)
	a.Rdev, a.Target, a.Size = c.Rdev, c.Target, uint64(len(c.Target))
	s.inheritGroup(dir, a)
	w := &writing{attr: a}
	if c.Body != nil {
		if err := s.plan(w, c.Body); err != nil {
			return nil, err
		}
		a.Version = 1
	}

	if err := s.number(a, c); err != nil {
		return nil, err
	}
	if isDir(a) {
		a.Parent = dir.Ino
		dir.Nlink++
	}
	if err := s.addEntry(dir, c.Name, a, nil); err != nil {
		return nil, err
	}
	if err := s.write(w); err != nil {
		return nil, err
	}
	if err := s.count(CounterBytes, int64(len(c.Target))); err != nil {
		return nil, err
	}
	if err := s.count(CounterInodes, 1); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a, Created: true, Slices: w.longest}, nil
}

// number gives a new inode its number.
func (s *step) number(a *metapb.Attr, c *metapb.Mknod) error {
	if c.Ino == 0 {
		last, err := s.tx.Counter(CounterIno, 1)
		a.Ino = uint64(last)
		return err
	}
	a.Ino = c.Ino
	return nil
}

// allocInos gives out inode numbers. Those that no file gets are left out.
func (s *step) allocInos(c *metapb.AllocInos) (*metapb.Result, error) {
	if c.Count == 0 || c.Count > AllocMax {
		return nil, &refusal{kind: sys.Invalid, cause: "1 to 1024 inode numbers are given out at a time"}
	}
	last, err := s.tx.Counter(CounterIno, int64(c.Count))
	if err != nil {
		return nil, err
	}
	return &metapb.Result{FirstIno: uint64(last) - uint64(c.Count) + 1}, nil
}

// checkNumber refuses a number that was not given out, or is in use.
func (s *step) checkNumber(c *metapb.Mknod) error {
	if c.Ino == 0 {
		return nil
	}
	last, err := s.tx.Counter(CounterIno, 0)
	if err != nil {
		return err
	}
	if c.Ino < uint64(sys.FirstIno) || c.Ino > uint64(last) || sys.FileType(c.Type) != sys.TypeRegular {
		return refuseName(sys.Invalid, c.Name, "only a regular file gets a number beforehand, one that was given out")
	}
	a, err := s.tx.Inode(sys.Ino(c.Ino))
	if err == nil && a != nil {
		err = refuseName(sys.Invalid, c.Name, "its number is that of another inode")
	}
	return err
}

// vacancy returns the directory in which a name is to be made, and the entry
// that is there already, if any. The directory may be searched by the caller.
func (s *step) vacancy(parent sys.Ino, name []byte) (dir *metapb.Attr, existing *metapb.Dentry, err error) {
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	if dir, err = s.dir(parent); err != nil {
		return nil, nil, err
	}
	if err := s.check(dir, wantExec); err != nil {
		return nil, nil, err
	}
	existing, err = s.tx.Dentry(parent, name)
	return dir, existing, err
}

// openExisting answers an open(2) with O_CREAT of a file that is there. Its
// body is not written: the caller sees that nothing was created. A file that
// has the number that was to be given was made by an earlier try.
func (s *step) openExisting(c *metapb.Mknod, d *metapb.Dentry) (*metapb.Result, error) {
	if c.Ino != 0 && c.Ino == d.Ino {
		a, err := s.target(sys.Ino(c.Parent), c.Name, d)
		if err != nil {
			return nil, err
		}
		return &metapb.Result{Attr: a, Created: true}, nil
	}
	if !c.OrOpen {
		return nil, refuseName(sys.Exist, c.Name, "")
	}
	switch sys.FileType(d.Type) {
	case sys.TypeDir:
		return nil, refuseName(sys.IsDir, c.Name, "")
	case sys.TypeRegular:
	default:
		return nil, refuseName(sys.Exist, c.Name, "it is not a regular file")
	}
	a, err := s.target(sys.Ino(c.Parent), c.Name, d)
	if err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a}, nil
}

func (s *step) checkMknod(dir *metapb.Attr, c *metapb.Mknod) error {
	typ := sys.FileType(c.Type)
	switch {
	case c.Type > 0xff || !typ.Valid():
		return refuseName(sys.Invalid, c.Name, "an unknown type of inode")
	case c.Mode > sys.ModePerm:
		return refuseName(sys.Invalid, c.Name, "a mode has only permission bits")
	case c.OrOpen && typ != sys.TypeRegular:
		return refuseName(sys.Invalid, c.Name, "only a regular file is created or opened")
	case c.Body != nil && typ != sys.TypeRegular:
		return refuseName(sys.Invalid, c.Name, "only a regular file has bytes")
	case typ == sys.TypeSymlink && len(c.Target) == 0:
		return refuseName(sys.NotExist, c.Name, "an empty target")
	case len(c.Target) > sys.SymlinkMax:
		return refuseName(sys.NameTooLong, c.Name, "a target has at most 4095 bytes")
	case typ != sys.TypeSymlink && len(c.Target) > 0:
		return refuseName(sys.Invalid, c.Name, "only a symbolic link has a target")
	case typ == sys.TypeDir && dir.Nlink >= sys.LinkMax:
		return refuseName(sys.TooManyLinks, c.Name, "the directory has too many subdirectories")
	}
	for _, b := range c.Target {
		if b == 0 {
			return refuseName(sys.Invalid, c.Name, "a target has no NUL")
		}
	}
	device := typ == sys.TypeChar || typ == sys.TypeBlock
	if !device && c.Rdev != 0 {
		return refuseName(sys.Invalid, c.Name, "only a device has a device number")
	}
	if device && !s.root() {
		return refuseName(sys.Permission, c.Name, "only root makes a device")
	}
	return nil
}

// inheritGroup gives a new inode the group of a setgid directory, as in
// inode(7).
func (s *step) inheritGroup(dir, a *metapb.Attr) {
	if dir.Mode&sys.ModeSetgid == 0 {
		return
	}
	a.Gid = dir.Gid
	const runsAsGroup = sys.ModeSetgid | modeGroupExec
	switch {
	case isDir(a):
		a.Mode |= sys.ModeSetgid
	case a.Mode&runsAsGroup == runsAsGroup && !s.root() && !s.inGroup(dir.Gid):
		a.Mode &^= sys.ModeSetgid
	}
}

// addEntry writes a new entry and the directory that has it. keep is a cookie
// to give it, nil for the directory's next.
func (s *step) addEntry(dir *metapb.Attr, name []byte, a *metapb.Attr, keep *uint64) error {
	s.touchDir(dir)
	cookie := dir.NextCookie
	if keep != nil {
		cookie = *keep
	} else {
		dir.NextCookie++
	}
	d := &metapb.Dentry{Ino: a.Ino, Type: a.Type, Cookie: cookie}
	if err := s.tx.SetDentry(sys.Ino(dir.Ino), name, d); err != nil {
		return err
	}
	return s.tx.SetInode(sys.Ino(dir.Ino), dir)
}

// link gives an inode another name.
func (s *step) link(c *metapb.Link) (*metapb.Result, error) {
	if hidden(sys.Ino(c.Ino)) {
		return nil, refuse(sys.Permission, sys.Ino(c.Ino), "a hidden inode of the tree")
	}
	dir, existing, err := s.vacancy(sys.Ino(c.Parent), c.Name)
	if err != nil {
		return nil, err
	}
	a, err := s.tx.Inode(sys.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	switch {
	case a == nil || a.Nlink == 0:
		return nil, refuse(sys.NotExist, sys.Ino(c.Ino), "it was unlinked")
	case isDir(a):
		return nil, refuse(sys.Permission, sys.Ino(c.Ino), "a directory has one name only")
	case existing != nil:
		return nil, refuseName(sys.Exist, c.Name, "")
	case a.Nlink >= sys.LinkMax:
		return nil, refuse(sys.TooManyLinks, sys.Ino(c.Ino), "")
	}
	if err := s.check(dir, wantWrite|wantExec); err != nil {
		return nil, err
	}

	a.Nlink++
	a.CtimeNs = s.now
	if err := s.tx.SetInode(sys.Ino(a.Ino), a); err != nil {
		return nil, err
	}
	if err := s.addEntry(dir, c.Name, a, nil); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a}, nil
}
