package koinon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Replacement is a file under construction that gets its name in one step, by
// Commit, with all its bytes or not at all. A small new file is made by one
// command; any other has a temporary name beside its place meanwhile. It is
// used by one goroutine. End it with Commit or Abort.
type Replacement struct {
	ctx  context.Context
	dir  *Dir
	name string
	mode fs.FileMode
	// Attrs are set before the file gets its name where that is possible.
	Attrs Attrs

	buf  []byte // all bytes, while they are few
	temp string // the temporary name, "" while there is none
	file *File
	sync bool
	done bool
}

var (
	_ io.Writer     = (*Replacement)(nil)
	_ io.ReaderFrom = (*Replacement)(nil)
)

// Replace begins to write what shall be called name, which may exist. Where
// name is a symbolic link, what it leads to is replaced. A file that is
// replaced passes on its mode, and its owner as far as this process may give
// files away; perm is the mode otherwise.
func (c *Client) Replace(ctx context.Context, name string, perm fs.FileMode) (*Replacement, error) {
	at := name
	for range linksMax {
		dir, last, err := c.parent(ctx, at)
		if hasNoLast(at) || err == nil && at[len(at)-1] == '/' {
			err = sys.E(sys.IsDir)
		}
		if err != nil {
			return nil, pathError("open", name, err)
		}
		info, err := dir.Lstat(ctx, last)
		if errors.Is(err, fs.ErrNotExist) {
			return dir.Replace(ctx, last, perm)
		}
		if err != nil {
			return nil, pathError("open", name, errors.Unwrap(err))
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if err := replaceable(info); err != nil {
				return nil, pathError("open", name, err)
			}
			return dir.Replace(ctx, last, perm)
		}
		at = through(at, info.Target())
	}
	return nil, pathError("open", name, sys.E(sys.Loop))
}

// through returns the path to which a symbolic link at name leads.
func through(name, target string) string {
	if path.IsAbs(target) {
		return target
	}
	return path.Dir(name) + "/" + target
}

// replaceable returns why an entry cannot be replaced by a file.
func replaceable(info *Info) error {
	switch {
	case info.IsDir():
		return sys.E(sys.IsDir)
	case !info.Mode().IsRegular():
		return sys.E(sys.Exist, "it is not a regular file: remove it first")
	}
	return nil
}

// Replace begins to write an entry of d, which may exist as a regular file.
// Nothing is asked of the cluster before the first bytes are sent, so what is
// wrong with the name may show as late as Commit.
func (d *Dir) Replace(ctx context.Context, name string, perm fs.FileMode) (*Replacement, error) {
	if err := entry(name); err != nil {
		return nil, pathError("open", d.join(name), err)
	}
	return &Replacement{ctx: ctx, dir: d, name: name, mode: perm}, nil
}

// Name returns the path that the file will have.
func (r *Replacement) Name() string { return r.dir.join(r.name) }

func (r *Replacement) fail(op string, err error) error { return pathError(op, r.Name(), err) }

// Write implements io.Writer.
func (r *Replacement) Write(p []byte) (int, error) {
	if r.done {
		return 0, r.fail("write", fs.ErrClosed)
	}
	if r.file == nil {
		if len(r.buf)+len(p) <= sys.InlineMax {
			r.buf = append(r.buf, p...)
			return len(p), nil
		}
		if err := r.spill(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(p)
	return n, r.inner("write", err)
}

// ReadFrom implements io.ReaderFrom: it writes all of src.
func (r *Replacement) ReadFrom(src io.Reader) (int64, error) {
	if r.done {
		return 0, r.fail("write", fs.ErrClosed)
	}
	var total int64
	if r.file == nil {
		// Straight into the buffer, as long as it is a small file.
		r.buf = slices.Grow(r.buf, sys.InlineMax+1-len(r.buf))
		n, err := io.ReadFull(src, r.buf[len(r.buf):sys.InlineMax+1])
		r.buf = r.buf[:len(r.buf)+n]
		total = int64(n)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return total, nil
		case err != nil:
			return total, err
		}
		if err := r.spill(); err != nil {
			return 0, err
		}
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{r}, struct{ io.Reader }{src}, make([]byte, copyBuffer))
	return total + n, err
}

// inner renames the temporary file in an error to what the user knows.
func (r *Replacement) inner(op string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return r.fail(op, pe.Err)
	}
	return err
}

