package vfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/sys"
)

// newFS returns an FS over memory that is closed with the test.
func newFS(t testing.TB, opts Options) (*FS, *meta.Memory, *block.Memory) {
	t.Helper()
	mc, store := meta.NewMemory(), block.NewMemory()
	fs := New(mc, store, opts)
	t.Cleanup(func() {
		if err := fs.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return fs, mc, store
}

func create(t testing.TB, fs *FS, name string, flags int) *File {
	t.Helper()
	_, f, err := fs.Create(t.Context(), Root(), sys.RootIno, []byte(name), 0o644, flags|os.O_RDWR)
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func readAll(t testing.TB, f *File) []byte {
	t.Helper()
	p := make([]byte, f.Attr().GetSize())
	n, err := f.ReadAt(t.Context(), p, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read: %v", err)
	}
	return p[:n]
}

func noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	if _, err := r.Read(p); err != nil {
		panic(err)
	}
	return p
}

// Bytes travel inside a Commit up to the size that the tree wants, and never beyond
// what it takes.
func TestInlineMax(t *testing.T) {
	for _, c := range []struct{ most, size, more, blocks int }{
		{0, sys.InlineMax, 0, 0}, {0, sys.InlineMax + 1, 0, 1}, {4096, 4096, 0, 0}, {4096, 4097, 0, 1},
		{4096, 4096, 1, 1}, {4096, 4000, 96, 0}, {1 << 30, sys.InlineMax + 1, 0, 1},
	} {
		fs, _, store := newFS(t, Options{InlineMax: int64(c.most)})
		data := noise(c.size+c.more, 7)
		f := create(t, fs, "f", 0)
		for _, part := range [][2]int{{0, c.size}, {c.size, c.size + c.more}} {
			_, err := f.WriteAt(t.Context(), data[part[0]:part[1]], int64(part[0]))
			must(t, err)
			must(t, f.Flush(t.Context()))
		}
		if got := readAll(t, f); !bytes.Equal(got, data) {
			t.Errorf("%+v: the bytes differ", c)
		}
		f.Release()
		blocks, err := store.List(t.Context(), 0, sys.BlockKey{}, 10)
		must(t, err)
		if len(blocks) != c.blocks {
			t.Errorf("%+v: found %d blocks", c, len(blocks))
		}
	}
}

func TestWriteCloseRead(t *testing.T) {
	for _, size := range []int{0, 1, 5000, sys.InlineMax, sys.InlineMax + 1, 1 << 20, 9<<20 + 17, 70 << 20} {
		fs, _, _ := newFS(t, Options{})
		data := noise(size, uint64(size))
		f := create(t, fs, "f", 0)
		for off := 0; off < size; off += 1 << 20 {
			_, err := f.WriteAt(t.Context(), data[off:min(size, off+1<<20)], int64(off))
			must(t, err)
		}
		if got := readAll(t, f); !bytes.Equal(got, data) {
			t.Fatalf("size %d: dirty bytes differ", size)
		}
		must(t, f.Flush(t.Context()))
		if got := readAll(t, f); !bytes.Equal(got, data) {
			t.Fatalf("size %d: flushed bytes differ", size)
		}
		ino := f.Ino()
		f.Release()
		g, err := fs.Open(t.Context(), Root(), ino, os.O_RDONLY)
		must(t, err)
		if got := readAll(t, g); !bytes.Equal(got, data) {
			t.Fatalf("size %d: bytes differ after open", size)
		}
		g.Release()
	}
}
