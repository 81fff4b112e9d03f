package replica_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicatest"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// nsTest is the tests' namespace.
const nsTest rsm.Namespace = 7

// register is a machine of named counters and values:
//
//	"a" key       adds 1 and returns the new value (8 bytes)
//	"s" key=value sets
//	"f" key       is refused: writes nothing
type register struct{}

func (register) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) ([]byte, any) {
	switch body[0] {
	case 'a':
		v, err := tx.Get(body[1:])
		if err != nil {
			return nil, nil
		}
		n := uint64(1)
		if len(v) == 8 {
			n += binary.BigEndian.Uint64(v)
		}
		out := binary.BigEndian.AppendUint64(nil, n)
		tx.Set(body[1:], out)
		return out, st.Slot
	case 's':
		for i, c := range body {
			if c == '=' {
				tx.Set(body[1:i], append([]byte(nil), body[i+1:]...))
				return []byte("ok"), nil
			}
		}
	}
	return []byte("refused"), nil
}

// SessionEnded notes the end of a session.
func (register) SessionEnded(tx rsm.Tx, _ rsm.Stamp, id sys.SessionID) {
	tx.Set(fmt.Appendf(nil, "ended%d", id), []byte{1})
}

// cluster is some hosts in one process.
type cluster struct {
	t   testing.TB
	net *replicatest.Network

	mu    sync.Mutex
	hosts map[sys.NodeID]*replica.Host // nil when down

	fs  map[sys.NodeID]vfs.FS
	cfg func(*replica.Config)
	n   atomic.Int64 // nodes, from 1 on
	// voters are those of the beginning, the first ones. Later nodes join.
	voters  int
	rng     *rand.Rand
	session sys.SessionID // of must
	seq     uint64
}

// nodesMax is how many nodes a test may have.
const nodesMax = 9

func newCluster(t testing.TB, n int, cfg func(*replica.Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, net: replicatest.NewNetwork(1), hosts: map[sys.NodeID]*replica.Host{},
		fs: map[sys.NodeID]vfs.FS{}, cfg: cfg, voters: n, rng: rand.New(rand.NewPCG(1, 2))}
	c.n.Store(int64(n))
	for id := sys.NodeID(1); id <= sys.NodeID(n); id++ {
		c.fs[id] = vfs.NewCrashableMem()
		c.net.Endpoint(id)
	}
	for id := sys.NodeID(1); id <= sys.NodeID(n); id++ {
		c.open(id)
	}
	t.Cleanup(func() {
		c.closeAll()
		c.net.Close()
	})
	return c
}

// closeAll closes the hosts that run.
func (c *cluster) closeAll() {
	for id, h := range c.hosts {
		if h == nil {
			continue
		}
		if err := h.Close(); err != nil && h.Err() == nil {
			c.t.Errorf("close: %v", err)
		}
		c.setHost(id, nil)
	}
}

// config is small, so that segments, memtables and snapshots turn over.
func (c *cluster) config(id sys.NodeID) replica.Config {
	cfg := replica.Config{
		Dir: "/data", FS: c.fs[id], Clock: env.System{}, Cluster: "test", Self: id,
		Transport: c.net.Endpoint(id), Seed: uint64(id) + 1,
		SegmentBytes: 256 << 10, RetainBytes: 1 << 20, TailBytes: 512 << 10,
		BlockCacheBytes: 1 << 20, MemTableBytes: 256 << 10, DigestEvery: 16,
		Tick: 5 * time.Millisecond, Heartbeat: 20 * time.Millisecond,
		ElectionTimeout: 150 * time.Millisecond, Lease: 120 * time.Millisecond,
		SessionTTL: 5 * time.Minute,
	}
	if os.Getenv("KOINON_TEST_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("self", id)
	}
	for v := sys.NodeID(1); v <= nodesMax; v++ {
		if int(v) <= c.voters && int(id) <= c.voters {
			cfg.Voters = append(cfg.Voters, replica.Peer{ID: v})
		}
		cfg.Peers = append(cfg.Peers, replica.Peer{ID: v})
	}
	if c.cfg != nil {
		c.cfg(&cfg)
	}
	return cfg
}

func (c *cluster) open(id sys.NodeID) *replica.Host {
	c.t.Helper()
	h, err := replica.Open(c.config(id), machines())
	if err != nil {
		c.t.Fatalf("open %v: %v", id, err)
	}
	c.setHost(id, h)
	return h
}

