package vfs

import (
	"context"
	"errors"
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Dirty bytes are either writes, which have their place, or appends, which do
// not: they are kept in one piece behind the end that the file had when the
// first one came, and published as a Commit with AppendAt, by which the tree
// lays them behind the end that it has then. Before the other kind is written
// what is dirty is published.

// cutMax is how often one flush cuts its runs anew because they would lie
// across two chunks. It does so twice only when somebody else has appended in
// between.
const cutMax = 16

// appendOff is where an append is kept. i.mu is held, and what is dirty are
// appends.
func (i *inode) appendOff() uint64 {
	if len(i.dirty) > 0 {
		return i.dirtyEnd()
	}
	return i.attr.GetSize()
}

// sizeOn is the size of the file with the dirty bytes over attr. i.mu is held.
func (i *inode) sizeOn(attr *metapb.Attr) uint64 {
	if i.appends && len(i.dirty) > 0 {
		return attr.GetSize() + i.dirtySum()
	}
	return max(attr.GetSize(), i.dirtyEnd())
}

// displaced says that appends are not kept where they will lie, since somebody
// else has moved the end. i.mu is held.
func (i *inode) displaced() bool {
	return i.appends && len(i.dirty) > 0 && i.dirtyEnd()-i.dirtySum() != i.attr.GetSize()
}

// publishAppends flushes a file whose dirty bytes are appends.
func (i *inode) publishAppends(ctx context.Context) error {
	i.mu.RLock()
	some := i.appends && len(i.dirty) > 0
	i.mu.RUnlock()
	if !some {
		return nil
	}
	return i.flush(ctx, wholeFile, false)
}

// appendAt is Commit.AppendAt of a commit that begins with e.
func (p *plan) appendAt(e extent) *uint64 {
	if !p.appends {
		return nil
	}
	at := uint64(e.r.chunk)*sys.ChunkSize + uint64(e.lo)
	return &at
}

// appendedBytes is how many bytes an append has.
func appendedBytes(c *metapb.Commit) uint64 {
	n := uint64(len(c.GetInline()))
	for _, s := range c.GetSlices() {
		n += uint64(s.GetSlice().GetLen())
	}
	return n
}

// wentElsewhere says that an append was not laid where it was kept. attr are the
// file's attributes after it.
func wentElsewhere(c *metapb.Commit, attr *metapb.Attr) bool {
	return c != nil && c.AppendAt != nil && attr.GetSize() != c.GetAppendAt()+appendedBytes(c)
}

// acrossChunks says that the tree has refused an append because a slice of it
// would lie in two chunks.
func acrossChunks(err error) bool {
	e, ok := errors.AsType[*sys.Error](err)
	return ok && e.Op == commitOp && e.Kind == sys.Range
}

// recut cuts the runs of a plan where the chunks of the file will end, as its
// end is now. flushMu is held.
func (i *inode) recut(ctx context.Context, p *plan) error {
	if _, err := i.fs.GetAttr(ctx, Root(), i.ino); err != nil {
		return err
	}
	at := *p.appendAt(p.pieces[0])
	i.mu.RLock()
	end := i.attr.GetSize()
	i.mu.RUnlock()
	var pieces []extent
	for _, e := range p.pieces {
		to := uint64(e.r.chunk)*sys.ChunkSize + uint64(e.lo) - at + end
		n := uint32(sys.ChunkSize - to%sys.ChunkSize)
		if e.hi-e.lo <= n {
			pieces = append(pieces, e)
			continue
		}
		if err := i.renew(ctx, e.r); err != nil { // has all of its bytes in memory
			return err
		}
		i.mu.Lock()
		first, rest := i.copied(e.r, e.lo, e.lo+n), i.copied(e.r, e.lo+n, e.hi)
		i.show(first)
		i.show(rest)
		pieces = append(pieces, first, rest)
		k := slices.Index(p.runs, e.r)
		p.runs = slices.Replace(p.runs, k, k+1, first.r, rest.r)
		e.r.busy = false
		i.reap(e.r)
		i.mu.Unlock()
	}
	p.pieces = pieces
	return nil
}

// copied returns the bytes [lo, hi) of a run, which are in memory, as a run of
// their own that takes part in the flush. i.mu is held.
func (i *inode) copied(r *run, lo, hi uint32) extent {
	c := &run{chunk: r.chunk, base: lo}
	var credit int64
	for at := lo; at < hi; at = c.base + c.size {
		b, o := int(at-r.base)/sys.BlockSize, (at-r.base)%sys.BlockSize
		part := r.blocks[b].buf[o:min(sys.BlockSize, o+hi-at)]
		if _, want := c.fill(&i.fs.pool, c.size, part, &credit); want > 0 {
			i.fs.budget.force(want)
			credit += want
		}
	}
	c.busy, c.sealed, c.frozen = true, true, c.size
	return extent{lo: lo, hi: hi, r: c}
}

// findAppended looks for the slices of earlier tries anywhere in the file, whose
// attributes it returns; nil when there were no tries.
func (i *inode) findAppended(ctx context.Context, runs []*run) (*metapb.Attr, error) {
	if !slices.ContainsFunc(runs, func(r *run) bool { return r.tried != nil }) {
		return nil, nil
	}
	a, err := i.chunks(ctx, 0, 1)
	if err != nil {
		return nil, err
	}
	have := make(map[uint64]bool)
	err = i.eachRow(ctx, a.GetAttr().GetSize(), func(_ uint32, c *metapb.Chunk) {
		for _, s := range c.GetSlices() {
			have[s.GetSlice()] = true
		}
	})
	if err != nil {
		return nil, err
	}
	for _, r := range runs {
		if r.tried != nil {
			r.tried.seen = r.tried.seen || have[uint64(r.id)]
		}
	}
	return a.GetAttr(), nil
}
