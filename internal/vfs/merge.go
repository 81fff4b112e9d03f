package vfs

import (
	"context"
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// mergeAt is the length from which a chunk's list of slices is merged. A
	// list that stayed long after a merge is merged again at twice its length.
	mergeAt = 64
	// mergeLate is the length from which the writer waits for the merge, which
	// then cannot be overtaken by the writer's own changes.
	mergeLate = 1536
	// mergeWindow is how much of a chunk, in bytes, is looked at at a time,
	// mergeDense how many pieces it must be in to be written anew; with fewer,
	// its slices are kept as they are. For small writes all over a chunk the
	// list stays below 64 MiB / mergeWindow * (mergeDense + 1) and each write
	// costs mergeWindow / mergeDense bytes of merging.
	mergeWindow = 1 << 20
	mergeDense  = 8
)

// mergeIfLong merges the chunks of a commit in the background when their lists
// have become long. flushMu is held.
func (i *inode) mergeIfLong(longest int, commit *metapb.Commit) {
	if longest < mergeAt {
		return
	}
	i.mu.Lock()
	var chunks []uint32
	for n := range i.chunksOf(commit) {
		if longest >= max(mergeAt, 2*i.mergedTo[n]) {
			chunks = append(chunks, n)
		}
	}
	start := len(chunks) > 0 && !i.merging
	i.merging = i.merging || start
	i.mu.Unlock()
	if !start {
		return
	}
	held := i.fs.hold(i.ino)
	ok := held != nil && i.fs.startTask(func() {
		defer i.fs.drop(held)
		for _, n := range chunks {
			if err := i.merge(i.fs.ctx, n); err != nil && i.fs.ctx.Err() == nil {
				i.fs.log.Warn("a chunk's slices could not be merged", "inode", uint64(i.ino), "chunk", n, "err", err)
			}
		}
		i.mu.Lock()
		i.merging = false
		i.mu.Unlock()
	})
	if !ok {
		i.mu.Lock()
		i.merging = false
		i.mu.Unlock()
		if held != nil {
			i.fs.drop(held)
		}
	}
}

// chunksOf returns the chunks whose bytes a commit has changed, or would have.
// i.mu is held.
func (i *inode) chunksOf(commit *metapb.Commit) map[uint32]struct{} {
	set := make(map[uint32]struct{})
	if commit.AppendAt != nil {
		end, n := i.attr.GetSize(), appendedBytes(commit) // it ends there, or was to begin there
		for c := uint32((end - min(end, n)) / sys.ChunkSize); c <= uint32((end+n)/sys.ChunkSize); c++ {
			set[c] = struct{}{}
		}
		return set
	}
	for _, s := range commit.GetSlices() {
		set[s.GetChunk()] = struct{}{}
	}
	return set
}

