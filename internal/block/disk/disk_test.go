package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

// quiet are options of a store on fs that logs nothing and works at full
// speed.
func quiet(fs envfs.FS) Options {
	return Options{Dir: "blocks", FS: fs, Logger: slog.New(slog.DiscardHandler), CompactRate: 1 << 40}
}

func mustOpen(t testing.TB, opt Options) *Store {
	t.Helper()
	s, err := Open(opt)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func mustPut(t testing.TB, s *Store, key sys.BlockKey, n int) {
	t.Helper()
	if err := s.Put(ctx, key, blocktest.Bytes(key, n)); err != nil {
		t.Fatalf("Put(%v): %v", key, err)
	}
}

func mustHave(t testing.TB, s block.Store, key sys.BlockKey, n int) {
	t.Helper()
	dst := make([]byte, n)
	if err := s.Get(ctx, key, 0, dst); err != nil || !bytes.Equal(dst, blocktest.Bytes(key, n)) {
		t.Fatalf("Get(%v, %d bytes): %v", key, n, err)
	}
}

func wantKind(t testing.TB, what string, err error, kind sys.Kind) {
	t.Helper()
	if !sys.Is(err, kind) {
		t.Fatalf("%s: error %v, want kind %q", what, err, kind)
	}
}

// damage flips a bit of a stored block on its disk.
func damage(t testing.TB, s *Store, key sys.BlockKey, off int) {
	t.Helper()
	s.mu.RLock()
	e, ok := s.index.entries[key]
	s.mu.RUnlock()
	if !ok || e.deleted() {
		t.Fatalf("no %v to damage", key)
	}
	flip(t, s.fs, s.fs.PathJoin(s.dir, segmentName(e.segment)), e.offset()+sectorSize+int64(off))
}

// flip flips a bit of a file.
func flip(t testing.TB, fs envfs.FS, path string, off int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	options := blocktest.Options{Tombstones: true, Damage: func(t *testing.T, s block.Store, key sys.BlockKey, off int) {
		damage(t, s.(*Store), key, off)
	}}
	t.Run("memory", func(t *testing.T) {
		blocktest.Run(t, func(t *testing.T) block.Store { return mustOpen(t, quiet(vfs.NewMem())) }, options)
	})
	t.Run("disk", func(t *testing.T) {
		blocktest.Run(t, func(t *testing.T) block.Store {
			opt := quiet(nil)
			opt.Dir = t.TempDir()
			return mustOpen(t, opt)
		}, options)
	})
	t.Run("small segments", func(t *testing.T) {
		blocktest.Run(t, func(t *testing.T) block.Store {
			opt := quiet(vfs.NewMem())
			opt.SegmentBytes = 256 << 10
			return mustOpen(t, opt)
		}, options)
	})
}

func TestReopenFindsEverything(t *testing.T) {
	for _, c := range []struct {
		name  string
		clean bool
	}{{"after Close", true}, {"after a kill", false}} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			opt := quiet(fs)
			opt.SegmentBytes = 1 << 20
			s := mustOpen(t, opt)
			for i := range uint32(40) {
				mustPut(t, s, blocktest.Key(uint64(i+1), 1, i), 100_000+int(i))
			}
			gone := blocktest.Key(3, 1, 2)
			if err := s.Delete(ctx, []sys.BlockKey{gone}); err != nil {
				t.Fatal(err)
			}
			if c.clean {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else if err := s.Sync(ctx, nil); err != nil {
				t.Fatal(err)
			}
			opt.FS = fs.CrashClone(vfs.CrashCloneCfg{})
			s = mustOpen(t, opt)
			r := s.Recovery()
			if r.Blocks != 39 || r.Deleted != 1 || r.TornBytes+r.DamagedBytes != 0 || len(r.Dropped) != 0 {
				t.Fatalf("recovered %+v", r)
			}
			if c.clean && r.Scanned != 0 {
				t.Fatalf("%d segments were scanned though all have hints", r.Scanned)
			}
			for i := range uint32(40) {
				if key := blocktest.Key(uint64(i+1), 1, i); key != gone {
					mustHave(t, s, key, 100_000+int(i))
				}
			}
			wantKind(t, "Put of a deleted key", s.Put(ctx, gone, []byte("x")), sys.Stale)
			mustPut(t, s, blocktest.Key(100, 1, 0), 5000)
		})
	}
}

