// Package transfer copies files and whole directories between this machine's
// disk and the tree, and within the tree, with many files under way at once.
// A file appears under its name when it is whole, never in part.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/koinon/koinon"
)

// Prefix begins a path of the tree.
const Prefix = "koinon:"

// Location is a path on the disk or in the tree.
type Location struct {
	Path string
	Tree bool
}

// Parse reads a command line's path: koinon:/path or koinon:path is in the
// tree, anything else is on the disk.
func Parse(arg string) Location {
	if p, ok := strings.CutPrefix(arg, Prefix); ok {
		if !strings.HasPrefix(p, "/") {
			p = "/" + p
		}
		return Location{Path: p, Tree: true}
	}
	return Location{Path: arg}
}

// String writes the location as Parse reads it.
func (l Location) String() string {
	if l.Tree {
		return Prefix + l.Path
	}
	return l.Path
}

func (l Location) base() string {
	if l.Tree {
		return path.Base(l.Path)
	}
	return filepath.Base(l.Path)
}

func (l Location) parent() Location {
	if l.Tree {
		return Location{Path: path.Dir(strings.TrimRight(l.Path, "/")), Tree: true}
	}
	return Location{Path: filepath.Dir(strings.TrimRight(l.Path, string(filepath.Separator)))}
}

// Options say how to copy. Callbacks may be called concurrently.
type Options struct {
	Client    *koinon.Client
	Recursive bool        // directories too, and symbolic links as they are
	Preserve  bool        // mode, owner where allowed, and times
	Workers   int         // files under way at once; default 16
	Umask     fs.FileMode // for what is made in the tree
	// InTree tells where a path of this machine lies in the tree, as below a mount of it; nil for nowhere.
	InTree   func(path string) (inTree string, ok bool)
	Moved    func(bytes int64)
	Finished func()          // a file or symbolic link
	Failed   func(err error) // something was left out; the copy goes on
}

// Stats counts what a copy did.
type Stats struct {
	Files, Dirs, Links, Bytes, Failed int64
}

type copier struct {
	opt    Options
	target folder              // the directory that a directory is copied to, at the top
	named  map[string]Location // what was copied to which name there, but for directories, which become one
	slots  chan struct{}       // a token for each goroutine
	files, dirs, links,
	bytes, failed atomic.Int64
}

// Copy copies the sources to a target as cp(1) does: into it when it is a
// directory, else, being one source, as it. What fails is told to Failed and
// left out, and the error counts it. When ctx ends, the files under way leave
// nothing behind.
func Copy(ctx context.Context, from []Location, to Location, opt Options) (Stats, error) {
	if opt.Workers < 1 {
		opt.Workers = 16
	}
	c := &copier{opt: opt, named: map[string]Location{}, slots: make(chan struct{}, opt.Workers-1)}
	into, isDir, err := c.lookTarget(ctx, to)
	if err != nil {
		return Stats{}, plain(err, "cannot copy to %s", to)
	}
	if !isDir && len(from) > 1 {
		return Stats{}, fmt.Errorf("%s is not a directory; several files can only be copied into a directory that exists", to)
	}
	for _, src := range from {
		if ctx.Err() != nil {
			break
		}
		if err := c.top(ctx, src, to, into, isDir); err != nil {
			c.fail(ctx, plain(err, "cannot copy %s", src))
		}
	}
	st := Stats{Files: c.files.Load(), Dirs: c.dirs.Load(), Links: c.links.Load(), Bytes: c.bytes.Load(), Failed: c.failed.Load()}
	switch {
	case ctx.Err() != nil:
		return st, fmt.Errorf("stopped after %d files: %w", st.Files, context.Cause(ctx))
	case st.Failed == 1:
		return st, errors.New("1 file or directory was not copied, for the reason above")
	case st.Failed > 0:
		return st, fmt.Errorf("%d files or directories were not copied, for the reasons above", st.Failed)
	}
	return st, nil
}

// plain says what could not be done in words of the user's. An error that names
// no system call is in such words already.
func plain(err error, format string, args ...any) error {
	cause := err
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		cause = pe.Err
	} else if le, ok := errors.AsType[*os.LinkError](err); ok {
		cause = le.Err
	} else {
		return err
	}
	if errors.Is(cause, syscall.ENAMETOOLONG) {
		format += ": a name has at most 255 bytes, a path 4095"
	}
	return fmt.Errorf(format+": %w", append(args, cause)...)
}

// fail counts and tells an error, unless the copy was stopped anyway.
func (c *copier) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	c.failed.Add(1)
	if c.opt.Failed != nil {
		c.opt.Failed(err)
	}
}

