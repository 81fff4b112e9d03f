//go:build linux

package fusefs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

const (
	// blockSize is st_blksize: what programs that ask read and write at once.
	blockSize = 64 << 10
	// statfsBlock is the unit of statfs(2), in bytes.
	statfsBlock = 4096
	// unboundedBytes is what a store that does not know its capacity is shown
	// to have free.
	unboundedBytes = 1 << 50
	// freeInodes is what statfs(2) tells: the tree has no fixed number.
	freeInodes = 1 << 40
)

// rawFS answers the kernel. Its methods are those of fuse.RawFileSystem; what
// is not here answers ENOSYS, upon which the kernel stops asking.
type rawFS struct {
	fuse.RawFileSystem
	fs      *vfs.FS
	opts    Options
	root    *metapb.Cred
	callers callers
	kernel  *fuse.Server
	handles handles[*vfs.File]
	dirs    handles[*listing]

	interrupts interrupts
	failures   failures
}

var _ fuse.RawFileSystem = (*rawFS)(nil)

// Init is of fuse.RawFileSystem.
func (r *rawFS) Init(s *fuse.Server) { r.kernel = s }

// String is of fuse.RawFileSystem.
func (r *rawFS) String() string { return subtype }

// Forget is of fuse.RawFileSystem. Nothing is kept per lookup.
func (r *rawFS) Forget(nodeid, nlookup uint64) {}

// attrOut fills in what the kernel wants to know of an inode.
func attrOut(a *metapb.Attr, out *fuse.Attr) {
	out.Ino = a.GetIno()
	out.Size = a.GetSize()
	out.Blocks = (a.GetStored() + 511) / 512
	out.Atime, out.Atimensec = timeOut(a.GetAtimeNs())
	out.Mtime, out.Mtimensec = timeOut(a.GetMtimeNs())
	out.Ctime, out.Ctimensec = timeOut(a.GetCtimeNs())
	out.Mode = sys.FileType(a.GetType()).StatMode() | a.GetMode()
	out.Nlink = a.GetNlink()
	out.Uid, out.Gid = a.GetUid(), a.GetGid()
	out.Rdev = a.GetRdev()
	out.Blksize = blockSize
}

// timeOut splits ns since the epoch, which may be before it.
func timeOut(ns int64) (sec uint64, nsec uint32) {
	s, n := ns/1e9, ns%1e9
	if n < 0 {
		s, n = s-1, n+1e9
	}
	return uint64(s), uint32(n)
}

func timeIn(sec uint64, nsec uint32) *int64 {
	ns := sys.TimeNs(int64(sec), int64(nsec))
	return &ns
}

// entryOut answers a lookup of name in parent. The hooks are asked last, so
// that what they allow is true of what was found.
func (r *rawFS) entryOut(a *metapb.Attr, parent uint64, name string, out *fuse.EntryOut) {
	attrOut(a, &out.Attr)
	out.NodeId = a.GetIno()
	out.SetEntryTimeout(r.opts.EntryTTL(sys.Ino(parent), name))
	out.SetAttrTimeout(r.attrTTL(a))
}

// attrTTL is how long the kernel may keep attributes. Those of a file that the
// tree does not know yet change when it does.
func (r *rawFS) attrTTL(a *metapb.Attr) time.Duration {
	if a.GetVersion() == 0 {
		return 0
	}
	return r.opts.AttrTTL(sys.Ino(a.GetIno()))
}

func (r *rawFS) attrAnswer(a *metapb.Attr, out *fuse.AttrOut) {
	attrOut(a, &out.Attr)
	out.SetTimeout(r.attrTTL(a))
}

// Lookup is of fuse.RawFileSystem.
func (r *rawFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	a, err := r.fs.Lookup(ctx, r.root, sys.Ino(h.NodeId), []byte(name))
	if err != nil {
		if ttl := r.opts.EntryTTL(sys.Ino(h.NodeId), name); ttl > 0 && sys.Is(err, sys.NotExist) {
			out.NodeId = 0 // "there is none" may be kept
			out.SetEntryTimeout(ttl)
			return fuse.OK
		}
		return r.status(err)
	}
	r.entryOut(a, h.NodeId, name, out)
	return fuse.OK
}

