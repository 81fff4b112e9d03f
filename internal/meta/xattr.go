package meta

import (
	"bytes"
	"slices"
	"sort"
	"strings"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// The namespaces of extended attributes, as in xattr(7), and the two names of
// the namespace system.
const (
	xattrUser       = "user."
	xattrTrusted    = "trusted."
	xattrSecurity   = "security."
	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"
)

// checkXattrName refuses names that no inode can have.
func checkXattrName(name []byte) error {
	if len(name) > sys.XattrName {
		return refuseName(sys.Range, name, "an attribute's name has at most 255 bytes")
	}
	if len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
		return refuseName(sys.Invalid, name, "not the name of an attribute")
	}
	n := string(name)
	if n == xattrACLAccess || n == xattrACLDefault {
		return nil
	}
	for _, prefix := range []string{xattrUser, xattrTrusted, xattrSecurity} {
		if n == prefix {
			return refuseName(sys.Invalid, name, "a namespace without a name")
		}
		if strings.HasPrefix(n, prefix) {
			return nil
		}
	}
	return refuseName(sys.NotSupported, name, "an unknown namespace of attributes")
}

// checkXattrWrite refuses who may not set or remove an attribute.
func (s *step) checkXattrWrite(a *metapb.Attr, name []byte) error {
	n := string(name)
	switch {
	case strings.HasPrefix(n, xattrUser):
		if !isRegular(a) && !isDir(a) {
			return refuseName(sys.Permission, name, "only files and directories have user attributes")
		}
		if isDir(a) && a.Mode&sys.ModeSticky != 0 && !s.owns(a) {
			return refuseName(sys.Permission, name, "a sticky directory of another")
		}
		return s.check(a, wantWrite)
	case strings.HasPrefix(n, "system."):
		if n == xattrACLDefault && !isDir(a) {
			return refuseName(sys.Access, name, "only directories have a default access list")
		}
		if !s.owns(a) {
			return refuseName(sys.Permission, name, "only the owner changes access lists")
		}
	case !s.root():
		return refuseName(sys.Permission, name, "only root changes trusted and security attributes")
	}
	return nil
}

// seesXattr reports whether the caller may know that an attribute exists.
func (s *step) seesXattr(name []byte) bool {
	return s.root() || !strings.HasPrefix(string(name), xattrTrusted)
}

// loadXattrs returns an inode's attributes, never nil.
func (s *step) loadXattrs(a *metapb.Attr) (*metapb.Xattrs, error) {
	if a.Xattrs == 0 {
		return &metapb.Xattrs{}, nil
	}
	x, err := s.tx.Xattrs(sys.Ino(a.Ino))
	if x == nil {
		x = &metapb.Xattrs{}
	}
	return x, err
}

// findXattr returns where a name is, or belongs.
func findXattr(x *metapb.Xattrs, name []byte) (i int, found bool) {
	i = sort.Search(len(x.Xattrs), func(i int) bool { return bytes.Compare(x.Xattrs[i].Name, name) >= 0 })
	return i, i < len(x.Xattrs) && bytes.Equal(x.Xattrs[i].Name, name)
}

// setXattr is setxattr(2).
func (s *step) setXattr(c *metapb.SetXattr) (*metapb.Result, error) {
	if err := checkXattrName(c.Name); err != nil {
		return nil, err
	}
	if len(c.Value) > sys.XattrValue {
		return nil, refuseName(sys.TooBig, c.Name, "an attribute's value has at most 64 KiB")
	}
	a, err := s.inode(sys.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	if err := s.checkXattrWrite(a, c.Name); err != nil {
		return nil, err
	}
	x, err := s.loadXattrs(a)
	if err != nil {
		return nil, err
	}
	i, found := findXattr(x, c.Name)
	switch {
	case found && c.Create:
		return nil, refuseName(sys.Exist, c.Name, "")
	case !found && c.Replace:
		return nil, refuseName(sys.NoXattr, c.Name, "")
	case found:
		x.Xattrs[i].Value = c.Value
	default:
		x.Xattrs = slices.Insert(x.Xattrs, i, &metapb.Xattr{Name: c.Name, Value: c.Value})
	}
	names, all := 0, 0
	for _, e := range x.Xattrs {
		names += len(e.Name) + 1
		all += len(e.Name) + len(e.Value)
	}
	if names > XattrListMax || all > XattrRowMax {
		return nil, refuseName(sys.NoSpace, c.Name, "the inode has too many attributes")
	}
	return s.putXattrs(a, x)
}

// removeXattr is removexattr(2).
func (s *step) removeXattr(c *metapb.RemoveXattr) (*metapb.Result, error) {
	if err := checkXattrName(c.Name); err != nil {
		return nil, err
	}
	a, err := s.inode(sys.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	if err := s.checkXattrWrite(a, c.Name); err != nil {
		return nil, err
	}
	x, err := s.loadXattrs(a)
	if err != nil {
		return nil, err
	}
	i, found := findXattr(x, c.Name)
	if !found {
		return nil, refuseName(sys.NoXattr, c.Name, "")
	}
	x.Xattrs = slices.Delete(x.Xattrs, i, i+1)
	return s.putXattrs(a, x)
}

func (s *step) putXattrs(a *metapb.Attr, x *metapb.Xattrs) (*metapb.Result, error) {
	a.Xattrs = uint32(len(x.Xattrs))
	a.CtimeNs = s.now
	if a.Xattrs == 0 {
		x = nil
	}
	if err := s.tx.SetXattrs(sys.Ino(a.Ino), x); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a}, s.tx.SetInode(sys.Ino(a.Ino), a)
}

// getXattr is getxattr(2).
func (s *step) getXattr(q *metapb.GetXattr, ans *metapb.Answer) error {
	if err := checkXattrName(q.Name); err != nil {
		return err
	}
	a, err := s.readable(sys.Ino(q.Ino))
	if err != nil {
		return err
	}
	if strings.HasPrefix(string(q.Name), xattrUser) {
		if err := s.check(a, wantRead); err != nil {
			return err
		}
	}
	if !s.seesXattr(q.Name) {
		return refuseName(sys.NoXattr, q.Name, "")
	}
	x, err := s.loadXattrs(a)
	if err != nil {
		return err
	}
	i, found := findXattr(x, q.Name)
	if !found {
		return refuseName(sys.NoXattr, q.Name, "")
	}
	ans.Value = x.Xattrs[i].Value
	return nil
}

// listXattr is listxattr(2).
func (s *step) listXattr(q *metapb.ListXattr, ans *metapb.Answer) error {
	a, err := s.readable(sys.Ino(q.Ino))
	if err != nil {
		return err
	}
	x, err := s.loadXattrs(a)
	if err != nil {
		return err
	}
	for _, e := range x.Xattrs {
		if s.seesXattr(e.Name) {
			ans.Names = append(ans.Names, e.Name)
		}
	}
	return nil
}
