package vfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// faultyStore is a store whose puts and gets can be made to fail or wait, and
// which remembers what was synced.
type faultyStore struct {
	block.Store
	mu     sync.Mutex
	putErr error
	hold   chan struct{} // puts wait until it is closed
	gets   int
	puts   []sys.BlockKey
	synced []sys.SliceID
}

func (s *faultyStore) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	s.mu.Lock()
	err, hold := s.putErr, s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.puts = append(s.puts, key)
	s.mu.Unlock()
	return s.Store.Put(ctx, key, data)
}

func (s *faultyStore) Read(ctx context.Context, key sys.BlockKey, off, n int) (block.Buffer, error) {
	s.mu.Lock()
	s.gets++
	s.mu.Unlock()
	return s.Store.Read(ctx, key, off, n)
}

func (s *faultyStore) Sync(ctx context.Context, ids []sys.SliceID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = append(s.synced, ids...)
	return s.Store.Sync(ctx, ids)
}

func (s *faultyStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putErr = err
}

// faultyTree is a tree that loses results of commands: they have taken effect,
// and the caller is told that it is not known.
type faultyTree struct {
	meta.Client
	mu   sync.Mutex
	lose int   // how many results of Commit are lost
	lost error // what is answered then; nil: that it is not known
	err  error // what Commit answers instead of being run

	staleMerge bool // Merge is refused
	gone       int  // how many Commits and KeepOpens answer that the session is gone
}

func (f *faultyTree) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	f.mu.Lock()
	commit := cmd.GetCommit() != nil || cmd.GetMknod().GetIno() != 0
	if commit && f.err != nil {
		defer f.mu.Unlock()
		return nil, f.err
	}
	if cmd.GetMerge() != nil && f.staleMerge {
		defer f.mu.Unlock()
		return nil, sys.E(sys.Op("test"), sys.Stale)
	}
	if f.gone > 0 && (commit || cmd.GetKeepOpen() != nil) {
		defer f.mu.Unlock()
		f.gone--
		return nil, sys.E(sys.Op("replica.Apply"), sys.SessionGone)
	}
	lose := commit && f.lose > 0
	if lose {
		f.lose--
	}
	f.mu.Unlock()
	r, err := f.Client.Do(ctx, cmd)
	if lose && err == nil && f.lost != nil {
		return nil, f.lost
	}
	if lose && err == nil {
		return nil, sys.E(sys.Op("test"), sys.Unavailable, "the result was lost")
	}
	return r, err
}

func newFaulty(t testing.TB, opts Options) (*FS, *faultyTree, *faultyStore) {
	t.Helper()
	tree, store := &faultyTree{Client: meta.NewMemory()}, &faultyStore{Store: block.NewMemory()}
	fs := New(tree, store, opts)
	t.Cleanup(func() {
		if err := fs.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
		if fs.budget.used != 0 {
			t.Errorf("budget after close: %d bytes used, expected 0", fs.budget.used)
		}
	})
	return fs, tree, store
}

func write(t testing.TB, f *File, p []byte, off int64) {
	t.Helper()
	if n, err := f.WriteAt(t.Context(), p, off); err != nil || n != len(p) {
		t.Fatalf("write at %d: %d of %d, %v", off, n, len(p), err)
	}
}

func wantBytes(t testing.TB, f *File, want []byte) {
	t.Helper()
	if got := readAll(t, f); !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, expected %d, or they differ", len(got), len(want))
	}
}

// TestFailedPutIsKept: an error of a background send is told to the next
// writer and by flush, and the bytes are sent when the store works again.
func TestFailedPutIsKept(t *testing.T) {
	fs, _, store := newFaulty(t, Options{})
	f := create(t, fs, "f", 0)
	defer f.Release()
	full := sys.E(sys.Op("test"), sys.NoSpace)
	store.fail(full)
	data := noise(9<<20, 1)
	write(t, f, data, 0)
	if err := f.Flush(t.Context()); !sys.Is(err, sys.NoSpace) {
		t.Fatalf("flush: %v, expected no space", err)
	}
	if _, err := f.WriteAt(t.Context(), data[:1], 0); !sys.Is(err, sys.NoSpace) {
		t.Fatalf("write after a failed send: %v, expected no space", err)
	}
	wantBytes(t, f, data)
	if err := f.Fsync(t.Context()); !sys.Is(err, sys.NoSpace) {
		t.Fatalf("fsync: %v, expected no space", err)
	}
	store.fail(nil)
	must(t, f.Flush(t.Context()))
	wantBytes(t, f, data)
}

