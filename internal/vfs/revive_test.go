package vfs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// sessions is a tree whose client has a session that can end, as that of a
// machine which slept: numbers are reserved on its account.
type sessions struct {
	meta.Client
	mu      sync.Mutex
	session uint64
}

func (s *sessions) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	if op := cmd.GetAllocSlices(); op != nil {
		s.mu.Lock()
		op.Session = s.session
		s.mu.Unlock()
	}
	return s.Client.Do(ctx, cmd)
}

// end ends the session and opens the next.
func (s *sessions) end(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.Client.Do(t.Context(), &metapb.Command{Op: &metapb.Command_EndSession{
		EndSession: &metapb.EndSession{Session: s.session}}})
	must(t, err)
	s.session++
}

// collect deletes the blocks of all that is freed, as the collector does when
// their time has come.
func collect(t *testing.T, tree meta.Client, store block.Store) {
	t.Helper()
	a, err := tree.Query(t.Context(), &metapb.Query{Op: &metapb.Query_ReadFreed{ReadFreed: &metapb.ReadFreed{}}})
	must(t, err)
	var keys []sys.BlockKey
	for _, row := range a.GetChunks() {
		for _, r := range row.GetChunk().GetRanges() {
			for seq := r.GetFirst(); seq < r.GetFirst()+uint64(r.GetCount()); seq++ {
				for b := range uint32(sys.ChunkSize / sys.BlockSize) {
					keys = append(keys, sys.BlockKey{Slice: sys.PlaceSlice(seq, 1), Index: b})
				}
			}
		}
		for _, s := range row.GetChunk().GetSlices() {
			for b := range (s.GetSliceLen() + sys.BlockSize - 1) / sys.BlockSize {
				keys = append(keys, sys.BlockKey{Slice: sys.SliceID(s.GetSlice()), Index: b})
			}
		}
	}
	must(t, store.Delete(t.Context(), keys))
}

// pending is how many slice numbers are reserved, and how many slices and
// ranges wait for the collector.
func pending(t *testing.T, tree meta.Client) (reserved, freed int64) {
	t.Helper()
	rep, err := meta.Check(t.Context(), tree, meta.CheckOptions{})
	must(t, err)
	for _, p := range rep.Problems {
		t.Errorf("check: %v", p)
	}
	return rep.Pending, rep.Freed
}

func newSleepy(t *testing.T, opts Options) (*FS, *sessions, *faultyTree, *faultyStore) {
	t.Helper()
	opts.FlushAfter = time.Hour
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	tree := &sessions{Client: meta.NewMemory(), session: 1}
	faulty, store := &faultyTree{Client: tree}, &faultyStore{Store: block.NewMemory()}
	fs := New(faulty, store, opts)
	t.Cleanup(func() {
		must(t, fs.Close(context.Background()))
		if fs.budget.used != 0 {
			t.Errorf("budget after close: %d bytes used, expected 0", fs.budget.used)
		}
	})
	return fs, tree, faulty, store
}

// settled waits until nothing of a file is on its way to the store.
func settled(f *File) {
	f.i.mu.RLock()
	var wait []chan struct{}
	for _, exts := range f.i.dirty {
		for _, e := range exts {
			for b := range e.r.blocks {
				if blk := &e.r.blocks[b]; blk.state == blockSending {
					wait = append(wait, blk.done)
				}
			}
		}
	}
	f.i.mu.RUnlock()
	for _, done := range wait {
		<-done
	}
}

// elsewhere checks what another mount reads.
func elsewhere(t *testing.T, fs *FS, ino sys.Ino, want []byte) {
	t.Helper()
	other := New(fs.meta, fs.store, Options{})
	defer func() { must(t, other.Close(context.Background())) }()
	g, err := other.Open(t.Context(), Root(), ino, 0)
	must(t, err)
	defer g.Release()
	wantBytes(t, g, want)
}

// TestSessionEnds: unflushed bytes outlive the session on whose account they
// were sent, also when the collector has deleted their blocks meanwhile, and
// nobody sees an error.
func TestSessionEnds(t *testing.T) {
	for name, collected := range map[string]bool{"early": false, "late": true} {
		t.Run(name, func(t *testing.T) {
			fs, tree, _, store := newSleepy(t, Options{})
			f := create(t, fs, "f", 0)
			defer f.Release()
			data := noise(10<<20, 1) // two blocks are sent, one is not
			write(t, f, data, 0)
			settled(f)
			tree.end(t)
			if collected {
				collect(t, tree, store)
			}
			write(t, f, []byte("more"), int64(len(data)))
			data = append(data, "more"...)
			must(t, f.Fsync(t.Context()))
			wantBytes(t, f, data)
			elsewhere(t, fs, f.Ino(), data)

			g := create(t, fs, "g", 0) // the rest of the old numbers is not used
			defer g.Release()
			puts := len(store.puts)
			write(t, g, data, 0)
			must(t, g.Flush(t.Context()))
			if n := len(store.puts) - puts; n != 3 {
				t.Errorf("%d puts for the next file, expected 3", n)
			}
			elsewhere(t, fs, g.Ino(), data)
			pending(t, tree)
		})
	}
}

