package vfs

import (
	"context"
	"errors"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// commitOp and mknodOp are the operations of errors with which the rules of the
// tree refuse a commit, and the making of a file with its first bytes.
const (
	commitOp = sys.Op("meta.Commit")
	mknodOp  = sys.Op("meta.Mknod")
)

// refused says that the rules of the tree have refused a command, which has had
// no effect then.
func refused(err error) bool {
	e, ok := errors.AsType[*sys.Error](err)
	return ok && (e.Op == commitOp || e.Op == mknodOp)
}

// noteTry notes after a failed commit that its pieces may have been published
// nevertheless, unless the tree itself has said no.
func (i *inode) noteTry(pieces []extent, err error) {
	if refused(err) {
		return
	}
	t := &try{}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, e := range pieces {
		if e.r.tried == nil { // a second try can have an effect only if the first one had none
			e.r.tried = t
		}
	}
}

// revive makes what is left of a plan fit to be published again, after the
// store or the tree has refused a slice of it because its number is not
// reserved any more. Either an earlier commit, whose result was lost, has
// taken effect; or the client's session has ended, because the machine slept
// or was cut off, and the bytes go out again as other slices. It returns cause
// when neither is so.
//
// What became of a lost result is told by the file having one of the slices,
// or by the session being alive: then only a commit can have taken the number.
// When the session has ended and others have covered or merged all that the
// commit may have published, nobody can tell; the bytes are published then,
// for the second time perhaps, rather than lost.
func (i *inode) revive(ctx context.Context, p *plan, cause error) error {
	runs := p.unsent()
	if sys.Is(cause, sys.Stale) {
		buried := i.buried(runs)
		if len(buried) == 0 {
			return cause
		}
		return i.renewAll(ctx, p, buried)
	}
	attr, err := i.findTried(ctx, p, runs)
	if err != nil {
		return err
	}
	var dead, sound []*run
	published := make(map[*run]bool)
	for _, r := range runs {
		switch ended, err := i.endedOf(ctx, r); {
		case err != nil:
			return err
		case r.tried != nil && (r.tried.seen || !ended):
			published[r] = true
		case ended:
			dead = append(dead, r)
		default:
			sound = append(sound, r)
		}
	}
	if len(published) > 0 {
		i.notePublished(p, published, attr)
	}
	if len(dead)+len(published) == 0 {
		dead = sound // their numbers were given up, whoever did it
	}
	return i.renewAll(ctx, p, dead)
}

// buried returns the runs of which the store has refused a block because it
// was deleted already.
func (i *inode) buried(runs []*run) (found []*run) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	for _, r := range runs {
		for b := range r.count() {
			if blk := &r.blocks[b]; blk.state == blockOpen && sys.Is(blk.err, sys.Stale) {
				found = append(found, r)
				break
			}
		}
	}
	return found
}

// endedOf reports whether the session of a run's slice has ended.
func (i *inode) endedOf(ctx context.Context, r *run) (bool, error) {
	if r.id == 0 {
		return false, nil
	}
	return i.fs.ids.ended(ctx, r.session)
}

// findTried looks for the slices of earlier tries in the file, whose
// attributes it returns; nil when there were no tries.
func (i *inode) findTried(ctx context.Context, p *plan, runs []*run) (*metapb.Attr, error) {
	if p.appends {
		return i.findAppended(ctx, runs)
	}
	var attr *metapb.Attr
	have := make(map[uint32]map[uint64]bool) // by chunk: its slices
	for _, r := range runs {
		if r.tried == nil {
			continue
		}
		if have[r.chunk] == nil {
			a, err := i.chunks(ctx, r.chunk, 1)
			if err != nil {
				return nil, err
			}
			attr, have[r.chunk] = a.GetAttr(), make(map[uint64]bool)
			for _, c := range a.GetChunks() {
				for _, s := range c.GetChunk().GetSlices() {
					have[r.chunk][s.GetSlice()] = true
				}
			}
		}
		r.tried.seen = r.tried.seen || have[r.chunk][uint64(r.id)]
	}
	return attr, nil
}

// notePublished takes runs that an earlier try has published off a plan and
// out of the dirty bytes.
func (i *inode) notePublished(p *plan, published map[*run]bool, attr *metapb.Attr) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var done, left []extent
	for _, e := range p.pieces {
		if published[e.r] {
			e.r.done = true
			done = append(done, e)
		} else {
			left = append(left, e)
		}
	}
	p.pieces = left
	if attr.GetVersion() >= i.attr.GetVersion() {
		i.foreign(attr)
	}
	i.retire(done)
}

// renewAll gives runs other slices. Runs whose bytes are nowhere any more are
// taken off the plan and out of the dirty bytes, and are an error.
func (i *inode) renewAll(ctx context.Context, p *plan, runs []*run) error {
	var lost error
	for _, r := range runs {
		_, err := i.endedOf(ctx, r) // throws away what is left of its session's numbers
		if err == nil {
			err = i.renew(ctx, r)
		}
		if err == nil {
			continue
		}
		if !sys.Is(err, sys.NotExist) {
			return err
		}
		lost = sys.E(sys.Op("vfs.Flush"), sys.SessionGone, inoSubject(i.ino),
			"the session ended before some bytes were published, and the store has deleted them", err)
		i.fs.log.Error("unflushed writes are lost: the session ended, and their blocks were deleted",
			"inode", uint64(i.ino), "chunk", r.chunk, "offset", r.base, "bytes", r.size)
		i.abandon(p, r)
	}
	return lost
}

// renew gives a run another slice, as which its blocks will be sent again.
// Those that are in the store alone are fetched first: NotExist when one is
// gone. No block is on its way.
func (i *inode) renew(ctx context.Context, r *run) error {
	old := r.id
	for b := range r.count() {
		i.mu.Lock()
		blk := &r.blocks[b]
		if blk.kept != nil { // from here on nobody reclaims it
			i.fs.kept.forget(blk)
		}
		fetch := blk.buf == nil
		i.mu.Unlock()
		if !fetch {
			continue
		}
		n := r.blockLen(b)
		class := classOf(n)
		i.fs.budget.force(int64(classSize(class)))
		buf := i.fs.pool.take(class)
		if err := i.fs.store.Get(ctx, sys.BlockKey{Slice: old, Index: uint32(b)}, 0, buf[:n]); err != nil {
			i.fs.pool.give(buf)
			i.fs.budget.give(int64(classSize(class)))
			return err
		}
		i.mu.Lock()
		blk.buf = buf
		i.mu.Unlock()
	}
	i.mu.Lock()
	for b := range r.count() {
		r.blocks[b].state, r.blocks[b].err = blockOpen, nil
	}
	r.id, r.session, r.tried = 0, 0, nil
	i.mu.Unlock()
	if old != 0 {
		i.fs.ids.giveUp(old, r.size)
	}
	return nil
}

// abandon takes a run off a plan and out of the dirty bytes.
func (i *inode) abandon(p *plan, r *run) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var gone, left []extent
	for _, e := range p.pieces {
		if e.r == r {
			gone = append(gone, e)
		} else {
			left = append(left, e)
		}
	}
	p.pieces = left
	i.retire(gone)
}
