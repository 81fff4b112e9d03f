package vfs

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// gatedTree stops commands of a kind before they are run, or their results.
type gatedTree struct {
	meta.Client
	before, after func(*metapb.Command) bool
	came, pass    chan struct{}
}

func newGated(t *testing.T) (*FS, *gatedTree) {
	t.Helper()
	none := func(*metapb.Command) bool { return false }
	tree := &gatedTree{Client: meta.NewMemory(), before: none, after: none, came: make(chan struct{}), pass: make(chan struct{})}
	fs := New(tree, block.NewMemory(), Options{})
	t.Cleanup(func() { must(t, fs.Close(context.Background())) })
	return fs, tree
}

func (g *gatedTree) wait() {
	g.came <- struct{}{}
	<-g.pass
}

func (g *gatedTree) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	before, after := g.before(cmd), g.after(cmd)
	if before {
		g.wait()
	}
	r, err := g.Client.Do(ctx, cmd)
	if after {
		g.wait()
	}
	return r, err
}

func appendTo(t *testing.T, f *File, p []byte) {
	t.Helper()
	if n, err := f.WriteAt(t.Context(), p, 0); err != nil || n != len(p) {
		t.Fatalf("append: %d, %v", n, err)
	}
}

// TestSizeWhileAppendsArePublished: the tree has them already, and they are
// still dirty here: they count once.
func TestSizeWhileAppendsArePublished(t *testing.T) {
	fs, tree := newGated(t)
	f := create(t, fs, "f", os.O_APPEND)
	defer f.Release()
	must(t, f.Flush(t.Context()))
	appendTo(t, f, []byte("0123456789"))
	tree.after = func(cmd *metapb.Command) bool { return cmd.GetCommit() != nil }
	done := make(chan error)
	go func() { done <- f.Flush(context.Background()) }()
	<-tree.came
	a, err := fs.GetAttr(t.Context(), Root(), f.Ino())
	must(t, err)
	if a.GetSize() != 10 {
		t.Errorf("size %d while 10 bytes are being published", a.GetSize())
	}
	tree.pass <- struct{}{}
	must(t, <-done)
}

// TestAppendDuringTruncation: what is appended while a truncation is under way
// comes after it, whole.
func TestAppendDuringTruncation(t *testing.T) {
	fs, tree := newGated(t)
	f := create(t, fs, "f", os.O_APPEND)
	defer f.Release()
	appendTo(t, f, bytes.Repeat([]byte("a"), 100))
	must(t, f.Flush(t.Context()))
	appendTo(t, f, []byte("cut off"))
	tree.before = func(cmd *metapb.Command) bool { return cmd.GetSetAttr() != nil }
	for _, size := range []int64{50, 150} {
		done := make(chan error)
		go func() { done <- f.Truncate(context.Background(), size) }()
		<-tree.came
		appendTo(t, f, bytes.Repeat([]byte("b"), 100))
		tree.pass <- struct{}{}
		must(t, <-done)
		must(t, f.Flush(t.Context()))
	}
	want := append(bytes.Repeat([]byte("a"), 50), bytes.Repeat([]byte("b"), 200)...)
	elsewhere(t, fs, f.Ino(), want)
}

// TestTruncateOnFullDisk: appends that a truncation throws away are not
// published for it.
func TestTruncateOnFullDisk(t *testing.T) {
	fs, _, store := newFaulty(t, Options{})
	f := create(t, fs, "f", os.O_APPEND)
	defer f.Release()
	appendTo(t, f, noise(300<<10, 1))
	must(t, f.Flush(t.Context()))
	appendTo(t, f, noise(300<<10, 2))
	store.fail(sys.E(sys.Op("test"), sys.NoSpace))
	must(t, f.Truncate(t.Context(), 0))
	store.fail(nil)
	must(t, f.Fsync(t.Context()))
	elsewhere(t, fs, f.Ino(), nil)
}

// TestLostResultNearTheEndOfAChunk: what was published, and does not fit where the
// end is now, is not published again.
func TestLostResultNearTheEndOfAChunk(t *testing.T) {
	fs, _, faulty, _ := newSleepy(t, Options{})
	f := create(t, fs, "f", os.O_APPEND)
	defer f.Release()
	must(t, f.Truncate(t.Context(), sys.ChunkSize-1<<20))
	ours := noise(900<<10, 1)
	appendTo(t, f, ours)
	faulty.lose = 1
	if err := f.Flush(t.Context()); !sys.Is(err, sys.Unavailable) {
		t.Fatalf("flush: %v, expected unavailable", err)
	}
	must(t, f.Flush(t.Context()))
	elsewhere(t, fs, f.Ino(), append(make([]byte, sys.ChunkSize-1<<20), ours...))
}

// TestLostResultOfASmallAppend: the bytes are in a command, and have no number
// by which they could be found.
func TestLostResultOfASmallAppend(t *testing.T) {
	for _, kind := range []sys.Kind{sys.Unavailable, sys.SessionGone} {
		fs, _, faulty, _ := newSleepy(t, Options{})
		f := create(t, fs, "f", os.O_APPEND)
		must(t, f.Flush(t.Context()))
		faulty.lost = sys.E(sys.Op("replica.Apply"), kind)
		for _, record := range []string{"one ", "two "} {
			appendTo(t, f, []byte(record))
			faulty.lose = 1
			if err := f.Flush(t.Context()); err != nil {
				must(t, f.Flush(t.Context()))
			}
		}
		elsewhere(t, fs, f.Ino(), []byte("one two "))
		f.Release()
	}
}

// TestLostResultOfAPromise: the command that made the file took its first bytes
// along, which is not known when more are written; another mount may have
// appended since.
func TestLostResultOfAPromise(t *testing.T) {
	for _, flags := range []int{0, os.O_APPEND} {
		for _, size := range []int{100, 300 << 10} {
			fs, _, faulty, _ := newSleepy(t, Options{Vacant: anyVacant})
			awaitNumbers(fs)
			f := create(t, fs, "f", flags)
			if !f.i.isPromised() {
				t.Fatal("it is not promised")
			}
			ours, theirs, more := noise(size, 1), noise(size/2, 2), noise(7, 3)
			write(t, f, ours, 0)
			faulty.lose = 1
			if err := f.Flush(t.Context()); !sys.Is(err, sys.Unavailable) {
				t.Fatalf("flush: %v, expected unavailable", err)
			}
			want := bytes.Clone(ours)
			if flags != 0 {
				g := another(t, f)
				appendTo(t, g, theirs)
				must(t, g.Flush(t.Context()))
				want = append(want, theirs...)
			}
			write(t, f, more, int64(len(ours)))
			must(t, f.Fsync(t.Context()))
			elsewhere(t, fs, f.Ino(), append(want, more...))
			f.Release()
		}
	}
}