// mergeNow merges the chunks of a commit whose lists are full.
func (i *inode) mergeNow(ctx context.Context, commit *metapb.Commit) error {
	if commit.AppendAt != nil { // the end may be elsewhere by now
		if _, err := i.fs.GetAttr(ctx, Root(), i.ino); err != nil {
			return err
		}
	}
	i.mu.RLock()
	chunks := i.chunksOf(commit)
	i.mu.RUnlock()
	for n := range chunks {
		if err := i.merge(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// merge shortens the list of slices of a chunk. What lies in many pieces
// within a window is read and written as one new slice; what lies in few keeps
// its slices, without what is covered.
func (i *inode) merge(ctx context.Context, chunk uint32) error {
	a, err := i.chunks(ctx, chunk, 1)
	if err != nil || len(a.GetChunks()) == 0 {
		return err
	}
	row := a.GetChunks()[0].GetChunk()
	if len(row.GetSlices()) < mergeAt/2 {
		i.merged(chunk, len(row.GetSlices()))
		return nil
	}
	l := resolve(row)
	var merged []segment
	var fresh []segment
	for lo := uint32(0); lo < sys.ChunkSize; lo += mergeWindow {
		segs := l.within(lo, lo+mergeWindow)
		if len(segs) == 0 {
			continue
		}
		if len(segs) >= mergeDense || slices.ContainsFunc(segs, segment.isInline) {
			s, err := i.rewrite(ctx, l, segs)
			if s.slice != 0 {
				fresh = append(fresh, s)
			}
			if err != nil {
				i.giveUpMerge(ctx, fresh, sys.Is(err, sys.Stale))
				return err
			}
			merged = append(merged, s)
			continue
		}
		merged = append(merged, segs...)
	}
	merged = glue(merged)
	if len(fresh) == 0 && len(merged) >= len(row.GetSlices()) {
		i.merged(chunk, len(row.GetSlices()))
		return nil
	}
	var r *metapb.Result
	// What they replace may be on stable storage already.
	if err = i.fs.store.Sync(ctx, idsOf(fresh)); err == nil {
		r, err = i.fs.do(ctx, &metapb.Command{Op: &metapb.Command_Merge{Merge: &metapb.Merge{
			Ino: uint64(i.ino), Chunk: chunk, Old: row.GetSlices(), Merged: rowOf(merged), Inline: row.GetInline()}}})
	}
	if err != nil {
		i.giveUpMerge(ctx, fresh, sys.Is(err, sys.SessionGone))
		if sys.Is(err, sys.Stale) || sys.Is(err, sys.SessionGone) {
			return nil // covered, cut or merged meanwhile: the next commit sees how long it is
		}
		return err
	}
	i.merged(chunk, int(r.GetSlices()))
	return nil
}

func idsOf(segs []segment) []sys.SliceID {
	ids := make([]sys.SliceID, len(segs))
	for k, s := range segs {
		ids[k] = s.slice
	}
	return ids
}

// giveUpMerge gives up the slices that a merge has made and that, after an
// error, are of no use. refused says that their numbers were not reserved.
func (i *inode) giveUpMerge(ctx context.Context, fresh []segment, refused bool) {
	for _, s := range fresh {
		i.fs.ids.giveUp(s.slice, s.sliceLen)
	}
	if !refused {
		return
	}
	// Numbers of a session that has ended must not be used again.
	if err := i.fs.ids.refresh(ctx); err != nil {
		i.fs.log.Debug("it is not known whether the session has ended", "err", err)
	}
}

// merged notes how long a chunk's list is after a merge, and forgets its layout,
// whose slices may be gone.
func (i *inode) merged(chunk uint32, length int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.mergedTo == nil {
		i.mergedTo = make(map[uint32]int)
	}
	i.mergedTo[chunk] = length
	delete(i.layouts, chunk)
}

// within returns what l has in [lo, hi), cut to it.
func (l *layout) within(lo, hi uint32) []segment {
	first, end := overlapping(l.segs, lo, hi)
	segs := append([]segment(nil), l.segs[first:end]...)
	for k := range segs {
		s := &segs[k]
		if s.at < lo {
			s.off += lo - s.at
			s.n -= lo - s.at
			s.at = lo
		}
		s.n = min(s.n, hi-s.at)
	}
	return segs
}

// rewrite puts the bytes of segs, which are within a window, into the store as
// one new slice. After an error, some of a slice that it returns may be there.
func (i *inode) rewrite(ctx context.Context, l *layout, segs []segment) (segment, error) {
	lo, hi := segs[0].at, segs[len(segs)-1].end()
	class := classOf(int(hi - lo))
	i.fs.budget.force(int64(classSize(class)))
	buf := i.fs.pool.take(class)
	defer func() {
		i.fs.pool.give(buf)
		i.fs.budget.give(int64(classSize(class)))
	}()
	data := buf[:hi-lo]
	parts := l.plan(nil, window{dst: data, at: lo}, lo, hi)
	if err := i.fs.cache.fill(ctx, parts, true); err != nil {
		return segment{}, err
	}
	id, _, err := i.fs.ids.take(ctx)
	if err != nil {
		return segment{}, err
	}
	err = i.fs.store.Put(ctx, sys.BlockKey{Slice: id}, data)
	return segment{at: lo, n: hi - lo, slice: id, sliceLen: hi - lo}, err
}

// glue joins segments that follow each other in the file and in a slice.
func glue(segs []segment) []segment {
	out := segs[:0]
	for _, s := range segs {
		if k := len(out) - 1; k >= 0 && out[k].slice == s.slice && out[k].end() == s.at && out[k].off+out[k].n == s.off {
			out[k].n += s.n
			continue
		}
		out = append(out, s)
	}
	return out
}
