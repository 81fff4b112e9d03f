package vfs

import (
	"context"
	"io"
	"os"
	"sync/atomic"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// File is an open regular file. Methods may be called concurrently. All Files
// of one inode in one FS share their dirty bytes: what one has written, the
// others read at once.
type File struct {
	fs    *FS
	i     *inode
	flags int
	cred  *metapb.Cred
	keep  bool
	ahead ahead

	released atomic.Bool
}

// Ino returns the file's inode number.
func (f *File) Ino() sys.Ino { return f.i.ino }

// Unchanged reports whether, when the file was opened, its bytes were those
// that this FS had last read or written, so that copies of them that were made
// through this FS are still good.
func (f *File) Unchanged() bool { return f.keep }

// Attr returns the attributes known now, with the dirty bytes.
func (f *File) Attr() *metapb.Attr { return f.i.shown() }

// CheckNone, among the flags of Open, leaves out the check of permission:
// somebody else has made it.
const CheckNone = 1 << 62

// Open opens a regular file. flags are those of os.OpenFile: O_RDONLY,
// O_WRONLY or O_RDWR, with O_APPEND and O_TRUNC; further ones are ignored.
// IsDir, Access, Stale, and Invalid for what is neither a file nor a directory.
func (fs *FS) Open(ctx context.Context, cred *metapb.Cred, ino sys.Ino, flags int) (*File, error) {
	if err := fs.keepFile(ctx, ino); err != nil {
		return nil, err
	}
	var want uint32
	if flags&CheckNone == 0 {
		want = wants(flags)
	}
	a, err := fs.query(ctx, &metapb.Query{Cred: cred, Op: &metapb.Query_Open{
		Open: &metapb.Open{Ino: uint64(ino), Want: want}}})
	if err != nil {
		return nil, err
	}
	attr := a.GetAttr()
	switch sys.FileType(attr.GetType()) {
	case sys.TypeRegular:
	case sys.TypeDir:
		return nil, sys.E(sys.Op("vfs.Open"), sys.IsDir, inoSubject(ino))
	default:
		return nil, sys.E(sys.Op("vfs.Open"), sys.Invalid, inoSubject(ino), "not a regular file")
	}
	var chunk *metapb.Chunk
	for _, c := range a.GetChunks() {
		if c.GetNumber() == 0 {
			chunk = c.GetChunk()
		}
	}
	f := fs.newFile(attr, chunk, false, cred, flags)
	if flags&os.O_TRUNC != 0 && writable(flags) {
		if err := f.Truncate(ctx, 0); err != nil {
			f.Release()
			return nil, err
		}
	}
	return f, nil
}

// Create makes a regular file and opens it. Without O_EXCL in flags a file
// that exists is opened instead. The umask has been applied to mode.
func (fs *FS) Create(ctx context.Context, cred *metapb.Cred, parent sys.Ino, name []byte, mode uint32, flags int) (*metapb.Attr, *File, error) {
	mode &= sys.ModePerm
	if f := fs.promise(cred, entry{parent, string(name)}, mode, flags); f != nil {
		return f.Attr(), f, nil
	}
	a, created, err := fs.mknod(ctx, cred, &metapb.Mknod{Parent: uint64(parent), Name: name,
		Type: uint32(sys.TypeRegular), Mode: mode, OrOpen: flags&os.O_EXCL == 0})
	if err != nil {
		return nil, nil, err
	}
	if !created {
		f, err := fs.Open(ctx, cred, sys.Ino(a.GetIno()), flags)
		if err != nil {
			return nil, nil, err
		}
		return f.Attr(), f, nil
	}
	return a, fs.newFile(a, nil, true, cred, flags), nil
}

func (fs *FS) newFile(attr *metapb.Attr, chunk *metapb.Chunk, created bool, cred *metapb.Cred, flags int) *File {
	i, same := fs.attach(attr, chunk, created)
	return &File{fs: fs, i: i, flags: flags, cred: cred, keep: same}
}

func writable(flags int) bool { return flags&(os.O_WRONLY|os.O_RDWR) != 0 }

// wants returns the rwx bits that opening with flags needs.
func wants(flags int) uint32 {
	switch {
	case flags&os.O_RDWR != 0:
		return 6
	case flags&os.O_WRONLY != 0:
		return 2
	case flags&os.O_TRUNC != 0:
		return 6
	}
	return 4
}

// WriteAt writes p at off, or at the end for a file opened with O_APPEND. It
// returns when p is in the write buffer, which may have to wait for room. The
// error may be that of an earlier write that could not be sent.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f.flags&os.O_APPEND == 0 {
		return f.WriteBack(ctx, p, off)
	}
	f.i.appendMu.Lock()
	defer f.i.appendMu.Unlock()
	if !f.i.isDirty() {
		if _, err := f.fs.GetAttr(ctx, f.cred, f.i.ino); err != nil {
			return 0, err
		}
	}
	f.i.mu.RLock()
	end := f.i.size()
	f.i.mu.RUnlock()
	return f.write(ctx, p, int64(end), true)
}

// WriteBack is WriteAt, but off counts also for a file opened with O_APPEND:
// a kernel that writes back a mapped page knows where it belongs.
func (f *File) WriteBack(ctx context.Context, p []byte, off int64) (int, error) {
	return f.write(ctx, p, off, false)
}

