package vfs

import (
	"context"
	"os"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/sys"
)

// nullStore takes blocks and forgets them, and makes up what it is asked for,
// so that a benchmark measures vfs and not memory.
type nullStore struct{ block.Store }

func (nullStore) Put(context.Context, sys.BlockKey, []byte) error { return nil }
func (nullStore) Sync(context.Context, []sys.SliceID) error       { return nil }
func (nullStore) Read(_ context.Context, _ sys.BlockKey, _, n int) (block.Buffer, error) {
	return block.Buffer{Data: make([]byte, n), Memory: n}, nil
}

func benchFS(b *testing.B, store block.Store) *FS {
	fs := New(meta.NewMemory(), store, Options{PGs: 256})
	b.Cleanup(func() {
		if err := fs.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return fs
}

func benchmarkWrite(b *testing.B, store block.Store, step int) {
	fs := benchFS(b, store)
	f := create(b, fs, "f", 0)
	defer f.Release()
	p := noise(step, 1)
	b.SetBytes(int64(step))
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		if _, err := f.WriteAt(b.Context(), p, off); err != nil {
			b.Fatal(err)
		}
		if off += int64(step); off >= 1<<30 { // the memory store keeps all
			off = 0
			must(b, f.Truncate(b.Context(), 0))
		}
	}
	must(b, f.Flush(b.Context()))
}

func BenchmarkSequentialWrite(b *testing.B) {
	b.Run("null/128K", func(b *testing.B) { benchmarkWrite(b, nullStore{block.NewMemory()}, 128<<10) })
	b.Run("null/4K", func(b *testing.B) { benchmarkWrite(b, nullStore{block.NewMemory()}, 4<<10) })
	b.Run("null/1M", func(b *testing.B) { benchmarkWrite(b, nullStore{block.NewMemory()}, 1<<20) })
}

func benchmarkRead(b *testing.B, step int, next func(off, size int64) int64) {
	const size = 512 << 20
	fs := benchFS(b, nullStore{block.NewMemory()})
	f := create(b, fs, "f", 0)
	defer f.Release()
	p := noise(1<<20, 1)
	for off := int64(0); off < size; off += int64(len(p)) {
		_, err := f.WriteAt(b.Context(), p, off)
		must(b, err)
	}
	must(b, f.Flush(b.Context()))
	p = p[:step]
	b.SetBytes(int64(step))
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		if _, err := f.ReadAt(b.Context(), p, off); err != nil {
			b.Fatal(err)
		}
		off = next(off+int64(step), size-int64(step))
	}
}

func BenchmarkSequentialRead(b *testing.B) {
	wrap := func(off, size int64) int64 { return off % size &^ 4095 }
	b.Run("128K", func(b *testing.B) { benchmarkRead(b, 128<<10, wrap) })
	b.Run("1M", func(b *testing.B) { benchmarkRead(b, 1<<20, wrap) })
}

func BenchmarkRandomRead4K(b *testing.B) {
	r := uint64(1)
	benchmarkRead(b, 4<<10, func(_, size int64) int64 {
		r = r*6364136223846793005 + 1442695040888963407
		return int64(r>>20) % size &^ 4095
	})
}

func BenchmarkSmallFile(b *testing.B) {
	fs := benchFS(b, block.NewMemory())
	p := noise(16<<10, 1)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		_, f, err := fs.Create(b.Context(), Root(), sys.RootIno, []byte(itoa(uint64(n))), 0o644, os.O_WRONLY)
		must(b, err)
		_, err = f.WriteAt(b.Context(), p, 0)
		must(b, err)
		must(b, f.Flush(b.Context()))
		f.Release()
	}
}

func BenchmarkRandomWriteFsync4K(b *testing.B) {
	fs := benchFS(b, nullStore{block.NewMemory()})
	f := create(b, fs, "f", 0)
	defer f.Release()
	p := noise(64<<20, 1)
	_, err := f.WriteAt(b.Context(), p, 0)
	must(b, err)
	must(b, f.Fsync(b.Context()))
	r := uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		r = r*6364136223846793005 + 1442695040888963407
		_, err := f.WriteAt(b.Context(), p[:4096], int64(r>>20)%(64<<20)&^4095)
		must(b, err)
		must(b, f.Fsync(b.Context()))
	}
}
