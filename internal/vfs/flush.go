package vfs

import (
	"context"
	"maps"
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// wholeFile is the scope of a flush that is not limited to a chunk.
	wholeFile = -1
	// inlinePieces is how many separate runs of a small file are worth a
	// command each; beyond it they go as slices, all by one command.
	inlinePieces = 4
	// commitMax is how many slices one Commit publishes.
	commitMax = 256
	// joinMax is the largest piece, in bytes, that is copied to make one
	// slice of neighbours.
	joinMax = 1 << 20
	// reviveMax is how often one flush publishes, counting that it is tried
	// again with other slice numbers.
	reviveMax = 4
)

// A plan is what one flush publishes. Its runs are sealed.
type plan struct {
	pieces  []extent
	runs    []*run
	cred    *metapb.Cred
	inline  bool
	appends bool
}

// flush publishes what was dirty when it was called, in a chunk or in the
// whole file. durable adds stable storage, also for what was published before.
// It is not cut short by the end of ctx. On failure what was not published
// stays dirty and is tried again by the next flush.
func (i *inode) flush(ctx context.Context, scope int, durable bool) error {
	ctx = context.WithoutCancel(ctx)
	i.flushMu.Lock()
	defer i.flushMu.Unlock()
	p := i.seal(scope)
	err := i.publish(ctx, p, durable)
	i.mu.Lock()
	for _, r := range p.runs {
		r.busy = false
		i.reap(r)
	}
	if err == nil {
		i.sendErr = nil
	}
	i.mu.Unlock()
	if err == nil && durable {
		err = i.settle(ctx)
	}
	return err
}

// flushChunk publishes a chunk that was written to its end, in the background,
// so that a long write does not leave all to its last moment.
func (i *inode) flushChunk(chunk uint32) {
	held := i.fs.hold(i.ino)
	if held == nil {
		return
	}
	ok := i.fs.startTask(func() {
		defer i.fs.drop(held)
		if err := held.flush(i.fs.ctx, int(chunk), false); err != nil {
			i.fs.log.Warn("background flush failed; it is tried again", "inode", uint64(i.ino), "err", err)
		}
	})
	if !ok {
		i.fs.drop(held)
	}
}

// seal closes the dirty runs and returns them as a plan.
func (i *inode) seal(scope int) *plan {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := &plan{cred: i.writer, appends: i.appends}
	if p.appends {
		scope = wholeFile // in order
	}
	for _, chunk := range slices.Sorted(maps.Keys(i.dirty)) {
		if scope != wholeFile && uint32(scope) != chunk {
			continue
		}
		i.join(chunk)
		for _, e := range i.dirty[chunk] {
			p.pieces = append(p.pieces, e)
			if !e.r.busy {
				e.r.busy, e.r.sealed, e.r.frozen = true, true, e.r.size
				p.runs = append(p.runs, e.r)
			}
		}
	}
	p.inline = i.canInline(p.pieces)
	return p
}

// canInline reports whether pieces may go inside a Commit, as far as is known
// here. i.mu is held.
func (i *inode) canInline(pieces []extent) bool {
	if len(pieces) == 0 || len(pieces) > inlinePieces || i.noInline || int64(i.attr.GetSize()) > i.fs.opts.InlineMax {
		return false
	}
	if l := i.layouts[0]; l != nil && l.slices > 0 {
		return false
	}
	for _, e := range pieces {
		if e.r.chunk > 0 || int64(e.hi) > i.fs.opts.InlineMax || e.r.blocks[0].state != blockOpen || e.r.blocks[0].err != nil {
			return false
		}
	}
	return true
}

// join copies neighbouring small runs of a chunk, none of them sent, into one
// each, so that they make one slice. i.mu is held.
func (i *inode) join(chunk uint32) {
	exts := i.dirty[chunk]
	small := func(e extent) bool {
		return e.hi-e.lo <= joinMax && e.r.frozen == 0 && e.r.count() == 1
	}
	kept := exts[:0:0]
	for first := 0; first < len(exts); {
		end := first + 1
		for small(exts[first]) && end < len(exts) && small(exts[end]) &&
			exts[end].lo == exts[end-1].hi && exts[end].hi-exts[first].lo <= sys.BlockSize {
			end++
		}
		if end == first+1 {
			kept = append(kept, exts[first])
		} else {
			kept = append(kept, i.joined(exts[first:end]))
		}
		first = end
	}
	if len(kept) < len(exts) {
		i.dirty[chunk] = kept
	}
}

// joined returns one extent with the bytes of exts, which follow each other.
func (i *inode) joined(exts []extent) extent {
	lo, hi := exts[0].lo, exts[len(exts)-1].hi
	c := classOf(int(hi - lo))
	i.fs.budget.force(int64(classSize(c)))
	buf := i.fs.pool.take(c)
	r := &run{chunk: exts[0].r.chunk, base: lo, size: hi - lo, refs: 1, blocks: []outBlock{{buf: buf}}}
	for _, e := range exts {
		copy(buf[e.lo-lo:], e.r.blocks[0].buf[e.lo-e.r.base:e.hi-e.r.base])
		i.unref(e.r)
	}
	return extent{lo: lo, hi: hi, r: r}
}

