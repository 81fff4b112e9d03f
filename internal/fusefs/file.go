//go:build linux

package fusefs

import (
	"context"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// handles are open files or directories by the number that the kernel knows
// them by.
type handles[T any] struct {
	mu   sync.RWMutex
	open map[uint64]T
	last uint64
}

func (h *handles[T]) add(f T) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = make(map[uint64]T)
	}
	h.last++
	h.open[h.last] = f
	return h.last
}

func (h *handles[T]) get(fh uint64) T {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.open[fh]
}

func (h *handles[T]) remove(fh uint64) T {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.open[fh]
	delete(h.open, fh)
	return f
}

// removeAll empties the table and returns what was in it.
func (h *handles[T]) removeAll() []T {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []T
	for _, f := range h.open {
		all = append(all, f)
	}
	h.open = nil
	return all
}

// openFlags are those flags of open(2) that vfs knows.
func openFlags(flags uint32) int {
	return int(flags)&(os.O_RDONLY|os.O_WRONLY|os.O_RDWR|os.O_APPEND|os.O_TRUNC|os.O_EXCL) | vfs.CheckNone
}

// openOut tells the kernel how to treat an open file.
func (r *rawFS) openOut(f *vfs.File, flags uint32, out *fuse.OpenOut) {
	out.Fh = r.handles.add(f)
	switch {
	case flags&syscall.O_APPEND != 0:
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	case f.Unchanged():
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	}
}

// Open is of fuse.RawFileSystem. The kernel has checked permission.
func (r *rawFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		mode, err := r.withoutPrivileges(ctx, sys.Ino(in.NodeId))
		if err != nil {
			return r.status(err)
		}
		if mode != nil {
			if _, err := r.fs.SetAttr(ctx, r.root, &metapb.SetAttr{Ino: in.NodeId, Mode: mode}); err != nil {
				return r.status(err)
			}
		}
	}
	f, err := r.fs.Open(ctx, r.callers.cred(&in.InHeader), sys.Ino(in.NodeId), openFlags(in.Flags))
	if err != nil {
		return r.status(err)
	}
	r.openOut(f, in.Flags, out)
	return fuse.OK
}

// Create is of fuse.RawFileSystem.
func (r *rawFS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	cred := r.callers.cred(&in.InHeader)
	parent, flags := sys.Ino(in.NodeId), openFlags(in.Flags)
	a, f, err := r.fs.Create(ctx, cred, parent, []byte(name), in.Mode, flags)
	if sys.Is(err, sys.Access) || sys.Is(err, sys.Permission) {
		// See make.
		if a, f, err = r.fs.Create(ctx, r.root, parent, []byte(name), in.Mode, flags); err == nil && a.GetSize() == 0 && a.GetUid() == 0 {
			if a, err = r.give(ctx, a, cred); err != nil {
				f.Release()
			}
		}
	}
	if err != nil {
		return r.status(err)
	}
	r.entryOut(a, in.NodeId, name, &out.EntryOut)
	r.openOut(f, in.Flags, &out.OpenOut)
	return fuse.OK
}

// Read is of fuse.RawFileSystem.
func (r *rawFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx := r.begin(cancel)
	defer ctx.end()
	f := r.handles.get(in.Fh)
	if f == nil {
		return nil, fuse.EBADF
	}
	data, release, err := f.View(ctx, buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil {
		return nil, r.status(err)
	}
	if release == nil {
		return fuse.ReadResultData(data), fuse.OK
	}
	return &lentResult{pieces: [1][]byte{data}, release: release}, fuse.OK
}

// lentResult answers a read from where the bytes are. It is a fuse.ReadResult
// whose Slices are written to the kernel in place, before Done.
type lentResult struct {
	pieces  [1][]byte
	release func()
}

// Bytes is of fuse.ReadResult.
func (l *lentResult) Bytes([]byte) ([]byte, fuse.Status) { return l.pieces[0], fuse.OK }

// Size is of fuse.ReadResult.
func (l *lentResult) Size() int { return len(l.pieces[0]) }

// Slices is what fuse.ReadResultVector has, too.
func (l *lentResult) Slices() ([][]byte, fuse.Status) { return l.pieces[:], fuse.OK }

// Done is of fuse.ReadResult.
func (l *lentResult) Done() { l.release() }

// Write is of fuse.RawFileSystem.
func (r *rawFS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f := r.handles.get(in.Fh)
	if f == nil {
		return 0, fuse.EBADF
	}
	ctx := r.begin(cancel)
	defer ctx.end()
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if mode := privilegesDropped(f.Attr()); mode != nil {
			if _, err := r.fs.SetAttr(ctx, r.root, &metapb.SetAttr{Ino: in.NodeId, Mode: mode}); err != nil {
				return 0, r.status(err)
			}
			// After a direct write the kernel takes sizes and times for old, but not the mode.
			if err := notified(r.kernel.InodeNotify(in.NodeId, -1, 0)); err != nil {
				return 0, r.status(err)
			}
		}
	}
	write := f.WriteAt
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		write = f.WriteBack
	}
	n, err := write(ctx, data, int64(in.Offset))
	if n > 0 && sys.Is(err, sys.Interrupted) {
		err = nil // a short write
	}
	return uint32(n), r.status(err)
}

// Flush is of fuse.RawFileSystem: close(2).
func (r *rawFS) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	f := r.handles.get(in.Fh)
	if f == nil {
		return fuse.EBADF
	}
	return r.status(f.Flush(ctx))
}

// Fsync is of fuse.RawFileSystem.
func (r *rawFS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	f := r.handles.get(in.Fh)
	if f == nil {
		return fuse.EBADF
	}
	return r.status(f.Fsync(ctx))
}

// Release is of fuse.RawFileSystem.
func (r *rawFS) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if f := r.handles.remove(in.Fh); f != nil {
		f.Release()
	}
}

// Fallocate is of fuse.RawFileSystem.
func (r *rawFS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	const keepSize, punchHole, zeroRange = 1, 2, 16
	fa := &metapb.Fallocate{Ino: in.NodeId, Off: in.Offset, Len: in.Length, KeepSize: in.Mode&keepSize != 0}
	switch in.Mode &^ keepSize {
	case 0:
	case punchHole, zeroRange:
		fa.Zero = true
	default:
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return r.status(r.fs.Fallocate(ctx, r.root, fa))
}

// Lseek is of fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE of lseek(2).
func (r *rawFS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	const seekData, seekHole = 3, 4
	var seek func(context.Context, sys.Ino, uint64) (uint64, bool, error)
	switch in.Whence {
	case seekData:
		seek = r.fs.SeekData
	case seekHole:
		seek = r.fs.SeekHole
	default:
		return fuse.EINVAL
	}
	at, found, err := seek(ctx, sys.Ino(in.NodeId), in.Offset)
	if err != nil {
		return r.status(err)
	}
	if !found {
		return enxio
	}
	out.Offset = at
	return fuse.OK
}