// GetAttr is of fuse.RawFileSystem.
func (r *rawFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	a, err := r.fs.GetAttr(ctx, r.root, sys.Ino(in.NodeId))
	if err != nil {
		return r.status(err)
	}
	r.attrAnswer(a, out)
	return fuse.OK
}

// SetAttr is of fuse.RawFileSystem.
func (r *rawFS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	set := &metapb.SetAttr{Ino: in.NodeId}
	if mode, ok := in.GetMode(); ok {
		set.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		set.Uid = &uid
	}
	if gid, ok := in.GetGID(); ok {
		set.Gid = &gid
	}
	if size, ok := in.GetSize(); ok {
		set.Size = &size
	}
	_, set.Open = in.GetFh()
	set.AtimeNow = in.Valid&fuse.FATTR_ATIME_NOW != 0
	set.MtimeNow = in.Valid&fuse.FATTR_MTIME_NOW != 0
	if in.Valid&fuse.FATTR_ATIME != 0 && !set.AtimeNow {
		set.AtimeNs = timeIn(in.Atime, in.Atimensec)
	}
	if in.Valid&fuse.FATTR_MTIME != 0 && !set.MtimeNow {
		set.MtimeNs = timeIn(in.Mtime, in.Mtimensec)
	}
	if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 && set.Mode == nil {
		mode, err := r.withoutPrivileges(ctx, sys.Ino(in.NodeId))
		if err != nil {
			return r.status(err)
		}
		set.Mode = mode
	}
	a, err := r.fs.SetAttr(ctx, r.root, set)
	if err != nil {
		return r.status(err)
	}
	r.attrAnswer(a, out)
	return fuse.OK
}

// withoutPrivileges returns a file's mode without setuid, and without setgid
// where that is not a mark for mandatory locking; nil when it has neither. The
// kernel leaves this to us (FUSE_HANDLE_KILLPRIV_V2), which saves it a request
// before each write.
func (r *rawFS) withoutPrivileges(ctx context.Context, ino sys.Ino) (*uint32, error) {
	a, err := r.fs.GetAttr(ctx, r.root, ino)
	if err != nil {
		return nil, err
	}
	return privilegesDropped(a), nil
}

func privilegesDropped(a *metapb.Attr) *uint32 {
	mode := a.GetMode() &^ sys.ModeSetuid
	if mode&0o010 != 0 {
		mode &^= sys.ModeSetgid
	}
	if mode == a.GetMode() || sys.FileType(a.GetType()) != sys.TypeRegular {
		return nil
	}
	return &mode
}

// make runs a Mknod for a caller. The kernel has allowed it; where the tree,
// which knows less of the caller, does not, it is done by root and given to
// the caller.
func (r *rawFS) make(ctx context.Context, h *fuse.InHeader, mk *metapb.Mknod) (*metapb.Attr, error) {
	cred := r.callers.cred(h)
	a, err := r.fs.Mknod(ctx, cred, mk)
	if !sys.Is(err, sys.Access) && !sys.Is(err, sys.Permission) {
		return a, err
	}
	if a, err = r.fs.Mknod(ctx, r.root, mk); err != nil {
		return nil, err
	}
	return r.give(ctx, a, cred)
}

// give makes an inode that root has made the caller's.
func (r *rawFS) give(ctx context.Context, a *metapb.Attr, cred *metapb.Cred) (*metapb.Attr, error) {
	set := &metapb.SetAttr{Ino: a.GetIno(), Uid: &cred.Uid}
	if a.GetGid() == 0 {
		set.Gid = &cred.Gid
	}
	mode := a.GetMode()
	set.Mode = &mode
	return r.fs.SetAttr(ctx, r.root, set)
}

