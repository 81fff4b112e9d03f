//go:build unix

package spread

import (
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

// cpu reports the processor time of an operation, of client and all nodes
// together: unlike the time that passes, it says something on a machine that
// does other things as well.
func cpu(b *testing.B) (stop func()) {
	used := func() int64 {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return r.Utime.Nano() + r.Stime.Nano()
	}
	began := used()
	return func() { b.ReportMetric(float64(used()-began)/float64(b.N)/1e3, "cpu-µs/op") }
}

// diskWorld is three nodes on real files over loopback TLS.
func diskWorld(b *testing.B) *world {
	return newWorld(b, worldOptions{nodes: 3, pgs: 256, noHeal: true, fs: func(int) (envfs.FS, string) { return envfs.Disk, b.TempDir() }})
}

// benchPut puts blocks of n bytes from so many writers per processor.
func benchPut(b *testing.B, n, writers int, edit func(*Options)) {
	s := diskWorld(b).client(edit)
	data := blocktest.Bytes(sys.BlockKey{Slice: 1}, n)
	var seq atomic.Uint64
	b.SetBytes(int64(n))
	b.SetParallelism(writers)
	b.ReportAllocs()
	b.ResetTimer()
	defer cpu(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := seq.Add(1)
			key := blocktest.Key(i, sys.PG(i%256), 0)
			if err := s.Put(ctx, key, data); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkPut4MiB(b *testing.B)           { benchPut(b, 4<<20, 2, nil) }
func BenchmarkPut16KiB(b *testing.B)          { benchPut(b, 16<<10, 4, nil) }
func BenchmarkPut16KiBOneWriter(b *testing.B) { benchPutOne(b, 16<<10) }
func BenchmarkPut4MiBOneWriter(b *testing.B)  { benchPutOne(b, 4<<20) }

func benchPutOne(b *testing.B, n int) {
	s := diskWorld(b).client(nil)
	data := blocktest.Bytes(sys.BlockKey{Slice: 1}, n)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.ResetTimer()
	defer cpu(b)()
	for i := range b.N {
		if err := s.Put(ctx, blocktest.Key(uint64(i+1), sys.PG(i%256), 0), data); err != nil {
			b.Fatal(err)
		}
	}
}

// benchGet reads ranges of n bytes of 4 MiB blocks, one reader.
func benchGet(b *testing.B, n int, random bool) {
	s := diskWorld(b).client(nil)
	const blocks = 32
	for i := range uint32(blocks) {
		mustPut(b, s, blocktest.Key(1, sys.PG(i), i), sys.BlockSize)
	}
	dst := make([]byte, n)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.ResetTimer()
	defer cpu(b)()
	for i := range b.N {
		at := i * n % (blocks * sys.BlockSize)
		if random {
			at = int(uint32(i)*2654435761%(blocks*sys.BlockSize/4096)) * 4096
		}
		key := blocktest.Key(1, sys.PG(at/sys.BlockSize), uint32(at/sys.BlockSize))
		if err := s.Get(ctx, key, at%sys.BlockSize, dst); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet4MiB(b *testing.B)   { benchGet(b, 4<<20, false) }
func BenchmarkGet128KiB(b *testing.B) { benchGet(b, 128<<10, false) }
func BenchmarkGet16KiB(b *testing.B)  { benchGet(b, 16<<10, false) }
func BenchmarkGet4KiBRandom(b *testing.B) {
	benchGet(b, 4<<10, true)
}

// BenchmarkPutSync16KiB is write and fsync, from four writers.
func BenchmarkPutSync16KiB(b *testing.B) {
	s := diskWorld(b).client(nil)
	data := blocktest.Bytes(sys.BlockKey{Slice: 1}, 16<<10)
	var seq atomic.Uint64
	b.SetParallelism(4)
	b.ReportAllocs()
	b.ResetTimer()
	defer cpu(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := seq.Add(1)
			key := blocktest.Key(i, sys.PG(i%256), 0)
			if err := s.Put(ctx, key, data); err != nil {
				b.Error(err)
				return
			}
			if err := s.Sync(ctx, []sys.SliceID{key.Slice}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
