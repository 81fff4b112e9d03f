package vfs

import (
	"context"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Lookup returns the inode that a directory has under a name: NotExist,
// NotDir, Access, NameTooLong.
func (fs *FS) Lookup(ctx context.Context, cred *metapb.Cred, parent sys.Ino, name []byte) (*metapb.Attr, error) {
	if len(name) > sys.NameMax {
		// Not asked for: a cache that knows all names of the directory would
		// answer that there is none.
		return nil, sys.E(sys.Op("vfs.Lookup"), sys.NameTooLong, inoSubject(parent))
	}
	if i := fs.promised(entry{parent, string(name)}); i != nil {
		defer fs.drop(i)
		return i.shown(), nil
	}
	a, err := fs.query(ctx, &metapb.Query{Cred: cred, Op: &metapb.Query_Lookup{
		Lookup: &metapb.Lookup{Parent: uint64(parent), Name: name}}})
	if err != nil {
		return nil, err
	}
	return fs.local(a.GetAttr()), nil
}

// GetAttr returns an inode's attributes; those of a file with unflushed writes
// of this FS tell its size and mtime with them. Stale when it is gone.
func (fs *FS) GetAttr(ctx context.Context, cred *metapb.Cred, ino sys.Ino) (*metapb.Attr, error) {
	if i := fs.peek(ino); i != nil && i.isPromised() {
		return i.shown(), nil
	}
	a, err := fs.query(ctx, &metapb.Query{Cred: cred, Op: &metapb.Query_GetAttr{
		GetAttr: &metapb.GetAttr{Ino: uint64(ino)}}})
	if err != nil {
		return nil, err
	}
	return fs.local(a.GetAttr()), nil
}

// local notes what attr tells about an open inode and returns attr with the
// inode's unflushed writes laid over it.
func (fs *FS) local(attr *metapb.Attr) *metapb.Attr {
	if sys.FileType(attr.GetType()) != sys.TypeRegular {
		return fs.promises.dated(attr)
	}
	i := fs.peek(sys.Ino(attr.GetIno()))
	if i == nil {
		return attr
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.observe(attr)
	return i.overlay(attr)
}

// shown returns the attributes known now, with the dirty bytes.
func (i *inode) shown() *metapb.Attr {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.overlay(i.attr)
}

// Access checks want, rwx bits as in access(2), against an inode's mode.
func (fs *FS) Access(ctx context.Context, cred *metapb.Cred, ino sys.Ino, want uint32) error {
	if err := fs.keepFile(ctx, ino); err != nil {
		return err
	}
	_, err := fs.query(ctx, &metapb.Query{Cred: cred, Op: &metapb.Query_Access{
		Access: &metapb.Access{Ino: uint64(ino), Want: want}}})
	return err
}

// SetAttr changes attributes and returns the new ones. A new size cuts
// unflushed writes as well.
func (fs *FS) SetAttr(ctx context.Context, cred *metapb.Cred, set *metapb.SetAttr) (*metapb.Attr, error) {
	fs.Keep(ctx, []sys.Ino{sys.Ino(set.GetIno())}) // what a directory's new mode would forbid has been allowed
	i := fs.hold(sys.Ino(set.GetIno()))
	if i == nil {
		r, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_SetAttr{SetAttr: set}})
		if err != nil {
			return nil, err
		}
		return fs.local(r.GetAttr()), nil
	}
	defer fs.drop(i)
	if set.Size != nil {
		return i.truncate(ctx, cred, set)
	}
	if set.MtimeNs != nil || set.MtimeNow {
		// The flush sets mtime to its own time: what was written before this
		// call must not do so after it.
		if err := i.flush(ctx, wholeFile, false); err != nil {
			return nil, err
		}
	}
	if err := i.keep(ctx); err != nil {
		return nil, err
	}
	r, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_SetAttr{SetAttr: set}})
	if err != nil {
		return nil, err
	}
	return fs.local(r.GetAttr()), nil
}

// Mknod makes an inode of any type and its first name. The umask has been
// applied to its mode.
func (fs *FS) Mknod(ctx context.Context, cred *metapb.Cred, mk *metapb.Mknod) (*metapb.Attr, error) {
	a, _, err := fs.mknod(ctx, cred, mk)
	return a, err
}

// mknod is Mknod, and tells whether the inode is new.
func (fs *FS) mknod(ctx context.Context, cred *metapb.Cred, mk *metapb.Mknod) (a *metapb.Attr, created bool, err error) {
	if err := fs.keepName(ctx, mk.Parent, mk.Name); err != nil {
		return nil, false, err
	}
	r, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_Mknod{Mknod: mk}})
	if err != nil {
		return nil, false, err
	}
	return r.GetAttr(), r.GetCreated(), nil
}

// Readlink returns the target of a symbolic link: Invalid for other types.
func (fs *FS) Readlink(ctx context.Context, cred *metapb.Cred, ino sys.Ino) ([]byte, error) {
	attr, err := fs.GetAttr(ctx, cred, ino)
	if err != nil {
		return nil, err
	}
	if sys.FileType(attr.GetType()) != sys.TypeSymlink {
		return nil, sys.E(sys.Op("vfs.Readlink"), sys.Invalid, inoSubject(ino), "not a symbolic link")
	}
	return attr.GetTarget(), nil
}