func (c *copier) folder(ctx context.Context, l Location) (folder, error) {
	if l.Tree {
		d, err := c.opt.Client.OpenDir(ctx, l.Path)
		if err != nil {
			return nil, err
		}
		return treeFolder{dir: d, umask: c.opt.Umask}, nil
	}
	info, err := os.Stat(l.Path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: l.Path, Err: errors.New("not a directory")}
	}
	return diskFolder{dir: l.Path}, nil
}

// lookTarget returns the target when it is a directory, else the directory
// that it is to be made in.
func (c *copier) lookTarget(ctx context.Context, to Location) (folder, bool, error) {
	if to.Path == "" {
		return nil, false, errors.New("the target is an empty path")
	}
	f, err := c.folder(ctx, to)
	if err == nil {
		return f, true, nil
	}
	info, serr := c.stat(ctx, to, true)
	switch {
	case serr == nil && info.IsDir(): // there, and yet it cannot be opened
		return nil, false, err
	case serr != nil && !errors.Is(serr, fs.ErrNotExist):
		return nil, false, serr
	case strings.HasSuffix(to.Path, "/") && (serr == nil || !c.opt.Recursive):
		return nil, false, fmt.Errorf("%s is not a directory: make it with mkdir first", to)
	}
	f, err = c.folder(ctx, to.parent())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("%s does not exist: make it with mkdir -p first", to.parent())
	}
	return f, false, err
}

func (c *copier) stat(ctx context.Context, l Location, follow bool) (fs.FileInfo, error) {
	switch {
	case l.Tree && follow:
		return c.opt.Client.Stat(ctx, l.Path)
	case l.Tree:
		return c.opt.Client.Lstat(ctx, l.Path)
	case follow:
		return os.Stat(l.Path)
	}
	return os.Lstat(l.Path)
}

// top copies one source of the command line.
func (c *copier) top(ctx context.Context, src, to Location, into folder, isDir bool) error {
	// A link that is named as a directory is meant as one.
	info, err := c.stat(ctx, src, !c.opt.Recursive || nameless(src) || strings.HasSuffix(src.Path, "/"))
	if err != nil {
		return err
	}
	name := to.base()
	if isDir {
		name = src.base()
	}
	if info.IsDir() {
		if !c.opt.Recursive {
			return fmt.Errorf("%s is a directory: give -r to copy it with everything below it", src)
		}
		return c.topDir(ctx, src, to, into, isDir, name)
	}
	if first, twice := c.named[name]; twice {
		return fmt.Errorf("cannot copy %s: %s has been copied under that name: copy one of them elsewhere", src, first)
	}
	c.named[name] = src
	parent, err := c.folder(ctx, src.parent())
	if err != nil {
		return err
	}
	it := item{}
	if ti, ok := info.(*koinon.Info); ok {
		it = treeItem(ti)
	} else if it, err = diskItem(src.base(), info, src.Path); err != nil {
		return err
	}
	if it.mode.IsRegular() {
		if into, name, err = c.through(ctx, into, name); err != nil {
			return plain(err, "cannot copy to %s", to)
		}
	}
	c.one(ctx, parent, it, into, name, false)
	return nil
}

// through follows symbolic links of the tree, so that what they lead to is
// replaced. Those of the disk are followed when the file is opened.
func (c *copier) through(ctx context.Context, into folder, name string) (folder, string, error) {
	for range linksMax {
		if _, ok := into.(treeFolder); !ok {
			break
		}
		it, err := into.lstat(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, "", err
		}
		if it.mode&fs.ModeSymlink == 0 {
			break
		}
		at := Location{Path: it.target, Tree: true}
		if !path.IsAbs(at.Path) {
			at.Path = path.Join(strings.TrimPrefix(into.full(""), Prefix), at.Path)
		}
		if into, err = c.folder(ctx, at.parent()); err != nil {
			return nil, "", err
		}
		name = at.base()
	}
	return into, name, nil
}

// linksMax is how many symbolic links are followed one after the other.
const linksMax = 40

// topDir copies a directory of the command line: its contents, when it has no
// name of its own ("/", "." or "..") and the target is there.
func (c *copier) topDir(ctx context.Context, src, to Location, into folder, isDir bool, name string) error {
	dir, err := c.folder(ctx, src)
	if err != nil {
		return err
	}
	info, err := c.stat(ctx, src, true)
	if err != nil {
		return err
	}
	if err := c.apart(ctx, src, to, dir, into, isDir, name); err != nil {
		return err
	}
	it := item{mode: info.Mode(), mtime: info.ModTime()}
	if ti, ok := info.(*koinon.Info); ok {
		it = treeItem(ti)
	} else {
		it.atime, it.uid, it.gid = sysAttrs(info)
	}
	target, fresh := into, false
	if !isDir || !nameless(src) {
		if target, fresh, err = c.makeDir(ctx, into, name, it); err != nil {
			return err
		}
	}
	c.target = target
	c.contents(ctx, dir, target, fresh)
	c.finishDir(ctx, target, it)
	return nil
}

