package vfs

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// inode is what the handles of one open file share.
type inode struct {
	fs   *FS
	ino  sys.Ino
	refs int // handles and passing users; FS.mu guards it

	// flushMu lets one at a time change the file in the tree: a flush, a
	// truncation, a merge. It is taken before mu.
	flushMu sync.Mutex
	// appendMu keeps the bytes of one append together. It is taken first.
	appendMu sync.Mutex

	abandoned atomic.Bool // nobody has to be told what becomes of it

	mu       sync.RWMutex
	attr     *metapb.Attr       // the newest version seen; read-only
	layouts  map[uint32]*layout // of that version, as far as known
	changing bool               // a change of this FS is on its way to the tree
	pure     bool               // all changes since the last open were this FS's own
	noInline bool               // the tree refused inline bytes for this version
	synced   bool               // all slices but unsynced are on stable storage
	unsynced []sys.SliceID      // committed by this FS without Sync
	merging  bool
	mergedTo map[uint32]int // by chunk: how long its list was after the last merge

	promise   *promise            // that the tree will have the file; nil when it has it
	dirty     map[uint32][]extent // by chunk: sorted and disjoint
	appends   bool                // the dirty bytes are appends, in one piece
	contended bool                // an append of this FS went elsewhere than it was kept
	writer    *metapb.Cred        // who wrote last
	wroteNs   int64               // when, for mtime
	dirtyAt   time.Duration       // boot time when it became dirty; 0 when clean
	sendErr   error               // of a background send, not yet told to a writer
}

// peek returns the state of an open inode, nil when it is not open.
func (fs *FS) peek(ino sys.Ino) *inode {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.inodes[ino]
}

// hold is peek, and keeps the state until drop.
func (fs *FS) hold(ino sys.Ino) *inode {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	i := fs.inodes[ino]
	if i != nil {
		i.refs++
	}
	return i
}

// attach returns the state of a file that is being opened, held once more, and
// whether the bytes that passed through this FS before are those of attr's
// version. chunk is chunk 0 at that version. created says that the file is new.
func (fs *FS) attach(attr *metapb.Attr, chunk *metapb.Chunk, created bool) (*inode, bool) {
	ino := sys.Ino(attr.GetIno())
	fs.mu.Lock()
	i := fs.inodes[ino]
	if i == nil {
		past := fs.past.get(ino)
		i = &inode{
			fs: fs, ino: ino, attr: attr,
			layouts: make(map[uint32]*layout),
			dirty:   make(map[uint32][]extent),
			pure:    past.seen != 0 && past.seen == attr.GetVersion(),
			synced:  created || past.synced != 0 && past.synced == attr.GetVersion(),
		}
		fs.inodes[ino] = i
	}
	i.refs++
	fs.mu.Unlock()

	i.mu.Lock()
	defer i.mu.Unlock()
	i.observe(attr)
	if i.attr.GetVersion() == attr.GetVersion() && i.layouts[0] == nil {
		i.layouts[0] = resolve(chunk)
	}
	same := i.pure && i.attr.GetVersion() == attr.GetVersion()
	i.pure = true
	return i, same
}

// drop ends a hold. The last one flushes what is still dirty; what cannot be
// flushed then is lost, and logged. A file that was promised is made all the
// same: its name was there to see.
func (fs *FS) drop(i *inode) {
	fs.mu.Lock()
	if i.refs > 1 {
		i.refs--
		fs.mu.Unlock()
		return
	}
	fs.mu.Unlock()
	// Still held: whoever opens the file meanwhile finds the dirty bytes.
	if err := i.flush(context.Background(), wholeFile, false); err != nil && i.isDirty() {
		level := slog.LevelError
		if i.abandoned.Load() {
			level = slog.LevelDebug
		}
		fs.log.Log(context.Background(), level, "unflushed writes are lost: the file was closed after its flush failed",
			"inode", uint64(i.ino), "bytes", i.dirtyBytes(), "err", err)
		if err := i.keep(context.Background()); err != nil {
			fs.log.Error("a file that was created is not there", "inode", uint64(i.ino), "err", err)
		}
	}
	fs.mu.Lock()
	if i.refs--; i.refs > 0 {
		fs.mu.Unlock()
		return
	}
	delete(fs.inodes, i.ino)
	fs.mu.Unlock()
	if p := i.promise; p != nil { // nobody else has i any more
		fs.promises.end(i, p)
	}
	m := i.leave() // not under fs.mu, which is taken under i.mu
	if m.seen == 0 && m.synced == 0 {
		return
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.inodes[i.ino] == nil {
		fs.past.put(m)
	}
}

// leave drops what is still dirty and returns what to remember of the file.
func (i *inode) leave() memory {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.discard()
	m := memory{ino: i.ino}
	if i.pure {
		m.seen = i.attr.GetVersion()
	}
	if i.synced && len(i.unsynced) == 0 {
		m.synced = i.attr.GetVersion()
	}
	return m
}

// observe takes in what an answer of the tree tells about the file. i.mu is
// held.
func (i *inode) observe(attr *metapb.Attr) {
	switch {
	case attr.GetVersion() == i.attr.GetVersion():
		if attr.GetCtimeNs() >= i.attr.GetCtimeNs() {
			i.attr = attr
		}
	case attr.GetVersion() < i.attr.GetVersion(), i.changing:
		// An old answer; or one that may show this FS's own change before
		// its result is here, which tells more.
	default:
		i.foreign(attr)
	}
}

// foreign takes in a version that somebody else made. i.mu is held.
func (i *inode) foreign(attr *metapb.Attr) {
	i.attr = attr
	i.layouts = make(map[uint32]*layout)
	i.pure, i.synced, i.noInline = false, false, false
}

// own takes in the result of this FS's own change, and reports whether the
// file has nobody else's change since the version known before, so that what
// was known can be carried on. i.mu is held.
func (i *inode) own(attr *metapb.Attr) bool {
	if attr.GetVersion() <= i.attr.GetVersion()+1 {
		i.attr = attr
		return true
	}
	i.foreign(attr)
	return false
}

// overlay returns attr, an answer about the file, with the dirty bytes laid
// over it. i.mu is held.
func (i *inode) overlay(attr *metapb.Attr) *metapb.Attr {
	if attr.GetVersion() < i.attr.GetVersion() {
		attr = i.attr
	}
	if len(i.dirty) == 0 {
		return attr
	}
	attr = attr.CloneVT()
	attr.Size = i.sizeOn(attr)
	attr.Stored = min(attr.Stored+i.dirtySum(), attr.Size) // what is overwritten may count twice until it is flushed
	attr.MtimeNs = max(attr.MtimeNs, i.wroteNs)
	attr.CtimeNs = max(attr.CtimeNs, i.wroteNs)
	return attr
}

// size is the file's size with the dirty bytes. i.mu is held.
func (i *inode) size() uint64 { return i.sizeOn(i.attr) }

func (i *inode) isDirty() bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return len(i.dirty) > 0 || i.promise != nil
}

