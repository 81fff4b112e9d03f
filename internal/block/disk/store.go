package disk

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

// Options configure a Store. Dir is required; a zero value of the others means
// its default.
type Options struct {
	// Dir is where the segments are; it is made when missing and belongs to
	// this store alone.
	Dir string
	// FS is the disk (default envfs.Disk).
	FS envfs.FS
	// Clock (default env.System).
	Clock  env.Clock
	Logger *slog.Logger
	// SegmentBytes is how large segments grow (default 1 GiB, at least 16 KiB;
	// a larger block gets a segment of its own).
	SegmentBytes int64
	// ReserveBytes is how much of the disk is kept free: below it, Puts are
	// refused with NoSpace (default: 64 MiB or 1% of the disk, whichever is
	// more).
	ReserveBytes uint64
	// SyncBytes and SyncEvery bound what a crash may take of what nobody asked
	// to sync: so many bytes, so long (default 128 MiB and 5 s).
	SyncBytes int64
	SyncEvery time.Duration
	// CompactDead is the share of dead bytes from which on a full segment is
	// copied out (default 0.5), CompactRate the most bytes copied per second
	// (default 64 MiB).
	CompactDead float64
	CompactRate int64
}

func (o *Options) fill() {
	if o.FS == nil {
		o.FS = envfs.Disk
	}
	if o.Clock == nil {
		o.Clock = env.System{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 1 << 30
	}
	o.SegmentBytes = min(max(o.SegmentBytes, 16<<10), 1<<40)
	if o.SyncBytes == 0 {
		o.SyncBytes = 128 << 20
	}
	if o.SyncEvery == 0 {
		o.SyncEvery = 5 * time.Second
	}
	if o.CompactDead == 0 {
		o.CompactDead = 0.5
	}
	if o.CompactRate == 0 {
		o.CompactRate = 64 << 20
	}
}

// Store keeps blocks in segments. Methods may be called concurrently until
// Close.
type Store struct {
	opt  Options
	fs   envfs.FS
	dir  string
	log  *slog.Logger
	lock io.Closer

	// mu guards the index, the segments and what below says so. It is never
	// held across reading or writing payloads.
	mu       sync.RWMutex
	index    *index
	segments map[uint32]*segment
	active   *segment
	lastID   uint32
	pending  map[sys.BlockKey]chan struct{} // puts that are being written
	unsynced int64
	closed   bool

	space space
	sync  syncGroup

	recovery Recovery
	// wakeSync and wakeCompact hold a token when there may be work.
	wakeSync, wakeCompact chan struct{}
	cancel                context.CancelFunc
	working               sync.WaitGroup // the two workers
	writing               sync.WaitGroup // puts and deletes; begun under mu
}

var (
	_ block.Store = (*Store)(nil)
)

// Open opens the store in a directory, rebuilds its index and starts its
// maintenance. Bytes that a crash left behind half-written are dropped and
// reported by Recovery; damage elsewhere shows when the block is read. A
// directory that another process uses is Busy.
func Open(opt Options) (*Store, error) {
	const op = sys.Op("disk.Open")
	opt.fill()
	s := &Store{
		opt: opt, fs: opt.FS, dir: opt.Dir, log: opt.Logger,
		index:    newIndex(),
		segments: make(map[uint32]*segment),
		pending:  make(map[sys.BlockKey]chan struct{}),
		sync:     syncGroup{turn: make(chan struct{}, 1)},

		wakeSync:    make(chan struct{}, 1),
		wakeCompact: make(chan struct{}, 1),
	}
	if err := s.makeDir(); err != nil {
		return nil, err
	}
	lock, err := s.fs.Lock(s.fs.PathJoin(s.dir, "LOCK"))
	if err != nil {
		return nil, sys.E(op, sys.Busy, sys.Subject(s.dir),
			fmt.Errorf("another process keeps blocks here: stop it or choose another directory: %w", err))
	}
	s.lock = lock
	if err := s.recover(); err != nil {
		return nil, joinErrors(err, s.closeFiles())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.working.Go(func() { s.syncing(ctx) })
	s.working.Go(func() { s.compacting(ctx) })
	return s, nil
}

// makeDir makes the directory and those above it, so that they stay.
func (s *Store) makeDir() error {
	var parents []string
	for dir := s.dir; ; dir = s.fs.PathDir(dir) {
		if _, err := s.fs.Stat(dir); err == nil || s.fs.PathDir(dir) == dir {
			break
		}
		parents = append(parents, s.fs.PathDir(dir))
	}
	if err := s.fs.MkdirAll(s.dir, 0o700); err != nil {
		return ioError("disk.Open", sys.Subject(s.dir), err)
	}
	for _, dir := range parents {
		if err := s.syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// Close syncs, writes the hint of the active segment and lets go of the
// directory. Calls that run or come later fail as Unavailable or finish; those
// that read finish.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.working.Wait()
	s.writing.Wait()
	err := s.syncAll(context.Background())
	if err == nil {
		err = s.checkpoint()
	}
	return joinErrors(err, s.closeFiles())
}

// closeFiles releases the files and the lock.
func (s *Store) closeFiles() error {
	s.mu.Lock()
	for _, g := range s.segments {
		g.release()
	}
	s.segments, s.active = map[uint32]*segment{}, nil
	s.mu.Unlock()
	if err := s.lock.Close(); err != nil {
		return ioError("disk.Close", sys.Subject(s.dir), err)
	}
	return nil
}

// Usage implements block.Store. Free leaves out the reserve.
func (s *Store) Usage(ctx context.Context) (block.Usage, error) {
	var u block.Usage
	s.mu.RLock()
	for _, g := range s.segments {
		u.Used += uint64(g.live)
		u.Dead += uint64(g.dead())
	}
	u.Blocks = uint64(s.index.blocks)
	u.Deleted = uint64(len(s.index.entries) - s.index.blocks)
	s.mu.RUnlock()
	total, free, known := s.space.measure(s)
	if known {
		u.Total, u.Free = total, free
	}
	return u, nil
}

// errClosed is what calls after Close get.
func errClosed(op sys.Op) error {
	return sys.E(op, sys.Unavailable, "the store is closed")
}

// ioError gives an error of the disk its kind.
func ioError(op sys.Op, subject sys.Subject, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return sys.E(op, sys.NoSpace, subject, err)
	}
	return sys.E(op, subject, err)
}

// joinErrors is errors.Join that leaves a single error as it is.
func joinErrors(errs ...error) error {
	var first error
	count := 0
	for _, err := range errs {
		if err != nil {
			count++
			if first == nil {
				first = err
			}
		}
	}
	if count <= 1 {
		return first
	}
	return sys.E(sys.KindOf(first), errors.Join(errs...))
}

// rand returns a salt. It cannot fail: crypto/rand ends the program when the
// system has no randomness.
func (s *Store) rand() uint64 {
	var b [8]byte
	_, _ = crand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// space watches how full the disk is, without asking it at every put.
type space struct {
	mu      sync.Mutex
	free    uint64 // beyond the reserve, when last asked
	total   uint64
	avail   uint64
	reserve uint64
	known   bool
	asked   time.Duration
	taken   uint64 // since then
	// short: the disk was full, and no put has succeeded since. Then room is
	// made where it costs more.
	short atomic.Bool
}

// spaceAge is how long an answer of the disk is trusted.
const spaceAge = 500 * time.Millisecond

// measure asks the disk.
func (p *space) measure(s *Store) (total, free uint64, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ask(s)
	if p.known && p.free < sys.BlockSize {
		p.full(s)
	}
	return p.total, p.free, p.known
}

// full notes that there is no room for a block.
func (p *space) full(s *Store) {
	if !p.short.Swap(true) {
		s.log.Warn("disk is full: blocks are refused until there is space", "dir", s.dir)
	}
	wake(s.wakeCompact)
}

func (p *space) ask(s *Store) {
	u, err := s.fs.GetDiskUsage(s.dir)
	p.asked, p.taken = s.opt.Clock.Boot(), 0
	if p.known = err == nil; !p.known {
		// A disk that does not tell is full when writing fails.
		return
	}
	if p.reserve = s.opt.ReserveBytes; p.reserve == 0 {
		p.reserve = max(64<<20, u.TotalBytes/100)
	}
	p.total, p.avail, p.free = u.TotalBytes, u.AvailBytes, 0
	if u.AvailBytes > p.reserve {
		p.free = u.AvailBytes - p.reserve
	}
}

// spare is how many bytes may be copied before others are freed: half of the
// reserve is for what else is on the disk, such as the log.
func (p *space) spare(s *Store) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ask(s)
	if !p.known {
		return math.MaxInt64
	}
	return int64(p.avail) - int64(p.reserve/2)
}

// take refuses n bytes when they would eat into the reserve.
func (p *space) take(s *Store, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked == 0 || s.opt.Clock.Boot()-p.asked > spaceAge || p.free < p.taken+uint64(n) {
		p.ask(s)
	}
	if !p.known {
		return nil
	}
	if p.free < p.taken+uint64(n) {
		p.full(s)
		return sys.E(sys.NoSpace, fmt.Sprintf("all that is free are the %d MiB that stay free (min_free): free some space there or add a node", p.reserve>>20))
	}
	if p.short.Swap(false) {
		s.log.Info("disk has space again", "dir", s.dir)
	}
	p.taken += uint64(n)
	return nil
}
