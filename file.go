package koinon

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// File is an open file or directory of the tree. It may be used concurrently;
// Read, Write, Seek and ReadDir share one position. It works under the context
// that it was opened with: when that ends, operations fail.
type File struct {
	c    *Client
	ctx  context.Context
	name string
	ino  sys.Ino
	h    *vfs.File // nil for a directory
	flag int

	mu     sync.Mutex
	off    int64
	cookie uint64 // of a directory: the last entry that was read
	end    bool
	closed bool
}

var (
	_ fs.ReadDirFile     = (*File)(nil)
	_ io.ReadWriteSeeker = (*File)(nil)
	_ io.ReaderAt        = (*File)(nil)
	_ io.WriterAt        = (*File)(nil)
	_ io.WriterTo        = (*File)(nil)
	_ io.ReaderFrom      = (*File)(nil)
)

// copyBuffer is what WriteTo and ReadFrom move at once: some blocks are always
// on their way, and nothing is copied in small pieces.
const copyBuffer = 1 << 20

// linksMax is how many dangling links OpenFile follows to make a file.
const linksMax = 40

// Open opens a file or directory for reading.
func (c *Client) Open(ctx context.Context, name string) (*File, error) {
	return c.OpenFile(ctx, name, os.O_RDONLY, 0)
}

// Create opens a file for reading and writing, made with the mode 0666 when it
// is missing and cut to nothing when it is not.
func (c *Client) Create(ctx context.Context, name string) (*File, error) {
	return c.OpenFile(ctx, name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
}

// OpenFile is open(2) with the flags of package os; perm is the mode of a file
// that it makes.
func (c *Client) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (*File, error) {
	f, err := c.openFile(ctx, name, flag, perm)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return f, nil
}

func (c *Client) openFile(ctx context.Context, name string, flag int, perm fs.FileMode) (*File, error) {
	f := &File{c: c, ctx: ctx, name: name, flag: flag}
	if flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL {
		return f, c.create(ctx, f, name, perm)
	}
	at := name
	for range linksMax {
		attr, err := c.resolve(ctx, at, true)
		if err == nil {
			return f, c.openIno(ctx, f, attr)
		}
		if flag&os.O_CREATE == 0 || !sys.Is(err, sys.NotExist) {
			return nil, err
		}
		link, lerr := c.resolve(ctx, at, false)
		switch {
		case sys.Is(lerr, sys.NotExist):
			return f, c.create(ctx, f, at, perm)
		case lerr != nil:
			return nil, lerr
		case len(link.GetTarget()) == 0:
			continue // made between the two looks
		}
		at = through(at, string(link.GetTarget()))
	}
	return nil, sys.E(sys.Loop)
}

// create makes a regular file by its path and opens it in f.
func (c *Client) create(ctx context.Context, f *File, name string, perm fs.FileMode) error {
	if strings.HasSuffix(name, "/") {
		return sys.E(sys.IsDir)
	}
	dir, last, err := c.parent(ctx, name)
	if err != nil {
		return err
	}
	return dir.create(ctx, f, last, perm)
}

// create makes a regular file in d and opens it in f.
func (d *Dir) create(ctx context.Context, f *File, name string, perm fs.FileMode) error {
	if err := entry(name); err != nil {
		return err
	}
	attr, h, err := d.c.fs.Create(ctx, d.c.cred, d.ino, []byte(name), modeBits(perm), f.flag)
	if err != nil {
		return err
	}
	f.h, f.ino = h, sys.Ino(attr.GetIno())
	return nil
}

// openIno opens what is there in f.
func (c *Client) openIno(ctx context.Context, f *File, attr *metapb.Attr) error {
	f.ino = sys.Ino(attr.GetIno())
	switch sys.FileType(attr.GetType()) {
	case sys.TypeDir:
		if f.flag&(os.O_WRONLY|os.O_RDWR) != 0 {
			return sys.E(sys.IsDir)
		}
		return c.fs.Access(ctx, c.cred, f.ino, 4)
	case sys.TypeRegular:
		h, err := c.fs.Open(ctx, c.cred, f.ino, f.flag)
		f.h = h
		return err
	default:
		return sys.E(sys.NotSupported, "only a mount opens devices, pipes and sockets")
	}
}

// Name returns the path that the file was opened by.
func (f *File) Name() string { return f.name }

// fail wraps the error of an operation on the file.
func (f *File) fail(op string, err error) error { return pathError(op, f.name, err) }

// usable returns why a read or write cannot be done. f.mu is held or not.
func (f *File) usable(write bool) error {
	access := f.flag & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
	switch {
	case f.h == nil:
		return sys.E(sys.IsDir)
	case write && access == os.O_RDONLY:
		return sys.E(sys.BadHandle, "the file was not opened for writing")
	case !write && access == os.O_WRONLY:
		return sys.E(sys.BadHandle, "the file was not opened for reading")
	}
	return nil
}

// lock takes the position, unless the file is closed.
func (f *File) lock() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return fs.ErrClosed
	}
	return nil
}

