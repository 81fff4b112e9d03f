package replica_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func TestSingleReplicaAgreesWithItself(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.leader()
	for i := uint64(1); i <= 20; i++ {
		if got := number(c.must(add("x"))); got != i {
			t.Fatalf("counter: %d expected, found %d", i, got)
		}
	}
	c.crash(1)
	c.open(1)
	if got := number(c.must(add("x"))); got != 21 {
		t.Fatalf("counter after a crash: 21 expected, found %d", got)
	}
}

func TestThreeReplicasAgree(t *testing.T) {
	c := newCluster(t, 3, nil)
	for i := uint64(1); i <= 200; i++ {
		if got := number(c.must(add("x"))); got != i {
			t.Fatalf("counter: %d expected, found %d", i, got)
		}
	}
	for id := sys.NodeID(1); id <= 3; id++ {
		c.await("the followers to apply", func() bool { return c.count(id, "x") == 200 })
	}
	st := c.group(c.leader()).Status()
	if st.Proposals < 200 || st.Entries == 0 || st.LogSyncs == 0 || len(st.Peers) != 2 {
		t.Fatalf("counters expected, found %+v", st)
	}
}

func TestCrashOfAllKeepsWhatWasAcknowledged(t *testing.T) {
	c := newCluster(t, 3, nil)
	for range 50 {
		c.must(add("x"))
	}
	for id := sys.NodeID(1); id <= 3; id++ {
		c.crash(id)
	}
	for id := sys.NodeID(1); id <= 3; id++ {
		c.open(id)
	}
	if got := number(c.must(add("x"))); got != 51 {
		t.Fatalf("counter after a restart: 51 expected, found %d", got)
	}
}

// TestLeaderDeathStopsServiceForLessThanASecond uses the default timeouts.
func TestLeaderDeathStopsServiceForLessThanASecond(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) {
		cfg.Tick, cfg.Heartbeat, cfg.ElectionTimeout, cfg.Lease = 0, 0, 0, 0
	})
	for range 3 {
		c.must(add("x"))
		old := c.leader()
		start := time.Now()
		c.crash(old)
		c.must(add("x"))
		if took := time.Since(start); took > time.Second {
			t.Errorf("service again within 1 s expected, found %v", took)
		}
		c.open(old)
	}
	if got := number(c.must(add("x"))); got != 7 {
		t.Fatalf("counter: 7 expected, found %d", got)
	}
}

