package vfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Options are the bounds and parts of an FS. The zero value of a field means
// its default.
type Options struct {
	// WriteBuffer bounds the dirty bytes of all files together, in bytes of
	// memory; default 64 MiB, at least 16 MiB.
	WriteBuffer int64
	// ReadAhead is how far a sequential reader is read ahead of, in bytes;
	// default 8 MiB, negative for none.
	ReadAhead int64
	// CacheBytes bounds the cache of read blocks, in bytes; default 128 MiB,
	// at least 16 MiB.
	CacheBytes int64
	// Puts is how many blocks are sent at once; default 8.
	Puts int
	// PGs is the number of placement groups that new slices are spread over,
	// at most 1<<sys.PGBits; default 1.
	PGs int
	// Copies is how many nodes keep each block, so that free space is shown as
	// what can be written; default 1.
	Copies int
	// Vacant says whether nobody else can find or make a name in a directory,
	// in which the caller may make it and it is not, before Keep is called for
	// the directory. Files are promised only with it; see promise.
	Vacant func(cred *metapb.Cred, dir sys.Ino, name []byte) bool
	// InlineMax is up to which size the bytes of a new file are sent inside its
	// Commit; default, and at most, sys.InlineMax.
	InlineMax int64
	// Session is on whose account slice numbers are reserved.
	Session sys.SessionID
	// Retention is for how long the tree is asked to keep the inodes that are
	// open. Three times in this time the FS asks, so it must not exceed the
	// time that the tree keeps unlinked inodes by itself; default one hour.
	Retention time.Duration
	// FlushAfter is how old dirty bytes get before they are flushed although
	// nobody asked; default 5 s.
	FlushAfter time.Duration
	// Timeout bounds a change of the tree once it was sent, whatever becomes
	// of the caller; default one minute.
	Timeout time.Duration
	// Clock tells the times shown for files with unflushed writes; default
	// env.System.
	Clock env.Clock
	// Logger gets what happens in the background; default slog.Default.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	o.WriteBuffer = max(orDefault(o.WriteBuffer, 64<<20), 16<<20)
	o.InlineMax = min(orDefault(o.InlineMax, sys.InlineMax), sys.InlineMax)
	o.CacheBytes = max(orDefault(o.CacheBytes, 128<<20), 16<<20)
	o.ReadAhead = min(max(orDefault(o.ReadAhead, 8<<20), 0), o.CacheBytes/4)
	o.Puts = max(orDefault(o.Puts, 8), 1)
	o.Copies = max(o.Copies, 1)
	o.PGs = min(max(o.PGs, 1), 1<<sys.PGBits)
	o.Retention = orDefault(o.Retention, time.Hour)
	o.FlushAfter = orDefault(o.FlushAfter, 5*time.Second)
	o.Timeout = orDefault(o.Timeout, time.Minute)
	if o.Clock == nil {
		o.Clock = env.System{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// FS is one client's view of the tree. Methods may be called concurrently.
// Errors are *sys.Error. Messages it returns are read-only for the caller and
// may be kept.
//
// A change that has been sent runs to its end even when the caller's context
// is cancelled, so that an interrupted caller leaves nothing half done.
type FS struct {
	meta   meta.Client
	store  block.Store
	opts   Options
	log    *slog.Logger
	budget *budget
	ids    *sliceIDs
	inos   inoRange
	cache  *spanCache
	pool   pool
	kept   keptBlocks
	puts   chan struct{} // a token for each block that may be sent at once

	promises promises

	mu      sync.Mutex
	inodes  map[sys.Ino]*inode
	past    history
	closing bool         // no more writes
	closed  bool         // no more tasks
	closeBy atomic.Int64 // Boot time in ns by which Close gives up; 0 before

	ctx    context.Context // ends with the FS
	cancel context.CancelFunc
	tasks  sync.WaitGroup // everything that runs in the background
	kick   chan struct{}  // wakes the writeback task
}

// New returns an FS over the tree and the store. It starts background tasks,
// which Close ends.
func New(mc meta.Client, store block.Store, opts Options) *FS {
	opts.setDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	fs := &FS{
		meta: mc, store: store, opts: opts, log: opts.Logger,
		inodes: make(map[sys.Ino]*inode),
		puts:   make(chan struct{}, opts.Puts),
		ctx:    ctx, cancel: cancel,
		kick: make(chan struct{}, 1),
	}
	fs.budget = newBudget(opts.WriteBuffer, fs.wakeWriteback, fs.reclaim)
	fs.ids, fs.inos.fs = &sliceIDs{fs: fs}, fs
	fs.promises.named, fs.promises.dirs = make(map[entry]*inode), make(map[sys.Ino]*promising)
	fs.cache = newSpanCache(fs, opts.CacheBytes)
	fs.past.init()
	fs.tasks.Go(fs.writeback)
	fs.tasks.Go(fs.keepOpen)
	return fs
}

// Close flushes every open file and ends the background tasks. Handles that
// are still open answer BadHandle to writes afterwards. The error joins those
// of the files that could not be flushed, or of the first of many; their dirty
// bytes are lost. Close takes no longer than Options.Timeout, nor much longer
// than ctx's deadline.
func (fs *FS) Close(ctx context.Context) error {
	fs.mu.Lock()
	if fs.closing {
		fs.mu.Unlock()
		return nil
	}
	fs.closing = true
	open := make([]*inode, 0, len(fs.inodes))
	for _, i := range fs.inodes {
		open = append(open, i)
	}
	fs.mu.Unlock()
	err := fs.flushAll(ctx, open)
	fs.mu.Lock()
	fs.closed = true // no task starts from here on
	fs.mu.Unlock()
	fs.cancel()
	fs.budget.fail(errClosed)
	fs.tasks.Wait()
	return err
}

const (
	closeFlushes = 8 // how many files Close flushes at once
	closeErrors  = 8 // how many of those that fail it names
)

// flushAll flushes files until ctx's deadline, at most for the time that one
// operation may take: when the cluster does not answer, all are lost together.
func (fs *FS) flushAll(ctx context.Context, open []*inode) error {
	limit := fs.opts.Timeout
	if by, ok := ctx.Deadline(); ok {
		limit = min(limit, max(time.Until(by), 1))
	}
	end := fs.opts.Clock.Boot() + limit
	fs.closeBy.Store(int64(end))
	defer time.AfterFunc(limit, fs.cancel).Stop() // blocks on their way end then as well
	var (
		mu     sync.Mutex
		errs   []error
		failed int
		wg     sync.WaitGroup
	)
	turns := make(chan struct{}, closeFlushes)
	for _, i := range open {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			err := error(errLate)
			if fs.opts.Clock.Boot() < end {
				err = i.flush(ctx, wholeFile, false)
			} else if !i.isDirty() {
				return
			}
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if failed++; failed <= closeErrors {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	if failed == 0 {
		return nil
	}
	if failed > closeErrors {
		errs = append(errs, fmt.Errorf("and %d more files could not be stored", failed-closeErrors))
	}
	return fmt.Errorf("what programs had written and not closed is lost (%d files); what they had closed is stored: %w", failed, errors.Join(errs...))
}

var errLate = sys.E(sys.Op("vfs.Close"), sys.Unavailable, "there was no time left to store a file")

var errClosed = sys.E(sys.Op("vfs.Close"), sys.BadHandle, "the file system is closed")

// startTask runs fn in the background, unless the FS is closed.
func (fs *FS) startTask(fn func()) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return false
	}
	fs.tasks.Go(fn)
	return true
}

// do sends a command and waits for its result, cancelled caller or not.
func (fs *FS) do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	timeout := fs.opts.Timeout
	if by := fs.closeBy.Load(); by != 0 {
		timeout = min(timeout, time.Duration(by)-fs.opts.Clock.Boot())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return fs.meta.Do(ctx, cmd)
}

// doAgain is do for a command that does the same twice as once: when the
// session has ended, and with it the answer whether an earlier try of it took
// effect, it is run in the next session.
func (fs *FS) doAgain(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	r, err := fs.do(ctx, cmd)
	if sys.Is(err, sys.SessionGone) {
		return fs.do(ctx, cmd)
	}
	return r, err
}

func (fs *FS) query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	return fs.meta.Query(ctx, q)
}

// Root is the credential that passes every check.
func Root() *metapb.Cred { return &metapb.Cred{} }
