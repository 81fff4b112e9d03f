package vfs

import (
	"context"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// SeekData returns the first byte of a regular file, from off on, that
// somebody has written: SEEK_DATA of lseek(2). found is false when only a hole
// follows. Unflushed writes of this FS are flushed.
func (fs *FS) SeekData(ctx context.Context, ino sys.Ino, off uint64) (at uint64, found bool, err error) {
	size, err := fs.seekable(ctx, ino)
	if err != nil {
		return 0, false, err
	}
	for next := off; next < size; {
		first := uint32(next / sys.ChunkSize)
		rows, err := fs.rows(ctx, ino, first)
		if err != nil {
			return 0, false, err
		}
		for _, row := range rows {
			lo := uint32(max(next, chunkStart(row.GetNumber())) - chunkStart(row.GetNumber()))
			segs := resolve(row.GetChunk()).segs
			if k, end := overlapping(segs, lo, sys.ChunkSize); k < end {
				at = chunkStart(row.GetNumber()) + uint64(max(segs[k].at, lo))
				return at, at < size, nil
			}
		}
		next = chunkStart(first) + meta.GetChunksMax*sys.ChunkSize
	}
	return 0, false, nil
}

// SeekHole returns the first byte of a regular file, from off on, that nobody
// has written: SEEK_HOLE of lseek(2). Every file has a hole at its end. found
// is false when off is not before the end. Unflushed writes of this FS are
// flushed.
func (fs *FS) SeekHole(ctx context.Context, ino sys.Ino, off uint64) (at uint64, found bool, err error) {
	size, err := fs.seekable(ctx, ino)
	if err != nil || off >= size {
		return 0, false, err
	}
	for at = off; at < size; {
		rows, err := fs.rows(ctx, ino, uint32(at/sys.ChunkSize))
		if err != nil {
			return 0, false, err
		}
		if len(rows) == 0 {
			return at, true, nil
		}
		for _, row := range rows {
			start := chunkStart(row.GetNumber())
			if at < start {
				return at, true, nil
			}
			lo := uint32(at - start)
			segs := resolve(row.GetChunk()).segs
			k, end := overlapping(segs, lo, sys.ChunkSize)
			for ; k < end && segs[k].at <= lo; k++ {
				lo = segs[k].end()
			}
			at = min(start+uint64(lo), size)
			if lo < sys.ChunkSize {
				return at, true, nil
			}
		}
	}
	return size, true, nil
}

func chunkStart(n uint32) uint64 { return uint64(n) * sys.ChunkSize }

// rows asks for the rows of meta.GetChunksMax chunks from first on.
func (fs *FS) rows(ctx context.Context, ino sys.Ino, first uint32) ([]*metapb.NumberedChunk, error) {
	a, err := fs.query(ctx, &metapb.Query{Op: &metapb.Query_GetChunks{
		GetChunks: &metapb.GetChunks{Ino: uint64(ino), First: first, Count: meta.GetChunksMax}}})
	return a.GetChunks(), err
}

// seekable flushes a file and returns its size.
func (fs *FS) seekable(ctx context.Context, ino sys.Ino) (uint64, error) {
	if i := fs.hold(ino); i != nil {
		defer fs.drop(i)
		if i.isDirty() {
			if err := i.flush(ctx, wholeFile, false); err != nil {
				return 0, err
			}
		}
	}
	attr, err := fs.GetAttr(ctx, Root(), ino)
	return attr.GetSize(), err
}