// publish commits a plan. flushMu is held.
func (i *inode) publish(ctx context.Context, p *plan, durable bool) error {
	if err := i.findInlined(ctx, p); err != nil {
		return err
	}
	if p.inline {
		err := i.commitInline(ctx, p)
		if !sys.Is(err, sys.NotInline) {
			return err
		}
		i.mu.Lock()
		i.noInline = true
		i.mu.Unlock()
	}
	if len(p.pieces) == 0 {
		return i.keepNow(ctx)
	}
	for attempt := 1; ; attempt++ {
		err := i.publishSlices(ctx, p, durable)
		if p.appends && acrossChunks(err) && attempt < cutMax {
			if err = i.recut(ctx, p); err == nil {
				continue
			}
		}
		if attempt >= reviveMax || !sys.Is(err, sys.SessionGone) && !sys.Is(err, sys.Stale) {
			return err
		}
		if err := i.revive(ctx, p, err); err != nil {
			return err
		}
	}
}

// publishSlices sends and commits what is left of a plan. flushMu is held.
func (i *inode) publishSlices(ctx context.Context, p *plan, durable bool) error {
	if err := i.sendAll(p); err != nil {
		return err
	}
	if durable {
		if err := i.fs.store.Sync(ctx, i.stableSet(p)); err != nil {
			return err
		}
	}
	// The tree takes a slice once: all pieces of a run go by one command.
	rank := make(map[*run]int, len(p.runs))
	for k, r := range p.runs {
		rank[r] = k
	}
	slices.SortStableFunc(p.pieces, func(a, b extent) int { return rank[a.r] - rank[b.r] })
	for len(p.pieces) > 0 {
		n := min(len(p.pieces), commitMax)
		for n < len(p.pieces) && p.pieces[n].r == p.pieces[n-1].r {
			n++
		}
		if err := i.commitSlices(ctx, p, p.pieces[:n], durable); err != nil {
			return err
		}
		p.pieces = p.pieces[n:]
	}
	return nil
}

// commitInline publishes each piece inside a command, and takes it off p.
func (i *inode) commitInline(ctx context.Context, p *plan) error {
	for len(p.pieces) > 0 {
		e := p.pieces[0]
		data := e.r.blocks[0].buf[e.lo-e.r.base : e.hi-e.r.base] // sealed: nobody changes or frees it
		commit := &metapb.Commit{Ino: uint64(i.ino), InlineOff: uint64(e.lo), Inline: data, AppendAt: p.appendAt(e)}
		cmd := &metapb.Command{Cred: p.cred, Op: &metapb.Command_Commit{Commit: commit}}
		done := func(_ *metapb.Result, alone bool) {
			i.retire(p.pieces[:1])
			if l := i.layouts[0]; l != nil && alone {
				i.layouts[0] = l.withInline(e.lo, data)
			} else {
				delete(i.layouts, 0)
			}
		}
		err := i.tryInline(ctx, p, cmd, done)
		if sys.Is(err, sys.SessionGone) {
			if err := i.findInlined(ctx, p); err != nil {
				return err
			}
			if len(p.pieces) == 0 || p.pieces[0].r != e.r {
				continue
			}
			err = i.tryInline(ctx, p, cmd, done) // in a new session; but for an append twice does the same as once
		}
		if err != nil {
			return err
		}
		p.pieces = p.pieces[1:]
	}
	return nil
}

// withInline returns a layout without slices, with data at off of its base.
func (l *layout) withInline(off uint32, data []byte) *layout {
	base := make([]byte, max(len(l.inline), int(off)+len(data)))
	copy(base, l.inline)
	copy(base[off:], data)
	return resolve(&metapb.Chunk{Inline: base})
}

// sendAll puts into the store what is not there yet of a plan's runs, and
// waits for what is on its way. What was on its way already and failed is sent
// once more.
func (i *inode) sendAll(p *plan) error {
	runs := p.unsent()
	early := i.sendOpen(runs)
	err := i.awaitSent(runs)
	if err != nil && early {
		i.sendOpen(runs)
		err = i.awaitSent(runs)
	}
	if err == nil {
		return nil
	}
	return sys.E(sys.Op("vfs.Flush"), inoSubject(i.ino), err)
}

// unsent returns the runs that still have pieces to publish.
func (p *plan) unsent() []*run {
	var runs []*run
	seen := make(map[*run]bool, len(p.runs))
	for _, e := range p.pieces {
		if !seen[e.r] {
			seen[e.r] = true
			runs = append(runs, e.r)
		}
	}
	return runs
}

// sendOpen sends all blocks that are neither sent nor on their way, and
// reports whether some were on their way already.
func (i *inode) sendOpen(runs []*run) (early bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, r := range runs {
		for b := range r.count() {
			switch r.blocks[b].state {
			case blockOpen:
				i.send(r, b)
			case blockSending:
				early = true
			}
		}
	}
	return early
}

