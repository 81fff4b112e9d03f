package vfs

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// keepOpenMax is how many inodes one KeepOpen names.
const keepOpenMax = 1024

// wakeWriteback makes the writeback task look at the budget.
func (fs *FS) wakeWriteback() {
	select {
	case fs.kick <- struct{}{}:
	default:
	}
}

// writeback flushes what has been dirty for long, makes room in the budget when
// writers wait and nothing else will, and tells the tree what was given up.
func (fs *FS) writeback() {
	tick := env.NewTicker(env.System{}, max(fs.opts.FlushAfter/4, 10*time.Millisecond))
	defer tick.Stop()
	told := fs.opts.Clock.Boot()
	for {
		late := false
		select {
		case <-fs.ctx.Done():
			return
		case <-fs.kick:
			fs.relieve()
		case <-tick.C:
			fs.flushOld()
			fs.relieve()
			late = fs.opts.Clock.Boot()-told >= giveUpEvery
		}
		if late || fs.ids.fullBatch() {
			fs.ids.tellGivenUp(fs.ctx)
			told = fs.opts.Clock.Boot()
		}
	}
}

// oldest returns the file that has been dirty for longest, held, but for those
// in skip, and since when; nil when there is none.
func (fs *FS) oldest(skip map[*inode]bool) (*inode, time.Duration) {
	fs.mu.Lock()
	open := make([]*inode, 0, len(fs.inodes))
	for _, i := range fs.inodes {
		open = append(open, i)
	}
	fs.mu.Unlock()
	var found *inode
	var since time.Duration
	for _, i := range open {
		i.mu.RLock()
		at := i.dirtyAt
		i.mu.RUnlock()
		if at != 0 && !skip[i] && (found == nil || at < since) {
			found, since = i, at
		}
	}
	if found == nil {
		return nil, 0
	}
	if held := fs.hold(found.ino); held != nil {
		return held, since
	}
	return nil, 0 // closed meanwhile, which flushed it
}

// flushOld flushes the files that were dirty for longer than FlushAfter.
func (fs *FS) flushOld() {
	tried := make(map[*inode]bool)
	for fs.ctx.Err() == nil {
		i, since := fs.oldest(tried)
		if i == nil {
			return
		}
		if fs.opts.Clock.Boot()-since < fs.opts.FlushAfter {
			fs.drop(i)
			return
		}
		tried[i] = true
		fs.flushHeld(i)
	}
}

// relieve flushes files, the oldest first, until nobody waits for memory or
// what is on its way will free some. When no file can be flushed those who
// wait are told why.
func (fs *FS) relieve() {
	tried := make(map[*inode]bool)
	var failed error
	for fs.ctx.Err() == nil && fs.budget.stuck() {
		i, _ := fs.oldest(tried)
		if i == nil {
			if failed != nil {
				fs.budget.fail(failed)
			}
			return
		}
		tried[i] = true
		if err := fs.flushHeld(i); err != nil {
			failed = err
		}
	}
}

// flushHeld flushes a held file and drops it.
func (fs *FS) flushHeld(i *inode) error {
	defer fs.drop(i)
	err := i.flush(fs.ctx, wholeFile, false)
	if err != nil {
		fs.log.Warn("background flush failed; it is tried again", "inode", uint64(i.ino), "err", err)
	}
	return err
}

// keepOpen tells the tree which inodes are open, three times in a retention,
// so that those without a name are kept.
func (fs *FS) keepOpen() {
	tick := env.NewTicker(env.System{}, max(fs.opts.Retention/3, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-fs.ctx.Done():
			return
		case <-tick.C:
		}
		if err := fs.tellOpen(fs.ctx); err != nil {
			fs.log.Warn("the tree could not be told which files are open", "err", err)
		}
	}
}

// tellOpen sends one round of KeepOpen.
func (fs *FS) tellOpen(ctx context.Context) error {
	fs.mu.Lock()
	inos := make([]uint64, 0, len(fs.inodes))
	for ino := range fs.inodes {
		inos = append(inos, uint64(ino))
	}
	fs.mu.Unlock()
	for len(inos) > 0 {
		n := min(len(inos), keepOpenMax)
		if _, err := fs.doAgain(ctx, &metapb.Command{Op: &metapb.Command_KeepOpen{
			KeepOpen: &metapb.KeepOpen{Inos: inos[:n], ForNs: fs.opts.Retention.Nanoseconds()}}}); err != nil {
			return sys.E(sys.Op("vfs.KeepOpen"), err)
		}
		inos = inos[n:]
	}
	return nil
}