func (c *cluster) setHost(id sys.NodeID, h *replica.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts[id] = h
}

// host returns a node's host, nil when it is down.
func (c *cluster) host(id sys.NodeID) *replica.Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[id]
}

func machines() map[rsm.Namespace]rsm.Machine {
	return map[rsm.Namespace]rsm.Machine{nsTest: register{}}
}

// crash stops a host as a power failure would: what was not synced is lost,
// or not, block by block.
func (c *cluster) crash(id sys.NodeID) {
	c.t.Helper()
	c.net.Isolate(id, true) // what it says from now on may not survive
	clone := c.fs[id].(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: c.rng})
	c.close(id)
	c.fs[id] = clone
	c.net.Isolate(id, false)
}

func (c *cluster) close(id sys.NodeID) {
	c.t.Helper()
	h := c.host(id)
	c.setHost(id, nil)
	if err := h.Close(); err != nil {
		c.t.Fatalf("close %v: %v", id, err)
	}
}

func (c *cluster) group(id sys.NodeID) *replica.Group { return c.host(id).Group(0) }

// count is a counter's value at one replica.
func (c *cluster) count(id sys.NodeID, key string) uint64 {
	c.t.Helper()
	if v := c.local(id, key); len(v) == 8 {
		return binary.BigEndian.Uint64([]byte(v))
	}
	return 0
}

// await polls until ok, as what it waits for has no event of its own.
func (c *cluster) await(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			for id := sys.NodeID(1); id <= sys.NodeID(c.n.Load()); id++ {
				if h := c.host(id); h != nil {
					c.t.Logf("%v: %v, %+v", id, h.Err(), h.Group(0).Status())
				}
			}
			c.t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// leader waits for a leader that is ready, and returns it.
func (c *cluster) leader() sys.NodeID {
	c.t.Helper()
	var id sys.NodeID
	c.await("a leader", func() bool {
		for n := sys.NodeID(1); n <= sys.NodeID(c.n.Load()); n++ {
			h := c.host(n)
			if h == nil {
				continue
			}
			if s := h.Group(0).Status(); s.Role == rsm.Leader && s.Ready && s.Lease > 0 {
				id = n
				return true
			}
		}
		return false
	})
	return id
}

func (c *cluster) follower() sys.NodeID {
	l := c.leader()
	return l%sys.NodeID(c.n.Load()) + 1
}

// do proposes at whoever leads until it is done. With a session that is safe.
func (c *cluster) do(ctx context.Context, cmd rsm.Command) ([]byte, error) {
	target := sys.NodeID(1)
	for {
		h := c.host(target)
		var err error
		if h == nil {
			err = errors.New("down")
		} else {
			var out []byte
			if out, _, err = h.Group(0).Propose(ctx, cmd); err == nil {
				return out, nil
			}
			if ctx.Err() != nil {
				return nil, err
			}
			if k := sys.KindOf(err); k != sys.NotLeader && k != sys.Unavailable && k != sys.Busy {
				return nil, err
			}
		}
		if to, ok := rsm.LeaderOf(err); ok && to != target && c.host(to) != nil {
			target = to
			continue
		}
		target = target%sys.NodeID(c.n.Load()) + 1
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.t.Cleanup(cancel)
	return ctx
}

func add(key string) []byte { return []byte("a" + key) }

func set(key, value string) []byte { return []byte("s" + key + "=" + value) }

// must has a command applied, exactly once. It is the test goroutine's.
func (c *cluster) must(body []byte) []byte {
	c.t.Helper()
	var err error
	if c.session == 0 {
		if c.session, err = c.openSession("must"); err != nil {
			c.t.Fatalf("open session: %v", err)
		}
	}
	c.seq++
	out, err := c.do(c.ctx(), rsm.Command{Session: c.session, Seq: c.seq, Ack: c.seq - 1, NS: nsTest, Body: body})
	if err != nil {
		c.t.Fatalf("propose: %v", err)
	}
	return out
}

// local reads a key of one replica's own state.
func (c *cluster) local(id sys.NodeID, key string) string {
	c.t.Helper()
	var out string
	err := c.group(id).ReadLocal(nsTest, func(r rsm.Reader) error {
		v, err := r.Get([]byte(key))
		out = string(v)
		return err
	})
	if err != nil {
		c.t.Fatalf("read %v: %v", id, err)
	}
	return out
}
