package transfer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/koinon/koinon"
)

// A folder is a directory on either side of a copy. Methods may be called
// concurrently.
type folder interface {
	// list returns the entries in name order; links are not followed.
	list(ctx context.Context) ([]item, error)
	lstat(ctx context.Context, name string) (item, error)
	sub(it item) folder
	// open opens a regular file for reading.
	open(ctx context.Context, it item) (io.ReadCloser, error)
	mkdir(ctx context.Context, name string, perm fs.FileMode) (folder, error)
	// replace begins to write a file that gets its name when it is whole.
	replace(ctx context.Context, name string, perm fs.FileMode, a koinon.Attrs) (sink, error)
	// symlink makes a link in place of whatever is no directory.
	symlink(ctx context.Context, target, name string, a koinon.Attrs) error
	setAttrs(ctx context.Context, a koinon.Attrs) error
	// full is the path of an entry for people, of the folder itself for "".
	full(name string) string
	// same reports whether both are the same directory.
	same(other folder) bool
}

// A sink takes the bytes of a file. It is ended by Commit or Abort.
type sink interface {
	io.Writer
	Commit() error
	Abort() error
}

// An item is an entry of a folder.
type item struct {
	name         string
	mode         fs.FileMode
	size         int64
	atime, mtime time.Time
	uid, gid     uint32
	target       string       // of a symbolic link
	info         *koinon.Info // of the tree
}

// same reports whether both are one file of the tree, under whatever names.
func (it item) same(o item) bool {
	return it.info != nil && o.info != nil && it.info.Ino() == o.info.Ino()
}

// treeFolder is a directory of the tree.
type treeFolder struct {
	dir   *koinon.Dir
	umask fs.FileMode
}

func treeItem(info *koinon.Info) item {
	return item{
		name: info.Name(), mode: info.Mode(), size: info.Size(), atime: info.AccessTime(), mtime: info.ModTime(),
		uid: info.UID(), gid: info.GID(), target: info.Target(), info: info,
	}
}

func (f treeFolder) list(ctx context.Context) ([]item, error) {
	infos, err := f.dir.List(ctx)
	if err != nil {
		return nil, err
	}
	items := make([]item, len(infos))
	for i, info := range infos {
		items[i] = treeItem(info)
	}
	return items, nil
}

func (f treeFolder) lstat(ctx context.Context, name string) (item, error) {
	info, err := f.dir.Lstat(ctx, name)
	if err != nil {
		return item{}, err
	}
	return treeItem(info), nil
}

func (f treeFolder) sub(it item) folder {
	return treeFolder{dir: f.dir.Sub(it.info), umask: f.umask}
}

func (f treeFolder) open(ctx context.Context, it item) (io.ReadCloser, error) {
	return f.dir.Open(ctx, it.info)
}

func (f treeFolder) mkdir(ctx context.Context, name string, perm fs.FileMode) (folder, error) {
	d, err := f.dir.Mkdir(ctx, name, perm&^f.umask)
	if err != nil {
		return nil, err
	}
	return treeFolder{dir: d, umask: f.umask}, nil
}

func (f treeFolder) replace(ctx context.Context, name string, perm fs.FileMode, a koinon.Attrs) (sink, error) {
	r, err := f.dir.Replace(ctx, name, perm&^f.umask)
	if err != nil {
		return nil, err
	}
	r.Attrs = a
	return r, nil
}

func (f treeFolder) symlink(ctx context.Context, target, name string, a koinon.Attrs) error {
	err := f.dir.Symlink(ctx, target, name)
	if errors.Is(err, fs.ErrExist) {
		temp := tempName()
		if err := f.dir.Symlink(ctx, target, temp); err != nil {
			return err
		}
		if err = f.dir.Rename(ctx, temp, f.dir, name); err != nil {
			return errors.Join(err, f.dir.Remove(context.WithoutCancel(ctx), temp))
		}
	}
	if err != nil {
		return err
	}
	a.Mode = nil // a link has none of its own
	return f.dir.SetEntryAttrs(ctx, name, a)
}

func (f treeFolder) setAttrs(ctx context.Context, a koinon.Attrs) error {
	return f.dir.SetAttrs(ctx, a)
}

func (f treeFolder) full(name string) string { return Prefix + path.Join(f.dir.Path(), name) }

func (f treeFolder) same(other folder) bool {
	o, ok := other.(treeFolder)
	return ok && o.dir.Ino() == f.dir.Ino()
}

// diskFolder is a directory of this machine.
type diskFolder struct{ dir string }

func diskItem(name string, info fs.FileInfo, full string) (item, error) {
	it := item{name: name, mode: info.Mode(), size: info.Size(), mtime: info.ModTime()}
	it.atime, it.uid, it.gid = sysAttrs(info)
	if it.mode&fs.ModeSymlink != 0 {
		target, err := os.Readlink(full)
		if err != nil {
			return it, err
		}
		it.target = target
	}
	return it, nil
}

func (f diskFolder) list(context.Context) ([]item, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	items := make([]item, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed between the two looks
		}
		if err != nil {
			return nil, err
		}
		it, err := diskItem(e.Name(), info, f.full(e.Name()))
		if err != nil {
			return nil, err
		}
		items = append(items, it)
	}
	return items, nil
}

func (f diskFolder) lstat(_ context.Context, name string) (item, error) {
	info, err := os.Lstat(f.full(name))
	if err != nil {
		return item{}, err
	}
	return diskItem(name, info, f.full(name))
}

func (f diskFolder) sub(it item) folder { return diskFolder{dir: f.full(it.name)} }

func (f diskFolder) open(_ context.Context, it item) (io.ReadCloser, error) {
	return os.Open(f.full(it.name))
}

func (f diskFolder) mkdir(_ context.Context, name string, perm fs.FileMode) (folder, error) {
	if err := os.Mkdir(f.full(name), perm); err != nil {
		return nil, err
	}
	return diskFolder{dir: f.full(name)}, nil
}

func (f diskFolder) symlink(_ context.Context, target, name string, a koinon.Attrs) error {
	at := f.full(name)
	err := os.Symlink(target, at)
	if errors.Is(err, fs.ErrExist) {
		temp := filepath.Join(f.dir, tempName())
		if err := os.Symlink(target, temp); err != nil {
			return err
		}
		if err = os.Rename(temp, at); err != nil {
			return errors.Join(err, os.Remove(temp))
		}
	}
	if err != nil {
		return err
	}
	return setLinkAttrs(at, a)
}

func (f diskFolder) setAttrs(_ context.Context, a koinon.Attrs) error { return setDiskAttrs(f.dir, a) }

func (f diskFolder) full(name string) string { return filepath.Join(f.dir, name) }

func (f diskFolder) same(other folder) bool {
	o, ok := other.(diskFolder)
	return ok && filepath.Clean(o.dir) == filepath.Clean(f.dir)
}