func TestTornTailIsCut(t *testing.T) {
	for _, cut := range []int64{1, 300, 4096, 70_000} {
		mem := vfs.NewMem()
		s := mustOpen(t, quiet(mem))
		whole, torn := blocktest.Key(1, 0, 0), blocktest.Key(2, 0, 0)
		mustPut(t, s, whole, 100_000)
		if err := s.Sync(ctx, nil); err != nil {
			t.Fatal(err)
		}
		mustPut(t, s, torn, 80_000)
		fs := vfs.NewMem()
		copyDir(t, mem, fs, "blocks", func(name string, size int64) int64 {
			if strings.HasSuffix(name, ".seg") {
				return size - cut
			}
			return size
		})
		s = mustOpen(t, quiet(fs))
		r := s.Recovery()
		if r.TornBytes == 0 || len(r.Dropped) != 1 || r.Dropped[0] != torn || r.Blocks != 1 {
			t.Fatalf("cut by %d: recovered %+v", cut, r)
		}
		mustHave(t, s, whole, 100_000)
		wantKind(t, "Get of a torn block", s.Get(ctx, torn, 0, make([]byte, 1)), sys.NotExist)
		mustPut(t, s, torn, 80_000)
		mustHave(t, s, torn, 80_000)
	}
}

// copyDir copies the files of a directory, each as long as keep says; LOCK is
// left out.
func copyDir(t testing.TB, from, to envfs.FS, dir string, keep func(name string, size int64) int64) {
	t.Helper()
	if err := to.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	names, err := from.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if name == "LOCK" {
			continue
		}
		src, err := from.Open(from.PathJoin(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		info, err := src.Stat()
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, keep(name, info.Size()))
		if _, err := src.ReadAt(data, 0); err != nil && len(data) > 0 {
			t.Fatal(err)
		}
		dst, err := to.Create(to.PathJoin(dir, name), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dst.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(src.Close(), dst.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedHeaderLosesOneBlock(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := mustOpen(t, quiet(fs))
	for i := range uint32(5) {
		mustPut(t, s, blocktest.Key(1, 0, i), 50_000)
	}
	if err := s.Sync(ctx, nil); err != nil {
		t.Fatal(err)
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	flip(t, after, "blocks/"+segmentName(1), sectorSize+2*recordSize(50_000)+20)
	s = mustOpen(t, quiet(after))
	if r := s.Recovery(); r.Blocks != 4 || r.DamagedBytes != recordSize(50_000) {
		t.Fatalf("recovered %+v", r)
	}
	for _, i := range []uint32{0, 1, 3, 4} {
		mustHave(t, s, blocktest.Key(1, 0, i), 50_000)
	}
	wantKind(t, "Get", s.Get(ctx, blocktest.Key(1, 0, 2), 0, make([]byte, 1)), sys.NotExist)
}

func TestDamagedSegmentHeadIsBorne(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := mustOpen(t, quiet(fs))
	mustPut(t, s, blocktest.Key(1, 0, 0), 50_000)
	if err := s.Sync(ctx, nil); err != nil {
		t.Fatal(err)
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	flip(t, after, "blocks/"+segmentName(1), 25)
	mustHave(t, mustOpen(t, quiet(after)), blocktest.Key(1, 0, 0), 50_000)

	after = fs.CrashClone(vfs.CrashCloneCfg{})
	flip(t, after, "blocks/"+segmentName(1), 25)
	flip(t, after, "blocks/"+segmentName(1), sectorSize+25)
	s = mustOpen(t, quiet(after))
	if r := s.Recovery(); len(r.Unreadable) != 1 {
		t.Fatalf("recovered %+v", r)
	}
	mustPut(t, s, blocktest.Key(1, 0, 0), 50_000)
	if _, err := after.Stat("blocks/" + segmentName(1)); err != nil {
		t.Fatalf("the segment that cannot be read is gone: %v", err)
	}
}

func TestDamagedHintIsIgnored(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, quiet(fs))
	for i := range uint32(5) {
		mustPut(t, s, blocktest.Key(1, 0, i), 50_000)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, fs, "blocks/"+hintName(1), hintHead+3)
	s = mustOpen(t, quiet(fs))
	if r := s.Recovery(); r.HintsIgnored != 1 || r.Blocks != 5 {
		t.Fatalf("recovered %+v", r)
	}
	for i := range uint32(5) {
		mustHave(t, s, blocktest.Key(1, 0, i), 50_000)
	}
}

// TestNewerSegmentIsRefused: also when a hint of this format covers it.
func TestNewerSegmentIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, quiet(fs))
	mustPut(t, s, blocktest.Key(1, 0, 0), 50_000)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := fs.OpenReadWrite("blocks/"+segmentName(1), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, sectorSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	head[8] = formatMajor + 1
	binary.LittleEndian.PutUint32(head[atCRC:], block.Checksum(head[:atCRC]))
	if _, err := f.WriteAt(head, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(quiet(fs))
	wantKind(t, "Open", err, sys.NotSupported)
}

// Bytes that look like records, because a user stored a segment in the tree,
// are not taken for records.
func TestStoredSegmentIsNoRecord(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := mustOpen(t, quiet(fs))
	inner := blocktest.Key(7, 0, 0)
	mustPut(t, s, inner, 10_000)
	var copied [20_000]byte
	f, err := fs.Open("blocks/" + segmentName(1))
	if err != nil {
		t.Fatal(err)
	}
	n, _ := f.ReadAt(copied[:], 0)
	if err := errors.Join(f.Close(), s.Delete(ctx, []sys.BlockKey{inner})); err != nil {
		t.Fatal(err)
	}
	outer := blocktest.Key(8, 0, 0)
	if err := s.Put(ctx, outer, copied[:n]); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(ctx, nil); err != nil {
		t.Fatal(err)
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	// Without its header, the scanner walks over the outer block's bytes.
	at := s.index.entries[outer].offset()
	flip(t, after, "blocks/"+segmentName(1), at)
	s = mustOpen(t, quiet(after))
	if r := s.Recovery(); r.Blocks != 0 || r.Deleted != 1 {
		t.Fatalf("recovered %+v", r)
	}
}

func TestLockedDirectoryIsRefused(t *testing.T) {
	opt := quiet(nil)
	opt.Dir = t.TempDir()
	mustOpen(t, opt)
	_, err := Open(opt)
	wantKind(t, "second Open", err, sys.Busy)
}

// A store that is killed at any moment has, when it is opened again, whatever
// was synced, none of what was deleted, and never a wrong byte.
func TestCrashKeepsWhatWasSynced(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 9))
		fs := vfs.NewCrashableMem()
		synced, deleted := map[sys.BlockKey]int{}, map[sys.BlockKey]bool{}
		unsynced := map[sys.BlockKey]int{}
		next := uint64(1)
		for range 4 {
			opt := quiet(fs)
			opt.SegmentBytes = 300_000
			opt.SyncEvery = time.Hour
			s := mustOpen(t, opt)
			for key, n := range synced {
				mustHave(t, s, key, n)
			}
			for key, n := range unsynced {
				dst := make([]byte, n)
				err := s.Get(ctx, key, 0, dst)
				if err == nil && !bytes.Equal(dst, blocktest.Bytes(key, n)) {
					t.Fatalf("seed %d: wrong bytes", seed)
				}
				if err != nil && !sys.Is(err, sys.NotExist) {
					t.Fatalf("seed %d: Get of a block that was not synced: %v", seed, err)
				}
			}
			for key := range deleted {
				wantKind(t, "Get of a deleted block", s.Get(ctx, key, 0, make([]byte, 1)), sys.NotExist)
				wantKind(t, "Put of a deleted block", s.Put(ctx, key, []byte("x")), sys.Stale)
			}
			clear(unsynced)
			for range 40 {
				switch r.IntN(6) {
				case 0:
					if err := s.Sync(ctx, nil); err != nil {
						t.Fatal(err)
					}
					for key, n := range unsynced {
						synced[key] = n
					}
					clear(unsynced)
				case 1:
					for key := range synced {
						if err := s.Delete(ctx, []sys.BlockKey{key}); err != nil {
							t.Fatal(err)
						}
						delete(synced, key)
						deleted[key] = true
						for key, n := range unsynced { // Delete syncs
							synced[key] = n
						}
						clear(unsynced)
						break
					}
				default:
					key, n := blocktest.Key(next, sys.PG(r.IntN(3)), 0), 1+r.IntN(90_000)
					next++
					mustPut(t, s, key, n)
					unsynced[key] = n
				}
			}
			fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
		}
	}
}

// full is a disk that can be filled up.
type full struct {
	on     atomic.Bool
	onSync atomic.Bool
}

func (f *full) String() string { return "full disk" }

func (f *full) MaybeError(op errorfs.Op) error {
	if f.on.Load() && (op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpCreate) {
		return syscall.ENOSPC
	}
	if f.onSync.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) {
		return syscall.EIO
	}
	return nil
}

func TestFullDiskRefusesAndRecovers(t *testing.T) {
	inject := &full{}
	mem := vfs.NewCrashableMem()
	opt := quiet(errorfs.Wrap(mem, inject))
	opt.SegmentBytes = 400_000
	s := mustOpen(t, opt)
	mustPut(t, s, blocktest.Key(1, 0, 0), 100_000)
	inject.on.Store(true)
	for i := range uint32(8) {
		err := s.Put(ctx, blocktest.Key(2, 0, i), blocktest.Bytes(blocktest.Key(2, 0, i), 100_000))
		wantKind(t, "Put on a full disk", err, sys.NoSpace)
	}
	mustHave(t, s, blocktest.Key(1, 0, 0), 100_000)
	wantKind(t, "Get", s.Get(ctx, blocktest.Key(2, 0, 0), 0, make([]byte, 1)), sys.NotExist)
	inject.on.Store(false)
	for i := range uint32(8) {
		mustPut(t, s, blocktest.Key(2, 0, i), 100_000)
	}
	if err := s.Sync(ctx, nil); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, quiet(mem.CrashClone(vfs.CrashCloneCfg{})))
	for i := range uint32(8) {
		mustHave(t, s, blocktest.Key(2, 0, i), 100_000)
	}
}

func TestReserveIsKeptFree(t *testing.T) {
	mem := vfs.NewMem()
	opt := quiet(mem)
	opt.ReserveBytes = 1 << 20
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1<<20 + 150_000})
	s := mustOpen(t, opt)
	key := blocktest.Key(1, 0, 0)
	mustPut(t, s, key, 100_000)
	wantKind(t, "Put into the reserve", s.Put(ctx, blocktest.Key(2, 0, 0), make([]byte, 200_000)), sys.NoSpace)
	mustHave(t, s, key, 100_000)
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1})
	if u, err := s.Usage(ctx); err != nil || u.Free != 0 || u.Total != 1<<30 {
		t.Fatalf("Usage: %+v, %v", u, err)
	}
	if err := s.Delete(ctx, []sys.BlockKey{key}); err != nil {
		t.Fatalf("Delete on a full disk: %v", err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1 << 29})
	mustPut(t, s, blocktest.Key(2, 0, 0), 200_000)
}

