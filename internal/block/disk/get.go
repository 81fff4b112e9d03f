package disk

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// pagePool holds buffers for pages of which a reader wants a part.
var pagePool = sync.Pool{New: func() any { return new([sys.PageSize]byte) }}

// headPool holds buffers for record headers.
var headPool = sync.Pool{New: func() any { return new([sectorSize]byte) }}

// record is a block that was found, with its header read. Its segment must be
// released.
type record struct {
	segment   *segment
	h         header
	sums      [pagesMax]uint32
	unchecked bool // the reader checks the pages
}

// open finds a block and reads its header.
func (s *Store) open(op sys.Op, key sys.BlockKey) (*record, error) {
	s.mu.RLock()
	e, ok := s.index.entries[key]
	var g *segment
	if ok && !e.deleted() {
		if g = s.segments[e.segment]; g != nil {
			g.acquire()
		}
	}
	closed := s.closed && g == nil
	s.mu.RUnlock()
	switch {
	case closed:
		return nil, errClosed(op)
	case g == nil:
		return nil, sys.E(op, sys.NotExist, block.Subject(key))
	}
	r := &record{segment: g}
	r.h.sums = r.sums[:0]
	buf := headPool.Get().(*[sectorSize]byte)
	defer headPool.Put(buf)
	if err := readFull(g, buf[:], e.offset()); err != nil {
		g.release()
		return nil, readError(op, key, err)
	}
	if r.h.decode(buf[:], g.salt, e.offset()) != nil || r.h.key != key || r.h.length != int(e.size) {
		g.release()
		return nil, sys.E(op, sys.Corrupt, block.Subject(key), "its header on disk is damaged")
	}
	return r, nil
}

// Get implements block.Store.
func (s *Store) Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error {
	r, err := s.open("disk.Get", key)
	if err != nil {
		return err
	}
	var p block.Proof
	_, err = r.read("disk.Get", off, dst, true, &p)
	return err
}

// Read implements block.Store.
func (s *Store) Read(ctx context.Context, key sys.BlockKey, off, n int) (block.Buffer, error) {
	return block.ReadFresh(ctx, s, key, off, n)
}

// GetProof is Get that ends at the block's end and returns how many bytes there
// were; it also fills in what a reader elsewhere needs to check
// the bytes against the writer's sums. p.Sums is appended to.
func (s *Store) GetProof(ctx context.Context, key sys.BlockKey, off int, dst []byte, p *block.Proof) (int, error) {
	return s.prove(key, off, dst, false, p)
}

// GetUnchecked is GetProof for a reader who checks the bytes by p himself: they
// may be damaged.
func (s *Store) GetUnchecked(ctx context.Context, key sys.BlockKey, off int, dst []byte, p *block.Proof) (int, error) {
	return s.prove(key, off, dst, true, p)
}

func (s *Store) prove(key sys.BlockKey, off int, dst []byte, unchecked bool, p *block.Proof) (int, error) {
	r, err := s.open("disk.Get", key)
	if err != nil {
		return 0, err
	}
	r.unchecked = unchecked
	return r.read("disk.Get", off, dst, false, p)
}

// Size returns the size of a block in bytes; it is NotExist when the store has
// none, and Stale when it was deleted.
func (s *Store) Size(key sys.BlockKey) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch e, ok := s.index.entries[key]; {
	case !ok:
		return 0, sys.E(sys.Op("disk.Size"), sys.NotExist, block.Subject(key))
	case e.deleted():
		return 0, sys.E(sys.Op("disk.Size"), sys.Stale, block.Subject(key), "deleted before")
	default:
		return int(e.size), nil
	}
}

// read reads whole pages straight into dst and the pages at the range's ends,
// of which dst wants a part, through a buffer. All of them are checked, but for
// those of an unchecked record. It releases the segment.
func (r *record) read(op sys.Op, off int, dst []byte, exact bool, p *block.Proof) (int, error) {
	defer r.segment.release()
	key, size := r.h.key, r.h.length
	if !exact && off >= 0 && off <= size {
		dst = dst[:min(len(dst), size-off)]
	}
	if err := block.CheckRange(op, key, size, off, len(dst)); err != nil {
		return 0, err
	}
	first, end := block.Pages(off, len(dst))
	p.Size = size
	p.Sums = append(p.Sums, r.h.sums[first:end]...)
	p.Before, p.After = 0, 0
	for page := first; page < end; {
		var err error
		start, stop := page*sys.PageSize, min((page+1)*sys.PageSize, size)
		if start < off || stop > off+len(dst) {
			err = r.readPage(page, off, dst, p)
			page++
		} else {
			whole := page
			for page < end && min((page+1)*sys.PageSize, size) <= off+len(dst) {
				page++
			}
			err = r.readPages(whole, page, dst[start-off:min(page*sys.PageSize, size)-off])
		}
		if err != nil {
			return 0, readError(op, key, err)
		}
	}
	return len(dst), nil
}

