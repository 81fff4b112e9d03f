package vfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// modelFile is a file under random operations next to the bytes it should have.
type modelFile struct {
	fs    *FS
	other *FS // another mount of the same tree
	ino   sys.Ino
	open  []*File
	log   *File // for appends
	want  []byte
	seed  uint64
}

// offsets are where writes start: around the borders of pages, inline, blocks
// and chunks.
var offsets = []int{0, 1, 100, 4095, 65535, 65536, 70000, 1 << 20, 4<<20 - 3, 4 << 20, 5 << 20, 64<<20 - 10, 64 << 20, 65 << 20}

func (m *modelFile) offset(t *rapid.T) int {
	base := rapid.SampledFrom(offsets).Draw(t, "base")
	return base + rapid.IntRange(0, 9000).Draw(t, "delta")
}

func (m *modelFile) file(t *rapid.T) *File {
	return m.open[rapid.IntRange(0, len(m.open)-1).Draw(t, "handle")]
}

func (m *modelFile) write(t *rapid.T) {
	off := m.offset(t)
	size := rapid.SampledFrom([]int{1, 10, 4096, 65536, 300_000, 5 << 20}).Draw(t, "size")
	m.seed++
	p := noise(size, m.seed)
	if n, err := m.file(t).WriteAt(context.Background(), p, int64(off)); err != nil || n != size {
		t.Fatalf("write: %d, %v", n, err)
	}
	if need := off + size; need > len(m.want) {
		m.want = append(m.want, make([]byte, need-len(m.want))...)
	}
	copy(m.want[off:], p)
}

func (m *modelFile) append(t *rapid.T) {
	m.seed++
	p := noise(rapid.SampledFrom([]int{1, 10, 4096, 65536, 300_000, 5 << 20}).Draw(t, "size"), m.seed)
	if n, err := m.log.WriteAt(context.Background(), p, 0); err != nil || n != len(p) {
		t.Fatalf("append: %d, %v", n, err)
	}
	m.want = append(m.want, p...)
}