// TestLastCloseDropsWhatFailed: after the close that reported the error, the
// bytes are gone and the memory is free.
func TestLastCloseDropsWhatFailed(t *testing.T) {
	fs, _, store := newFaulty(t, Options{})
	f := create(t, fs, "f", 0)
	store.fail(sys.E(sys.Op("test"), sys.NoSpace))
	write(t, f, noise(5<<20, 1), 0)
	if err := f.Flush(t.Context()); !sys.Is(err, sys.NoSpace) {
		t.Fatalf("flush: %v, expected no space", err)
	}
	f.Release()
	a, err := fs.GetAttr(t.Context(), Root(), f.Ino())
	must(t, err)
	if a.GetSize() != 0 {
		t.Fatalf("size %d, expected 0", a.GetSize())
	}
}

// TestFailedCommitIsRetried: what the tree did not take stays dirty.
func TestFailedCommitIsRetried(t *testing.T) {
	for _, size := range []int{100, 5 << 20} {
		fs, tree, _ := newFaulty(t, Options{})
		f := create(t, fs, "f", 0)
		data := noise(size, 3)
		write(t, f, data, 0)
		tree.err = sys.E(sys.Op("test"), sys.Unavailable)
		if err := f.Fsync(t.Context()); !sys.Is(err, sys.Unavailable) {
			t.Fatalf("fsync: %v, expected unavailable", err)
		}
		wantBytes(t, f, data)
		write(t, f, []byte("over"), 10) // over what is sealed
		copy(data[10:], "over")
		tree.err = nil
		must(t, f.Flush(t.Context()))
		wantBytes(t, f, data)
		f.Release()
	}
}

// TestLostResult: a commit whose result was lost is found to have taken effect
// and is not an error the second time.
func TestLostResult(t *testing.T) {
	for _, size := range []int{100, 5 << 20} {
		fs, tree, _ := newFaulty(t, Options{})
		f := create(t, fs, "f", 0)
		data := noise(size, 4)
		write(t, f, data, 0)
		tree.lose = 1
		if err := f.Flush(t.Context()); !sys.Is(err, sys.Unavailable) {
			t.Fatalf("flush: %v, expected unavailable", err)
		}
		must(t, f.Flush(t.Context()))
		if f.i.isDirty() {
			t.Fatal("still dirty")
		}
		wantBytes(t, f, data)
		f.Release()
	}
}

// TestFsyncCoversWhatCloseDidNot: fsync syncs all slices of the file, also
// those that an earlier close, of this or another mount, published without.
func TestFsyncCoversWhatCloseDidNot(t *testing.T) {
	fs, tree, store := newFaulty(t, Options{})
	f := create(t, fs, "f", 0)
	write(t, f, noise(1<<20, 1), 0)
	must(t, f.Flush(t.Context()))
	ino := f.Ino()
	f.Release()
	if len(store.synced) > 0 {
		t.Fatal("close has synced")
	}

	other := New(tree, store, Options{})
	defer other.Close(t.Context())
	g, err := other.Open(t.Context(), Root(), ino, os.O_RDWR)
	must(t, err)
	write(t, g, noise(1<<20, 2), 100<<20)
	must(t, g.Fsync(t.Context()))
	for _, key := range store.puts {
		if !slices.Contains(store.synced, key.Slice) {
			t.Errorf("%v was not synced", key.Slice)
		}
	}
	store.synced = nil
	write(t, g, []byte("more"), 0)
	must(t, g.Fsync(t.Context()))
	g.Release()
	if len(store.synced) != 1 {
		t.Errorf("the second fsync synced %d slices, expected only the new one", len(store.synced))
	}
}

// TestWritersWait: dirty bytes stay within the write buffer, however many
// files there are and however slow the store is.
func TestWritersWait(t *testing.T) {
	fs, _, store := newFaulty(t, Options{WriteBuffer: 16 << 20, FlushAfter: time.Hour})
	release := make(chan struct{})
	store.hold = release
	var writers sync.WaitGroup
	for k := range 12 {
		f := create(t, fs, string(rune('a'+k)), 0)
		writers.Go(func() {
			defer f.Release()
			data := noise(5<<20, uint64(k))
			for off := 0; off < len(data); off += 512 << 10 {
				if _, err := f.WriteAt(context.Background(), data[off:off+512<<10], int64(off)); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				fs.budget.mu.Lock()
				used := fs.budget.used
				fs.budget.mu.Unlock()
				if used > 16<<20 {
					t.Errorf("%d bytes dirty, expected at most 16 MiB", used)
				}
			}
			if !bytes.Equal(readAll(t, f), data) {
				t.Error("bytes differ")
			}
			if err := f.Flush(context.Background()); err != nil {
				t.Errorf("flush: %v", err)
			}
		})
	}
	// Somebody must come to wait before the store moves on.
	for !waits(fs.budget) {
		fs.wakeWriteback()
	}
	store.mu.Lock()
	store.hold = nil
	store.mu.Unlock()
	close(release)
	writers.Wait()
}

func waits(b *budget) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.line) > 0
}

