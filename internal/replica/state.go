package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// diskFullPause is what a write of the state waits on a full disk before it fails: Pebble tries again at once and for ever, which
// would take a CPU for itself.
const diskFullPause = 20 * time.Millisecond

// stateOptions are Pebble's. Without cgo its caches are on the Go heap, so
// they are small.
func (h *Host) stateOptions(cache *pebble.Cache) *pebble.Options {
	opts := &pebble.Options{
		FS:                          vfs.OnDiskFull(h.cfg.FS, func() { time.Sleep(diskFullPause) }),
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatNewest,
		DisableWAL:                  true, // the Paxos log is the log
		MemTableSize:                h.cfg.MemTableBytes,
		MemTableStopWritesThreshold: 3,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                1000,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      stateLogger{h.cfg.Logger},
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].BlockSize = 16 << 10
	}
	opts.EventListener = &pebble.EventListener{
		FlushEnd: func(info pebble.FlushInfo) {
			if info.Err == nil {
				h.flushed.Store(true)
				signal(h.upkeep)
			}
		},
		BackgroundError: func(err error) {
			h.tellTrouble(err)
			if vfs.IsNoSpaceError(err) {
				h.stateFullAt.Store(int64(h.cfg.Clock.Boot()))
				if !h.noSpace.Load() {
					h.fullSince.Store(int64(h.cfg.Clock.Boot()))
				}
				h.noReserve.Store(true)
				h.noSpace.Store(true)
			}
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			h.fail(sys.E(sys.Op("replica.state"), sys.Corrupt, sys.Subject(info.Path),
				fmt.Errorf("%w; %s", info.Details, h.wipeAdvice())))
		},
	}
	return opts
}

// tellTrouble logs what Pebble tries again, not more than once a second.
func (h *Host) tellTrouble(err error) {
	now, told := int64(h.cfg.Clock.Boot()), h.toldFull.Load()
	if (told == 0 || now-told >= int64(time.Second)) && h.toldFull.CompareAndSwap(told, now) {
		h.cfg.Logger.Warn("the state cannot be flushed or compacted; tried again", "err", err)
	}
}

func (h *Host) openState() (*pebble.DB, error) {
	cache := pebble.NewCache(h.cfg.BlockCacheBytes)
	defer cache.Unref()
	dir := h.cfg.FS.PathJoin(h.cfg.Dir, "state")
	db, err := pebble.Open(dir, h.stateOptions(cache))
	if err == nil {
		return db, nil
	}
	kind := sys.Other
	switch {
	case vfs.IsNoSpaceError(err):
		kind = sys.NoSpace
	case pebble.IsCorruptionError(err):
		kind = sys.Corrupt
		err = fmt.Errorf("%w; %s", err, h.wipeAdvice())
	case !errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w; if files there are missing or damaged, %s", err, h.wipeAdvice())
	}
	return nil, sys.E(sys.Op("replica.Open"), kind, sys.Subject(dir), err)
}

// onlyAdvice is how to repair a replica that knows of no other.
const onlyAdvice = "as far as is known here this is the only replica: restore its directory from a backup; where others have joined, move it away, and " +
	"name some of them as seeds in place of the voters (docs/operating/repair.md)"

// wipeAdvice says how to repair a replica whose files are beyond use.
func (h *Host) wipeAdvice() string {
	if h.only.Load() {
		return onlyAdvice
	}
	return fmt.Sprintf("to repair this node stop it, move %s away, and start it with --rejoin: it returns from the other replicas", h.cfg.Dir)
}

// repairAdvice is Status.Damaged.
func (h *Host) repairAdvice() string {
	return "this replica lacks what it may have voted for: it does not vote until it has been repaired from the others, " +
		"which happens by itself once there is a leader; if it lasts, " + h.wipeAdvice() + " (docs/operating/repair.md)"
}

// stateLogger passes Pebble's words on.
type stateLogger struct{ log *slog.Logger }

var _ pebble.Logger = stateLogger{}

// Infof drops Pebble's chatter about flushes and compactions.
func (l stateLogger) Infof(string, ...any) {}

// Errorf logs an error of the state.
func (l stateLogger) Errorf(format string, args ...any) {
	l.log.Error("state: " + fmt.Sprintf(format, args...))
}

// Fatalf panics: Pebble cannot go on.
func (l stateLogger) Fatalf(format string, args ...any) {
	panic("replica: the state failed: " + fmt.Sprintf(format, args...))
}

// maintainEvery is how often free space is looked at.
const maintainEvery = 200 * time.Millisecond

// stateFullFor is how long the disk counts as full after the state could not
// be written: Pebble tries again meanwhile.
const stateFullFor = time.Second

