package vfs

import (
	"context"
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// promisesMax bounds the files that are promised at once.
const promisesMax = 1024

// A promise is a file that Create has said is made and the tree does not know
// yet: the command that makes it takes its first bytes along. It may be given
// where nobody else can see or make the name meanwhile (Options.Vacant), and is
// kept before anybody can, and before anything that is durable says that the
// file is there: close(2) and fsync(2), of the file or its directory.
type promise struct {
	parent sys.Ino
	name   string
	mode   uint32
	cred   *metapb.Cred
	open   bool // a command that makes it may have been carried out, with what it took along; the inode's flushMu guards it
}

// command is what makes the file, with its first bytes, if there are some.
func (p *promise) command(ino sys.Ino, body *metapb.Commit) *metapb.Command {
	return &metapb.Command{Cred: p.cred, Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: uint64(p.parent), Name: []byte(p.name), Type: uint32(sys.TypeRegular), Mode: p.mode,
		Ino: uint64(ino), Body: body}}}
}

// promises are those of an FS. mu is taken before FS.mu and inode.mu.
type promises struct {
	mu    sync.Mutex
	named map[entry]*inode
	dirs  map[sys.Ino]*promising
}

// entry is a name in a directory.
type entry struct {
	parent sys.Ino
	name   string
}

// promising is a directory in which files are promised.
type promising struct {
	count  int
	lastNs int64 // when the last one was
}

// promise makes a file without telling the tree; nil when it may not.
func (fs *FS) promise(cred *metapb.Cred, e entry, mode uint32, flags int) *File {
	if fs.opts.Vacant == nil || !writable(flags) || mode&^0o1777 != 0 {
		return nil
	}
	p := &fs.promises
	p.mu.Lock()
	defer p.mu.Unlock()
	// Asked with mu held: whoever takes the directory back looks for promises
	// afterwards, and finds this one.
	if len(p.named) >= promisesMax || p.named[e] != nil || !fs.opts.Vacant(cred, e.parent, []byte(e.name)) {
		return nil
	}
	ino := fs.inos.take()
	if ino == 0 {
		return nil
	}
	now := fs.opts.Clock.Wall().UnixNano()
	f := fs.newFile(&metapb.Attr{Ino: uint64(ino), Type: uint32(sys.TypeRegular), Mode: mode, Uid: cred.GetUid(), Gid: cred.GetGid(),
		Nlink: 1, AtimeNs: now, MtimeNs: now, CtimeNs: now}, nil, true, cred, flags)
	f.i.mu.Lock()
	f.i.promise = &promise{parent: e.parent, name: e.name, mode: mode, cred: cred}
	f.i.dirtyAt = fs.opts.Clock.Boot()
	f.i.mu.Unlock()
	p.named[e] = f.i
	d := p.dirs[e.parent]
	if d == nil {
		d = &promising{}
		p.dirs[e.parent] = d
	}
	d.count++
	d.lastNs = now
	return f
}

// end takes a promise off the list: it was kept, or never will be.
func (p *promises) end(i *inode, was *promise) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := entry{was.parent, was.name}
	if p.named[e] != i {
		return
	}
	delete(p.named, e)
	if d := p.dirs[was.parent]; d.count > 1 {
		d.count--
	} else {
		delete(p.dirs, was.parent)
	}
}

// promised returns the file that is promised under a name, held; nil when none is.
func (fs *FS) promised(e entry) *inode {
	fs.promises.mu.Lock()
	i := fs.promises.named[e]
	fs.promises.mu.Unlock()
	if i == nil {
		return nil
	}
	return fs.hold(i.ino)
}

// dated returns a directory's attributes with the promises in it.
func (p *promises) dated(attr *metapb.Attr) *metapb.Attr {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dirs[sys.Ino(attr.GetIno())]
	if d == nil {
		return attr
	}
	attr = attr.CloneVT()
	attr.MtimeNs, attr.CtimeNs = max(attr.MtimeNs, d.lastNs), max(attr.CtimeNs, d.lastNs)
	return attr
}