// TestWaitingWriterIsTold: with a store that takes nothing, writers get its
// error rather than wait for ever, and an interrupted writer gets away.
func TestWaitingWriterIsTold(t *testing.T) {
	fs, _, store := newFaulty(t, Options{WriteBuffer: 16 << 20, FlushAfter: time.Hour})
	store.fail(sys.E(sys.Op("test"), sys.NoSpace))
	f := create(t, fs, "f", 0)
	defer f.Release()
	var err error
	for off := int64(0); err == nil; off += 1 << 20 {
		if off > 64<<20 {
			t.Fatal("64 MiB were taken into 16")
		}
		_, err = f.WriteAt(t.Context(), noise(1<<20, 1), off)
	}
	if !sys.Is(err, sys.NoSpace) {
		t.Fatalf("write: %v, expected no space", err)
	}
	store.fail(nil)
	must(t, f.Flush(t.Context()))
}

// TestMergedAwayWhileReading: a reader whose chunk list is out of date, because
// somebody merged and the blocks were collected, finds the new ones.
func TestMergedAwayWhileReading(t *testing.T) {
	fs, tree, store := newFaulty(t, Options{})
	f := create(t, fs, "f", 0)
	defer f.Release()
	data := noise(3<<20, 1)
	write(t, f, data, 0)
	must(t, f.Flush(t.Context()))
	for k := range 40 {
		p := noise(5000, uint64(k))
		write(t, f, p, int64(k*70000))
		copy(data[k*70000:], p)
		must(t, f.Flush(t.Context()))
	}
	other := New(tree, store, Options{})
	defer other.Close(t.Context())
	g, err := other.Open(t.Context(), Root(), f.Ino(), os.O_RDWR)
	must(t, err)
	defer g.Release()
	must(t, f.i.merge(t.Context(), 0))
	a, err := f.i.chunks(t.Context(), 0, 1)
	must(t, err)
	kept := a.GetChunks()[0].GetChunk().GetSlices()
	if len(kept) != 3 {
		t.Fatalf("%d slices after the merge of 3 MiB, expected 3", len(kept))
	}
	for _, key := range store.puts {
		if !slices.ContainsFunc(kept, func(s *metapb.Slice) bool { return s.GetSlice() == uint64(key.Slice) }) {
			must(t, store.Delete(t.Context(), []sys.BlockKey{key}))
		}
	}
	wantBytes(t, g, data)
}

// TestManySmallWrites: a file under small writes with a flush each is merged in
// the background, so that its list stays short.
func TestManySmallWrites(t *testing.T) {
	fs, _, _ := newFS(t, Options{})
	f := create(t, fs, "f", 0)
	defer f.Release()
	data := noise(8<<20, 1)
	write(t, f, data, 0)
	longest := 0
	for k := range 1500 {
		off := (k * 7919 * 4096) % (len(data) - 4096)
		p := noise(4096, uint64(k))
		write(t, f, p, int64(off))
		copy(data[off:], p)
		must(t, f.Flush(t.Context()))
		a, err := f.i.chunks(t.Context(), 0, 1)
		must(t, err)
		longest = max(longest, len(a.GetChunks()[0].GetChunk().GetSlices()))
	}
	if longest > mergeLate+1 {
		t.Errorf("a list of %d slices, expected it to be merged", longest)
	}
	wantBytes(t, f, data)
}

// TestManyScatteredWrites: more separate runs than a chunk's list holds are
// published by one flush.
func TestManyScatteredWrites(t *testing.T) {
	fs, _, _ := newFS(t, Options{FlushAfter: time.Hour})
	f := create(t, fs, "f", 0)
	defer f.Release()
	const runs, step = 6000, 10_000
	data := make([]byte, (runs-1)*step+1)
	for k := range runs {
		data[k*step] = byte(k + 1)
		write(t, f, data[k*step:k*step+1], int64(k*step))
	}
	must(t, f.Flush(t.Context()))
	wantBytes(t, f, data)
}

func TestAppendsOfTwoHandlesAndMounts(t *testing.T) {
	fs, tree, store := newFaulty(t, Options{})
	other := New(tree, store, Options{})
	defer other.Close(t.Context())
	f := create(t, fs, "log", os.O_APPEND)
	defer f.Release()
	g, err := fs.Open(t.Context(), Root(), f.Ino(), os.O_WRONLY|os.O_APPEND)
	must(t, err)
	defer g.Release()
	h, err := other.Open(t.Context(), Root(), f.Ino(), os.O_WRONLY|os.O_APPEND)
	must(t, err)
	defer h.Release()
	var want []byte
	for k := range 30 {
		line := []byte{byte('a' + k%26), '\n'}
		for _, w := range []*File{f, g} {
			write(t, w, line, 0)
			want = append(want, line...)
		}
		must(t, f.Flush(t.Context()))
		write(t, h, line, 0)
		must(t, h.Flush(t.Context()))
		want = append(want, line...)
	}
	_, err = fs.GetAttr(t.Context(), Root(), f.Ino())
	must(t, err)
	wantBytes(t, f, want)
}

