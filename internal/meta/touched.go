package meta

import (
	"cmp"
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Recorder is a Tx that remembers what was changed through it, so that the
// leader revokes what others have cached.
type Recorder struct {
	Tx
	inos  []sys.Ino
	attrs []*metapb.Attr // as set, in order; the last one of an inode counts
}

var _ Tx = (*Recorder)(nil)

// Touched returns a Tx that passes everything on to tx and records changes.
func Touched(tx Tx) *Recorder { return &Recorder{Tx: tx} }

// Unwrap returns the Tx that r passes everything on to.
func (r *Recorder) Unwrap() Tx { return r.Tx }

// Inos returns the inodes that were changed, each once, in ascending order:
// those whose attributes, chunks or extended attributes were set, and the
// directories whose entries were. The hidden inodes, which nobody caches, are
// left out.
func (r *Recorder) Inos() []sys.Ino {
	slices.Sort(r.inos)
	r.inos = slices.Compact(r.inos)
	return r.inos
}

// Attrs returns the attributes as they are now of those of Inos that still
// exist and whose attributes were set, in ascending order of inode. They are
// shared with the command's Result.
func (r *Recorder) Attrs() []*metapb.Attr {
	slices.SortStableFunc(r.attrs, func(a, b *metapb.Attr) int { return cmp.Compare(a.Ino, b.Ino) })
	live := r.attrs[:0]
	for i, a := range r.attrs {
		last := i+1 == len(r.attrs) || r.attrs[i+1].Ino != a.Ino
		if last && a.Type != 0 {
			live = append(live, a)
		}
	}
	r.attrs = live
	return live
}

func (r *Recorder) touch(ino sys.Ino) {
	if n := len(r.inos); !hidden(ino) && (n == 0 || r.inos[n-1] != ino) {
		r.inos = append(r.inos, ino)
	}
}

// SetInode is of Tx.
func (r *Recorder) SetInode(ino sys.Ino, a *metapb.Attr) error {
	r.touch(ino)
	if set := a; !hidden(ino) {
		if set == nil {
			set = &metapb.Attr{Ino: uint64(ino)} // of no type: deleted
		}
		r.attrs = append(r.attrs, set)
	}
	return r.Tx.SetInode(ino, a)
}

// SetDentry is of Tx.
func (r *Recorder) SetDentry(parent sys.Ino, name []byte, d *metapb.Dentry) error {
	r.touch(parent)
	return r.Tx.SetDentry(parent, name, d)
}

// SetChunk is of Tx.
func (r *Recorder) SetChunk(ino sys.Ino, n uint32, c *metapb.Chunk) error {
	r.touch(ino)
	return r.Tx.SetChunk(ino, n, c)
}

// SetXattrs is of Tx.
func (r *Recorder) SetXattrs(ino sys.Ino, x *metapb.Xattrs) error {
	r.touch(ino)
	return r.Tx.SetXattrs(ino, x)
}