// Stat describes the file, with what was written and not yet flushed.
func (f *File) Stat() (fs.FileInfo, error) {
	if err := f.lock(); err != nil {
		return nil, f.fail("stat", err)
	}
	defer f.mu.Unlock()
	attr, err := f.c.fs.GetAttr(f.ctx, f.c.cred, f.ino)
	if err != nil {
		return nil, f.fail("stat", err)
	}
	return &Info{name: path.Base(f.name), attr: attr}, nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if err := f.lock(); err != nil {
		return 0, f.fail("read", err)
	}
	defer f.mu.Unlock()
	n, err := f.readAt(p, f.off)
	f.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.lock(); err != nil {
		return 0, f.fail("read", err)
	}
	f.mu.Unlock()
	return f.readAt(p, off)
}

// readAt fills p from off, or as much of it as there is, with io.EOF.
func (f *File) readAt(p []byte, off int64) (int, error) {
	if err := f.usable(false); err != nil {
		return 0, f.fail("read", err)
	}
	if off < 0 {
		return 0, f.fail("read", sys.E(sys.Invalid, "the offset is negative"))
	}
	n, err := f.h.ReadAt(f.ctx, p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = f.fail("read", err)
	}
	return n, err
}

// Write implements io.Writer. Bytes are agreed on when Close or Sync returns.
func (f *File) Write(p []byte) (int, error) {
	if err := f.lock(); err != nil {
		return 0, f.fail("write", err)
	}
	defer f.mu.Unlock()
	n, err := f.writeAt(p, f.off)
	f.off += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt. With O_APPEND it fails, as that of os does.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.lock(); err != nil {
		return 0, f.fail("write", err)
	}
	f.mu.Unlock()
	if f.flag&os.O_APPEND != 0 {
		return 0, f.fail("write", sys.E(sys.Invalid, "the file was opened for appending"))
	}
	return f.writeAt(p, off)
}

func (f *File) writeAt(p []byte, off int64) (int, error) {
	if err := f.usable(true); err != nil {
		return 0, f.fail("write", err)
	}
	if off < 0 {
		return 0, f.fail("write", sys.E(sys.Invalid, "the offset is negative"))
	}
	n, err := f.h.WriteAt(f.ctx, p, off)
	return n, f.fail("write", err)
}

// Seek implements io.Seeker. On a directory it can only go back to the start.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	if err := f.lock(); err != nil {
		return 0, f.fail("seek", err)
	}
	defer f.mu.Unlock()
	if f.h == nil {
		if offset != 0 || whence != io.SeekStart {
			return 0, f.fail("seek", sys.E(sys.Invalid, "a directory can only be read from its start again"))
		}
		f.cookie, f.end = 0, false
		return 0, nil
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		attr, err := f.c.fs.GetAttr(f.ctx, f.c.cred, f.ino)
		if err != nil {
			return 0, f.fail("seek", err)
		}
		offset += int64(attr.GetSize())
	default:
		return 0, f.fail("seek", sys.E(sys.Invalid, "whence is none of io's"))
	}
	if offset < 0 {
		return 0, f.fail("seek", sys.E(sys.Invalid, "the position is negative"))
	}
	f.off = offset
	return offset, nil
}

