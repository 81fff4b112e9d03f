package replica_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/sys"
)

// bigRows is how many rows of rowBytes the state of a snapshot test has: more
// than two tables.
const (
	bigRows  = 280
	rowBytes = 60 << 10
)

func bigKey(i int) string { return fmt.Sprintf("big%03d", i) }

func bigValue(i int) string { return strings.Repeat(string(rune('a'+i%26)), rowBytes) }

// behind returns a cluster with a node that is down and needs a snapshot.
func behind(t *testing.T) (*cluster, sys.NodeID) {
	t.Helper()
	c := newCluster(t, 3, func(cfg *replica.Config) {
		// So that a loaded machine changes no leader of its own accord.
		cfg.ElectionTimeout, cfg.Lease = time.Second, 800*time.Millisecond
	})
	away := c.follower()
	c.close(away)
	for i := range bigRows {
		c.must(set(bigKey(i), bigValue(i)))
	}
	c.await("the log to be cut", func() bool { return c.group(c.leader()).Status().Truncated > bigRows/2 })
	return c, away
}

// hasAll checks a node's rows.
func (c *cluster) hasAll(id sys.NodeID) {
	c.t.Helper()
	for i := range bigRows {
		if c.local(id, bigKey(i)) != bigValue(i) {
			c.t.Fatalf("%v: row %d is not what was written", id, i)
		}
	}
}

var errLost = errors.New("the connection broke")

// tap sees the snapshots that go over a network.
type tap struct {
	mu      sync.Mutex
	streams []uint64 // offered, one after another without repetitions
	chunks  []uint64 // the numbers that went through
	breakAt int      // after so many chunks nothing goes through; 0: never
	lost    int      // requests that did not
	alter   func(r *replicapb.Request) (drop bool)
}

func (p *tap) see(_, _ sys.NodeID, req []byte) ([]byte, error) {
	var r replicapb.Request
	if err := pb.Unmarshal(req, &r); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.breakAt > 0 && len(p.chunks) >= p.breakAt {
		p.lost++
		return nil, errLost
	}
	if o := r.GetOffer(); o != nil && !slices.Contains(p.streams, o.Stream) {
		p.streams = append(p.streams, o.Stream)
	}
	if k := r.GetChunk(); k != nil {
		p.chunks = append(p.chunks, k.Number)
	}
	if p.alter != nil && p.alter(&r) {
		return nil, errLost
	}
	return pb.Marshal(&r), nil
}

// breaks lets so many more chunks through and is broken then.
func (p *tap) breaks(c *cluster, after int) (through int) {
	c.t.Helper()
	p.mu.Lock()
	p.breakAt, p.lost = len(p.chunks)+after, 0
	p.mu.Unlock()
	return p.broken(c)
}

// broken waits for the connection to break, and returns how many chunks went
// through in all.
func (p *tap) broken(c *cluster) (through int) {
	c.t.Helper()
	c.await("the connection to break", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		through = len(p.chunks)
		return p.lost > 0
	})
	return through
}

func (p *tap) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breakAt = 0
}

// went returns the chunks from the nth on, and how many snapshots were offered.
func (p *tap) went(n int) (chunks []uint64, streams int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.chunks[n:]), len(p.streams)
}