func TestRetryIsAppliedOnce(t *testing.T) {
	c := newCluster(t, 3, nil)
	session, err := c.group(c.leader()).OpenSession(c.ctx(), "retry")
	if err != nil {
		t.Fatal(err)
	}
	one := rsm.Command{Session: session, Seq: 1, NS: nsTest, Body: add("x")}
	retry := func(what string) {
		t.Helper()
		out, err := c.do(c.ctx(), one)
		if err != nil || number(out) != 1 {
			t.Fatalf("%s: 1 expected, found %d, %v", what, number(out), err)
		}
	}
	retry("first")
	retry("second")
	old := c.leader()
	c.close(old)
	retry("after a change of leader")
	c.open(old)
	for id := sys.NodeID(1); id <= 3; id++ {
		c.crash(id)
		c.open(id)
	}
	retry("after restarts")
	if _, err := c.do(c.ctx(), rsm.Command{Session: session, Seq: 2, Ack: 1, NS: nsTest, Body: add("x")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.do(c.ctx(), one); !sys.Is(err, sys.Invalid) {
		t.Fatalf("a command that was acknowledged: sys.Invalid expected, found %v", err)
	}
	one.Session = 999
	if _, err := c.do(c.ctx(), one); !sys.Is(err, sys.SessionGone) {
		t.Fatalf("an unknown session: sys.SessionGone expected, found %v", err)
	}
}

func TestSessionEndsWithoutSignOfLife(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.SessionTTL = 300 * time.Millisecond })
	g := c.group(c.leader())
	idle, err := g.OpenSession(c.ctx(), "idle")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := g.OpenSession(c.ctx(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	c.await("the idle session to end", func() bool {
		l := c.leader()
		if err := c.group(l).KeepAlive(kept); err != nil && !sys.Is(err, sys.NotLeader) {
			t.Fatalf("keep alive: %v", err)
		}
		return c.local(l, fmt.Sprintf("ended%d", idle)) != ""
	})
	_, err = c.do(c.ctx(), rsm.Command{Session: idle, Seq: 1, NS: nsTest, Body: add("x")})
	if !sys.Is(err, sys.SessionGone) {
		t.Fatalf("sys.SessionGone expected, found %v", err)
	}
	if _, err := c.do(c.ctx(), rsm.Command{Session: kept, Seq: 1, NS: nsTest, Body: add("x")}); err != nil {
		t.Fatalf("the session that was kept: %v", err)
	}
	list, err := c.group(c.leader()).Sessions()
	if err != nil || len(list) != 1 || list[0].ID != kept || list[0].Name != "kept" {
		t.Fatalf("the kept session expected, found %+v, %v", list, err)
	}
}

func TestFollowerThatWasAwayCatchesUpFromTheLog(t *testing.T) {
	c := newCluster(t, 3, nil)
	away := c.follower()
	c.close(away)
	for range 100 {
		c.must(add("x"))
	}
	c.open(away)
	c.await("the follower to catch up", func() bool { return c.count(away, "x") == 100 })
	if n := c.group(away).Status().Installs; n != 0 {
		t.Fatalf("no snapshot expected, found %d", n)
	}
}

func TestFollowerThatWasAwayLongGetsASnapshot(t *testing.T) {
	c := newCluster(t, 3, nil)
	session, err := c.group(c.leader()).OpenSession(c.ctx(), "s")
	if err != nil {
		t.Fatal(err)
	}
	c.must(set("gone", "with the snapshot"))
	away := c.follower()
	c.await("the follower to apply", func() bool { return c.local(away, "gone") != "" })
	c.close(away)
	// Far more than is retained.
	value := strings.Repeat("v", 60<<10)
	cut := func() bool {
		st := c.group(c.leader()).Status()
		return st.Truncated > 60
	}
	one := rsm.Command{Session: session, Seq: 1, NS: nsTest, Body: add("x")}
	if _, err := c.do(c.ctx(), one); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 100 || !cut(); i++ {
		c.must(set(fmt.Sprintf("big%03d", i%200), value))
	}
	c.must(set("gone", ""))
	c.open(away)
	c.await("the snapshot to be in place", func() bool { return c.group(away).Status().Installs > 0 })
	c.await("the follower to catch up", func() bool {
		return c.group(away).Status().Applied >= c.group(c.leader()).Status().Applied
	})
	if c.local(away, "big050") != value || c.local(away, "gone") != "" || c.count(away, "x") != 1 {
		t.Fatal("the follower's state is not the leader's")
	}
	// It goes on from there, knows the sessions, and survives a crash.
	c.crash(away)
	c.open(away)
	c.leader()
	if out, err := c.do(c.ctx(), one); err != nil || number(out) != 1 {
		t.Fatalf("retry: 1 expected, found %d, %v", number(out), err)
	}
	c.must(add("x"))
	c.await("the follower to follow", func() bool { return c.count(away, "x") == 2 })
	if s, err := c.group(away).Sessions(); err != nil || len(s) != 2 {
		t.Fatalf("2 sessions expected, found %v, %v", s, err)
	}
}

func TestHooksRunBeforeWritesAreVisible(t *testing.T) {
	c := newCluster(t, 3, nil)
	l := c.leader()
	g := c.group(l)
	var early, calls atomic.Int64
	g.OnApply(nsTest, func(st rsm.Stamp, local any) {
		calls.Add(1)
		err := g.ReadLocal(nsTest, func(r rsm.Reader) error {
			v, err := r.Get([]byte("x"))
			if number(v) >= uint64(calls.Load()) {
				early.Add(1)
			}
			return err
		})
		if err != nil || local != st.Slot {
			early.Add(1)
		}
	})
	for i := uint64(1); i <= 30; i++ {
		out, local, err := g.Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")})
		if err != nil || number(out) != i || local == nil {
			t.Fatalf("%d expected, found %d, local %v, %v", i, number(out), local, err)
		}
		if n := calls.Load(); n < int64(i) {
			t.Fatalf("the hook before the result expected: %d calls, found %d", i, n)
		}
		err = g.Read(c.ctx(), nsTest, func(r rsm.Reader) error {
			v, err := r.Get([]byte("x"))
			if number(v) != i {
				t.Errorf("read %d expected, found %d", i, number(v))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if early.Load() != 0 {
		t.Fatalf("a hook saw what it should come before, %d times", early.Load())
	}
}

func TestFollowerNamesTheLeader(t *testing.T) {
	c := newCluster(t, 3, nil)
	l := c.leader()
	f := l%3 + 1
	c.await("the follower to know", func() bool { return c.group(f).Status().Leader == l })
	_, _, err := c.group(f).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")})
	if id, ok := rsm.LeaderOf(err); !sys.Is(err, sys.NotLeader) || !ok || id != l {
		t.Fatalf("NotLeader that names %v expected, found %v", l, err)
	}
	err = c.group(f).Read(c.ctx(), nsTest, func(rsm.Reader) error { return nil })
	if id, ok := rsm.LeaderOf(err); !sys.Is(err, sys.NotLeader) || !ok || id != l {
		t.Fatalf("NotLeader that names %v expected, found %v", l, err)
	}
}

func TestTransferAndWatch(t *testing.T) {
	c := newCluster(t, 3, nil)
	old := c.leader()
	to := old%3 + 1
	seen := make(chan rsm.Status, 100)
	stop := c.group(to).Watch(func(s rsm.Status) {
		select {
		case seen <- s:
		default:
		}
	})
	defer stop()
	c.await("the transfer to be taken", func() bool { return c.group(old).Transfer(c.ctx(), to) == nil })
	deadline := time.After(10 * time.Second)
	for {
		select {
		case s := <-seen:
			if s.Role == rsm.Leader {
				return
			}
		case <-deadline:
			t.Fatal("the new leader was not announced")
		}
	}
}

// TestIsolatedLeaderServesNothing: reads and writes at a leader that nobody
// hears must not succeed once another may lead.
func TestIsolatedLeaderServesNothing(t *testing.T) {
	c := newCluster(t, 3, nil)
	old := c.leader()
	c.must(set("k", "old"))
	c.net.Isolate(old, true)
	c.await("another leader", func() bool {
		for id := sys.NodeID(1); id <= 3; id++ {
			if s := c.group(id).Status(); id != old && s.Role == rsm.Leader && s.Ready {
				return true
			}
		}
		return false
	})
	err := c.group(old).Read(c.ctx(), nsTest, func(r rsm.Reader) error { return nil })
	if err == nil {
		t.Fatal("a read at a deposed leader: an error expected, found none")
	}
	_, _, err = c.group(old).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: set("k", "new")})
	if k := sys.KindOf(err); k != sys.NotLeader && k != sys.Unavailable {
		t.Fatalf("NotLeader or Unavailable expected, found %v", err)
	}
	c.net.Isolate(old, false)
	c.await("the old leader to follow", func() bool { return c.group(old).Status().Leader != old })
}

func TestTwoGroupsShareOneLog(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Groups = []sys.GroupID{0, 5} })
	for _, id := range []sys.GroupID{0, 5} {
		var got uint64
		c.await("a leader of the group", func() bool {
			for n := sys.NodeID(1); n <= 3; n++ {
				out, _, err := c.host(n).Group(id).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")})
				if err == nil {
					got = number(out)
					return true
				}
				var le *rsm.LeaderError
				if !errors.As(err, &le) {
					t.Fatal(err)
				}
			}
			return false
		})
		if got == 0 || got > 2 {
			t.Fatalf("group %d: a counter of its own expected, found %d", id, got)
		}
	}
	if c.host(1).Group(7) != nil {
		t.Fatal("group 7: nil expected")
	}
}

func TestClosedHostAnswersUnavailable(t *testing.T) {
	c := newCluster(t, 1, nil)
	g := c.group(c.leader())
	c.close(1)
	if _, _, err := g.Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")}); err == nil {
		t.Fatal("propose: an error expected, found none")
	}
	if err := g.ReadLocal(nsTest, func(rsm.Reader) error { return nil }); !sys.Is(err, sys.Unavailable) {
		t.Fatalf("read: sys.Unavailable expected, found %v", err)
	}
}

func TestTooLargeCommandIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	g := c.group(c.leader())
	_, _, err := g.Propose(c.ctx(), rsm.Command{NS: nsTest, Body: make([]byte, 1<<20)})
	if !sys.Is(err, sys.TooBig) {
		t.Fatalf("sys.TooBig expected, found %v", err)
	}
}

// TestStatusOfAClosedHost: who looks after a host may ask while it closes.
func TestStatusOfAClosedHost(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.must(add("x"))
	g := c.group(1)
	c.close(1)
	if s := g.Status(); s.Applied == 0 || s.LogSyncs == 0 {
		t.Fatalf("what it was expected, found %+v", s)
	}
}

// TestManyCommandsInASmallLog: what waits together is more than a segment of the log takes.
func TestManyCommandsInASmallLog(t *testing.T) {
	c := newCluster(t, 1, func(cfg *replica.Config) { cfg.SegmentBytes = 64 << 10 })
	body := set("k", strings.Repeat("v", 8<<10))
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if _, err := c.do(c.ctx(), rsm.Command{NS: nsTest, Body: body}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