// spill makes the temporary file and writes what there is so far.
func (r *Replacement) spill() error {
	old, err := r.old()
	if err != nil {
		return err
	}
	name := tempName()
	f := &File{c: r.dir.c, ctx: r.ctx, name: r.dir.join(name), flag: os.O_WRONLY | os.O_CREATE | os.O_EXCL}
	if err := r.dir.create(r.ctx, f, name, r.mode); err != nil {
		return r.fail("create", err)
	}
	r.file, r.temp = f, name
	if err := r.passOwner(uint64(f.ino), old); err != nil {
		return err
	}
	data := r.buf
	r.buf = nil
	if len(data) == 0 {
		return nil
	}
	_, err = f.Write(data)
	return r.inner("write", err)
}

// old returns the file that is to be replaced, nil for none, and takes over
// its mode.
func (r *Replacement) old() (*Info, error) {
	info, err := r.dir.Lstat(r.ctx, r.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := replaceable(info); err != nil {
		return nil, r.fail("open", err)
	}
	r.mode = info.Mode()
	return info, nil
}

// passOwner gives an inode the owner of the file that it replaces.
func (r *Replacement) passOwner(ino uint64, old *Info) error {
	c := r.dir.c
	if old == nil || old.UID() == c.cred.GetUid() && old.GID() == c.cred.GetGid() {
		return nil
	}
	a := owner(int(old.UID()), int(old.GID()))
	err := explain(c.setAttrs(r.ctx, ino, &a))
	if errors.Is(err, fs.ErrPermission) {
		return nil // as with any editor that saves by rename
	}
	return r.fail("chown", err)
}

func tempName() string {
	var tag [8]byte
	rand.Read(tag[:]) // never fails (crypto/rand)
	return TempPrefix + hex.EncodeToString(tag[:])
}

// TempPrefix begins the names of files under construction. One that is left
// behind by a process that was killed can be removed.
const TempPrefix = ".koinon-part-"

// Sync makes Commit wait until the bytes are on stable storage on a write
// quorum of nodes, as fsync(2) does.
func (r *Replacement) Sync() { r.sync = true }

// Commit gives the file its name. On an error nothing was replaced, and the
// temporary file is gone as far as that was possible.
func (r *Replacement) Commit() error {
	if r.done {
		return r.fail("commit", fs.ErrClosed)
	}
	err := r.commit()
	if err == nil {
		r.done = true
		return nil
	}
	return errors.Join(err, r.Abort())
}

func (r *Replacement) commit() error {
	if r.file != nil {
		return r.commitLarge()
	}
	ino, err := r.makeSmall(r.name)
	if err == nil {
		return r.setAttrs(ino)
	}
	if !sys.Is(err, sys.Exist) {
		return r.fail("create", err)
	}
	old, err := r.old()
	if err != nil {
		return err
	}
	temp := tempName()
	if ino, err = r.makeSmall(temp); err != nil {
		return r.fail("create", err)
	}
	r.temp = temp
	if err := r.passOwner(ino, old); err != nil {
		return err
	}
	return r.place(ino)
}

// makeSmall makes a file with all its bytes by one command.
func (r *Replacement) makeSmall(name string) (uint64, error) {
	mk := &metapb.Mknod{Type: uint32(sys.TypeRegular), Mode: modeBits(r.mode)}
	if len(r.buf) > 0 {
		mk.Body = &metapb.Commit{Inline: r.buf}
	}
	attr, err := r.dir.mknod(r.ctx, name, mk)
	return attr.GetIno(), err
}

func (r *Replacement) commitLarge() error {
	if r.sync {
		if err := r.file.Sync(); err != nil {
			return r.inner("sync", err)
		}
	}
	if err := r.file.Close(); err != nil {
		return r.inner("close", err)
	}
	return r.place(uint64(r.file.ino))
}

// place renames the temporary file, with its attributes set, to its name.
func (r *Replacement) place(ino uint64) error {
	if err := r.setAttrs(ino); err != nil {
		return err
	}
	return r.fail("rename", r.dir.rename(r.ctx, r.temp, r.dir, r.name, false))
}

func (r *Replacement) setAttrs(ino uint64) error {
	return r.fail("setattr", r.dir.c.setAttrs(r.ctx, ino, &r.Attrs))
}

// Abort removes what was made so far, also when the context has ended. After
// Commit it does nothing.
func (r *Replacement) Abort() error {
	if r.done {
		return nil
	}
	r.done = true
	var err error
	if r.temp != "" {
		err = r.dir.remove(context.WithoutCancel(r.ctx), r.temp)
		if sys.Is(err, sys.NotExist) {
			err = nil
		}
	}
	if r.file != nil {
		r.file.abandon()
	}
	return r.fail("remove temporary file", err)
}