// apart refuses to copy a directory to itself, or into itself.
func (c *copier) apart(ctx context.Context, src, to Location, dir, into folder, isDir bool, name string) error {
	whole := isDir && nameless(src) // what is in dir is copied right into the folder
	if src.Tree != to.Tree {        // of which one may be in a mount of the other
		from, ok := c.inTree(ctx, src, dir)
		at, too := c.inTree(ctx, to, into)
		if both := ok && too; both && (at == from || strings.HasPrefix(at, from+"/") || from == "/") {
			return fmt.Errorf("%s would lie inside %s: a directory cannot be copied into itself", into.full(name), src)
		} else if both && !whole && path.Join(at, name) == from {
			return fmt.Errorf("%s and %s are the same directory", src, into.full(name))
		}
	}
	switch {
	case inside(src, to):
		return fmt.Errorf("%s lies inside %s: a directory cannot be copied into itself", to, src)
	case into.same(dir) && whole:
		return fmt.Errorf("%s and %s are the same directory", src, to)
	case into.same(dir):
		return fmt.Errorf("%s would lie inside %s: a directory cannot be copied into itself", into.full(name), src)
	case whole:
		return nil
	}
	old, err := into.lstat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && old.mode.IsDir() && into.sub(old).same(dir) {
		err = fmt.Errorf("%s and %s are the same directory", src, into.full(name))
	}
	return err
}

// inTree is where a folder is in the tree: one of the disk when the tree is mounted there.
func (c *copier) inTree(ctx context.Context, l Location, f folder) (p string, ok bool) {
	if c.opt.InTree == nil {
		return "", false
	}
	if !l.Tree {
		return c.opt.InTree(f.full(""))
	}
	p, err := c.opt.Client.RealPath(ctx, strings.TrimPrefix(f.full(""), Prefix))
	return p, err == nil
}

func nameless(l Location) bool {
	if strings.HasSuffix(l.Path, "/.") {
		return true
	}
	base := l.base()
	return base == "/" || base == "." || base == ".." || base == string(filepath.Separator)
}

// inside reports whether to is src or below it, by their paths.
func inside(src, to Location) bool {
	if src.Tree != to.Tree || !src.Tree {
		return false
	}
	rel, err := filepath.Rel(path.Clean(src.Path), path.Clean(to.Path))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../") && rel != "."
}

// makeDir makes a directory in a folder, or finds it there: then it is not fresh.
func (c *copier) makeDir(ctx context.Context, into folder, name string, it item) (d folder, fresh bool, err error) {
	d, err = into.mkdir(ctx, name, it.mode.Perm()|0o700)
	if !errors.Is(err, fs.ErrExist) {
		if err == nil {
			c.dirs.Add(1)
		}
		return d, true, err
	}
	old, err := into.lstat(ctx, name)
	if err != nil {
		return nil, false, err
	}
	if !old.mode.IsDir() {
		return nil, false, fmt.Errorf("%s is there and is not a directory: remove it or choose another name", into.full(name))
	}
	return into.sub(old), false, nil
}

// finishDir gives a directory the attributes that only hold once it is full.
func (c *copier) finishDir(ctx context.Context, d folder, it item) {
	var a koinon.Attrs
	switch {
	case c.opt.Preserve:
		a = preserved(it)
	case it.mode.Perm()&0o700 != 0o700:
		perm := it.mode.Perm() &^ c.opt.Umask
		a.Mode = &perm
	default:
		return
	}
	if err := d.setAttrs(ctx, a); err != nil {
		c.fail(ctx, plain(err, "cannot set mode and times of %s", d.full("")))
	}
}

// preserved returns what -p keeps. Only root may give files away; for others,
// as with cp(1), a file of somebody else becomes theirs and loses setuid and
// setgid.
func preserved(it item) koinon.Attrs {
	mode := it.mode
	a := koinon.Attrs{Mode: &mode, Atime: it.atime, Mtime: it.mtime}
	if os.Geteuid() == 0 {
		a.UID, a.GID = &it.uid, &it.gid
	} else if int(it.uid) != os.Geteuid() || int(it.gid) != os.Getegid() {
		mode &^= fs.ModeSetuid | fs.ModeSetgid
	}
	return a
}