// Unlink removes a name of what is not a directory. Whoever has it open keeps
// it.
func (fs *FS) Unlink(ctx context.Context, cred *metapb.Cred, parent sys.Ino, name []byte) error {
	if err := fs.keepName(ctx, uint64(parent), name); err != nil {
		return err
	}
	_, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_Unlink{
		Unlink: &metapb.Unlink{Parent: uint64(parent), Name: name}}})
	return err
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(ctx context.Context, cred *metapb.Cred, parent sys.Ino, name []byte) error {
	fs.Keep(ctx, nil)
	_, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_Rmdir{
		Rmdir: &metapb.Rmdir{Parent: uint64(parent), Name: name}}})
	return err
}

// Rename is renameat2(2).
func (fs *FS) Rename(ctx context.Context, cred *metapb.Cred, rn *metapb.Rename) error {
	fs.Keep(ctx, nil)
	_, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_Rename{Rename: rn}})
	return err
}

// Link gives an inode another name and returns its attributes.
func (fs *FS) Link(ctx context.Context, cred *metapb.Cred, ino, parent sys.Ino, name []byte) (*metapb.Attr, error) {
	if err := fs.keepName(ctx, uint64(parent), name); err != nil {
		return nil, err
	}
	if err := fs.keepFile(ctx, ino); err != nil {
		return nil, err
	}
	r, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_Link{
		Link: &metapb.Link{Ino: uint64(ino), Parent: uint64(parent), Name: name}}})
	if err != nil {
		return nil, err
	}
	return fs.local(r.GetAttr()), nil
}

// ReadDir lists at most limit entries (at most 1024) of a directory whose
// cookie is above after, in cookie order; "." and ".." are not among them. It
// reports whether nothing follows. attrs asks for the entries' attributes.
func (fs *FS) ReadDir(ctx context.Context, cred *metapb.Cred, ino sys.Ino, after uint64, limit int, attrs bool) ([]*metapb.Entry, bool, error) {
	fs.Keep(ctx, []sys.Ino{ino})
	a, err := fs.query(ctx, &metapb.Query{Cred: cred, Op: &metapb.Query_ReadDir{
		ReadDir: &metapb.ReadDir{Ino: uint64(ino), After: after, Limit: uint32(min(max(limit, 1), 1024)), Attrs: attrs}}})
	if err != nil {
		return nil, false, err
	}
	entries := a.GetEntries()
	for n, e := range entries {
		if e.GetAttr() == nil {
			continue
		}
		if attr := fs.local(e.GetAttr()); attr != e.GetAttr() {
			own := e.CloneVT()
			own.Attr = attr
			entries[n] = own
		}
	}
	return entries, a.GetEnd(), nil
}

// GetXattr returns the value of an extended attribute: NoXattr.
func (fs *FS) GetXattr(ctx context.Context, cred *metapb.Cred, ino sys.Ino, name []byte) ([]byte, error) {
	if err := fs.keepFile(ctx, ino); err != nil {
		return nil, err
	}
	a, err := fs.query(ctx, &metapb.Query{Cred: cred, Op: &metapb.Query_GetXattr{
		GetXattr: &metapb.GetXattr{Ino: uint64(ino), Name: name}}})
	if err != nil {
		return nil, err
	}
	return a.GetValue(), nil
}

// SetXattr sets an extended attribute.
func (fs *FS) SetXattr(ctx context.Context, cred *metapb.Cred, set *metapb.SetXattr) error {
	if err := fs.keepFile(ctx, sys.Ino(set.GetIno())); err != nil {
		return err
	}
	_, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_SetXattr{SetXattr: set}})
	return err
}

// ListXattr returns the names of an inode's extended attributes.
func (fs *FS) ListXattr(ctx context.Context, cred *metapb.Cred, ino sys.Ino) ([][]byte, error) {
	if err := fs.keepFile(ctx, ino); err != nil {
		return nil, err
	}
	a, err := fs.query(ctx, &metapb.Query{Cred: cred, Op: &metapb.Query_ListXattr{
		ListXattr: &metapb.ListXattr{Ino: uint64(ino)}}})
	if err != nil {
		return nil, err
	}
	return a.GetNames(), nil
}

// RemoveXattr removes an extended attribute: NoXattr.
func (fs *FS) RemoveXattr(ctx context.Context, cred *metapb.Cred, ino sys.Ino, name []byte) error {
	if err := fs.keepFile(ctx, ino); err != nil {
		return err
	}
	_, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_RemoveXattr{
		RemoveXattr: &metapb.RemoveXattr{Ino: uint64(ino), Name: name}}})
	return err
}

// Stat is how full the tree and the store are. Sizes are in bytes.
type Stat struct {
	UsedBytes, UsedInodes uint64 // of the tree
	Total, Free           uint64 // of the store, for one copy of everything; Total is 0 when it does not know
}

// StatFS is statfs(2).
func (fs *FS) StatFS(ctx context.Context) (Stat, error) {
	a, err := fs.query(ctx, &metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}})
	if err != nil {
		return Stat{}, err
	}
	u, err := fs.store.Usage(ctx)
	if err != nil {
		return Stat{}, err
	}
	copies := uint64(fs.opts.Copies)
	return Stat{UsedBytes: a.GetUsedBytes(), UsedInodes: a.GetUsedInodes(), Total: u.Total / copies, Free: u.Free / copies}, nil
}

// Fallocate is fallocate(2) on an inode that the caller has open for writing.
func (fs *FS) Fallocate(ctx context.Context, cred *metapb.Cred, fa *metapb.Fallocate) error {
	i := fs.hold(sys.Ino(fa.GetIno()))
	if i == nil {
		_, err := fs.do(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_Fallocate{Fallocate: fa}})
		return err
	}
	defer fs.drop(i)
	return i.fallocate(ctx, cred, fa)
}

func inoSubject(ino sys.Ino) sys.Subject { return sys.Subject("inode " + itoa(uint64(ino))) }