// maintain is the goroutine that flushes the state when asked and watches the
// disk.
func (h *Host) maintain() {
	timer := h.cfg.Sched.NewTimer(maintainEvery)
	defer timer.Stop()
	var flushing atomic.Bool
	for {
		switch h.cfg.Sched.Wait(timer, h.upkeep, h.stop, nil) {
		case env.GotB:
			return
		case env.Fired:
			timer.Reset(maintainEvery)
			h.checkSpace()
			h.tidySnapshots()
		}
		if h.wantMark.Swap(false) {
			h.writeMark()
		}
		if h.flushed.Swap(false) {
			if err := h.readFlushed(); err != nil {
				h.fail(sys.E(sys.Op("replica.flush"), err))
				return
			}
		}
		if h.wantFlush.Swap(false) && !h.noSpace.Load() && flushing.CompareAndSwap(false, true) {
			// Beside this, as on a full disk a flush may take forever.
			h.spawn(func() {
				h.flush()
				flushing.Store(false)
			})
		}
	}
}

// flush makes the state durable, unless the host stops first.
func (h *Host) flush() {
	done, err := h.db.AsyncFlush()
	if err != nil {
		h.fail(sys.E(sys.Op("replica.flush"), err))
		return
	}
	// Pebble's goroutines are not the Sched's.
	select {
	case <-done:
	case <-h.stop:
	}
}

// checkSpace decides whether new commands are refused.
func (h *Host) checkSpace() {
	failed := h.stateFullAt.Load()
	full := h.log.NoSpace() || failed != 0 && h.cfg.Clock.Boot()-time.Duration(failed) < stateFullFor
	h.noReserve.Store(full)
	if h.cfg.ReserveBytes > 0 && !full {
		u, err := h.cfg.FS.GetDiskUsage(h.cfg.Dir)
		full = err == nil && u.TotalBytes > 0 && u.AvailBytes < uint64(h.cfg.ReserveBytes)
	}
	if full && !h.noSpace.Load() {
		h.fullSince.Store(int64(h.cfg.Clock.Boot()))
	}
	if h.noSpace.Swap(full) != full {
		if full {
			h.cfg.Logger.Warn("the disk is nearly full: new commands are refused", "dir", h.cfg.Dir, "below", h.cfg.ReserveBytes)
		} else {
			h.cfg.Logger.Info("the disk has space again", "dir", h.cfg.Dir)
		}
	}
}

// readFlushed finds out how much of each group's state is durable.
func (h *Host) readFlushed() error {
	for _, g := range h.groups {
		key := appliedKey(g.id)
		it, err := h.db.NewIter(&pebble.IterOptions{LowerBound: key, UpperBound: append(appliedKey(g.id), 0),
			OnlyReadGuaranteedDurable: true})
		if err != nil {
			return err
		}
		if it.First() {
			row, err := decodeApplied(it.Value())
			if err != nil {
				return sys.E(sys.Corrupt, err)
			}
			g.flushed.Store(max(g.flushed.Load(), row.slot))
		}
		if err := it.Close(); err != nil {
			return err
		}
	}
	return nil
}

// truncateEvery is how often the driver looks whether the log can be cut.
const truncateEvery = 100 * time.Millisecond

// truncate cuts a group's log behind what is durable in the state, and asks
// for a flush when the log has grown long.
func (h *Host) truncate(g *Group, now paxos.Time) {
	if now-g.d.cutAt < paxos.Time(truncateEvery) {
		return
	}
	g.d.cutAt = now
	cfg := &h.cfg
	id := uint64(g.id)
	held := h.log.Retained(id)
	tail := cfg.TailBytes
	if crowded := int64(h.log.Stats().Segments) > (cfg.RetainBytes+cfg.TailBytes)/cfg.SegmentBytes+4; crowded && held > 0 {
		// Many segments with little in them: a quiet group must not keep them.
		tail = 0
		held += cfg.RetainBytes
	}
	if held > cfg.RetainBytes && g.flushed.Load() < g.applied.Load() {
		h.wantFlush.Store(true)
		signal(h.upkeep)
	}
	if held <= tail+cfg.RetainBytes/8 {
		return
	}
	durable := g.flushed.Load()
	if h.cfg.bugs.has(BugTruncateEarly) {
		durable = g.applied.Load()
	}
	upTo := paxos.Slot(min(h.log.CutFor(id, tail), durable))
	if upTo = min(upTo, g.d.reported); upTo > g.d.truncated {
		g.d.node.Truncate(upTo)
		g.cut(upTo)
	}
}