// change runs a command that changes the file's bytes in the tree. What is
// committed first to a file that was promised goes with the command that makes
// it; other changes follow that one. flushMu is held; done runs with i.mu held after success, and is told whether nobody
// else's change came between.
func (i *inode) change(ctx context.Context, cmd *metapb.Command, done func(r *metapb.Result, alone bool)) (*metapb.Result, error) {
	i.mu.Lock()
	promise := i.promise
	i.changing = true
	i.mu.Unlock()
	if promise != nil {
		commit, first := cmd.Op.(*metapb.Command_Commit)
		if !first || promise.open && commit.Commit != nil {
			if err := i.keepNow(ctx); err != nil {
				return nil, err
			}
			return i.change(ctx, cmd, done)
		}
		if commit.Commit != nil {
			commit.Commit.AppendAt = nil // nobody else has the file: where it is kept is where it goes
		}
		cmd = promise.command(i.ino, commit.Commit)
	}
	r, err := i.fs.do(ctx, cmd)
	if promise != nil && err != nil && !refused(err) {
		promise.open = true
	}
	if err == nil && promise != nil {
		defer i.fs.promises.end(i, promise) // without i.mu
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.changing = false
	if err != nil {
		return nil, err
	}
	if promise != nil {
		if i.promise = nil; len(i.dirty) == 0 {
			i.dirtyAt = 0
		}
	}
	alone := true
	if attr := r.GetAttr(); attr != nil {
		alone = i.own(attr)
		if alone && wentElsewhere(cmd.GetCommit(), attr) {
			i.foreign(attr) // nobody else's change came after the last that was seen, but before that one
			alone = false
		}
		i.contended = i.contended || wentElsewhere(cmd.GetCommit(), attr)
	}
	done(r, alone)
	return r, nil
}

// truncate changes attributes, the size among them.
func (i *inode) truncate(ctx context.Context, cred *metapb.Cred, set *metapb.SetAttr) (*metapb.Attr, error) {
	if err := i.publishAppends(ctx, set.GetSize()); err != nil {
		return nil, err
	}
	i.flushMu.Lock()
	defer i.flushMu.Unlock()
	i.mu.Lock()
	mark := i.markAppends(set.GetSize())
	i.mu.Unlock()
	var attr *metapb.Attr
	_, err := i.change(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_SetAttr{SetAttr: set}},
		func(r *metapb.Result, alone bool) {
			size := set.GetSize()
			if i.appends {
				i.cutAppends(mark)
			} else {
				i.cut(size)
			}
			i.noInline = false
			i.layouts = make(map[uint32]*layout)
			if size == 0 && alone {
				i.layouts[0] = &layout{}
				i.synced, i.unsynced = true, nil
			}
			attr = i.overlay(r.GetAttr())
		})
	return attr, err
}

// fallocate flushes and changes the file's space.
func (i *inode) fallocate(ctx context.Context, cred *metapb.Cred, fa *metapb.Fallocate) error {
	if err := i.flush(ctx, wholeFile, false); err != nil {
		return err
	}
	i.flushMu.Lock()
	defer i.flushMu.Unlock()
	_, err := i.change(ctx, &metapb.Command{Cred: cred, Op: &metapb.Command_Fallocate{Fallocate: fa}},
		func(*metapb.Result, bool) { i.layouts = make(map[uint32]*layout) })
	return err
}

// chunkRange returns the chunks [first, end) that hold the bytes [off, off+n).
func chunkRange(off, n uint64) (first, end uint32) {
	first = uint32(off / sys.ChunkSize)
	if n == 0 {
		return first, first
	}
	last := (off + n - 1) / sys.ChunkSize
	if last >= math.MaxUint32 {
		panic("vfs: chunk number: expected it to fit 32 bits, found more")
	}
	return first, uint32(last) + 1
}
