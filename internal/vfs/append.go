package vfs

import (
	"bytes"
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
	switch {
	case !i.appends || len(i.dirty) == 0:
		return max(attr.GetSize(), i.dirtyEnd())
	case i.changing && attr.GetVersion() > i.attr.GetVersion(): // some of them may be in it already
		return max(attr.GetSize(), i.attr.GetSize()+i.dirtySum())
	}
	return attr.GetSize() + i.dirtySum()
}

// displaced says that of the bytes below end some are appends that are not kept
// where they will lie, since somebody else has moved the end, or perhaps not,
// since somebody else appends too. i.mu is held.
func (i *inode) displaced(end uint64) bool {
	if !i.appends || len(i.dirty) == 0 {
		return false
	}
	base := i.base()
	return base != i.attr.GetSize() || i.contended && base < end
}

// base is where the appends begin that are kept. i.mu is held.
func (i *inode) base() uint64 { return i.dirtyEnd() - i.dirtySum() }

// markAppends returns up to where kept appends come before a truncation to size
// that is about to be made, and are cut off by it; 0 when none are. What is
// appended from now on comes after it. i.mu and flushMu are held.
func (i *inode) markAppends(size uint64) uint64 {
	if !i.appends || len(i.dirty) == 0 || size > i.base() {
		return 0
	}
	for _, exts := range i.dirty {
		for _, e := range exts {
			e.r.sealed = true
		}
	}
	return i.dirtyEnd()
}

// cutAppends removes the appends that end at mark or before. i.mu is held.
func (i *inode) cutAppends(mark uint64) {
	for chunk, exts := range i.dirty {
		kept := exts[:0]
		for _, e := range exts {
			if uint64(chunk)*sys.ChunkSize+uint64(e.hi) <= mark {
				i.unref(e.r)
				continue
			}
			kept = append(kept, e)
		}
		i.setExtents(chunk, kept)
	}
}

// publishAppends flushes a file that keeps appends some of which are to lie
// before end.
func (i *inode) publishAppends(ctx context.Context, end uint64) error {
	i.mu.RLock()
	some := i.appends && len(i.dirty) > 0 && i.base() < end
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
	room := func(e extent) uint32 { // in the chunk in which it will begin
		to := uint64(e.r.chunk)*sys.ChunkSize + uint64(e.lo) - at + end
		return uint32(sys.ChunkSize - to%sys.ChunkSize)
	}
	for _, e := range p.pieces {
		if e.hi-e.lo > room(e) {
			if err := i.renew(ctx, e.r); err != nil { // has all of its bytes in memory
				return err
			}
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var pieces []extent
	for _, e := range p.pieces {
		n := room(e)
		if e.hi-e.lo <= n {
			pieces = append(pieces, e)
			continue
		}
		first, rest := i.copied(e.r, e.lo, e.lo+n), i.copied(e.r, e.lo+n, e.hi)
		i.show(first)
		i.show(rest)
		pieces = append(pieces, first, rest)
		k := slices.Index(p.runs, e.r)
		p.runs = slices.Replace(p.runs, k, k+1, first.r, rest.r)
		e.r.busy = false
		i.reap(e.r)
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

// An inlined is an append inside a command whose result was lost.
type inlined struct {
	version, size uint64 // of the file, as known before
	promised      bool   // the command was to make the file
}

// tryInline publishes the first piece of a plan by cmd. When that fails it notes
// that an append may have been published nevertheless, unless the tree itself
// has said no.
func (i *inode) tryInline(ctx context.Context, p *plan, cmd *metapb.Command, done func(*metapb.Result, bool)) error {
	r := p.pieces[0].r
	i.mu.RLock()
	was := inlined{version: i.attr.GetVersion(), size: i.attr.GetSize(), promised: i.promise != nil}
	i.mu.RUnlock()
	_, err := i.change(ctx, cmd, done)
	if err != nil && p.appends && !refused(err) {
		i.mu.Lock()
		r.inlined = &was
		i.mu.Unlock()
	}
	return err
}

// findInlined takes appends off a plan of which it can be seen that they were
// published by a command whose result was lost: nobody else has changed the
// file since, or could before it was made. Where others have, nobody can tell,
// and they are published again. flushMu is held.
func (i *inode) findInlined(ctx context.Context, p *plan) error {
	for len(p.pieces) > 0 && p.pieces[0].r.inlined != nil {
		e := p.pieces[0]
		was := *e.r.inlined
		if err := i.keepNow(ctx); err != nil {
			return err
		}
		a, err := i.chunks(ctx, 0, 1)
		if err != nil {
			return err
		}
		var base []byte
		if len(a.GetChunks()) > 0 {
			base = a.GetChunks()[0].GetChunk().GetInline()
		}
		data := e.r.blocks[0].buf[e.lo-e.r.base : e.hi-e.r.base]
		end := was.size + uint64(len(data))
		took := (was.promised || a.GetAttr().GetVersion() == was.version+1) && end <= uint64(len(base)) && bytes.Equal(base[was.size:end], data)
		i.mu.Lock()
		e.r.inlined = nil
		if took {
			if a.GetAttr().GetVersion() > i.attr.GetVersion() {
				i.foreign(a.GetAttr())
			}
			i.retire(p.pieces[:1])
		}
		i.mu.Unlock()
		if !took {
			return nil
		}
		p.pieces = p.pieces[1:]
	}
	return nil
}
