package disk

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

// cachedPages returns how many pages of the segment that holds key the page
// cache has.
func cachedPages(t *testing.T, s *Store, key sys.BlockKey) uint64 {
	t.Helper()
	r, err := s.open("test", key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.segment.release()
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(r.segment.file.Fd()), &unix.CachestatRange{Off: uint64(r.h.offset) + sectorSize + 1<<20}, &st, 0); err != nil {
		t.Fatal(err)
	}
	return st.Cache
}

// TestDirectReadLeavesThePageCacheAlone: a read past the page cache must not
// make the kernel read the same bytes into it.
func TestDirectReadLeavesThePageCacheAlone(t *testing.T) {
	opt := quiet(envfs.Disk)
	opt.Dir = t.TempDir()
	s := mustOpen(t, opt)
	key := blocktest.Key(1, 0, 0)
	mustPut(t, s, key, sys.BlockSize)
	before := cachedPages(t, s, key)
	dst := make([]byte, 1<<20)
	for off := 1 << 20; off < sys.BlockSize; off += len(dst) {
		if err := s.Get(ctx, key, off, dst); err != nil {
			t.Fatal(err)
		}
	}
	if after := cachedPages(t, s, key); after > before {
		t.Errorf("the page cache has %d pages of the block after the reads, had %d before", after, before)
	}
}

// TestUncheckedReadIsProven: the reader of unchecked bytes finds the damage.
func TestUncheckedReadIsProven(t *testing.T) {
	opt := quiet(envfs.Disk)
	opt.Dir = t.TempDir()
	s := mustOpen(t, opt)
	key := blocktest.Key(1, 0, 0)
	mustPut(t, s, key, 5*sys.PageSize)
	r, err := s.open("test", key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.segment.file.WriteAt([]byte{blocktest.Bytes(key, 2*sys.PageSize)[sys.PageSize+100] ^ 1},
		r.h.offset+sectorSize+sys.PageSize+100); err != nil {
		t.Fatal(err)
	}
	r.segment.release()
	for _, c := range []struct {
		off, n int
		sound  bool
	}{
		{0, 5 * sys.PageSize, false}, {sys.PageSize, sys.PageSize, false}, {sys.PageSize + 200, 10, false},
		{0, sys.PageSize + 1, false}, {0, sys.PageSize, true}, {2*sys.PageSize + 5, 2 * sys.PageSize, true},
	} {
		dst := make([]byte, c.n)
		var p, checked block.Proof
		n, err := s.GetUnchecked(ctx, key, c.off, dst, &p)
		if err != nil || n != c.n {
			t.Fatalf("GetUnchecked of %d+%d: %d, %v", c.off, c.n, n, err)
		}
		if p.Check(c.off, dst) != c.sound {
			t.Errorf("%d+%d: the proof says sound %t", c.off, c.n, !c.sound)
		}
		if _, err := s.GetProof(ctx, key, c.off, dst, &checked); (err == nil) != c.sound || err != nil && !sys.Is(err, sys.Corrupt) {
			t.Errorf("GetProof of %d+%d: %v", c.off, c.n, err)
		}
	}
}