// TestSessionEndsUnderPressure: blocks whose memory was needed are fetched back
// while they exist. When they are gone the loss is told once, and the file
// goes on with what is left.
func TestSessionEndsUnderPressure(t *testing.T) {
	for name, collected := range map[string]bool{"early": false, "late": true} {
		t.Run(name, func(t *testing.T) {
			fs, tree, _, store := newSleepy(t, Options{WriteBuffer: 16 << 20})
			f := create(t, fs, "f", 0)
			defer f.Release()
			data := noise(40<<20, 2)
			for off := 0; off < len(data); off += 1 << 20 {
				write(t, f, data[off:off+1<<20], int64(off))
			}
			settled(f)
			tree.end(t)
			if !collected {
				must(t, f.Flush(t.Context()))
				elsewhere(t, fs, f.Ino(), data)
				return
			}
			if f.i.dirtyBytes() != uint64(len(data)) {
				t.Fatalf("%d bytes are dirty, expected all", f.i.dirtyBytes())
			}
			collect(t, tree, store)
			if err := f.Fsync(t.Context()); !sys.Is(err, sys.SessionGone) {
				t.Fatalf("fsync: %v, expected that the session is gone", err)
			}
			must(t, f.Fsync(t.Context()))
			write(t, f, data, 0)
			must(t, f.Fsync(t.Context()))
			elsewhere(t, fs, f.Ino(), data)
		})
	}
}

// TestLostResultCovered: a commit took effect, its result was lost, and another
// mount covered all of it before the next flush: that is no error, and the
// other's bytes stay.
func TestLostResultCovered(t *testing.T) {
	fs, tree, faulty, _ := newSleepy(t, Options{})
	f := create(t, fs, "f", 0)
	defer f.Release()
	write(t, f, noise(5<<20, 1), 0)
	faulty.lose = 1
	if err := f.Flush(t.Context()); !sys.Is(err, sys.Unavailable) {
		t.Fatalf("flush: %v, expected unavailable", err)
	}
	other := New(tree, fs.store, Options{})
	defer func() { must(t, other.Close(context.Background())) }()
	g, err := other.Open(t.Context(), Root(), f.Ino(), 2)
	must(t, err)
	defer g.Release()
	theirs := noise(6<<20, 2)
	write(t, g, theirs, 0)
	must(t, g.Flush(t.Context()))
	must(t, f.Flush(t.Context()))
	if f.i.isDirty() {
		t.Fatal("still dirty")
	}
	wantBytes(t, f, theirs)
	elsewhere(t, fs, f.Ino(), theirs)
}

// TestGivenUp: what was sent and then overwritten, cut off or merged in vain
// leaves no block behind.
func TestGivenUp(t *testing.T) {
	fs, tree, faulty, store := newSleepy(t, Options{})
	f := create(t, fs, "f", 0)
	defer f.Release()
	write(t, f, noise(9<<20, 1), 0)
	settled(f)
	must(t, f.Truncate(t.Context(), 0))
	data := noise(5<<20, 2)
	write(t, f, data, 0)
	must(t, f.Flush(t.Context()))
	for k := range 40 { // pieces for a merge
		p := noise(5000, uint64(k))
		write(t, f, p, int64(k*20000))
		copy(data[k*20000:], p)
		must(t, f.Flush(t.Context()))
	}
	faulty.staleMerge = true
	must(t, f.i.merge(t.Context(), 0))
	faulty.staleMerge = false
	fs.ids.tellGivenUp(t.Context())
	if _, freed := pending(t, tree); freed != 2 {
		t.Errorf("%d slices freed, expected those of the cut run and of the merge", freed)
	}
	collect(t, tree, store)
	wantBytes(t, f, data)
	var used []sys.SliceID
	must(t, f.i.eachRow(t.Context(), uint64(len(data)), func(_ uint32, c *metapb.Chunk) {
		for _, s := range c.GetSlices() {
			used = append(used, sys.SliceID(s.GetSlice()))
		}
	}))
	infos, err := store.List(t.Context(), 0, sys.BlockKey{}, 1000)
	must(t, err)
	for _, info := range infos {
		if !contains(used, info.Key.Slice) {
			t.Errorf("block %v is left behind", info.Key)
		}
	}
}

func contains(ids []sys.SliceID, id sys.SliceID) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}

// TestFsyncCoversWhatOthersCloseLater: what another mount publishes while a
// file is open here is covered by fsync, too.
func TestFsyncCoversWhatOthersCloseLater(t *testing.T) {
	fs, tree, store := newFaulty(t, Options{})
	f := create(t, fs, "f", 0)
	defer f.Release()
	write(t, f, noise(100_000, 1), 0)
	must(t, f.Fsync(t.Context()))
	other := New(tree, store, Options{})
	defer func() { must(t, other.Close(context.Background())) }()
	g, err := other.Open(t.Context(), Root(), f.Ino(), 2)
	must(t, err)
	write(t, g, noise(200_000, 2), 0)
	must(t, g.Flush(t.Context()))
	g.Release()
	store.synced = nil
	must(t, f.Fsync(t.Context()))
	last := store.puts[len(store.puts)-1].Slice
	if !contains(store.synced, last) {
		t.Errorf("%v was not synced, only %v", last, store.synced)
	}
}

func TestLookupOfALongName(t *testing.T) {
	fs, _, _ := newFS(t, Options{})
	_, err := fs.Lookup(t.Context(), Root(), sys.RootIno, bytes.Repeat([]byte("x"), sys.NameMax+1))
	if !sys.Is(err, sys.NameTooLong) {
		t.Errorf("lookup: %v, expected that the name is too long", err)
	}
}

// TestEndedBetweenTries: a command whose session ends while it is under way,
// so that nobody knows what became of it, is run again where twice does the
// same as once.
func TestEndedBetweenTries(t *testing.T) {
	for _, size := range []int{100, 5 << 20} {
		fs, tree, faulty, _ := newSleepy(t, Options{})
		f := create(t, fs, "f", 0)
		data := noise(size, 1)
		write(t, f, data, 0)
		settled(f)
		tree.end(t)
		faulty.gone = 1
		must(t, f.Fsync(t.Context()))
		wantBytes(t, f, data)
		elsewhere(t, fs, f.Ino(), data)
		faulty.gone = 1
		must(t, fs.tellOpen(t.Context()))
		f.Release()
	}
}
