package koinon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Dir is a directory known by its inode, like a descriptor for openat(2):
// work on its entries does not walk its path again, and goes on when the
// directory is renamed. It holds nothing, so it need not be closed. Methods may
// be called concurrently. They take single names, not paths, and follow no
// symbolic links.
type Dir struct {
	c    *Client
	ino  sys.Ino
	path string
}

// OpenDir returns the directory that name leads to.
func (c *Client) OpenDir(ctx context.Context, name string) (*Dir, error) {
	attr, err := c.resolve(ctx, name, true)
	if err == nil && sys.FileType(attr.GetType()) != sys.TypeDir {
		err = sys.E(sys.NotDir)
	}
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &Dir{c: c, ino: sys.Ino(attr.GetIno()), path: name}, nil
}

// Path returns the path by which the directory was found.
func (d *Dir) Path() string { return d.path }

// Ino returns the directory's inode number.
func (d *Dir) Ino() uint64 { return uint64(d.ino) }

func (d *Dir) join(name string) string { return path.Join(d.path, name) }

// entry checks a name of an entry.
func entry(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return sys.E(sys.Invalid, "not the name of an entry")
	}
	return nil
}

// Dir returns the directory that d has under a name.
func (d *Dir) Dir(ctx context.Context, name string) (*Dir, error) {
	info, err := d.Lstat(ctx, name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, pathError("open", d.join(name), sys.E(sys.NotDir))
	}
	return d.Sub(info), nil
}

// Sub returns the directory that info, from d's List or Lstat, describes.
func (d *Dir) Sub(info *Info) *Dir {
	return &Dir{c: d.c, ino: sys.Ino(info.Ino()), path: d.join(info.Name())}
}

// Lstat describes an entry.
func (d *Dir) Lstat(ctx context.Context, name string) (*Info, error) {
	err := entry(name)
	if err == nil {
		var attr *metapb.Attr
		if attr, err = d.c.fs.Lookup(ctx, d.c.cred, d.ino, []byte(name)); err == nil {
			return &Info{name: name, attr: attr}, nil
		}
	}
	return nil, pathError("lstat", d.join(name), err)
}

// List returns all entries with their attributes, in name order.
func (d *Dir) List(ctx context.Context) ([]*Info, error) {
	var infos []*Info
	for after, end := uint64(0), false; !end; {
		entries, last, err := d.c.fs.ReadDir(ctx, d.c.cred, d.ino, after, listMax, true)
		if err != nil {
			return nil, pathError("readdir", d.path, err)
		}
		for _, e := range entries {
			infos = append(infos, entryInfo(e))
			after = e.GetCookie()
		}
		end = last || len(entries) == 0
	}
	slices.SortFunc(infos, func(a, b *Info) int { return strings.Compare(a.name, b.name) })
	return infos, nil
}

// listMax is how many entries are asked for at a time.
const listMax = 1024

func entryInfo(e *metapb.Entry) *Info {
	attr := e.GetAttr()
	if attr == nil {
		attr = &metapb.Attr{Ino: e.GetIno(), Type: e.GetType()}
	}
	return &Info{name: string(e.GetName()), attr: attr}
}

// Open opens the regular file that info, from d's List or Lstat, describes,
// for reading.
func (d *Dir) Open(ctx context.Context, info *Info) (*File, error) {
	f := &File{c: d.c, ctx: ctx, name: d.join(info.Name()), flag: os.O_RDONLY}
	if err := d.c.openIno(ctx, f, info.attr); err != nil {
		return nil, pathError("open", f.name, err)
	}
	return f, nil
}

// mknod makes an entry and returns its attributes.
func (d *Dir) mknod(ctx context.Context, name string, mk *metapb.Mknod) (*metapb.Attr, error) {
	if err := entry(name); err != nil {
		return nil, err
	}
	mk.Parent, mk.Name = uint64(d.ino), []byte(name)
	return d.c.fs.Mknod(ctx, d.c.cred, mk)
}

// Mkdir makes a directory and returns it.
func (d *Dir) Mkdir(ctx context.Context, name string, perm fs.FileMode) (*Dir, error) {
	attr, err := d.mknod(ctx, name, &metapb.Mknod{Type: uint32(sys.TypeDir), Mode: modeBits(perm)})
	if err != nil {
		return nil, pathError("mkdir", d.join(name), err)
	}
	return &Dir{c: d.c, ino: sys.Ino(attr.GetIno()), path: d.join(name)}, nil
}