// WriteTo implements io.WriterTo: it copies from the position to the end.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	size := copyBuffer
	if f.h != nil { // a byte more than the file has shows its end at once
		size = int(min(f.h.Attr().GetSize()+1, copyBuffer))
	}
	return io.CopyBuffer(w, struct{ io.Reader }{f}, make([]byte, size))
}

// ReadFrom implements io.ReaderFrom: it writes all of r at the position.
func (f *File) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, make([]byte, copyBuffer))
}

// Sync is fsync(2): when it returns, what was written is on stable storage on
// a write quorum of nodes, and agreed on by a majority.
func (f *File) Sync() error {
	if err := f.lock(); err != nil {
		return f.fail("sync", err)
	}
	f.mu.Unlock()
	if f.h == nil {
		return nil // a directory's changes are durable when they return
	}
	return f.fail("sync", f.h.Fsync(f.ctx))
}

// Truncate sets the file's length in bytes.
func (f *File) Truncate(size int64) error {
	if err := f.lock(); err != nil {
		return f.fail("truncate", err)
	}
	f.mu.Unlock()
	if err := f.usable(true); err != nil {
		return f.fail("truncate", err)
	}
	if size < 0 {
		return f.fail("truncate", sys.E(sys.Invalid, "the size is negative"))
	}
	return f.fail("truncate", f.h.Truncate(f.ctx, size))
}

// Close publishes what was written and gives the file back. Its error means
// that bytes may be lost.
func (f *File) Close() error {
	if err := f.lock(); err != nil {
		return f.fail("close", err)
	}
	f.closed = true
	f.mu.Unlock()
	if f.h == nil {
		return nil
	}
	if f.flag&(os.O_WRONLY|os.O_RDWR) != 0 {
		if err := f.h.Flush(f.ctx); err != nil {
			f.h.Abandon() // the caller knows
			return f.fail("close", err)
		}
	}
	f.h.Release()
	return nil
}

// abandon gives the file back without publishing what was written. It may
// have been closed already.
func (f *File) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		f.h.Abandon()
	}
}

// ReadDir implements fs.ReadDirFile. Entries come in the directory's own
// order, which stays as it is while others come and go.
func (f *File) ReadDir(n int) ([]fs.DirEntry, error) {
	if err := f.lock(); err != nil {
		return nil, f.fail("readdir", err)
	}
	defer f.mu.Unlock()
	if f.h != nil {
		return nil, f.fail("readdir", sys.E(sys.NotDir))
	}
	var out []fs.DirEntry
	for !f.end && (n <= 0 || len(out) < n) {
		limit := listMax
		if n > 0 {
			limit = min(listMax, n-len(out))
		}
		entries, end, err := f.c.fs.ReadDir(f.ctx, f.c.cred, f.ino, f.cookie, limit, true)
		if err != nil {
			return out, f.fail("readdir", err)
		}
		for _, e := range entries {
			out = append(out, entryInfo(e))
			f.cookie = e.GetCookie()
		}
		f.end = end || len(entries) == 0
	}
	if n > 0 && len(out) == 0 {
		return nil, io.EOF
	}
	return slices.Clip(out), nil
}

// ReadFile returns all bytes of a file.
func (c *Client) ReadFile(ctx context.Context, name string) ([]byte, error) {
	f, err := c.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	data := make([]byte, info.Size())
	for n := 0; ; {
		m, err := f.Read(data[n:])
		n += m
		switch {
		case errors.Is(err, io.EOF):
			return data[:n], f.Close()
		case err != nil:
			return nil, errors.Join(err, f.Close())
		case n == len(data): // it may have grown since Stat
			data = append(data, 0)
			data = data[:cap(data)]
		}
	}
}

// WriteFile writes a file as a whole: readers find the old bytes or the new
// ones, whatever happens, and the new ones are durable when it returns. A file
// that was there keeps its mode; perm is that of a new one.
func (c *Client) WriteFile(ctx context.Context, name string, data []byte, perm fs.FileMode) error {
	r, err := c.Replace(ctx, name, perm)
	if err != nil {
		return err
	}
	r.Sync()
	if _, err := r.Write(data); err != nil {
		return errors.Join(err, r.Abort())
	}
	return r.Commit()
}