// TestFullDiskComesBackByDeleting: what was deleted is freed also in the segment
// that is written to, which does not get full on a full disk.
func TestFullDiskComesBackByDeleting(t *testing.T) {
	mem := vfs.NewMem()
	opt := quiet(mem)
	opt.ReserveBytes = 1 << 20
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1<<20 + 2_200_000})
	s := mustOpen(t, opt)
	var gone []sys.BlockKey
	for i := range uint32(20) {
		key := blocktest.Key(1, 0, i)
		mustPut(t, s, key, 100_000)
		if i >= 3 {
			gone = append(gone, key)
		}
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1 << 20})
	full := func() {
		t.Helper()
		wantKind(t, "Put on a full disk", s.Put(ctx, blocktest.Key(2, 0, 0), make([]byte, 600_000)), sys.NoSpace)
	}
	full() // before and after the deletion: in any order
	if err := s.Delete(ctx, gone); err != nil {
		t.Fatal(err)
	}
	full()
	waitFor(t, "the compaction of the segment that was written to", func() bool {
		_, err := mem.Stat(mem.PathJoin(opt.Dir, segmentName(1)))
		return err != nil
	})
	for i := range uint32(3) {
		mustHave(t, s, blocktest.Key(1, 0, i), 100_000)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 3 << 20})
	mustPut(t, s, blocktest.Key(2, 0, 0), 600_000)
}