// awaitSent waits for all sends and returns the first error.
func (i *inode) awaitSent(runs []*run) (first error) {
	for _, r := range runs {
		for b := range r.count() {
			i.mu.RLock()
			done := r.blocks[b].done
			i.mu.RUnlock()
			<-done
			i.mu.RLock()
			err := r.blocks[b].err
			i.mu.RUnlock()
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// stableSet returns the slices that a durable commit of p must find on stable
// storage: its own and those that were committed without.
func (i *inode) stableSet(p *plan) []sys.SliceID {
	i.mu.RLock()
	defer i.mu.RUnlock()
	ids := slices.Clone(i.unsynced)
	for _, r := range p.unsent() {
		ids = append(ids, r.id)
	}
	return ids
}

// commitSlices publishes pieces whose blocks are in the store.
func (i *inode) commitSlices(ctx context.Context, p *plan, pieces []extent, durable bool) error {
	commit := &metapb.Commit{Ino: uint64(i.ino), Slices: make([]*metapb.ChunkSlice, 0, len(pieces)), AppendAt: p.appendAt(pieces[0])}
	for _, e := range pieces {
		commit.Slices = append(commit.Slices, &metapb.ChunkSlice{Chunk: e.r.chunk, Slice: &metapb.Slice{
			At: e.lo, Len: e.hi - e.lo, Slice: uint64(e.r.id), Off: e.lo - e.r.base, SliceLen: e.r.size}})
	}
	cmd := &metapb.Command{Cred: p.cred, Op: &metapb.Command_Commit{Commit: commit}}
	done := func(_ *metapb.Result, alone bool) {
		i.noteCommitted(commit, alone, durable)
		for _, e := range pieces {
			e.r.done = true
		}
		i.retire(pieces)
	}
	res, err := i.change(ctx, cmd, done)
	if sys.Is(err, sys.Busy) {
		// The list is full: shorten it first.
		if err = i.mergeNow(ctx, commit); err == nil {
			res, err = i.change(ctx, cmd, done)
		}
	}
	if err != nil {
		i.noteTry(pieces, err)
		return err
	}
	if int(res.GetSlices()) < mergeLate {
		i.mergeIfLong(int(res.GetSlices()), commit)
		return nil
	}
	if err := i.mergeNow(ctx, commit); err != nil {
		i.fs.log.Warn("a chunk's slices could not be merged", "inode", uint64(i.ino), "err", err)
	}
	return nil
}

// noteCommitted carries on what is known of the file after a commit. i.mu is
// held.
func (i *inode) noteCommitted(commit *metapb.Commit, alone, durable bool) {
	for _, s := range commit.GetSlices() {
		if l := i.layouts[s.GetChunk()]; l != nil && alone {
			l.cover(s.GetSlice())
			l.slices++
		} else {
			delete(i.layouts, s.GetChunk())
		}
		if !durable {
			i.unsynced = append(i.unsynced, sys.SliceID(s.GetSlice().GetSlice()))
		}
	}
}

// retire takes committed pieces out of the dirty bytes. What was written over
// them meanwhile stays. i.mu is held.
func (i *inode) retire(pieces []extent) {
	byChunk := make(map[uint32][]extent, 1)
	for _, e := range pieces {
		byChunk[e.r.chunk] = append(byChunk[e.r.chunk], e)
	}
	for chunk, done := range byChunk {
		slices.SortFunc(done, func(a, b extent) int { return int(a.lo) - int(b.lo) })
		exts := i.dirty[chunk]
		kept := exts[:0]
		k := 0
		for _, x := range exts {
			// An extent of a sealed run only ever shrinks, so it is within
			// one piece or in none.
			for k < len(done) && done[k].hi <= x.lo {
				k++
			}
			if k < len(done) && done[k].lo <= x.lo && done[k].r == x.r {
				i.unref(x.r)
			} else {
				kept = append(kept, x)
			}
		}
		i.setExtents(chunk, kept)
	}
}

// settle puts on stable storage what was published without, whoever did it.
// flushMu is held.
func (i *inode) settle(ctx context.Context) error {
	// Somebody else may have published more than is known here.
	if _, err := i.fs.GetAttr(ctx, Root(), i.ino); err != nil && !sys.Is(err, sys.Stale) {
		return err
	}
	i.mu.RLock()
	version, ids, whole := i.attr.GetVersion(), slices.Clone(i.unsynced), !i.synced
	size := i.attr.GetSize()
	i.mu.RUnlock()
	if whole {
		seen := make(map[sys.SliceID]struct{})
		err := i.eachRow(ctx, size, func(_ uint32, c *metapb.Chunk) {
			for _, s := range c.GetSlices() {
				seen[sys.SliceID(s.GetSlice())] = struct{}{}
			}
		})
		if err != nil {
			return err
		}
		delete(seen, 0)
		ids = slices.Sorted(maps.Keys(seen))
	}
	if len(ids) > 0 {
		if err := i.fs.store.Sync(ctx, ids); err != nil {
			return err
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.attr.GetVersion() == version {
		i.synced, i.unsynced = true, nil
	}
	return nil
}
