package meta

import (
	"cmp"
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// writing is a planned change of a file's bytes. It is made on copies of the
// rows, so that a refusal halfway has written nothing, and written at the end.
type writing struct {
	attr    *metapb.Attr // its number is 0 while the file is being made
	chunks  []*row       // of the file, those to be written
	pending []*row       // of sys.PendingIno
	taken   []uint64     // sequence numbers that this change has committed
	freed   []*metapb.Slice
	grown   int64  // bytes by which the size changed
	longest uint32 // the longest list of slices among chunks
}

// row is a chunk in the making.
type row struct {
	n     uint32
	chunk *metapb.Chunk
	had   uint64 // bytes that it stored before the change
}

func (r *row) empty() bool {
	return len(r.chunk.Inline) == 0 && len(r.chunk.Slices) == 0 && len(r.chunk.Ranges) == 0
}

// load returns the file's chunk n, to be changed.
func (s *step) load(w *writing, n uint32) (*row, error) {
	for _, r := range w.chunks {
		if r.n == n {
			return r, nil
		}
	}
	r := &row{n: n}
	if w.attr.Ino != 0 {
		var err error
		if r.chunk, err = s.tx.Chunk(sys.Ino(w.attr.Ino), n); err != nil {
			return nil, err
		}
	}
	if r.chunk == nil {
		r.chunk = &metapb.Chunk{}
	}
	r.had = storedBytes(r.chunk)
	w.chunks = append(w.chunks, r)
	return r, nil
}

// write carries out a plan.
func (s *step) write(w *writing) error {
	ino := sys.Ino(w.attr.Ino)
	for _, r := range w.chunks {
		w.attr.Stored += storedBytes(r.chunk) - r.had
	}
	if err := s.setRows(ino, w.chunks); err != nil {
		return err
	}
	if err := s.setRows(sys.PendingIno, w.pending); err != nil {
		return err
	}
	if err := s.free(w.freed, nil); err != nil {
		return err
	}
	if err := s.tx.SetInode(ino, w.attr); err != nil {
		return err
	}
	return s.count(CounterBytes, w.grown)
}

func (s *step) setRows(ino sys.Ino, rows []*row) error {
	for _, r := range rows {
		c := r.chunk
		if r.empty() {
			c = nil
		}
		if err := s.tx.SetChunk(ino, r.n, c); err != nil {
			return err
		}
	}
	return nil
}

// regular returns a file whose bytes a command may change.
func (s *step) regular(ino sys.Ino) (*metapb.Attr, error) {
	a, err := s.inode(ino)
	if err != nil {
		return nil, err
	}
	if isDir(a) {
		return nil, refuse(sys.IsDir, ino, "")
	}
	if !isRegular(a) {
		return nil, refuse(sys.Invalid, ino, "only a regular file has bytes")
	}
	return a, nil
}

// commit publishes written bytes. The file may be in quarantine: it is still
// open somewhere.
func (s *step) commit(c *metapb.Commit) (*metapb.Result, error) {
	a, err := s.regular(sys.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	w := &writing{attr: a}
	if err := s.plan(w, c); err != nil {
		return nil, err
	}
	if err := s.write(w); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a, Slices: w.longest}, nil
}

// plan adds a commit to a change: first the inline bytes, then the slices over
// them, then the size.
func (s *step) plan(w *writing, c *metapb.Commit) error {
	if len(c.Inline) == 0 && len(c.Slices) == 0 && c.Size == nil {
		return nil
	}
	if c.AppendAt != nil {
		var err error
		if c, err = s.atEnd(w, c); err != nil {
			return err
		}
	}
	if len(c.Inline) > 0 {
		if err := s.planInline(w, c); err != nil {
			return err
		}
	}
	for _, cs := range c.Slices {
		if err := s.planSlice(w, cs); err != nil {
			return err
		}
	}
	if c.GetSize() > FileSizeMax {
		return refuse(sys.FileTooLarge, sys.Ino(c.Ino), "a file has at most 8 TiB")
	}
	w.grow(c.GetSize())
	s.wrote(w.attr)
	return nil
}

// atEnd returns an append as a plain commit: its bytes are moved from where its
// writer took the end of the file to be to where it is. A slice belongs to one
// chunk: Range, when one would come to lie in two.
func (s *step) atEnd(w *writing, c *metapb.Commit) (*metapb.Commit, error) {
	ino, from, end := sys.Ino(c.Ino), c.GetAppendAt(), w.attr.Size
	if c.Size != nil || len(c.Inline) > 0 && c.InlineOff < from {
		return nil, refuse(sys.Invalid, ino, "an append that does not begin at the end")
	}
	if c.InlineOff > FileSizeMax {
		return nil, refuse(sys.FileTooLarge, ino, "a file has at most 8 TiB")
	}
	moved := &metapb.Commit{Ino: c.Ino, Inline: c.Inline, InlineOff: c.InlineOff - from + end}
	for _, cs := range c.Slices {
		sl := cs.GetSlice()
		if cs.Chunk >= ChunksMax {
			return nil, refuse(sys.FileTooLarge, ino, "a file has at most 8 TiB")
		}
		if cause := badSlice(sl); cause != "" {
			return nil, refuse(sys.Invalid, ino, cause)
		}
		at := uint64(cs.Chunk)*sys.ChunkSize + uint64(sl.At)
		if at < from {
			return nil, refuse(sys.Invalid, ino, "an append that does not begin at the end")
		}
		if sl.Slice != 0 { // that it was published already is said before that it could not be
			if err := s.takePending(w, sys.SliceID(sl.Slice)); err != nil {
				return nil, err
			}
		}
		at = at - from + end
		in := uint32(at % sys.ChunkSize)
		if sl.Len > sys.ChunkSize-in {
			return nil, refuse(sys.Range, ino, "a slice would lie in two chunks: cut it where the first one ends")
		}
		moved.Slices = append(moved.Slices, &metapb.ChunkSlice{Chunk: uint32(at / sys.ChunkSize), Slice: &metapb.Slice{
			At: in, Len: sl.Len, Slice: sl.Slice, Off: sl.Off, SliceLen: sl.SliceLen}})
	}
	return moved, nil
}

// planInline writes bytes into the inline base of chunk 0.
func (s *step) planInline(w *writing, c *metapb.Commit) error {
	ino := sys.Ino(w.attr.Ino)
	if c.InlineOff > FileSizeMax {
		return refuse(sys.FileTooLarge, ino, "a file has at most 8 TiB")
	}
	end := c.InlineOff + uint64(len(c.Inline))
	if max(w.attr.Size, end, c.GetSize()) > sys.InlineMax {
		return refuse(sys.NotInline, ino, "the file is too large")
	}
	r, err := s.load(w, 0)
	if err != nil {
		return err
	}
	if len(r.chunk.Slices) > 0 {
		return refuse(sys.NotInline, ino, "the file has slices")
	}
	base := r.chunk.Inline
	if c.InlineOff == 0 && end >= uint64(len(base)) {
		base = c.Inline
	} else {
		if n := uint64(len(base)); n < end {
			base = append(base, make([]byte, end-n)...)
		}
		copy(base[c.InlineOff:], c.Inline)
	}
	r.chunk.Inline = base
	w.grow(end)
	return nil
}

// planSlice lays a slice over a chunk.
func (s *step) planSlice(w *writing, cs *metapb.ChunkSlice) error {
	ino, sl := sys.Ino(w.attr.Ino), cs.GetSlice()
	if cs.Chunk >= ChunksMax {
		return refuse(sys.FileTooLarge, ino, "a file has at most 8 TiB")
	}
	if cause := badSlice(sl); cause != "" {
		return refuse(sys.Invalid, ino, cause)
	}
	r, err := s.load(w, cs.Chunk)
	if err != nil {
		return err
	}
	if sl.Slice != 0 {
		if err := s.takePending(w, sys.SliceID(sl.Slice)); err != nil {
			return err
		}
	}
	w.cover(r, sl)
	if len(r.chunk.Slices) > SlicesMax {
		return refuse(sys.Busy, ino, "a chunk has too many slices: merge them first")
	}
	w.grow(uint64(cs.Chunk)*sys.ChunkSize + uint64(sl.At) + uint64(sl.Len))
	return nil
}

// badSlice says what is wrong with a slice, nothing when it is well formed.
func badSlice(sl *metapb.Slice) string {
	switch {
	case sl.GetLen() == 0:
		return "a slice of no bytes"
	case uint64(sl.At)+uint64(sl.Len) > sys.ChunkSize:
		return "a slice that ends behind its chunk"
	case sl.Slice == 0 && (sl.Off != 0 || sl.SliceLen != 0):
		return "a hole with a place in a slice"
	case sl.Slice == 0:
	case sl.SliceLen > sys.ChunkSize:
		return "a slice longer than a chunk"
	case uint64(sl.Off)+uint64(sl.Len) > uint64(sl.SliceLen):
		return "more bytes than the slice has"
	}
	return ""
}

// grow makes the size at least size.
func (w *writing) grow(size uint64) {
	if size > w.attr.Size {
		w.grown += int64(size - w.attr.Size)
		w.attr.Size = size
	}
}

// cover lays sl over a chunk and drops what nobody can see under it.
func (w *writing) cover(r *row, sl *metapb.Slice) {
	end := uint64(sl.At) + uint64(sl.Len)
	before := r.chunk.Slices
	under := false // something of the chunk is partly under sl
	kept := make([]*metapb.Slice, 0, len(before)+1)
	for _, old := range before {
		oldEnd := uint64(old.At) + uint64(old.Len)
		if old.At >= sl.At && oldEnd <= end {
			continue
		}
		under = under || uint64(old.At) < end && uint64(sl.At) < oldEnd
		kept = append(kept, old)
	}
	inline := uint64(len(r.chunk.Inline))
	if sl.At == 0 && end >= inline {
		r.chunk.Inline = nil
	} else {
		under = under || uint64(sl.At) < inline
	}
	dropped := len(kept) < len(before)
	if sl.Slice != 0 || under {
		kept = append(kept, sl)
	}
	r.chunk.Slices = kept
	if dropped {
		w.freed = append(w.freed, deadSlices(before, kept)...)
	}
	w.longest = max(w.longest, uint32(len(kept)))
}

// deadSlices returns each slice of before of which after has no piece.
func deadSlices(before, after []*metapb.Slice) []*metapb.Slice {
	seen := make(map[uint64]bool, len(after))
	for _, sl := range after {
		seen[sl.Slice] = true
	}
	var dead []*metapb.Slice
	for _, sl := range before {
		if sl.Slice != 0 && !seen[sl.Slice] {
			seen[sl.Slice] = true
			dead = append(dead, &metapb.Slice{Slice: sl.Slice, SliceLen: sl.SliceLen})
		}
	}
	return dead
}

// fallocate is fallocate(2).
func (s *step) fallocate(c *metapb.Fallocate) (*metapb.Result, error) {
	ino := sys.Ino(c.Ino)
	a, err := s.regular(ino)
	if err != nil {
		return nil, err
	}
	if c.Len == 0 {
		return nil, refuse(sys.Invalid, ino, "a range of no bytes")
	}
	if c.Off > FileSizeMax || c.Len > FileSizeMax-c.Off {
		return nil, refuse(sys.FileTooLarge, ino, "a file has at most 8 TiB")
	}
	if c.KeepSize && !c.Zero {
		return &metapb.Result{Attr: a}, nil // space is not reserved ahead
	}
	w := &writing{attr: a}
	end := c.Off + c.Len
	if c.Zero {
		if err := s.zero(w, c.Off, min(end, a.Size)); err != nil {
			return nil, err
		}
	}
	if !c.KeepSize {
		w.grow(end)
	}
	s.wrote(a)
	if err := s.write(w); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a, Slices: w.longest}, nil
}