// makeEntry is make, answered as an entry.
func (r *rawFS) makeEntry(cancel <-chan struct{}, h *fuse.InHeader, name string, mk *metapb.Mknod, out *fuse.EntryOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	mk.Parent, mk.Name = h.NodeId, []byte(name)
	a, err := r.make(ctx, h, mk)
	if err != nil {
		return r.status(err)
	}
	r.entryOut(a, h.NodeId, name, out)
	return fuse.OK
}

// Mknod is of fuse.RawFileSystem.
func (r *rawFS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	typ := sys.TypeOfMode(in.Mode)
	if typ == 0 {
		typ = sys.TypeRegular
	}
	mk := &metapb.Mknod{Type: uint32(typ), Mode: in.Mode & sys.ModePerm}
	if typ == sys.TypeChar || typ == sys.TypeBlock {
		mk.Rdev = in.Rdev
	}
	return r.makeEntry(cancel, &in.InHeader, name, mk, out)
}

// Mkdir is of fuse.RawFileSystem.
func (r *rawFS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	mk := &metapb.Mknod{Type: uint32(sys.TypeDir), Mode: in.Mode & sys.ModePerm}
	return r.makeEntry(cancel, &in.InHeader, name, mk, out)
}

// Symlink is of fuse.RawFileSystem.
func (r *rawFS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	mk := &metapb.Mknod{Type: uint32(sys.TypeSymlink), Mode: 0o777, Target: []byte(target)}
	return r.makeEntry(cancel, h, name, mk, out)
}

// Readlink is of fuse.RawFileSystem.
func (r *rawFS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := r.begin(cancel)
	defer ctx.end()
	target, err := r.fs.Readlink(ctx, r.root, sys.Ino(h.NodeId))
	return target, r.status(err)
}

// Unlink is of fuse.RawFileSystem.
func (r *rawFS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	return r.status(r.fs.Unlink(ctx, r.root, sys.Ino(h.NodeId), []byte(name)))
}

// Rmdir is of fuse.RawFileSystem.
func (r *rawFS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	return r.status(r.fs.Rmdir(ctx, r.root, sys.Ino(h.NodeId), []byte(name)))
}

// Rename is of fuse.RawFileSystem: renameat2(2) without RENAME_WHITEOUT.
func (r *rawFS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	const noReplace, exchange = 1, 2
	if in.Flags&^(noReplace|exchange) != 0 {
		return fuse.EINVAL
	}
	return r.status(r.fs.Rename(ctx, r.root, &metapb.Rename{
		Parent: in.NodeId, Name: []byte(oldName), NewParent: in.Newdir, NewName: []byte(newName),
		NoReplace: in.Flags&noReplace != 0, Exchange: in.Flags&exchange != 0}))
}

// Link is of fuse.RawFileSystem.
func (r *rawFS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	a, err := r.fs.Link(ctx, r.root, sys.Ino(in.Oldnodeid), sys.Ino(in.NodeId), []byte(name))
	if err != nil {
		return r.status(err)
	}
	r.entryOut(a, in.NodeId, name, out)
	return fuse.OK
}

// Access is of fuse.RawFileSystem. A kernel that checks permission itself does
// not ask.
func (r *rawFS) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	return r.status(r.fs.Access(ctx, r.callers.cred(&in.InHeader), sys.Ino(in.NodeId), in.Mask&7))
}

// StatFs is of fuse.RawFileSystem.
func (r *rawFS) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	s, err := r.fs.StatFS(ctx)
	if err != nil {
		return r.status(err)
	}
	if s.Total == 0 {
		s.Free = unboundedBytes
		s.Total = s.UsedBytes + s.Free
	}
	out.Bsize, out.Frsize = statfsBlock, statfsBlock
	out.Blocks, out.Bfree, out.Bavail = s.Total/statfsBlock, s.Free/statfsBlock, s.Free/statfsBlock
	out.Files, out.Ffree = s.UsedInodes+freeInodes, freeInodes
	out.NameLen = sys.NameMax
	return fuse.OK
}

// enxio is what lseek(2) answers past the end of a file.
const enxio = fuse.Status(syscall.ENXIO)