// TestSnapshotGoesOn breaks the connection, then the receiver, then the sender.
func TestSnapshotGoesOn(t *testing.T) {
	c, away := behind(t)
	var p tap
	c.net.SetCalls(p.see)
	p.breakAt = 10
	c.open(away)
	n := p.broken(c)
	n2 := p.breaks(c, 15)
	// The chunk that was lost is the one that goes on, wherever its sender was.
	if again, streams := p.went(n); streams != 1 || again[0] != 10 || n != 10 {
		t.Fatalf("the same snapshot from chunk 10 on expected, found %d snapshots, chunks %v", streams, again)
	}
	c.crash(away)
	c.open(away)
	n3 := p.breaks(c, 3)
	again, streams := p.went(n2)
	if streams != 1 || again[0] == 0 || again[0] > 25 {
		t.Fatalf("the same snapshot from a whole table on expected, found %d snapshots, chunks %v", streams, again)
	}
	old := c.leader()
	c.close(old)
	c.open(old)
	p.heal()
	c.await("the snapshot", func() bool { return c.group(away).Status().Installs == 1 })
	if again, streams := p.went(n3); streams < 2 || again[0] != 0 {
		t.Fatalf("another sender's snapshot from the start expected, found %d snapshots, chunks %v", streams, again)
	}
	c.hasAll(away)
	names, err := c.fs[away].List("/data/incoming")
	if err != nil || len(names) != 0 {
		t.Fatalf("nothing that is left over expected, found %v, %v", names, err)
	}
	c.must(add("x"))
	c.agreeOn(ids(away), 1)
}

// TestSnapshotIsServedWhileTheGroupGoesOn: the snapshot waits, the commands do
// not.
func TestSnapshotIsServedWhileTheGroupGoesOn(t *testing.T) {
	c, away := behind(t)
	hold, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.net.SetCalls(func(_, _ sys.NodeID, req []byte) ([]byte, error) {
		once.Do(func() {
			close(held)
			<-hold
		})
		return req, nil
	})
	c.open(away)
	<-held
	for i := range 50 {
		c.must(set(bigKey(i), "new"))
		c.must(set(bigKey(i), bigValue(i)))
	}
	for range 50 {
		c.must(add("x"))
	}
	if s := c.group(away).Status(); s.Installs != 0 {
		t.Fatal("the snapshot was to wait")
	}
	close(hold)
	c.agreeOn(ids(away), 50)
	c.hasAll(away)
}

// TestSnapshotThatIsAlteredOnTheWay: every change is noticed, and the transfer
// ends well all the same.
func TestSnapshotThatIsAlteredOnTheWay(t *testing.T) {
	c, away := behind(t)
	chunk := func(number uint64, change func(k *replicapb.SnapshotChunk)) func(*replicapb.Request) bool {
		return func(r *replicapb.Request) bool {
			k := r.GetChunk()
			if k == nil || k.Number != number {
				return false
			}
			change(k)
			return true
		}
	}
	changes := []func(*replicapb.Request) bool{
		func(r *replicapb.Request) bool {
			o := r.GetOffer()
			if o != nil {
				o.Applied.Slot++
			}
			return o != nil
		},
		func(r *replicapb.Request) bool {
			o := r.GetOffer()
			if o != nil {
				o.Members[len(o.Members)-1] ^= 1
			}
			return o != nil
		},
		chunk(2, func(k *replicapb.SnapshotChunk) { k.Rows[0].Value[7] ^= 1 }),
		chunk(3, func(k *replicapb.SnapshotChunk) { k.Rows = k.Rows[1:] }),
		chunk(4, func(k *replicapb.SnapshotChunk) { k.Number++ }),
		chunk(5, func(k *replicapb.SnapshotChunk) { k.Last = true }),
		chunk(6, func(k *replicapb.SnapshotChunk) { k.Stream++ }),
		chunk(7, func(k *replicapb.SnapshotChunk) { slices.Reverse(k.Rows) }),
		chunk(8, func(k *replicapb.SnapshotChunk) { k.Rows, k.Crc = nil, 0 }),
	}
	var p tap
	done := 0
	p.alter = func(r *replicapb.Request) bool {
		if done < len(changes) && changes[done](r) {
			done++
		}
		return false
	}
	c.net.SetCalls(p.see)
	c.open(away)
	c.await("the snapshot", func() bool { return c.group(away).Status().Installs == 1 })
	p.mu.Lock()
	defer p.mu.Unlock()
	if done != len(changes) {
		t.Fatalf("%d changes expected, found %d", len(changes), done)
	}
	c.hasAll(away)
}