// Symlink makes a symbolic link to target, which is stored as it is.
func (d *Dir) Symlink(ctx context.Context, target, name string) error {
	_, err := d.mknod(ctx, name, &metapb.Mknod{Type: uint32(sys.TypeSymlink), Mode: 0o777, Target: []byte(target)})
	return linkError("symlink", target, d.join(name), err)
}

// Remove removes a file or an empty directory.
func (d *Dir) Remove(ctx context.Context, name string) error {
	return pathError("remove", d.join(name), d.remove(ctx, name))
}

func (d *Dir) remove(ctx context.Context, name string) error {
	if err := entry(name); err != nil {
		return err
	}
	err := d.c.fs.Unlink(ctx, d.c.cred, d.ino, []byte(name))
	if sys.Is(err, sys.IsDir) {
		err = d.c.fs.Rmdir(ctx, d.c.cred, d.ino, []byte(name))
	}
	return err
}

// Rename is rename(2) of an entry of d to a name in another directory.
func (d *Dir) Rename(ctx context.Context, name string, to *Dir, newName string) error {
	return linkError("rename", d.join(name), to.join(newName), d.rename(ctx, name, to, newName, false))
}

func (d *Dir) rename(ctx context.Context, name string, to *Dir, newName string, noReplace bool) error {
	if err := errors.Join(entry(name), entry(newName)); err != nil {
		return err
	}
	return d.c.fs.Rename(ctx, d.c.cred, &metapb.Rename{
		Parent: uint64(d.ino), Name: []byte(name), NewParent: uint64(to.ino), NewName: []byte(newName), NoReplace: noReplace,
	})
}

// Attrs are changes of an inode's attributes; what is nil or zero stays as it
// is.
type Attrs struct {
	Mode         *fs.FileMode // permissions, setuid, setgid and sticky
	UID, GID     *uint32
	Atime, Mtime time.Time
}

func (a *Attrs) set(ino uint64) *metapb.SetAttr {
	set := &metapb.SetAttr{Ino: ino, Uid: a.UID, Gid: a.GID}
	if a.Mode != nil {
		bits := modeBits(*a.Mode)
		set.Mode = &bits
	}
	if !a.Atime.IsZero() {
		ns := sys.TimeNs(a.Atime.Unix(), int64(a.Atime.Nanosecond()))
		set.AtimeNs = &ns
	}
	if !a.Mtime.IsZero() {
		ns := sys.TimeNs(a.Mtime.Unix(), int64(a.Mtime.Nanosecond()))
		set.MtimeNs = &ns
	}
	return set
}

func (a *Attrs) none() bool {
	return a.Mode == nil && a.UID == nil && a.GID == nil && a.Atime.IsZero() && a.Mtime.IsZero()
}

// SetAttrs changes the attributes of the directory itself.
func (d *Dir) SetAttrs(ctx context.Context, a Attrs) error {
	return pathError("setattr", d.path, d.c.setAttrs(ctx, uint64(d.ino), &a))
}

// SetEntryAttrs changes the attributes of an entry, of a symbolic link its own.
func (d *Dir) SetEntryAttrs(ctx context.Context, name string, a Attrs) error {
	info, err := d.Lstat(ctx, name)
	if err != nil {
		return err
	}
	return pathError("setattr", d.join(name), d.c.setAttrs(ctx, info.Ino(), &a))
}

// setAttrs changes the attributes of an inode. Owner and mode go in steps of
// their own, because a change of owner takes setuid and setgid away.
func (c *Client) setAttrs(ctx context.Context, ino uint64, a *Attrs) error {
	if a.none() {
		return nil
	}
	set := a.set(ino)
	if (set.Uid != nil || set.Gid != nil) && set.Mode != nil {
		owner := &metapb.SetAttr{Ino: ino, Uid: set.Uid, Gid: set.Gid}
		if _, err := c.fs.SetAttr(ctx, c.cred, owner); err != nil {
			return err
		}
		set.Uid, set.Gid = nil, nil
	}
	_, err := c.fs.SetAttr(ctx, c.cred, set)
	return err
}
