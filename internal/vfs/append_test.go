package vfs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// another returns another mount of the tree of fs, and a handle there that
// appends to the file of f.
func another(t *testing.T, f *File) *File {
	t.Helper()
	fs := New(f.fs.meta, f.fs.store, Options{})
	t.Cleanup(func() { must(t, fs.Close(context.Background())) })
	g, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_RDWR|os.O_APPEND)
	must(t, err)
	t.Cleanup(g.Release)
	return g
}

// TestTwoMountsAppend: two mounts append to one file and publish now and then:
// every record is there once, whole, those of a mount in their order.
func TestTwoMountsAppend(t *testing.T) {
	for _, size := range []int{20, 9_000, 400_000} {
		fs, mc, _ := newFS(t, Options{})
		f := create(t, fs, "f", os.O_APPEND)
		defer f.Release()
		must(t, f.Flush(t.Context()))
		const records = 40
		var writers sync.WaitGroup
		for k, h := range []*File{f, another(t, f), another(t, f)} {
			writers.Go(func() {
				for n := range records {
					line := fmt.Sprintf("mount %d record %d %s\n", k, n, strings.Repeat("x", size))
					if _, err := h.WriteAt(t.Context(), []byte(line), 0); err != nil {
						t.Error(err)
					}
					if n%(k+2) == 0 {
						if err := h.Flush(t.Context()); err != nil {
							t.Error(err)
						}
					}
				}
				if err := h.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		writers.Wait()
		g := another(t, f)
		next := make([]int, 3)
		for line := range strings.Lines(string(readAll(t, g))) {
			var k, n int
			var rest string
			if _, err := fmt.Sscanf(line, "mount %d record %d %s\n", &k, &n, &rest); err != nil || len(rest) != size || n != next[k] {
				t.Fatalf("size %d: record %d of mount %d is %.40q (%d bytes), %v", size, next[k], k, line, len(line), err)
			}
			next[k]++
		}
		for k, n := range next {
			if n != records {
				t.Errorf("size %d: %d records of mount %d, expected %d", size, n, k, records)
			}
		}
		pending(t, mc)
	}
}

// TestAppendAcrossChunks: another mount's append moves one that is being
// published across the end of a chunk, again and again.
func TestAppendAcrossChunks(t *testing.T) {
	for _, theirs := range []int64{51, 3 << 20, 5<<20 - 7, 9 << 20} {
		tree, store := &sessions{Client: meta.NewMemory(), session: 1}, blocktest.Poison(block.NewMemory())
		fs := New(tree, store, Options{})
		f := create(t, fs, "f", os.O_APPEND)
		start := int64(sys.ChunkSize - 9<<20 - 50)
		must(t, f.Truncate(t.Context(), start))
		ours := noise(9<<20, 1) // fits
		_, err := f.WriteAt(t.Context(), ours, 0)
		must(t, err)
		settled(f)
		g := another(t, f)
		other := noise(int(theirs), 2)
		_, err = g.WriteAt(t.Context(), other, 0)
		must(t, err)
		must(t, g.Flush(t.Context()))
		must(t, f.Fsync(t.Context()))
		p := make([]byte, int(theirs)+len(ours))
		if n, err := another(t, f).ReadAt(t.Context(), p, start); n != len(p) || err != nil {
			t.Fatalf("read %d of %d bytes, %v", n, len(p), err)
		}
		if !bytes.Equal(p[:theirs], other) || !bytes.Equal(p[theirs:], ours) {
			t.Errorf("after %d bytes of another mount the bytes differ", theirs)
		}
		fs.ids.tellGivenUp(t.Context())
		pending(t, tree)
		f.Release()
		must(t, fs.Close(context.Background()))
		if fs.budget.used != 0 {
			t.Errorf("budget after close: %d bytes used, expected 0", fs.budget.used)
		}
	}
}

// TestAppendIsPublishedOnce: the result of a commit was lost, and others have
// appended since.
func TestAppendIsPublishedOnce(t *testing.T) {
	fs, _, faulty, _ := newSleepy(t, Options{})
	f := create(t, fs, "f", os.O_APPEND)
	defer f.Release()
	must(t, f.Truncate(t.Context(), sys.ChunkSize-1<<20))
	first, ours, theirs := noise(900<<10, 1), noise(5<<20, 2), noise(2<<20, 3)
	g := another(t, f)
	_, err := f.WriteAt(t.Context(), first, 0)
	must(t, err)
	must(t, f.Flush(t.Context()))
	_, err = f.WriteAt(t.Context(), ours[:80<<10], 0)
	must(t, err)
	must(t, f.Flush(t.Context()))
	for _, h := range []*File{g, f} { // what is of f comes to lie in the next chunk
		p := theirs
		if h == f {
			p = ours[80<<10:]
		}
		if _, err := h.WriteAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		if h == g {
			must(t, h.Flush(t.Context()))
		}
	}
	faulty.mu.Lock()
	faulty.lose = 1
	faulty.mu.Unlock()
	if err := f.Flush(t.Context()); !sys.Is(err, sys.Unavailable) {
		t.Fatalf("flush: %v, expected unavailable", err)
	}
	_, err = g.WriteAt(t.Context(), theirs[:10], 0)
	must(t, err)
	must(t, g.Flush(t.Context()))
	must(t, f.Flush(t.Context()))
	want := append(make([]byte, sys.ChunkSize-1<<20), first...)
	for _, p := range [][]byte{ours[:80<<10], theirs, ours[80<<10:], theirs[:10]} {
		want = append(want, p...)
	}
	elsewhere(t, fs, f.Ino(), want)
}

// TestAppendAmongWrites: appends do not mix with writes that have a place, nor
// with a truncation, and readers of the mount see all in order.
func TestAppendAmongWrites(t *testing.T) {
	fs, _, _ := newFS(t, Options{})
	f := create(t, fs, "f", os.O_APPEND)
	defer f.Release()
	plain, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_RDWR)
	must(t, err)
	defer plain.Release()
	g := another(t, f)
	appendTo := func(h *File, s string) {
		t.Helper()
		appendTo(t, h, []byte(s))
	}
	appendTo(f, "one ")
	appendTo(g, "two ") // before the end that f has in mind is published
	must(t, g.Flush(t.Context()))
	if _, err := fs.GetAttr(t.Context(), Root(), f.Ino()); err != nil {
		t.Fatal(err)
	}
	if got := string(readAll(t, plain)); got != "two one " {
		t.Fatalf("found %q", got)
	}
	write(t, plain, []byte("TWO"), 0)
	appendTo(f, "three ")
	appendTo(g, "four ")
	must(t, g.Flush(t.Context()))
	must(t, f.Truncate(t.Context(), 20))
	write(t, plain, []byte("!"), 19)
	appendTo(f, "five")
	must(t, f.Flush(t.Context()))
	elsewhere(t, fs, f.Ino(), []byte("TWO one four three \x00"[:19]+"!five"))
	if _, err := fs.SetAttr(t.Context(), Root(), &metapb.SetAttr{Ino: uint64(f.Ino()), Size: new(uint64)}); err != nil {
		t.Fatal(err)
	}
	appendTo(f, "anew")
	must(t, f.Fsync(t.Context()))
	elsewhere(t, fs, f.Ino(), []byte("anew"))

	appendTo(g, " theirs")
	must(t, g.Flush(t.Context()))
	appendTo(f, " ours") // kept where theirs is
	must(t, f.Flush(t.Context()))
	appendTo(f, " more")
	if got := string(readAll(t, plain)); got != "anew theirs ours more" || f.i.isDirty() {
		t.Errorf("where others append a reader found %q, dirty %v: expected it at its place, published", got, f.i.isDirty())
	}
}

// TestAppendsAreMerged: the list of slices of a file to which two mounts append
// in turn stays short.
func TestAppendsAreMerged(t *testing.T) {
	fs, _, _ := newFS(t, Options{})
	f := create(t, fs, "f", os.O_APPEND)
	defer f.Release()
	must(t, f.Flush(t.Context()))
	handles := []*File{f, another(t, f)}
	var want []byte
	for n := range 400 {
		p := noise(1500, uint64(n))
		want = append(want, p...)
		h := handles[n%2]
		if _, err := h.WriteAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		must(t, h.Flush(t.Context()))
	}
	for longest, begun := mergeAt+1, time.Now(); longest > mergeAt; time.Sleep(time.Millisecond) { // merges run in the background
		a, err := f.i.chunks(t.Context(), 0, 1)
		must(t, err)
		longest = len(a.GetChunks()[0].GetChunk().GetSlices())
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("the list has %d slices after %d appends", longest, 400)
		}
	}
	elsewhere(t, fs, f.Ino(), want)
}