func (f *File) write(ctx context.Context, p []byte, off int64, appends bool) (int, error) {
	const op = sys.Op("vfs.WriteAt")
	if !writable(f.flags) || f.released.Load() {
		return 0, sys.E(op, sys.BadHandle, inoSubject(f.i.ino))
	}
	if off < 0 {
		return 0, sys.E(op, sys.Invalid, inoSubject(f.i.ino), "negative offset")
	}
	if err := f.i.writeErr(); err != nil {
		return 0, err
	}
	return f.i.write(ctx, f.cred, p, uint64(off), appends)
}

// writeErr returns the error of a background send that no writer was told of.
func (i *inode) writeErr() error {
	i.fs.mu.Lock()
	closing := i.fs.closing
	i.fs.mu.Unlock()
	if closing {
		return errClosed
	}
	i.mu.RLock()
	err := i.sendErr
	i.mu.RUnlock()
	if err == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	err, i.sendErr = i.sendErr, nil
	return err
}

// write puts p into the dirty bytes: at off, or, when it is an append, behind them.
func (i *inode) write(ctx context.Context, cred *metapb.Cred, p []byte, off uint64, appends bool) (n int, err error) {
	if off > meta.FileSizeMax || uint64(len(p)) > meta.FileSizeMax-off {
		return 0, sys.E(sys.Op("vfs.WriteAt"), sys.FileTooLarge, inoSubject(i.ino))
	}
	var credit int64
	defer func() { i.fs.budget.give(credit) }()
	for n < len(p) {
		if need := memoryFor(len(p) - n); credit < need && i.fs.budget.try(need-credit) {
			credit = need
		}
		i.mu.Lock()
		if len(i.dirty) > 0 && i.appends != appends {
			i.mu.Unlock()
			if err := i.flush(ctx, wholeFile, false); err != nil {
				return n, err
			}
			continue
		}
		at := off + uint64(n)
		if appends {
			at = i.appendOff()
		}
		i.appends = appends
		chunk, o := uint32(at/sys.ChunkSize), uint32(at%sys.ChunkSize)
		k, want := i.put(chunk, o, p[n:min(len(p), n+int(sys.ChunkSize-o))], &credit)
		if k > 0 {
			i.wroteNs, i.writer = i.fs.opts.Clock.Wall().UnixNano(), cred
			if i.dirtyAt == 0 {
				i.dirtyAt = i.fs.opts.Clock.Boot()
			}
		}
		i.mu.Unlock()
		if n += k; o+uint32(k) == sys.ChunkSize {
			i.flushChunk(chunk)
		}
		if want > 0 {
			// Give first: two writers that each hold on to half would wait
			// for ever.
			need := credit + want
			i.fs.budget.give(credit)
			credit = 0
			if err := i.fs.budget.take(ctx, need); err != nil {
				return n, err
			}
			credit = need
		}
	}
	if i.fs.budget.stuck() {
		i.fs.wakeWriteback()
	}
	return n, nil
}

// memoryFor is how much memory a write of n bytes takes at most when it starts
// a run, so that most writes ask the budget once.
func memoryFor(n int) int64 {
	if n > sys.BlockSize {
		return 2 * sys.BlockSize
	}
	return int64(classSize(classOf(n)))
}

// Flush is close(2): it publishes everything written so far.
func (f *File) Flush(ctx context.Context) error {
	if !writable(f.flags) && !f.i.isDirty() {
		return nil
	}
	return f.i.flush(ctx, wholeFile, false)
}

// Fsync is fsync(2): Flush, and everything of the file that anybody has
// published is on stable storage.
func (f *File) Fsync(ctx context.Context) error { return f.i.flush(ctx, wholeFile, true) }

// Truncate is ftruncate(2).
func (f *File) Truncate(ctx context.Context, size int64) error {
	if size < 0 || !writable(f.flags) {
		return sys.E(sys.Op("vfs.Truncate"), sys.Invalid, inoSubject(f.i.ino))
	}
	s := uint64(size)
	_, err := f.i.truncate(ctx, f.cred, &metapb.SetAttr{Ino: uint64(f.i.ino), Size: &s, Open: true})
	return err
}

// ReadAt reads from off on. It returns io.EOF with fewer bytes than p has room
// for at the end of the file, as io.ReaderAt.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.read(ctx, p, off, nil)
	if err == nil && n < len(p) {
		return n, io.EOF
	}
	return n, err
}

// View is ReadAt that does not copy what the cache has in one piece. It returns
// the bytes, fewer than p has room for at the end of the file: in p, or with a
// release in memory of the cache, where they may be read until release is
// called, which must happen.
func (f *File) View(ctx context.Context, p []byte, off int64) (data []byte, release func(), err error) {
	var b block.Buffer
	n, err := f.read(ctx, p, off, &b)
	if b.Free != nil {
		return b.Data, b.Free, nil
	}
	return p[:n], nil, err
}

func (f *File) read(ctx context.Context, p []byte, off int64, lent *block.Buffer) (int, error) {
	if f.flags&os.O_WRONLY != 0 || f.released.Load() {
		return 0, sys.E(sys.Op("vfs.ReadAt"), sys.BadHandle, inoSubject(f.i.ino))
	}
	if off < 0 {
		return 0, sys.E(sys.Op("vfs.ReadAt"), sys.Invalid, inoSubject(f.i.ino), "negative offset")
	}
	return f.i.read(ctx, p, uint64(off), f, lent)
}

// Abandon is Release where nobody has to be told of what gets lost.
func (f *File) Abandon() {
	f.i.abandoned.Store(true)
	f.Release()
}

// Release ends the use of f. What could not be flushed by the last File of an
// inode is lost then, and logged. Further calls do nothing.
func (f *File) Release() {
	if f.released.CompareAndSwap(false, true) {
		f.fs.drop(f.i)
	}
}