// Any says whether files are promised.
func (fs *FS) Any() bool {
	fs.promises.mu.Lock()
	defer fs.promises.mu.Unlock()
	return len(fs.promises.named) > 0
}

// in returns the files that are promised in dirs, in all directories when dirs
// is nil.
func (p *promises) in(dirs []sys.Ino) (inos []sys.Ino) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e, i := range p.named {
		if dirs == nil || slices.Contains(dirs, e.parent) {
			inos = append(inos, i.ino)
		}
	}
	return inos
}

// Keep makes the files that are promised in dirs, in all directories when dirs
// is nil, and returns when it has or ctx is done. One that cannot be made is
// tried again when it is closed, which tells its writer.
func (fs *FS) Keep(ctx context.Context, dirs []sys.Ino) {
	inos := fs.promises.in(dirs)
	if len(inos) == 0 {
		return
	}
	done := make(chan struct{}, len(inos))
	for _, ino := range inos {
		ok := fs.startTask(func() {
			defer func() { done <- struct{}{} }()
			if err := fs.keepFile(fs.ctx, ino); err != nil {
				fs.log.Warn("a file that was created cannot be made yet; it is tried again", "inode", uint64(ino), "err", err)
			}
		})
		if !ok {
			done <- struct{}{}
		}
	}
	for range inos {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// keepName makes the file that is promised under a name.
func (fs *FS) keepName(ctx context.Context, parent uint64, name []byte) error {
	i := fs.promised(entry{sys.Ino(parent), string(name)})
	if i == nil {
		return nil
	}
	defer fs.drop(i)
	return i.keep(ctx)
}

// keepFile makes a file if it is promised.
func (fs *FS) keepFile(ctx context.Context, ino sys.Ino) error {
	i := fs.hold(ino)
	if i == nil {
		return nil
	}
	defer fs.drop(i)
	return i.keep(ctx)
}

// FsyncDir is fsync(2) of a directory: every name in it is on a majority.
func (fs *FS) FsyncDir(ctx context.Context, ino sys.Ino) error {
	for _, file := range fs.promises.in([]sys.Ino{ino}) {
		if err := fs.keepFile(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// keep makes the file if it is promised.
func (i *inode) keep(ctx context.Context) error {
	if !i.isPromised() {
		return nil
	}
	i.flushMu.Lock()
	defer i.flushMu.Unlock()
	return i.keepNow(ctx)
}

func (i *inode) isPromised() bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.promise != nil
}

// keepNow is keep with flushMu held.
func (i *inode) keepNow(ctx context.Context) error {
	if !i.isPromised() {
		return nil
	}
	none := func(*metapb.Result, bool) {}
	_, err := i.change(ctx, &metapb.Command{Op: &metapb.Command_Commit{}}, none)
	if sys.Is(err, sys.SessionGone) {
		_, err = i.change(ctx, &metapb.Command{Op: &metapb.Command_Commit{}}, none) // twice does the same as once
	}
	return err
}

// inoRange gives out inode numbers that were reserved, and reserves more when
// few are left.
type inoRange struct {
	fs *FS

	mu        sync.Mutex
	runs      []inoRun
	left      int
	reserving bool
}

// inoRun is the numbers [next, end).
type inoRun struct{ next, end uint64 }

// take returns a number, 0 when there is none at the moment.
func (r *inoRange) take() sys.Ino {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left < idRange/2 && !r.reserving {
		r.reserving = r.fs.startTask(r.reserve)
	}
	if r.left == 0 {
		return 0
	}
	ino := r.runs[0].next
	r.left--
	if r.runs[0].next++; r.runs[0].next == r.runs[0].end {
		r.runs = r.runs[1:]
	}
	return sys.Ino(ino)
}

func (r *inoRange) reserve() {
	res, err := r.fs.doAgain(r.fs.ctx, &metapb.Command{Op: &metapb.Command_AllocInos{AllocInos: &metapb.AllocInos{Count: idRange}}})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reserving = false
	if err != nil {
		return
	}
	r.runs = append(r.runs, inoRun{res.GetFirstIno(), res.GetFirstIno() + idRange})
	r.left += idRange
}