// zero plans that the bytes from off up to end, which is not behind the size,
// read as zeroes.
func (s *step) zero(w *writing, off, end uint64) error {
	if off >= end {
		return nil
	}
	numbers, err := s.chunkNumbers(sys.Ino(w.attr.Ino), uint32(off/sys.ChunkSize), uint32((end-1)/sys.ChunkSize))
	if err != nil {
		return err
	}
	for _, n := range numbers {
		r, err := s.load(w, n)
		if err != nil {
			return err
		}
		start := uint64(n) * sys.ChunkSize
		from, to := max(off, start)-start, min(end-start, sys.ChunkSize)
		if len(r.chunk.Slices) == 0 {
			zeroInline(r.chunk, from, to)
			continue
		}
		w.cover(r, &metapb.Slice{At: uint32(from), Len: uint32(to - from)})
		if len(r.chunk.Slices) > SlicesMax {
			return refuse(sys.Busy, sys.Ino(w.attr.Ino), "a chunk has too many slices: merge them first")
		}
	}
	return nil
}

// zeroInline zeroes bytes of an inline base, and cuts it where only zeroes
// would follow.
func zeroInline(c *metapb.Chunk, from, to uint64) {
	n := uint64(len(c.Inline))
	switch {
	case from >= n:
	case to >= n:
		c.Inline = c.Inline[:from]
	default:
		clear(c.Inline[from:to])
	}
}