// late is the clock of a machine whose time of day is a day behind.
type late struct{ env.System }

func (late) Wall() time.Time { return time.Now().Add(-24 * time.Hour) }

func TestOpenUnlinkedIsKept(t *testing.T) {
	tree := meta.NewMemory()
	fs := New(tree, block.NewMemory(), Options{Retention: time.Hour, Clock: late{}})
	defer fs.Close(context.Background())
	f := create(t, fs, "f", 0)
	write(t, f, []byte("here"), 0)
	must(t, fs.Unlink(t.Context(), Root(), sys.RootIno, []byte("f")))
	must(t, fs.tellOpen(t.Context()))
	purge := &metapb.Command{Op: &metapb.Command_Purge{Purge: &metapb.Purge{Limit: 100}}}
	_, err := tree.Do(t.Context(), purge)
	must(t, err)
	must(t, f.Flush(t.Context()))
	wantBytes(t, f, []byte("here"))
	f.Release()
	if _, err := fs.Lookup(t.Context(), Root(), sys.RootIno, []byte("f")); !sys.Is(err, sys.NotExist) {
		t.Fatalf("lookup: %v, expected that it does not exist", err)
	}
}

// TestUnchanged: a file that only this mount has changed since it was last
// open is known to be unchanged at the next open; one that another mount
// changed is not.
func TestUnchanged(t *testing.T) {
	fs, tree, store := newFaulty(t, Options{})
	other := New(tree, store, Options{})
	defer other.Close(t.Context())
	f := create(t, fs, "f", 0)
	ino := f.Ino()
	write(t, f, noise(200_000, 1), 0)
	must(t, f.Flush(t.Context()))
	f.Release()
	open := func(on *FS) *File {
		g, err := on.Open(t.Context(), Root(), ino, os.O_RDWR)
		must(t, err)
		return g
	}
	g := open(fs)
	if !g.Unchanged() {
		t.Error("own writes count as a change")
	}
	h := open(other)
	if h.Unchanged() {
		t.Error("a file that this mount has never seen counts as unchanged")
	}
	write(t, h, []byte("x"), 0)
	must(t, h.Flush(t.Context()))
	h.Release()
	_, err := fs.GetAttr(t.Context(), Root(), ino)
	must(t, err)
	g.Release()
	g = open(fs)
	defer g.Release()
	if g.Unchanged() {
		t.Error("another mount's write does not count as a change")
	}
}

func TestClosedFS(t *testing.T) {
	fs := New(meta.NewMemory(), block.NewMemory(), Options{})
	f := create(t, fs, "f", 0)
	write(t, f, noise(6<<20, 1), 0)
	must(t, fs.Close(t.Context()))
	must(t, fs.Close(t.Context()))
	if _, err := f.WriteAt(t.Context(), []byte("x"), 0); !sys.Is(err, sys.BadHandle) {
		t.Fatalf("write after close: %v, expected a bad handle", err)
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 10), 0); err == nil || errors.Is(err, context.Canceled) {
		t.Fatalf("read after close: %v, expected an error of ours", err)
	}
	f.Release()
}

// mute is a tree that does not answer commits once it is told to.
type mute struct {
	meta.Client
	on atomic.Bool
}

func (m *mute) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	if cmd.GetCommit() != nil && m.on.Load() {
		<-ctx.Done()
		return nil, sys.E(sys.Unavailable, ctx.Err())
	}
	return m.Client.Do(ctx, cmd)
}

// TestCloseWithoutMajority: however many files are dirty, Close gives up after
// the time of one operation, or with its caller's.
func TestCloseWithoutMajority(t *testing.T) {
	for _, c := range []struct{ timeout, deadline time.Duration }{{200 * time.Millisecond, 0}, {time.Hour, 200 * time.Millisecond}} {
		tree := &mute{Client: meta.NewMemory()}
		fs := New(tree, block.NewMemory(), Options{Timeout: c.timeout, FlushAfter: time.Hour})
		for k := range 100 {
			f := create(t, fs, fmt.Sprint(k), 0)
			write(t, f, []byte("bytes"), 0)
		}
		tree.on.Store(true)
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if c.deadline > 0 {
			ctx, cancel = context.WithTimeout(ctx, c.deadline)
		}
		began := time.Now()
		err := fs.Close(ctx)
		cancel()
		if took := time.Since(began); took > 10*time.Second/4 {
			t.Errorf("%v: Close took %v", c, took)
		}
		if !sys.Is(err, sys.Unavailable) || !strings.Contains(fmt.Sprint(err), "and 92 more files") {
			t.Errorf("%v: %v", c, err)
		}
	}
}