func TestFailedSyncStopsWrites(t *testing.T) {
	inject := &full{}
	s, err := Open(quiet(errorfs.Wrap(vfs.NewMem(), inject)))
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, blocktest.Key(1, 0, 0), 1000)
	inject.onSync.Store(true)
	if err := s.Sync(ctx, nil); err == nil {
		t.Fatal("Sync succeeded on a disk that fails")
	}
	inject.onSync.Store(false)
	if err := s.Sync(ctx, nil); err == nil {
		t.Fatal("Sync succeeded after one failed: the kernel may have dropped the bytes")
	}
	if err := s.Put(ctx, blocktest.Key(2, 0, 0), []byte("x")); err == nil {
		t.Fatal("Put was taken after a failed Sync")
	}
	mustHave(t, s, blocktest.Key(1, 0, 0), 1000)
	if err := s.Close(); err == nil {
		t.Fatal("Close after a failed Sync says that all is well")
	}
}

// waitFor waits until ok, for what workers do in the background.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCompactionFreesAndKeeps(t *testing.T) {
	fs := vfs.NewMem()
	opt := quiet(fs)
	opt.SegmentBytes = 1 << 20
	s := mustOpen(t, opt)
	var gone []sys.BlockKey
	kept := map[sys.BlockKey]int{}
	for i := range uint32(60) {
		key := blocktest.Key(uint64(i/4+1), sys.PG(i%3), i)
		mustPut(t, s, key, 100_000)
		if i%4 == 0 {
			kept[key] = 100_000
		} else {
			gone = append(gone, key)
		}
	}
	// Readers go on while segments move under them.
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for key, n := range kept {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					mustHave(t, s, key, n)
				}
			}
		})
		if len(kept) > 3 {
			break
		}
	}
	if err := s.Delete(ctx, gone); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "compaction", func() bool {
		u, err := s.Usage(ctx)
		return err == nil && u.Dead < 1<<20
	})
	close(stop)
	readers.Wait()
	for range 2 {
		for key, n := range kept {
			mustHave(t, s, key, n)
		}
		for _, key := range gone {
			wantKind(t, "Get of a deleted block", s.Get(ctx, key, 0, make([]byte, 1)), sys.NotExist)
			wantKind(t, "Put of a deleted block", s.Put(ctx, key, []byte("x")), sys.Stale)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, opt)
	}
}

