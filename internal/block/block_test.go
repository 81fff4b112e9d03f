package block_test

import (
	"bytes"
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

func BenchmarkProofOf4KiB(b *testing.B) {
	data := blocktest.Bytes(sys.BlockKey{Slice: 1}, sys.PageSize)
	p := block.Proof{Size: len(data), Sums: block.SumData(data), Before: block.Checksum(data[:8192]), After: block.Checksum(data[12288:])}
	for range b.N {
		if !p.Check(8192, data[8192:12288]) {
			b.Fatal("refused")
		}
	}
}
