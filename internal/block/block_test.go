package block_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/sys"
	"pgregory.net/rapid"
)

func TestMemory(t *testing.T) {
	blocktest.Run(t, func(t *testing.T) block.Store { return block.NewMemory() },
		blocktest.Options{Tombstones: true, Damage: damageMemory})
}

func damageMemory(t *testing.T, s block.Store, key sys.BlockKey, off int) {
	if !s.(*block.Memory).Damage(key, off) {
		t.Fatalf("no byte %d of %v", off, key)
	}
}

func TestCachedConforms(t *testing.T) {
	for _, size := range []int{0, 1 << 20, 64 << 20} {
		blocktest.Run(t, func(t *testing.T) block.Store { return block.Cached(block.NewMemory(), size) },
			blocktest.Options{Tombstones: true})
	}
	t.Run("below without GetPart", func(t *testing.T) {
		type plain struct{ block.Store }
		blocktest.Run(t, func(t *testing.T) block.Store { return block.Cached(plain{block.NewMemory()}, 1<<20) })
	})
}

func TestProofChecksRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 4*sys.PageSize+1).Draw(t, "size")
		off := rapid.IntRange(0, size).Draw(t, "off")
		n := rapid.IntRange(0, size-off).Draw(t, "n")
		data := blocktest.Bytes(sys.BlockKey{Slice: 1}, size)
		first, end := block.Pages(off, n)
		start, stop := min(first*sys.PageSize, off), min(end*sys.PageSize, size)
		p := block.Proof{Size: size, Sums: block.SumData(data)[first:end]}
		if n > 0 {
			p.Before, p.After = block.Checksum(data[start:off]), block.Checksum(data[off+n:stop])
		}
		got := bytes.Clone(data[off : off+n])
		if !p.Check(off, got) {
			t.Fatalf("%d+%d of %d refused", off, n, size)
		}
		if n == 0 {
			return
		}
		got[rapid.IntRange(0, n-1).Draw(t, "flip")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if p.Check(off, got) {
			t.Fatalf("%d+%d of %d with a wrong bit accepted", off, n, size)
		}
		if p.Check(off, got[:n-1]) || p.Check(off+1, got) {
			t.Fatal("shifted range accepted")
		}
		if (off > start) && func() bool { p.Before ^= 1; defer func() { p.Before ^= 1 }(); return p.Check(off, data[off:off+n]) }() {
			t.Fatal("wrong bytes before the range accepted")
		}
	})
}

func TestSumsMatch(t *testing.T) {
	for _, size := range []int{1, sys.PageSize, sys.PageSize + 1, sys.BlockSize} {
		data := blocktest.Bytes(sys.BlockKey{Slice: 2}, size)
		sums := block.SumData(data)
		if !sums.Match(data) || sums.Match(data[:size-1]) || !sums.Equal(block.SumData(data)) {
			t.Fatalf("sums of %d bytes", size)
		}
		data[size-1] ^= 0x80
		if sums.Match(data) || sums.Equal(block.SumData(data)) {
			t.Fatalf("sums of %d bytes match others", size)
		}
	}
}

// counting counts the calls of GetPart and holds them at a gate.
type counting struct {
	*block.Memory
	calls, bytes atomic.Int64
	gate         chan struct{}
}

func (c *counting) GetPart(ctx context.Context, key sys.BlockKey, off int, dst []byte) (int, error) {
	c.calls.Add(1)
	if c.gate != nil {
		<-c.gate
	}
	n, err := c.Memory.GetPart(ctx, key, off, dst)
	c.bytes.Add(int64(n))
	return n, err
}

func TestCacheSharesMisses(t *testing.T) {
	below := &counting{Memory: block.NewMemory(), gate: make(chan struct{})}
	c := block.Cached(below, 8<<20)
	ctx := context.Background()
	key := blocktest.Key(1, 1, 0)
	want := blocktest.Bytes(key, 1<<20)
	if err := c.Put(ctx, key, want); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dst := make([]byte, 1<<20)
			if err := c.Get(ctx, key, 0, dst); err != nil || !bytes.Equal(dst, want) {
				t.Errorf("Get: %v", err)
			}
		})
	}
	close(below.gate)
	wg.Wait()
	if below.calls.Load() != 1 || below.bytes.Load() != 1<<20 {
		t.Fatalf("8 readers made %d reads of %d bytes below, want 1 of %d", below.calls.Load(), below.bytes.Load(), 1<<20)
	}
}

func TestCacheIsBoundedAndHits(t *testing.T) {
	below := &counting{Memory: block.NewMemory()}
	const limit = 4 << 20
	c := block.Cached(below, limit)
	ctx := context.Background()
	r := rand.New(rand.NewPCG(1, 1))
	want := make(map[sys.BlockKey][]byte)
	for i := range uint32(8) {
		key := blocktest.Key(1, 1, i)
		want[key] = blocktest.Bytes(key, sys.BlockSize)
		if err := c.Put(ctx, key, want[key]); err != nil {
			t.Fatal(err)
		}
	}
	hot := blocktest.Key(1, 1, 0)
	for range 500 {
		key, off := blocktest.Key(1, 1, uint32(r.IntN(8))), r.IntN(sys.BlockSize-200_000)
		dst := make([]byte, 1+r.IntN(200_000))
		if err := c.Get(ctx, key, off, dst); err != nil || !bytes.Equal(dst, want[key][off:off+len(dst)]) {
			t.Fatalf("Get: %v", err)
		}
		if c.Bytes() > limit {
			t.Fatalf("cache holds %d bytes, limit %d", c.Bytes(), limit)
		}
	}
	for range 3 {
		if err := c.Get(ctx, hot, 0, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	before := below.calls.Load()
	if err := c.Get(ctx, hot, 8192, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if below.calls.Load() != before {
		t.Fatal("a part that was read three times is not in the cache")
	}
	if err := c.Delete(ctx, []sys.BlockKey{hot}); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(ctx, hot, 0, make([]byte, 4096)); !sys.Is(err, sys.NotExist) {
		t.Fatalf("Get of a deleted block: %v", err)
	}
}

func BenchmarkCacheHit(b *testing.B) {
	c := block.Cached(block.NewMemory(), 16<<20)
	ctx := context.Background()
	key := blocktest.Key(1, 1, 0)
	if err := c.Put(ctx, key, blocktest.Bytes(key, sys.BlockSize)); err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 128<<10)
	b.SetBytes(int64(len(dst)))
	b.ReportAllocs()
	for i := range b.N {
		if err := c.Get(ctx, key, i%32*len(dst), dst); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProofOf4KiB(b *testing.B) {
	data := blocktest.Bytes(sys.BlockKey{Slice: 1}, sys.PageSize)
	p := block.Proof{Size: len(data), Sums: block.SumData(data), Before: block.Checksum(data[:8192]), After: block.Checksum(data[12288:])}
	for range b.N {
		if !p.Check(8192, data[8192:12288]) {
			b.Fatal("refused")
		}
	}
}