// readPages reads the whole pages [first, end) into dst.
func (r *record) readPages(first, end int, dst []byte) error {
	off := r.h.offset + sectorSize + int64(first)*sys.PageSize
	if len(dst) >= directRead {
		done, err := r.segment.direct.readAt(r.segment.file, dst, off)
		if err != nil {
			return err
		}
		if done {
			return r.checkPages(first, end, dst)
		}
	}
	if err := readFull(r.segment, dst, off); err != nil {
		return err
	}
	return r.checkPages(first, end, dst)
}

// directRead is from what size on a read goes past the page cache, in bytes.
const directRead = 256 << 10

func (r *record) checkPages(first, end int, dst []byte) error {
	if !r.unchecked && !r.h.sums[first:end].Match(dst) {
		return errDamaged
	}
	return nil
}

// readPage reads one page of which dst, the bytes from off on, wants a part.
func (r *record) readPage(page, off int, dst []byte, p *block.Proof) error {
	start, stop := page*sys.PageSize, min((page+1)*sys.PageSize, r.h.length)
	buf := pagePool.Get().(*[sys.PageSize]byte)
	defer pagePool.Put(buf)
	held := buf[:stop-start]
	if err := readFull(r.segment, held, r.h.offset+sectorSize+int64(start)); err != nil {
		return err
	}
	if !r.unchecked && block.Checksum(held) != r.h.sums[page] {
		return errDamaged
	}
	from, to := max(start, off), min(stop, off+len(dst))
	copy(dst[from-off:], held[from-start:to-start])
	if from > start {
		p.Before = block.Checksum(held[:from-start])
	}
	if to < stop {
		p.After = block.Checksum(held[to-start:])
	}
	return nil
}

var errDamaged = errors.New("bytes on disk do not match the writer's checksums")

// readFull reads len(dst) bytes; a segment that ends before is damage.
func readFull(g *segment, dst []byte, off int64) error {
	n, err := g.file.ReadAt(dst, off)
	switch {
	case n == len(dst):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return errDamaged
	}
	return err
}

// readError tells damage from trouble. A disk that cannot read a sector has
// lost the block as much as one that reads it wrong.
func readError(op sys.Op, key sys.BlockKey, err error) error {
	return sys.E(op, sys.Corrupt, block.Subject(key), err)
}

// List implements block.Store.
func (s *Store) List(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]block.Info, error) {
	var infos []block.Info
	limit = block.ListLimit(limit)
	err := s.scan(pg, after, func(key sys.BlockKey, e entry) bool {
		if !e.deleted() {
			infos = append(infos, block.Info{Key: key, Size: int(e.size)})
		}
		return len(infos) < limit
	})
	return infos, err
}

// scan runs fn over the keys of pg under the lock.
func (s *Store) scan(pg sys.PG, after sys.BlockKey, fn func(sys.BlockKey, entry) bool) error {
	s.mu.RLock()
	if s.index.unsettled(pg) {
		s.mu.RUnlock()
		s.mu.Lock()
		s.index.settle(pg)
		s.mu.Unlock()
		s.mu.RLock()
	}
	defer s.mu.RUnlock()
	if s.closed {
		return errClosed("disk.List")
	}
	// A key that came between the two locks may be out of order; it is as new
	// as one that comes after this listing.
	s.index.scan(pg, after, fn)
	return nil
}

// Knows returns the keys of pg after a key, in order, deleted ones too, at most
// limit.
func (s *Store) Knows(pg sys.PG, after sys.BlockKey, limit int) ([]block.Known, error) {
	var known []block.Known
	limit = block.ListLimit(limit)
	err := s.scan(pg, after, func(key sys.BlockKey, e entry) bool {
		known = append(known, block.Known{Key: key, Size: int(e.size)})
		return len(known) < limit
	})
	return known, err
}

// Groups returns the placement groups of which the store knows keys, in no
// order.
func (s *Store) Groups() []sys.PG {
	s.mu.RLock()
	defer s.mu.RUnlock()
	groups := make([]sys.PG, 0, len(s.index.groups))
	for pg := range s.index.groups {
		groups = append(groups, pg)
	}
	return groups
}

// Digests returns the digests of the keys of pg in the runs that bounds cut:
// the keys up to bounds[0], those after it up to bounds[1], and so on, and
// those after the last. bounds must be in order.
func (s *Store) Digests(pg sys.PG, bounds []sys.BlockKey) ([]block.Digest, error) {
	digests := make([]block.Digest, len(bounds)+1)
	run := 0
	err := s.scan(pg, sys.BlockKey{}, func(key sys.BlockKey, e entry) bool {
		for run < len(bounds) && bounds[run].Less(key) {
			run++
		}
		digests[run].Count++
		digests[run].Hash += hashKey(key, e.deleted())
		return true
	})
	return digests, err
}

// hashKey mixes a key as splitmix64 does.
func hashKey(key sys.BlockKey, deleted bool) uint64 {
	x := uint64(key.Slice)*0x9e3779b97f4a7c15 ^ uint64(key.Index)<<1
	if deleted {
		x ^= 1 << 63
	}
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
