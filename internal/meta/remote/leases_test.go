package remote

import (
	"context"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// fakeClock is a clock that a test moves.
type fakeClock struct{ boot time.Duration }

func (c *fakeClock) Boot() time.Duration { return c.boot }
func (c *fakeClock) Wall() time.Time     { return time.Unix(0, int64(c.boot)) }

func leading(t *testing.T, sessions ...sys.SessionID) (*leases, *fakeClock) {
	t.Helper()
	clock := &fakeClock{boot: time.Hour}
	l := newLeases(clock)
	l.lead(7, sessions)
	return l, clock
}

// join makes a session known to the leader: the first renewal tells it to drop
// everything, the second confirms that it did.
func join(t *testing.T, l *leases, s sys.SessionID) {
	t.Helper()
	if n := l.renew(context.Background(), s, 0, 0, false); !n.reset || n.term != 7 {
		t.Fatalf("a session new to the leader was answered %+v", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // do not hold the renewal
	if n := l.renew(ctx, s, 7, 0, false); n.reset {
		t.Fatalf("a known session was told to drop everything: %+v", n)
	}
}

func waits(t *testing.T, l *leases, inos ...sys.Ino) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	return l.barrier(ctx, 7, inos...) != nil
}

func TestAChangeWaitsForWhoCaches(t *testing.T) {
	l, _ := leading(t)
	join(t, l, 1)
	join(t, l, 2)
	got, seq := l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20})
	if len(got) != 1 {
		t.Fatalf("granted %v", got)
	}
	l.changed(6, 2, 1, []sys.Ino{20})
	if !waits(t, l, 20) {
		t.Fatal("the change did not wait for the session that caches the inode")
	}
	if waits(t, l, 21) {
		t.Fatal("a change of another inode waited")
	}
	n := l.renew(context.Background(), 1, 7, seq, false)
	if len(n.inos) != 1 || n.inos[0] != 20 || n.seq <= seq {
		t.Fatalf("the renewal brought %+v", n)
	}
	if !waits(t, l, 20) {
		t.Fatal("the change went on before it was confirmed")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.renew(ctx, 1, 7, n.seq, false)
	if waits(t, l, 20) {
		t.Fatal("the change still waits after it was confirmed")
	}
}

func TestASendersOwnChangeRevokesOnlyWhatItKept(t *testing.T) {
	l, _ := leading(t)
	join(t, l, 1)
	l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20, 21})
	done := l.expect(1, 9, []sys.Ino{20})
	l.changed(6, 1, 9, []sys.Ino{20})
	done()
	if waits(t, l) {
		t.Fatal("the sender waits for itself although it gave the inode up")
	}
	l.changed(7, 1, 10, []sys.Ino{21})
	if !waits(t, l, 21) {
		t.Fatal("what the sender kept was not revoked")
	}
}

func TestNoLeaseOnWhatChangedSinceItWasRead(t *testing.T) {
	l, _ := leading(t)
	join(t, l, 1)
	order := l.changed(6, 2, 1, []sys.Ino{20})
	if got, _ := l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20}); len(got) != 0 {
		t.Errorf("a view of slot 5 got a lease on an inode changed at 6: %v", got)
	}
	if got, _ := l.grant(7, 1, seenAt{slot: 6}, []sys.Ino{20}); len(got) != 1 {
		t.Error("a view of slot 6 got no lease")
	}
	// Two changes in one slot: the outcome of the first is not the latest.
	l.changed(6, 2, 2, []sys.Ino{20})
	if got, _ := l.grant(7, 1, seenAt{change: order}, []sys.Ino{20}); len(got) != 0 {
		t.Error("the outcome of an overtaken change got a lease")
	}
}

func TestASilentSessionIsExpired(t *testing.T) {
	l, clock := leading(t)
	join(t, l, 1)
	l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20})
	l.changed(6, 2, 1, []sys.Ino{20})
	clock.boot += Term + drift
	if waits(t, l, 20) {
		t.Fatal("a change waits for a session whose lease has run out")
	}
	if n := l.renew(context.Background(), 1, 7, 0, false); !n.reset {
		t.Fatalf("a session that was forgotten was not told to drop everything: %+v", n)
	}
}

func TestWhatWasGrantedBeforeAResetIsTooOld(t *testing.T) {
	l, clock := leading(t)
	join(t, l, 1)
	_, old := l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20})
	l.changed(6, 2, 1, []sys.Ino{20})
	clock.boot += Term + drift
	if waits(t, l, 20) {
		t.Fatal("not expired")
	}
	c := newCache(clock)
	n := l.renew(context.Background(), 1, 7, 0, false)
	c.renewed(clock.boot, n.term, n.seq, n.inos, n.reset)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fresh(7, old) {
		t.Fatal("a reply from before the reset would be cached")
	}
}

func TestANewLeaderWaitsForEarlierLeases(t *testing.T) {
	l, clock := leading(t, 1, 2)
	term := uint64(7)
	settled := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		return l.settle(ctx, term) == nil
	}
	if settled() {
		t.Fatal("settled although two sessions may cache what an earlier leader let them")
	}
	join(t, l, 1)
	if settled() {
		t.Fatal("settled although one session has not been heard of")
	}
	join(t, l, 2)
	if !settled() {
		t.Fatal("not settled although all sessions have dropped everything")
	}
	l.lead(8, []sys.SessionID{3})
	if settled() {
		t.Fatal("a request of the leadership before was let through")
	}
	term = 8
	clock.boot += Term + drift
	if !settled() {
		t.Fatal("not settled although every earlier lease has run out")
	}
	l.follow()
	if err := l.settle(context.Background(), 8); !sys.Is(err, sys.NotLeader) {
		t.Fatalf("a node that does not lead answered %v", err)
	}
}

func TestAChangeIsNotAnsweredUnderAnotherLeadership(t *testing.T) {
	l, _ := leading(t)
	join(t, l, 1)
	l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20})
	l.changed(6, 2, 1, []sys.Ino{20})
	l.follow()
	l.lead(9, nil)
	if err := l.barrier(context.Background(), 7, 20); !sys.Is(err, sys.NotLeader) {
		t.Errorf("a change made under the leadership before was answered: %v", err)
	}
	if got, _ := l.grant(7, 1, seenAt{slot: 9}, []sys.Ino{21}); len(got) != 0 {
		t.Errorf("a lease was given on what was read under the leadership before: %v", got)
	}
}
