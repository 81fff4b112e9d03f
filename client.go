package koinon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// Client works on the tree of one cluster. Methods may be called concurrently.
// A context bounds each call; a change that has been sent takes effect even
// when its context ends meanwhile.
type Client struct {
	fs     *vfs.FS
	cred   *metapb.Cred
	locate func(ctx context.Context, ino sys.Ino) (map[sys.NodeID]int64, error) // nil: not known
	close  func(ctx context.Context) error
}

// New returns a Client over a tree that is there already; its Close leaves
// tree alone. It is for Koinon's own programs and tests; others call Open.
func New(tree *vfs.FS) *Client {
	return &Client{fs: tree, cred: processCred(), close: func(context.Context) error { return nil }}
}

// processCred tells on whose behalf this process acts. A system without user
// numbers acts as root.
func processCred() *metapb.Cred {
	if os.Getuid() < 0 {
		return vfs.Root()
	}
	cred := &metapb.Cred{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	groups, err := os.Getgroups()
	if err != nil {
		return cred // fewer groups, fewer rights
	}
	for _, g := range groups {
		cred.Groups = append(cred.Groups, uint32(g))
	}
	return cred
}

// Close flushes what open files hold and leaves the cluster. Files must not be
// used afterwards.
func (c *Client) Close(ctx context.Context) error { return c.close(ctx) }

// Stat describes what name leads to, symbolic links followed.
func (c *Client) Stat(ctx context.Context, name string) (*Info, error) {
	return c.stat(ctx, "stat", name, true)
}

// Lstat describes name itself, also when it is a symbolic link.
func (c *Client) Lstat(ctx context.Context, name string) (*Info, error) {
	return c.stat(ctx, "lstat", name, false)
}

func (c *Client) stat(ctx context.Context, op, name string, follow bool) (*Info, error) {
	attr, err := c.resolve(ctx, name, follow)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	return &Info{name: path.Base(name), attr: attr}, nil
}

func (c *Client) resolve(ctx context.Context, name string, follow bool) (*metapb.Attr, error) {
	if err := checkPath(name); err != nil {
		return nil, err
	}
	return c.fs.Resolve(ctx, c.cred, name, follow)
}

// parent returns the directory that name's last name is in, and that name.
func (c *Client) parent(ctx context.Context, name string) (*Dir, string, error) {
	if err := checkPath(name); err != nil {
		return nil, "", err
	}
	attr, last, err := c.fs.ResolveParent(ctx, c.cred, name)
	if err != nil {
		return nil, "", err
	}
	return &Dir{c: c, ino: sys.Ino(attr.GetIno()), path: path.Dir(strings.TrimRight(name, "/"))}, last, nil
}

func checkPath(name string) error {
	if name == "" {
		return sys.E(sys.NotExist, "the path is empty")
	}
	if strings.IndexByte(name, 0) >= 0 {
		return sys.E(sys.Invalid, "the path has a zero byte")
	}
	return nil
}

// hasNoLast reports whether a path ends in what always is there: "/", "..".
func hasNoLast(name string) bool {
	switch path.Base(name) {
	case "/", ".", "..":
		return name != ""
	}
	return false
}

// Mkdir makes a directory.
func (c *Client) Mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	mk := &metapb.Mknod{Type: uint32(sys.TypeDir), Mode: modeBits(perm)}
	return pathError("mkdir", name, c.mknod(ctx, name, mk))
}

func (c *Client) mknod(ctx context.Context, name string, mk *metapb.Mknod) error {
	if hasNoLast(name) {
		return sys.E(sys.Exist)
	}
	dir, last, err := c.parent(ctx, name)
	if err != nil {
		return err
	}
	_, err = dir.mknod(ctx, last, mk)
	return err
}

// MkdirAll makes a directory and those above it that are missing. It succeeds
// when the directory is there already.
func (c *Client) MkdirAll(ctx context.Context, name string, perm fs.FileMode) error {
	err := c.Mkdir(ctx, name, perm)
	if errors.Is(err, fs.ErrNotExist) {
		above := path.Dir(path.Clean(name))
		if above == name || name == "" {
			return err
		}
		if err := c.MkdirAll(ctx, above, perm); err != nil {
			return err
		}
		err = c.Mkdir(ctx, name, perm)
	}
	if errors.Is(err, fs.ErrExist) {
		info, serr := c.Stat(ctx, name)
		switch {
		case serr != nil:
			return serr
		case info.IsDir():
			return nil
		default:
			return pathError("mkdir", name, sys.E(sys.NotDir))
		}
	}
	return err
}

// Symlink makes name a symbolic link to target, which is stored as it is.
func (c *Client) Symlink(ctx context.Context, target, name string) error {
	mk := &metapb.Mknod{Type: uint32(sys.TypeSymlink), Mode: 0o777, Target: []byte(target)}
	return linkError("symlink", target, name, c.mknod(ctx, name, mk))
}

// ReadLink returns the target of a symbolic link.
func (c *Client) ReadLink(ctx context.Context, name string) (string, error) {
	info, err := c.stat(ctx, "readlink", name, false)
	if err != nil {
		return "", err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return "", pathError("readlink", name, sys.E(sys.Invalid, "not a symbolic link"))
	}
	return info.Target(), nil
}

