//go:build unix

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
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"golang.org/x/sys/unix"
)

// benchCluster is three hosts in one process on the real disk with real syncs
// and the defaults of Config; the
// network is within the process or TLS over loopback. Set
// KOINON_BENCH_DIR to choose the disk.
func benchCluster(b *testing.B, overTLS bool) *cluster {
	b.Helper()
	var dirs []string
	configure := func(cfg *replica.Config) {
		root := os.Getenv("KOINON_BENCH_DIR")
		if root == "" {
			root = b.TempDir()
		}
		dir, err := os.MkdirTemp(root, "bench")
		if err != nil {
			b.Fatal(err)
		}
		dirs = append(dirs, dir)
		*cfg = replica.Config{Dir: dir, FS: envfs.Disk, Clock: env.System{}, Cluster: "bench",
			Self: cfg.Self, Voters: cfg.Voters, Peers: cfg.Peers, Transport: cfg.Transport}
	}
	var c *cluster
	if overTLS {
		c = newWireCluster(b, configure)
	} else {
		c = newCluster(b, 3, configure)
	}
	c.leader()
	// The first segments are filled in the background, once in a directory's
	// life; that is not what is measured.
	c.await("the log's segments", func() bool {
		for _, dir := range dirs {
			if names, err := os.ReadDir(dir + "/log"); err != nil || len(names) < 2 || names[0].Name() == "next.tmp" || names[1].Name() == "next.tmp" {
				return false
			}
		}
		return true
	})
	return c
}

// BenchmarkPropose measures durable commands of about 100 bytes on three
// replicas, by callers that each wait for their answer;
// within the process, and over TLS on the loopback interface.
func BenchmarkPropose(b *testing.B) {
	for i, callers := range []int{1, 16, 64, 256, 1, 8, 256} {
		overTLS := i >= 4
		b.Run(fmt.Sprintf("inflight=%d/tls=%v", callers, overTLS), func(b *testing.B) {
			c := benchCluster(b, overTLS)
			g := c.group(c.leader())
			session, err := g.OpenSession(c.ctx(), "bench")
			if err != nil {
				b.Fatal(err)
			}
			before, busy := g.Status(), usage(b)
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
						cmd := rsm.Command{Session: session, Seq: n, NS: nsTest, Body: set(fmt.Sprintf("key%09d", n), value)}
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
			total := time.Since(start)
			used := usage(b)
			b.ReportMetric(float64(used.cpu-busy.cpu)/1e3/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(used.switches-busy.switches)/float64(b.N), "switches/op")
			report(b, g, before, took, total)
		})
	}
}

// used is what the process, with all three nodes and the callers, has used.
type used struct {
	cpu      time.Duration
	switches int64 // voluntary context switches
}

func usage(b *testing.B) used {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return used{time.Duration(u.Utime.Nano() + u.Stime.Nano()), u.Nvcsw}
}

func report(b *testing.B, g *replica.Group, before rsm.Status, took [][]time.Duration, total time.Duration) {
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
	c := benchCluster(b, false)
	g := c.group(c.leader())
	c.must(set("k", "v"))
	key := []byte("k")
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			err := g.Read(b.Context(), nsTest, func(r rsm.Reader) error {
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

// BenchmarkReopen measures the start after a crash with as much log to replay
// as the defaults allow, in memory, and the rows that are then held.
func BenchmarkReopen(b *testing.B) {
	c := newCluster(b, 1, func(cfg *replica.Config) {
		*cfg = replica.Config{Dir: cfg.Dir, FS: cfg.FS, Clock: env.System{}, Cluster: "bench",
			Self: cfg.Self, Voters: cfg.Voters, Transport: cfg.Transport}
	})
	g := c.group(c.leader())
	const rows = 200_000
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() {
			for n := next.Add(1); n <= rows; n = next.Add(1) {
				if _, _, err := g.Propose(b.Context(), rsm.Command{NS: nsTest, Body: set(fmt.Sprintf("key%09d", n), fmt.Sprintf("%0200d", n))}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	c.crash(1)
	crashed := c.fs[1].(*vfs.MemFS)
	b.ResetTimer()
	for range b.N {
		c.fs[1] = crashed.CrashClone(vfs.CrashCloneCfg{})
		h := c.open(1)
		c.await("the state to be replayed", func() bool { return c.local(1, fmt.Sprintf("key%09d", rows)) != "" })
		b.StopTimer()
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	c.setHost(1, nil)
}