// contents copies the entries of a folder, in as many goroutines as there are
// free slots, else in its own. A fresh one had nothing in it.
func (c *copier) contents(ctx context.Context, from, to folder, fresh bool) {
	items, err := from.list(ctx)
	if err != nil {
		c.fail(ctx, plain(err, "cannot list %s", from.full("")))
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, it := range items {
		if ctx.Err() != nil {
			return
		}
		select {
		case c.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-c.slots }()
				c.one(ctx, from, it, to, it.name, fresh)
			})
		default:
			c.one(ctx, from, it, to, it.name, fresh)
		}
	}
}

// one copies an entry under a name, which is there already only if to is not fresh.
func (c *copier) one(ctx context.Context, from folder, it item, to folder, name string, fresh bool) {
	var err error
	if !fresh && it.info != nil && !it.mode.IsDir() { // what comes from the disk is not looked up
		if old, lerr := to.lstat(ctx, name); lerr == nil && it.same(old) {
			err = fmt.Errorf("%s and %s are the same file", from.full(it.name), to.full(name))
		}
	}
	switch {
	case err != nil:
	case it.mode.IsDir():
		err = c.dir(ctx, from.sub(it), it, to, name)
	case it.mode.IsRegular():
		if err = c.file(ctx, from, it, to, name); err == nil {
			c.files.Add(1)
		}
	case it.mode&fs.ModeSymlink != 0:
		var a koinon.Attrs
		if c.opt.Preserve {
			a = preserved(it)
		}
		if err = to.symlink(ctx, it.target, name, a); err == nil {
			c.links.Add(1)
		}
	default:
		err = fmt.Errorf("%s is a device, pipe or socket: left out", from.full(it.name))
	}
	if err != nil {
		c.fail(ctx, plain(err, "cannot copy %s to %s", from.full(it.name), to.full(name)))
	} else if c.opt.Finished != nil && !it.mode.IsDir() {
		c.opt.Finished()
	}
}

func (c *copier) dir(ctx context.Context, from folder, it item, to folder, name string) error {
	if c.target != nil && c.target.same(from) {
		return fmt.Errorf("%s is the target itself: a directory cannot be copied into itself", from.full(""))
	}
	d, fresh, err := c.makeDir(ctx, to, name, it)
	if err != nil {
		return err
	}
	c.contents(ctx, from, d, fresh)
	c.finishDir(ctx, d, it)
	return nil
}

func (c *copier) file(ctx context.Context, from folder, it item, to folder, name string) (err error) {
	src, err := from.open(ctx, it)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	var a koinon.Attrs
	if c.opt.Preserve {
		a = preserved(it)
	}
	dst, err := to.replace(ctx, name, it.mode.Perm(), a)
	if err != nil {
		return err
	}
	n, err := pump(dst, &meter{ctx: ctx, r: src, moved: c.opt.Moved}, it.size)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return errors.Join(err, dst.Abort())
	}
	if err := dst.Commit(); err != nil {
		return err
	}
	c.bytes.Add(n)
	return nil
}

// pump copies all bytes. size is what the file had when it was listed.
func pump(dst sink, src io.Reader, size int64) (int64, error) {
	if rf, ok := dst.(io.ReaderFrom); ok {
		return rf.ReadFrom(src)
	}
	const most = 1 << 20
	return io.CopyBuffer(struct{ io.Writer }{dst}, src, make([]byte, min(size+1, most)))
}

// A meter counts what is read, and ends with its context.
type meter struct {
	ctx   context.Context
	r     io.Reader
	moved func(int64)
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.r.Read(p)
	if m.moved != nil && n > 0 {
		m.moved(int64(n))
	}
	return n, err
}

// Measure counts the files and bytes that Copy would copy, as far as they can
// be seen. What fails is left out: Copy tells of it.
func Measure(ctx context.Context, from []Location, opt Options) (files, bytes int64) {
	c := &copier{opt: opt}
	for _, src := range from {
		info, err := c.stat(ctx, src, !opt.Recursive)
		if err != nil {
			continue
		}
		if !info.IsDir() {
			files, bytes = files+1, bytes+info.Size()
			continue
		}
		if dir, err := c.folder(ctx, src); err == nil && opt.Recursive {
			f, b := measureDir(ctx, dir)
			files, bytes = files+f, bytes+b
		}
	}
	return files, bytes
}

func measureDir(ctx context.Context, dir folder) (files, bytes int64) {
	items, err := dir.list(ctx)
	if err != nil || ctx.Err() != nil {
		return 0, 0
	}
	for _, it := range items {
		if it.mode.IsDir() {
			f, b := measureDir(ctx, dir.sub(it))
			files, bytes = files+f, bytes+b
			continue
		}
		files++
		if it.mode.IsRegular() {
			bytes += it.size
		}
	}
	return files, bytes
}
