package replica_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// brake holds up the applier of one replica, as a slow disk does.
type brake struct {
	mu      sync.Mutex
	release chan struct{} // nil: off
	held    chan struct{} // gets one for every command that is held up
}

// newBrake must be called before anything is applied.
func newBrake(g *replica.Group) *brake {
	b := &brake{held: make(chan struct{}, 1024)}
	g.OnApply(nsTest, func(rsm.Stamp, any) {
		b.mu.Lock()
		release := b.release
		b.mu.Unlock()
		if release != nil {
			b.held <- struct{}{}
			<-release
		}
	})
	return b
}

func (b *brake) on() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release = make(chan struct{})
}

// off lets go of what is held up and holds up nothing more.
func (b *brake) off() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.release != nil {
		close(b.release)
		b.release = nil
	}
}

// get reads a counter of one replica through Read, within a time.
func (c *cluster) get(ctx context.Context, id sys.NodeID, key string) (n uint64, err error) {
	err = c.group(id).Read(ctx, nsTest, func(r rsm.Reader) error {
		v, err := r.Get([]byte(key))
		n = number(v)
		return err
	})
	return n, err
}

// TestLeaseReadSeesWhatOthersMayHaveApplied: a leader that is slow to apply
// has told the others what is chosen. A deposed leader may have shown that to
// a reader, so a read under the lease must not answer without it.
func TestLeaseReadSeesWhatOthersMayHaveApplied(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.must(add("x"))
	l, f := c.leader(), c.follower()
	b := newBrake(c.group(l))
	b.on()
	defer b.off()
	proposed := make(chan error, 1)
	go func() {
		_, _, err := c.group(l).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")})
		proposed <- err
	}()
	<-b.held
	c.await("a follower to apply", func() bool { return c.count(f, "x") == 2 })
	ctx, cancel := context.WithTimeout(c.ctx(), 100*time.Millisecond)
	defer cancel()
	if n, err := c.get(ctx, l, "x"); err == nil && n != 2 {
		t.Fatalf("a read after a replica has shown 2: 2 or no answer expected, found %d", n)
	}
	b.off()
	if err := <-proposed; err != nil {
		t.Fatal(err)
	}
	if n, err := c.get(c.ctx(), l, "x"); err != nil || n != 2 {
		t.Fatalf("2 expected, found %d, %v", n, err)
	}
}

// TestDeposedLeaderAnswersNoOldRead: a read that waits for the state when
// leadership is lost is not answered from the state that the next leader
// brings.
func TestDeposedLeaderAnswersNoOldRead(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.must(add("x"))
	old := c.leader()
	b := newBrake(c.group(old))
	b.on()
	defer b.off()
	proposed := make(chan error, 1)
	go func() {
		_, _, err := c.group(old).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")})
		proposed <- err
	}()
	<-b.held
	type answer struct {
		n   uint64
		err error
	}
	answers := make(chan answer, 1)
	before := c.group(old).Status().Reads
	go func() {
		n, err := c.get(c.ctx(), old, "x")
		answers <- answer{n, err}
	}()
	c.await("the read", func() bool { return c.group(old).Status().Reads > before })
	c.net.Isolate(old, true)
	var next sys.NodeID
	c.await("another leader", func() bool {
		for id := sys.NodeID(1); id <= 3; id++ {
			if s := c.group(id).Status(); id != old && s.Role == rsm.Leader && s.Ready {
				next = id
				return true
			}
		}
		return false
	})
	if _, _, err := c.group(next).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")}); err != nil {
		t.Fatal(err)
	}
	c.net.Isolate(old, false)
	c.await("the old leader to follow", func() bool { return c.group(old).Status().Leader == next })
	b.off()
	c.await("the old leader to apply", func() bool { return c.count(old, "x") == 3 })
	if a := <-answers; !sys.Is(a.err, sys.NotLeader) {
		t.Fatalf("sys.NotLeader expected, found %d, %v", a.n, a.err)
	}
	// Its command was chosen before that, and is in the new leader's state.
	if err := <-proposed; err != nil && !sys.Is(err, sys.Unavailable) {
		t.Fatalf("an outcome or sys.Unavailable expected, found %v", err)
	}
}