func TestCompactionKeepsDamagedBlocks(t *testing.T) {
	opt := quiet(vfs.NewMem())
	opt.SegmentBytes = 1 << 20
	s := mustOpen(t, opt)
	for i := range uint32(20) {
		mustPut(t, s, blocktest.Key(1, 0, i), 100_000)
	}
	bad := blocktest.Key(1, 0, 3)
	damage(t, s, bad, 70_000)
	waitFor(t, "hint", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.segments[1].hinted })
	for i := range uint32(9) {
		if i != 3 {
			if err := s.Delete(ctx, []sys.BlockKey{blocktest.Key(1, 0, i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	waitFor(t, "compaction to give up", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.segments[1].damaged })
	dst := make([]byte, sys.PageSize)
	if err := s.Get(ctx, bad, 0, dst); err != nil || !bytes.Equal(dst, blocktest.Bytes(bad, sys.PageSize)) {
		t.Fatalf("the good page of a damaged block is lost: %v", err)
	}
	data := blocktest.Bytes(bad, 100_000)
	if err := s.Replace(ctx, bad, data, block.SumData(data)); err != nil {
		t.Fatal(err)
	}
	mustHave(t, s, bad, 100_000)
}

// Tombstones that a crash cut were never told to be there, and keep nothing in place.
func TestCutTombstonesDoNotKeepASegment(t *testing.T) {
	mem, fs := vfs.NewMem(), vfs.NewMem()
	s := mustOpen(t, quiet(mem))
	var all []sys.BlockKey
	for i := range uint32(10) {
		all = append(all, blocktest.Key(1, 0, i))
		mustPut(t, s, all[i], 100_000)
	}
	if err := s.Sync(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, all[:1]); err != nil {
		t.Fatal(err)
	}
	copyDir(t, mem, fs, "blocks", func(name string, size int64) int64 {
		if strings.HasSuffix(name, ".seg") {
			return size - 1
		}
		return size
	})
	s = mustOpen(t, quiet(fs))
	if r := s.Recovery(); r.TornBytes == 0 || r.Blocks != len(all) {
		t.Fatalf("recovered %+v", r)
	}
	if err := s.Delete(ctx, all[1:]); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "compaction", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.segments[1] == nil })
	mustHave(t, s, all[0], 100_000)
}

// Tombstones that were there and cannot be read any more keep the segment: without them what was deleted could come back.
func TestCompactionKeepsDamagedTombstones(t *testing.T) {
	opt := quiet(vfs.NewMem())
	opt.SegmentBytes = 1 << 20
	s := mustOpen(t, opt)
	var all []sys.BlockKey
	for i := range uint32(20) {
		all = append(all, blocktest.Key(1, 0, i))
		mustPut(t, s, all[i], 100_000)
		if i == 0 {
			if err := s.Delete(ctx, all[:1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.mu.RLock()
	e := s.index.entries[all[0]]
	s.mu.RUnlock()
	if !e.deleted() || e.segment != 1 {
		t.Fatalf("the tombstone is %+v", e)
	}
	flip(t, s.fs, s.fs.PathJoin(s.dir, segmentName(1)), e.offset()+sectorSize)
	waitFor(t, "hint", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.segments[1].hinted })
	if err := s.Delete(ctx, all[1:9]); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "compaction to give up", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.segments[1].damaged })
	wantKind(t, "Put of a deleted block", s.Put(ctx, all[0], []byte("x")), sys.Stale)
	mustHave(t, s, all[19], 100_000)
}

func TestPutSumsChecksArrival(t *testing.T) {
	s := mustOpen(t, quiet(vfs.NewMem()))
	key := blocktest.Key(1, 0, 0)
	data := blocktest.Bytes(key, 100_000)
	sums := block.SumData(data)
	data[5] ^= 1
	wantKind(t, "PutSums of other bytes", s.PutSums(ctx, key, data, sums), sys.Corrupt)
	data[5] ^= 1
	if err := s.PutSums(ctx, key, data, sums); err != nil {
		t.Fatal(err)
	}
	var p block.Proof
	dst := make([]byte, 30_000)
	if n, err := s.GetProof(ctx, key, 50_000, dst, &p); err != nil || n != len(dst) || !p.Check(50_000, dst) {
		t.Fatalf("GetProof: %d, %v", n, err)
	}
}

func TestDigestsTellStoresApart(t *testing.T) {
	a, b := mustOpen(t, quiet(vfs.NewMem())), mustOpen(t, quiet(vfs.NewMem()))
	bounds := []sys.BlockKey{blocktest.Key(10, 5, 0), blocktest.Key(20, 5, 0)}
	for i := range uint64(30) {
		mustPut(t, a, blocktest.Key(i+1, 5, 0), 10)
		mustPut(t, b, blocktest.Key(30-i, 5, 0), 10)
	}
	differ := func() (runs []int) {
		da, erra := a.Digests(5, bounds)
		db, errb := b.Digests(5, bounds)
		if erra != nil || errb != nil || len(da) != 3 || len(db) != 3 {
			t.Fatalf("Digests: %v %v %v %v", da, db, erra, errb)
		}
		for i := range da {
			if da[i] != db[i] {
				runs = append(runs, i)
			}
		}
		return runs
	}
	if d := differ(); d != nil {
		t.Fatalf("equal stores differ in runs %v", d)
	}
	mustPut(t, a, blocktest.Key(15, 5, 1), 10)
	if d := differ(); len(d) != 1 || d[0] != 1 {
		t.Fatalf("one more block: runs %v differ, want [1]", d)
	}
	mustPut(t, b, blocktest.Key(15, 5, 1), 10)
	if err := b.Delete(ctx, []sys.BlockKey{blocktest.Key(30, 5, 0)}); err != nil {
		t.Fatal(err)
	}
	if d := differ(); len(d) != 1 || d[0] != 2 {
		t.Fatalf("one deleted block: runs %v differ, want [2]", d)
	}
}