// chunkNumbers returns which chunks of a file have a row, from first to last.
func (s *step) chunkNumbers(ino sys.Ino, first, last uint32) ([]uint32, error) {
	var numbers []uint32
	err := s.tx.ScanChunks(ino, first, func(n uint32, _ *metapb.Chunk) bool {
		if n > last {
			return false
		}
		numbers = append(numbers, n)
		return true
	})
	return numbers, err
}

// resize plans a truncation, up or down. What is cut off is dropped or
// clipped, so that a later growth reads zeroes there.
func (s *step) resize(w *writing, size uint64) error {
	ino := sys.Ino(w.attr.Ino)
	if size > FileSizeMax {
		return refuse(sys.FileTooLarge, ino, "a file has at most 8 TiB")
	}
	if size < w.attr.Size {
		numbers, err := s.chunkNumbers(ino, uint32(size/sys.ChunkSize), ChunksMax)
		if err != nil {
			return err
		}
		for _, n := range numbers {
			r, err := s.load(w, n)
			if err != nil {
				return err
			}
			start := uint64(n) * sys.ChunkSize
			w.clip(r, max(size, start)-start)
		}
	}
	w.grown += int64(size) - int64(w.attr.Size)
	w.attr.Size = size
	return nil
}

// clip drops what a chunk has from byte at on.
func (w *writing) clip(r *row, at uint64) {
	before := r.chunk.Slices
	var kept []*metapb.Slice
	for _, sl := range before {
		if uint64(sl.At) >= at {
			continue
		}
		sl.Len = min(sl.Len, uint32(at)-sl.At)
		kept = append(kept, sl)
	}
	r.chunk.Slices = kept
	r.chunk.Inline = r.chunk.Inline[:min(uint64(len(r.chunk.Inline)), at)]
	w.freed = append(w.freed, deadSlices(before, kept)...)
}