// RealPath returns the path of what name leads to that goes through no symbolic
// link, as realpath(3) does.
func (c *Client) RealPath(ctx context.Context, name string) (string, error) {
	if err := checkPath(name); err != nil {
		return "", pathError("realpath", name, err)
	}
	p, err := c.fs.RealPath(ctx, c.cred, name)
	return p, pathError("realpath", name, err)
}

// Link gives the file old, which is no directory, another name.
func (c *Client) Link(ctx context.Context, old, name string) error {
	attr, err := c.resolve(ctx, old, false)
	if err != nil {
		return linkError("link", old, name, err)
	}
	dir, last, err := c.parent(ctx, name)
	if err == nil {
		_, err = c.fs.Link(ctx, c.cred, sys.Ino(attr.GetIno()), dir.ino, []byte(last))
	}
	return linkError("link", old, name, err)
}

// Rename is rename(2): it replaces what is called to in one step.
func (c *Client) Rename(ctx context.Context, from, to string) error {
	return c.rename(ctx, from, to, false)
}

// RenameNew is Rename that fails with fs.ErrExist when to is there already.
func (c *Client) RenameNew(ctx context.Context, from, to string) error {
	return c.rename(ctx, from, to, true)
}

func (c *Client) rename(ctx context.Context, from, to string, noReplace bool) error {
	dir, name, err := c.parent(ctx, from)
	if err != nil {
		return linkError("rename", from, to, err)
	}
	newDir, newName, err := c.parent(ctx, to)
	if err == nil {
		err = dir.rename(ctx, name, newDir, newName, noReplace)
	}
	return linkError("rename", from, to, err)
}

// Remove removes a file or an empty directory.
func (c *Client) Remove(ctx context.Context, name string) error {
	dir, last, err := c.parent(ctx, name)
	if err == nil {
		err = dir.remove(ctx, last)
	}
	return pathError("remove", name, err)
}

// Chmod sets the permissions of what name leads to.
func (c *Client) Chmod(ctx context.Context, name string, mode fs.FileMode) error {
	return c.change(ctx, "chmod", name, true, Attrs{Mode: &mode})
}

// Chown sets owner and group of what name leads to; -1 leaves one as it is.
func (c *Client) Chown(ctx context.Context, name string, uid, gid int) error {
	return c.change(ctx, "chown", name, true, owner(uid, gid))
}

// Lchown is Chown of name itself, also when it is a symbolic link.
func (c *Client) Lchown(ctx context.Context, name string, uid, gid int) error {
	return c.change(ctx, "lchown", name, false, owner(uid, gid))
}

func owner(uid, gid int) (a Attrs) {
	if uid >= 0 {
		v := uint32(uid)
		a.UID = &v
	}
	if gid >= 0 {
		v := uint32(gid)
		a.GID = &v
	}
	return a
}

// Chtimes sets the times of access and change of what name leads to. A zero
// time leaves one as it is.
func (c *Client) Chtimes(ctx context.Context, name string, atime, mtime time.Time) error {
	return c.change(ctx, "chtimes", name, true, Attrs{Atime: atime, Mtime: mtime})
}

// Lchtimes is Chtimes of name itself, also when it is a symbolic link.
func (c *Client) Lchtimes(ctx context.Context, name string, atime, mtime time.Time) error {
	return c.change(ctx, "lchtimes", name, false, Attrs{Atime: atime, Mtime: mtime})
}

func (c *Client) change(ctx context.Context, op, name string, follow bool, a Attrs) error {
	attr, err := c.resolve(ctx, name, follow)
	if err == nil {
		err = c.setAttrs(ctx, attr.GetIno(), &a)
	}
	return pathError(op, name, err)
}

// Truncate sets the length in bytes of what name leads to.
func (c *Client) Truncate(ctx context.Context, name string, size int64) error {
	if size < 0 {
		return pathError("truncate", name, sys.E(sys.Invalid, "the size is negative"))
	}
	attr, err := c.resolve(ctx, name, true)
	if err == nil {
		n := uint64(size)
		_, err = c.fs.SetAttr(ctx, c.cred, &metapb.SetAttr{Ino: attr.GetIno(), Size: &n})
	}
	return pathError("truncate", name, err)
}

// ReadDir lists what name leads to, in name order.
func (c *Client) ReadDir(ctx context.Context, name string) ([]*Info, error) {
	d, err := c.OpenDir(ctx, name)
	if err != nil {
		return nil, err
	}
	return d.List(ctx)
}

// Space tells how full the tree and the store of its blocks are, in bytes.
type Space struct {
	Files uint64 // inodes of the tree
	Used  uint64 // sum of the sizes of all files
	Total uint64 // of the store, all copies; 0 when it does not know
	Free  uint64 // of the store, all copies
}

// StatFS tells how full the tree is.
func (c *Client) StatFS(ctx context.Context) (Space, error) {
	st, err := c.fs.StatFS(ctx)
	if err != nil {
		return Space{}, pathError("statfs", "/", err)
	}
	return Space{Files: st.UsedInodes, Used: st.UsedBytes, Total: st.Total, Free: st.Free}, nil
}
