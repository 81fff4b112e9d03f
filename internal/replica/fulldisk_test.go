package replica_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// setFree sets the free space that a node's disk reports.
func (c *cluster) setFree(id sys.NodeID, free uint64) {
	c.fs[id].(*vfs.MemFS).TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: free, TotalBytes: 1 << 30, UsedBytes: 1<<30 - free})
}

// TestFullLeaderHandsOver: a full disk on one node does not stop the cluster,
// on two neither; on all of them reads go on, and space brings it back.
func TestFullLeaderHandsOver(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.ReserveBytes = 1 << 20 })
	c.must(add("x"))
	full := map[sys.NodeID]bool{}
	for len(full) < 2 {
		l := c.leader()
		full[l] = true
		c.setFree(l, 1000)
		c.await("NoSpace", func() bool { return c.group(l).Status().NoSpace })
		c.await("another leader, with space", func() bool {
			for id := sys.NodeID(1); id <= 3; id++ {
				if s := c.group(id).Status(); s.Role == rsm.Leader && s.Ready && !full[id] {
					return true
				}
			}
			return false
		})
		c.must(add("x"))
		c.await("the new leader knows of it", func() bool {
			for _, p := range c.group(c.leader()).Status().Peers {
				if p.ID == l {
					return p.Full
				}
			}
			return false
		})
	}
	last := c.leader()
	c.setFree(last, 1000)
	c.await("NoSpace", func() bool { return c.group(last).Status().NoSpace })
	elections := c.group(last).Status().Elections
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if n, err := c.get(c.ctx(), last, "x"); err != nil || n != 3 {
			t.Fatalf("a read with all disks full: 3 expected, found %d, %v", n, err)
		}
	}
	if n := c.group(last).Status().Elections; n != elections {
		t.Fatalf("nobody with space: no other leader expected, found %d changes", n-elections)
	}
	for id := range full {
		c.setFree(id, 1<<29)
	}
	c.await("a leader with space", func() bool {
		s := c.group(c.leader()).Status()
		return !s.NoSpace && s.Ready
	})
	if got := number(c.must(add("x"))); got != 4 {
		t.Fatalf("counter: 4 expected, found %d", got)
	}
}

// TestOpenOnFullDisk: without room for the log's first segment a host does not
// open, says why, and opens when there is room.
func TestOpenOnFullDisk(t *testing.T) {
	var full atomic.Bool
	full.Store(true)
	c := newCluster(t, 1, nil)
	c.close(1)
	cfg := c.config(1)
	cfg.FS = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWriteAt {
			return syscall.ENOSPC
		}
		return nil
	}))
	if _, err := replica.Open(cfg, machines()); !sys.Is(err, sys.NoSpace) || !strings.Contains(err.Error(), "make room") {
		t.Fatalf("sys.NoSpace with advice expected, found %v", err)
	}
	full.Store(false)
	h, err := replica.Open(cfg, machines())
	if err != nil {
		t.Fatal(err)
	}
	c.setHost(1, h)
	c.must(add("x"))
}

// TestCloseOnFullDisk: a state that cannot be flushed does not hold Close up
// without end, and nothing is lost.
func TestCloseOnFullDisk(t *testing.T) {
	var full atomic.Bool
	c := newCluster(t, 1, func(cfg *replica.Config) {
		cfg.FS = errorfs.Wrap(cfg.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && (op.Kind.ReadOrWrite() == errorfs.OpIsWrite) {
				return syscall.ENOSPC
			}
			return nil
		}))
		cfg.ReserveBytes = -1
	})
	for i := range 20 {
		c.must(set(fmt.Sprint("key", i), "value"))
	}
	h := c.host(1)
	c.setHost(1, nil)
	full.Store(true)
	start := time.Now()
	err := h.Close()
	if took := time.Since(start); took > 10*time.Second {
		t.Fatalf("Close within 10 s expected, found %v", took)
	}
	t.Logf("closed after %v: %v", time.Since(start), err)
	full.Store(false)
	if sys.Is(err, sys.Unavailable) {
		t.Fatalf("a state that is only not flushed can be closed: found %v", err)
	}
	c.open(1)
	c.await("what was acknowledged", func() bool { return c.local(1, "key19") == "value" })
}