// storedBytes counts the bytes of a chunk that are no holes: those that its
// base or the topmost slice there has.
func storedBytes(c *metapb.Chunk) uint64 {
	base := &metapb.Slice{Len: uint32(len(c.Inline)), Slice: 1}
	if len(c.Slices) == 0 {
		return uint64(base.Len)
	}
	var covered []span // by what is on top, ascending, apart from each other
	total := uint64(0)
	for i := len(c.Slices); i >= 0; i-- {
		sl := base
		if i > 0 {
			sl = c.Slices[i-1]
		}
		if sl.Len == 0 {
			continue
		}
		fresh := uint64(0)
		covered, fresh = lay(covered, span{sl.At, sl.At + sl.Len})
		if sl.Slice != 0 {
			total += fresh
		}
	}
	return total
}

// span is the bytes [lo, hi) of a chunk.
type span struct{ lo, hi uint32 }

// lay adds a span to ascending spans that are apart from each other, and
// returns how many bytes of it none of them had.
func lay(spans []span, s span) ([]span, uint64) {
	first, _ := slices.BinarySearchFunc(spans, s.lo, func(x span, lo uint32) int { return cmp.Compare(x.hi, lo) })
	fresh, whole, end := uint64(s.hi-s.lo), s, first
	for ; end < len(spans) && spans[end].lo <= s.hi; end++ {
		x := spans[end]
		fresh -= uint64(max(min(x.hi, s.hi), max(x.lo, s.lo)) - max(x.lo, s.lo))
		whole.lo, whole.hi = min(whole.lo, x.lo), max(whole.hi, x.hi)
	}
	return slices.Replace(spans, first, end, whole), fresh
}
