package vfs

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/sys"
)

// lentFile is a flushed file of noise on a store whose memory is poisoned.
func lentFile(t *testing.T, size int) (*FS, *blocktest.Poisoned, *File, []byte) {
	t.Helper()
	store := blocktest.Poison(block.NewMemory())
	fs := New(meta.NewMemory(), store, Options{CacheBytes: 16 << 20})
	t.Cleanup(func() { must(t, fs.Close(context.Background())) })
	data := noise(size, 7)
	f := create(t, fs, "f", 0)
	_, err := f.WriteAt(t.Context(), data, 0)
	must(t, err)
	must(t, f.Flush(t.Context()))
	ino := f.Ino()
	f.Release()
	f, err = fs.Open(t.Context(), Root(), ino, os.O_RDONLY)
	must(t, err)
	t.Cleanup(f.Release)
	return fs, store, f, data
}

// TestReleasedMemoryIsNeverRead has readers of all kinds share a cache that is
// much smaller than the file, on memory that turns to garbage when the cache
// gives it back.
func TestReleasedMemoryIsNeverRead(t *testing.T) {
	const size = 48<<20 + 4321
	fs, store, f, data := lentFile(t, size)
	var readers sync.WaitGroup
	for r := range 6 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(r), 1))
			buf := make([]byte, 1<<20)
			row := 0
			for range 150 {
				off, n := row, len(buf)
				if row += n; r%2 == 1 || row >= size {
					row, off, n = 0, rnd.IntN(size), 1+rnd.IntN(len(buf))
				}
				want := data[off:min(size, off+n)]
				got, release, err := f.View(t.Context(), buf[:n], int64(off))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("View of %d+%d returned %d other bytes, %v", off, n, len(got), err)
				}
				if release != nil {
					release()
				}
				if k, err := f.ReadAt(t.Context(), buf[:n], int64(off)); k != len(want) || !bytes.Equal(buf[:k], want) {
					t.Errorf("ReadAt of %d+%d returned %d other bytes, %v", off, n, k, err)
				}
			}
		})
	}
	readers.Wait()
	settle(fs)
	if fs.cache.used != store.Lent() || fs.cache.used > fs.cache.limit {
		t.Errorf("the cache counts %d bytes, holds %d, may hold %d", fs.cache.used, store.Lent(), fs.cache.limit)
	}
}

// settle waits for the loads under way.
func settle(fs *FS) {
	fs.cache.mu.Lock()
	defer fs.cache.mu.Unlock()
	for _, s := range fs.cache.spans {
		fs.cache.mu.Unlock()
		<-s.done
		fs.cache.mu.Lock()
	}
	fs.cache.evict()
}

// TestViewOutlivesItsSpan keeps views while everything else is read, and their
// spans should have gone.
func TestViewOutlivesItsSpan(t *testing.T) {
	const size = 64 << 20
	fs, store, f, data := lentFile(t, size)
	row, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_RDONLY)
	must(t, err)
	defer row.Release()
	var releases []func()
	views := map[int][]byte{}
	for _, off := range []int{0, 5 << 20, sys.BlockSize - 4096, size - 4096} {
		got, release, err := f.View(t.Context(), make([]byte, 4096), int64(off))
		must(t, err)
		if release == nil {
			t.Fatalf("a view of one page at %d was copied", off)
		}
		views[off], releases = got, append(releases, release)
	}
	if _, release, err := f.View(t.Context(), make([]byte, 8192), sys.BlockSize-4096); err != nil || release != nil {
		t.Fatalf("a view across two blocks was not copied, or failed: %v", err)
	}
	if !bytes.Equal(readAll(t, row), data) {
		t.Fatal("other bytes were read")
	}
	for off, got := range views {
		if !bytes.Equal(got, data[off:off+4096]) {
			t.Errorf("the view at %d changed while it was held", off)
		}
	}
	for _, release := range releases {
		release()
	}
	settle(fs)
	if fs.cache.used != store.Lent() || fs.cache.used > fs.cache.limit {
		t.Errorf("the cache counts %d bytes, holds %d, may hold %d", fs.cache.used, store.Lent(), fs.cache.limit)
	}
}

// TestViewSeesDirtyBytes: what was written and not flushed is not in any span.
func TestViewSeesDirtyBytes(t *testing.T) {
	fs, _, f, data := lentFile(t, 8<<20)
	w, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_RDWR)
	must(t, err)
	defer w.Release()
	_, err = w.WriteAt(t.Context(), []byte("fresh"), 1000)
	must(t, err)
	copy(data[1000:], "fresh")
	for _, off := range []int{0, 1000, 1002, 1005, 1 << 20} {
		got, release, err := f.View(t.Context(), make([]byte, 3000), int64(off))
		if err != nil || !bytes.Equal(got, data[off:off+3000]) {
			t.Errorf("View at %d returned other bytes, %v", off, err)
		}
		if release != nil {
			release()
		}
	}
	if got, _, err := f.View(t.Context(), make([]byte, 10), 8<<20); err != nil || len(got) != 0 {
		t.Errorf("View at the end of the file: %d bytes, %v", len(got), err)
	}
	must(t, w.Flush(t.Context()))
}
