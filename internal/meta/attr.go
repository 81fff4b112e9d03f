package meta

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// setAttr is chmod(2), chown(2), truncate(2) and utimensat(2), any of them
// together. All are checked before any is done.
func (s *step) setAttr(c *metapb.SetAttr) (*metapb.Result, error) {
	a, err := s.inode(sys.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	for _, check := range []func(*metapb.Attr, *metapb.SetAttr) error{
		s.checkMode, s.checkOwner, s.checkSize, s.checkTimes,
	} {
		if err := check(a, c); err != nil {
			return nil, err
		}
	}
	if !changesAttr(c) {
		return &metapb.Result{Attr: a}, nil
	}
	w := &writing{attr: a}
	if c.Size != nil {
		if err := s.resize(w, *c.Size); err != nil {
			return nil, err
		}
		s.wrote(a)
	}
	s.changeMode(a, c)
	s.changeOwner(a, c)
	s.changeTimes(a, c)
	if err := s.write(w); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a}, nil
}

func changesAttr(c *metapb.SetAttr) bool {
	return c.Mode != nil || c.Uid != nil || c.Gid != nil || c.Size != nil || c.AtimeNs != nil ||
		c.MtimeNs != nil || c.CtimeNs != nil || c.AtimeNow || c.MtimeNow
}

func (s *step) checkMode(a *metapb.Attr, c *metapb.SetAttr) error {
	if c.Mode == nil {
		return nil
	}
	if *c.Mode > sys.ModePerm {
		return refuse(sys.Invalid, sys.Ino(a.Ino), "a mode has only permission bits")
	}
	// A kernel that writes for a writer who is not the owner asks for setuid
	// and setgid to be cleared first.
	const privileges = sys.ModeSetuid | sys.ModeSetgid
	onlyDrops := *c.Mode != a.Mode && *c.Mode|a.Mode&privileges == a.Mode
	if s.owns(a) || onlyDrops && (c.Open || s.allows(a, wantWrite)) {
		return nil
	}
	return refuse(sys.Permission, sys.Ino(a.Ino), "only the owner changes the mode")
}

func (s *step) checkOwner(a *metapb.Attr, c *metapb.SetAttr) error {
	if s.root() {
		return nil
	}
	if c.Uid != nil && (*c.Uid != a.Uid || !s.owns(a)) {
		return refuse(sys.Permission, sys.Ino(a.Ino), "only root gives a file to another owner")
	}
	if c.Gid != nil && (!s.owns(a) || *c.Gid != a.Gid && !s.inGroup(*c.Gid)) {
		return refuse(sys.Permission, sys.Ino(a.Ino), "only the owner changes the group, to one of the owner's")
	}
	return nil
}

func (s *step) checkSize(a *metapb.Attr, c *metapb.SetAttr) error {
	switch {
	case c.Size == nil:
		return nil
	case isDir(a):
		return refuse(sys.IsDir, sys.Ino(a.Ino), "")
	case !isRegular(a):
		return refuse(sys.Invalid, sys.Ino(a.Ino), "only a regular file has bytes")
	case *c.Size > FileSizeMax:
		return refuse(sys.FileTooLarge, sys.Ino(a.Ino), "a file has at most 8 TiB")
	case c.Open:
		return nil
	}
	return s.check(a, wantWrite)
}

func (s *step) checkTimes(a *metapb.Attr, c *metapb.SetAttr) error {
	given := c.AtimeNs != nil && !c.AtimeNow || c.MtimeNs != nil && !c.MtimeNow || c.CtimeNs != nil
	if given && !s.owns(a) {
		return refuse(sys.Permission, sys.Ino(a.Ino), "only the owner sets times")
	}
	if (c.AtimeNow || c.MtimeNow) && !c.Open && !s.owns(a) {
		return s.check(a, wantWrite)
	}
	return nil
}

func (s *step) changeMode(a *metapb.Attr, c *metapb.SetAttr) {
	if c.Mode == nil {
		return
	}
	a.Mode = *c.Mode
	if !s.root() && !s.inGroup(a.Gid) {
		a.Mode &^= sys.ModeSetgid
	}
	a.CtimeNs = s.now
}

// changeOwner clears setuid and setgid of what is not a directory, unless root
// gave a mode in the same step.
func (s *step) changeOwner(a *metapb.Attr, c *metapb.SetAttr) {
	if c.Uid == nil && c.Gid == nil {
		return
	}
	if c.Uid != nil {
		a.Uid = *c.Uid
	}
	if c.Gid != nil {
		a.Gid = *c.Gid
	}
	if !isDir(a) && (c.Mode == nil || !s.root()) {
		dropPrivileges(a)
	}
	a.CtimeNs = s.now
}

func (s *step) changeTimes(a *metapb.Attr, c *metapb.SetAttr) {
	changed := c.AtimeNow || c.MtimeNow || c.AtimeNs != nil || c.MtimeNs != nil
	switch {
	case c.AtimeNow:
		a.AtimeNs = s.now
	case c.AtimeNs != nil:
		a.AtimeNs = *c.AtimeNs
	}
	switch {
	case c.MtimeNow:
		a.MtimeNs = s.now
	case c.MtimeNs != nil:
		a.MtimeNs = *c.MtimeNs
	}
	if changed {
		a.CtimeNs = s.now
	}
	if c.CtimeNs != nil {
		a.CtimeNs = *c.CtimeNs
	}
}
