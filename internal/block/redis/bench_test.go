package redis_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/block/redis"
	"github.com/koinon/koinon/internal/block/redis/redistest"
	"github.com/koinon/koinon/internal/engine"
)

func benchStore(b *testing.B) *redis.Store {
	b.Helper()
	srv := redistest.Start(b, "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
	u, err := engine.Parse(srv.URL(0))
	if err != nil {
		b.Fatal(err)
	}
	s, err := redis.Open(b.Context(), redis.Config{URL: u, Cluster: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// BenchmarkPut says what size of value suits Redis: eight at once, as a mount
// sends them, to a server that syncs every second.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := benchStore(b)
			data := blocktest.Bytes(blocktest.Key(1, 0, 0), size)
			b.SetBytes(int64(size))
			b.SetParallelism(4)
			var seq atomic.Uint64
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := s.Put(b.Context(), blocktest.Key(seq.Add(1), 0, 0), data); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkRead reads 1 MiB of a block, as a mount does for one who reads on.
func BenchmarkRead(b *testing.B) {
	for _, size := range []int{128 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := benchStore(b)
			key := blocktest.Key(1, 0, 0)
			if err := s.Put(b.Context(), key, blocktest.Bytes(key, 4<<20)); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			b.SetParallelism(4)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r, err := s.Read(b.Context(), key, 0, size)
					if err != nil {
						b.Error(err)
						return
					}
					r.Release()
				}
			})
		})
	}
}
