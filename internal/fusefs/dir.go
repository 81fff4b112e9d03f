//go:build linux

package fusefs

import (
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/koinon/koinon/internal/sys"
)

// An entry's offset in its directory is its cookie, so that a listing goes on
// at the right place however many entries have come and gone. Cookies below
// meta.FirstCookie are free for these two.
const (
	offDot    = 1
	offDotDot = 2
)

const (
	// direntMin and direntPlusMin are the least bytes that an entry takes in
	// an answer, without and with attributes.
	direntMin     = 32
	direntPlusMin = direntMin + 128
	readDirMax    = 1024
)

// listing is an open directory. Where a listing is tells the offset, so that
// all that is kept is where the last answer reached the end, 0 when it did not:
// a program asks once more to hear so.
type listing struct{ end atomic.Uint64 }

// OpenDir is of fuse.RawFileSystem.
func (r *rawFS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.Fh = r.dirs.add(&listing{})
	return fuse.OK
}

// ReleaseDir is of fuse.RawFileSystem.
func (r *rawFS) ReleaseDir(in *fuse.ReleaseIn) { r.dirs.remove(in.Fh) }

// FsyncDir is of fuse.RawFileSystem.
func (r *rawFS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	return r.status(r.fs.FsyncDir(ctx, sys.Ino(in.NodeId)))
}

// ReadDir is of fuse.RawFileSystem.
func (r *rawFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(cancel, in, false, func(e fuse.DirEntry) *fuse.EntryOut {
		if !out.AddDirEntry(e) {
			return nil
		}
		return &fuse.EntryOut{}
	})
}

// ReadDirPlus is of fuse.RawFileSystem.
func (r *rawFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(cancel, in, true, out.AddDirLookupEntry)
}

// list gives the entries from in.Offset on to add until that returns nil. One
// answer asks the tree once, for no more than fits, so no entry is older than
// the request; that which says that nothing follows is of the one before it.
func (r *rawFS) list(cancel <-chan struct{}, in *fuse.ReadIn, attrs bool, add func(fuse.DirEntry) *fuse.EntryOut) fuse.Status {
	open := r.dirs.get(in.Fh)
	if in.Offset != 0 && open != nil && open.end.CompareAndSwap(in.Offset, 0) {
		return fuse.OK
	}
	ctx := r.begin(cancel)
	defer ctx.end()
	dir, after := sys.Ino(in.NodeId), in.Offset
	if after < offDotDot {
		a, err := r.fs.GetAttr(ctx, r.root, dir)
		if err != nil {
			return r.status(err)
		}
		dirMode := sys.TypeDir.StatMode()
		if after < offDot && add(fuse.DirEntry{Name: ".", Ino: in.NodeId, Mode: dirMode, Off: offDot}) == nil {
			return fuse.OK
		}
		if add(fuse.DirEntry{Name: "..", Ino: max(a.GetParent(), uint64(sys.RootIno)), Mode: dirMode, Off: offDotDot}) == nil {
			return fuse.OK
		}
	}
	limit := int(in.Size) / direntMin
	if attrs {
		limit = int(in.Size) / direntPlusMin
	}
	entries, end, err := r.fs.ReadDir(ctx, r.root, dir, after, min(max(limit, 1), readDirMax), attrs)
	if err != nil {
		return r.status(err)
	}
	reached := max(after, offDotDot)
	for _, e := range entries {
		name := string(e.GetName())
		out := add(fuse.DirEntry{Name: name, Ino: e.GetIno(), Mode: sys.FileType(e.GetType()).StatMode(), Off: e.GetCookie()})
		if out == nil {
			return fuse.OK
		}
		reached = e.GetCookie()
		if e.GetAttr() != nil {
			r.entryOut(e.GetAttr(), in.NodeId, name, out)
		}
	}
	if end && open != nil && reached > in.Offset { // an empty answer has said so itself
		open.end.Store(reached)
	}
	return fuse.OK
}
