package replica_test

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
)

// benchCluster is three hosts in one process on the real disk with real syncs
// and the defaults of Config; the network is within the process. Set
// KOINON_BENCH_DIR to choose the disk.
func benchCluster(b *testing.B) *cluster {
	b.Helper()
	c := newCluster(b, 3, func(cfg *replica.Config) {
		root := os.Getenv("KOINON_BENCH_DIR")
		if root == "" {
			root = b.TempDir()
		}
		dir, err := os.MkdirTemp(root, "bench")
		if err != nil {
			b.Fatal(err)
		}
		*cfg = replica.Config{Dir: dir, FS: env.Disk, Clock: env.System{}, Cluster: "bench",
			Self: cfg.Self, Voters: cfg.Voters, Transport: cfg.Transport}
	})
	c.leader()
	return c
}

// BenchmarkPropose measures durable commands of about 100 bytes on three
// replicas, by callers that each wait for their answer.
func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("inflight=%d", callers), func(b *testing.B) {
			c := benchCluster(b)
			g := c.group(c.leader())
			session, err := g.OpenSession(c.ctx(), "bench")
			if err != nil {
				b.Fatal(err)
			}
			before := g.Status()
			var next atomic.Uint64
			took := make([][]time.Duration, callers)
			b.ResetTimer()
			start := time.Now()
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					value := fmt.Sprintf("%080d", i)
					for {
						n := next.Add(1)
						if n > uint64(b.N) {
							return
						}
						cmd := replica.Command{Session: session, Seq: n, NS: nsTest, Body: set(fmt.Sprintf("key%09d", n), value)}
						if n > 4096 {
							cmd.Ack = n - 4096
						}
						at := time.Now()
						if _, _, err := g.Propose(b.Context(), cmd); err != nil {
							b.Error(err)
							return
						}
						took[i] = append(took[i], time.Since(at))
					}
				})
			}
			wg.Wait()
			report(b, g, before, took, time.Since(start))
		})
	}
}

func report(b *testing.B, g *replica.Group, before replica.Status, took [][]time.Duration, total time.Duration) {
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	after := g.Status()
	b.ReportMetric(float64(len(all))/total.Seconds(), "ops/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(after.LogSyncs-before.LogSyncs)/total.Seconds(), "syncs/s")
	b.ReportMetric(float64(len(all))/float64(max(after.Entries-before.Entries, 1)), "cmds/entry")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRead measures linearizable reads under the lease.
func BenchmarkRead(b *testing.B) {
	c := benchCluster(b)
	g := c.group(c.leader())
	c.must(set("k", "v"))
	key := []byte("k")
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			err := g.Read(b.Context(), nsTest, func(r replica.Reader) error {
				_, err := r.Get(key)
				return err
			})
			if err != nil && !sys.Is(err, sys.NotLeader) {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkFdatasync is the floor: one sync of an overwritten page.
func BenchmarkFdatasync(b *testing.B) {
	root := os.Getenv("KOINON_BENCH_DIR")
	if root == "" {
		root = b.TempDir()
	}
	name := root + "/sync"
	f, err := vfs.Default.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	for i := range int64(1024) {
		if _, err := f.WriteAt(buf, i*4096); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for i := range b.N {
		if _, err := f.WriteAt(buf[:200], int64(i%1024)*4096); err != nil {
			b.Fatal(err)
		}
		if err := f.SyncData(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		b.Fatal(err)
	}
}