// appendElsewhere has another mount append: before what this one has appended
// and not published.
func (m *modelFile) appendElsewhere(t *rapid.T) {
	i := m.log.i
	if err := i.keep(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !i.appends {
		m.flush(t)
	}
	m.seed++
	p := noise(rapid.SampledFrom([]int{1, 10, 65536, 300_000, 5 << 20}).Draw(t, "size"), m.seed)
	i.flushMu.Lock() // no flush comes between
	defer i.flushMu.Unlock()
	f := m.openOn(t, m.other, os.O_RDWR|os.O_APPEND)
	defer f.Release()
	if _, err := f.WriteAt(context.Background(), p, 0); err != nil {
		t.Fatalf("append: %v", err)
	}
	if err := f.Flush(context.Background()); err != nil {
		t.Fatalf("flush: %v", err)
	}
	m.want = slices.Insert(m.want, len(m.want)-int(i.dirtyBytes()), p...)
	if _, err := m.fs.GetAttr(context.Background(), Root(), m.ino); err != nil { // sees that there is another version
		t.Fatal(err)
	}
}

func (m *modelFile) truncate(t *rapid.T) {
	size := m.offset(t)
	if err := m.file(t).Truncate(context.Background(), int64(size)); err != nil {
		t.Fatalf("truncate: %v", err)
	}
	if size <= len(m.want) {
		m.want = m.want[:size]
	} else {
		m.want = append(m.want, make([]byte, size-len(m.want))...)
	}
}

func (m *modelFile) punch(t *rapid.T) {
	off, n := m.offset(t), rapid.IntRange(1, 200_000).Draw(t, "n")
	err := m.fs.Fallocate(context.Background(), Root(), &metapb.Fallocate{
		Ino: uint64(m.ino), Off: uint64(off), Len: uint64(n), Zero: true, KeepSize: true})
	if err != nil {
		t.Fatalf("punch: %v", err)
	}
	if off < len(m.want) {
		clear(m.want[off:min(len(m.want), off+n)])
	}
}

func (m *modelFile) flush(t *rapid.T) {
	if err := m.file(t).Flush(context.Background()); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

func (m *modelFile) fsync(t *rapid.T) {
	if err := m.file(t).Fsync(context.Background()); err != nil {
		t.Fatalf("fsync: %v", err)
	}
}

func (m *modelFile) reopen(t *rapid.T) {
	k := rapid.IntRange(0, len(m.open)-1).Draw(t, "handle")
	if err := m.open[k].Flush(context.Background()); err != nil {
		t.Fatalf("flush: %v", err)
	}
	m.open[k].Release()
	m.open[k] = m.openOn(t, m.fs, os.O_RDWR)
}

func (m *modelFile) openOn(t *rapid.T, fs *FS, flags int) *File {
	f, err := fs.Open(context.Background(), Root(), m.ino, flags)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return f
}

func (m *modelFile) merge(t *rapid.T) {
	if err := m.open[0].i.keep(context.Background()); err != nil {
		t.Fatal(err)
	}
	chunk := uint32(rapid.IntRange(0, 1).Draw(t, "chunk"))
	if err := m.open[0].i.merge(context.Background(), chunk); err != nil {
		t.Fatalf("merge: %v", err)
	}
}

// read compares some bytes, or what another mount sees after a flush.
func (m *modelFile) read(t *rapid.T) {
	off := m.offset(t)
	p := make([]byte, rapid.SampledFrom([]int{1, 5000, 200_000, 6 << 20}).Draw(t, "size"))
	m.check(t, m.file(t), p, off)
}

func (m *modelFile) readElsewhere(t *rapid.T) {
	m.flush(t)
	f := m.openOn(t, m.other, os.O_RDWR)
	defer f.Release()
	if got := f.Attr().GetSize(); got != uint64(len(m.want)) {
		t.Fatalf("another mount sees size %d, expected %d", got, len(m.want))
	}
	m.check(t, f, make([]byte, len(m.want)+1), 0)
}

func (m *modelFile) check(t *rapid.T, f *File, p []byte, off int) {
	n, err := f.ReadAt(context.Background(), p, int64(off))
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read: %v", err)
	}
	want := m.want[min(off, len(m.want)):min(len(m.want), off+len(p))]
	if !bytes.Equal(p[:n], want) {
		k := 0
		for k < n && k < len(want) && p[k] == want[k] {
			k++
		}
		t.Fatalf("read %d bytes at %d, expected %d; they differ from %d on", n, off, len(want), off+k)
	}
	a, err := m.fs.GetAttr(context.Background(), Root(), m.ino)
	if err != nil || a.GetSize() != uint64(len(m.want)) {
		t.Fatalf("size is %d, expected %d (%v)", a.GetSize(), len(m.want), err)
	}
}

// TestFileIsItsBytes runs random operations on one file through two handles and
// compares all that can be seen with an array of bytes.
func TestFileIsItsBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tree, store := meta.NewMemory(), blocktest.Poison(block.NewMemory())
		opts := Options{PGs: 4, CacheBytes: 16 << 20}
		if rapid.Bool().Draw(t, "promised") {
			opts.Vacant = anyVacant
		}
		m := &modelFile{fs: New(tree, store, opts), other: New(tree, store, Options{})}
		awaitNumbers(m.fs)
		_, f, err := m.fs.Create(context.Background(), Root(), sys.RootIno, []byte("f"), 0o644, os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		m.ino = f.Ino()
		if f.i.isPromised() != (opts.Vacant != nil) {
			t.Fatalf("promised: %v", f.i.isPromised())
		}
		m.open = []*File{f, m.fs.newFile(f.Attr(), nil, false, Root(), os.O_RDWR)}
		m.log = m.fs.newFile(f.Attr(), nil, false, Root(), os.O_RDWR|os.O_APPEND)
		t.Repeat(map[string]func(*rapid.T){
			"write": m.write, "write2": m.write, "append": m.append, "appendElsewhere": m.appendElsewhere, "truncate": m.truncate, "punch": m.punch, "flush": m.flush,
			"fsync": m.fsync, "reopen": m.reopen, "read": m.read, "readElsewhere": m.readElsewhere, "merge": m.merge,
		})
		m.readElsewhere(t)
		for _, f := range append(m.open, m.log) {
			f.Release()
		}
		for _, fs := range []*FS{m.fs, m.other} {
			if err := fs.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			if fs.budget.used != 0 || fs.budget.sending != 0 {
				t.Fatalf("budget after close: used %d, sending %d, expected 0", fs.budget.used, fs.budget.sending)
			}
		}
	})
}

// TestDirtyIsItsBytes compares the overlay of dirty extents with an array, with
// many small writes that overlap, before and after a flush.
func TestDirtyIsItsBytes(t *testing.T) {
	const size = 3000
	rapid.Check(t, func(t *rapid.T) {
		fs := New(meta.NewMemory(), blocktest.Poison(block.NewMemory()), Options{})
		defer fs.Close(context.Background())
		_, f, err := fs.Create(context.Background(), Root(), sys.RootIno, []byte("f"), 0o644, os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Release()
		want := make([]byte, size+10)
		end := 0
		for k := range rapid.IntRange(1, 80).Draw(t, "writes") {
			off := rapid.IntRange(0, size-1).Draw(t, "off")
			n := rapid.IntRange(1, min(100, size-off)).Draw(t, "n")
			p := bytes.Repeat([]byte{byte(k + 1)}, n)
			if _, err := f.WriteAt(context.Background(), p, int64(off)); err != nil {
				t.Fatal(err)
			}
			copy(want[off:], p)
			end = max(end, off+n)
			if rapid.IntRange(0, 9).Draw(t, "flush") == 0 {
				if err := f.Fsync(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, size+10)
			n, err := f.ReadAt(context.Background(), got, 0)
			if !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want[:end]) {
				t.Fatalf("write %d: read %d bytes (%v), expected %d, or they differ", k, n, err, end)
			}
		}
	})
}
