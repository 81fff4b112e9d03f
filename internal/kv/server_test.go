package kv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// TestWatchAcrossLeaders lets writers change keys while leaders are cut off,
// and watchers with other tastes see every change once, in order.
func TestWatchAcrossLeaders(t *testing.T) {
	w := newWorld(t, nil)
	const writers, changes = 3, 60
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range writers {
		c := w.client("writer", nil)
		wg.Go(func() {
			for n := range changes {
				key := fmt.Sprintf("%d/%d", i, n%7)
				if _, err := c.Do(ctx, txn(put(key, fmt.Sprint(n)), put(fmt.Sprintf("other%d", i), fmt.Sprint(n)))); err != nil {
					t.Errorf("change %d: %v", n, err)
				}
			}
		})
	}
	watch := func(prefix string, want int) []string {
		c := w.client("watcher", nil)
		var seen []string
		for from := uint64(1); len(seen) < want; {
			r, err := c.Watch(ctx, []byte(prefix), true, from)
			if err != nil {
				t.Errorf("watch from %d: %v", from, err)
				return seen
			}
			if r.Revision+1 < from {
				t.Errorf("the watch went back from %d to %d", from, r.Revision+1)
			}
			for _, e := range r.Events {
				seen = append(seen, show(e))
			}
			from = r.Revision + 1
		}
		return seen
	}
	var all, one []string
	wg.Go(func() { all = watch("", 2*writers*changes) })
	wg.Go(func() { one = watch("1/", changes) })
	for range 3 {
		w.depose()
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	var truth []string
	err := w.leader().host.Group(0).Read(ctx, rsm.NSKV, func(r rsm.Reader) error {
		reply, more, err := readHistory(r, &kvpb.WatchRequest{Prefix: true}, 1)
		for _, e := range reply.GetEvents() {
			truth = append(truth, show(e))
		}
		if more {
			t.Error("the history does not fit into one answer")
		}
		return err
	})
	if err != nil || !slices.Equal(all, truth) {
		t.Errorf("expected %d changes, found %d (%v):\n%q\n%q", len(truth), len(all), err, truth, all)
	}
	for n, s := range one {
		var rev uint64
		var key, value int
		if _, err := fmt.Sscanf(s, "%d 1/%d=%d", &rev, &key, &value); err != nil || value != n {
			t.Errorf("change %d of the watch of 1/ is %q", n, s)
		}
	}
}

// TestQuietWatchKeepsUp has much happen beside a watch: it is told how far it
// is, so that compaction does not catch up with it.
func TestQuietWatchKeepsUp(t *testing.T) {
	w := newWorld(t, func(o *ServerOptions) { o.KeepRevisions = 100 })
	c := w.client("quiet", nil)
	from := c.mustDo(t, txn(put("mine", "1"))).Revision + 1
	done := make(chan error, 1)
	go func() {
		for {
			r, err := c.Watch(t.Context(), []byte("mine"), false, from)
			if err != nil {
				done <- err
				return
			}
			from = r.Revision + 1
			if len(r.Events) > 0 {
				done <- nil
				return
			}
		}
	}()
	other := w.client("busy", nil)
	// Else what happens first is compacted before the watch has begun.
	w.await("the watch", func() bool { return w.leader().server.hub.waiting.Load() > 0 })
	began := time.Now()
	for time.Since(began) < pollWait+time.Second {
		other.mustDo(t, txn(put("theirs", "x")))
	}
	w.await("compaction", func() bool { return w.leader().server.hub.last().compacted > 200 })
	other.mustDo(t, txn(put("mine", "2")))
	if err := <-done; err != nil {
		t.Error(err)
	}
	_, err := c.Watch(t.Context(), []byte("mine"), false, 1)
	if gone, ok := errors.AsType[*CompactedError](err); !ok || gone.Oldest < 100 {
		t.Errorf("a watch from what is compacted: %v", err)
	}
	if _, err := c.Query(t.Context(), &kvpb.Query{Op: &kvpb.Query_Get{Get: &kvpb.Get{Key: []byte("mine"), Revision: 1}}}); !sys.Is(errors.Unwrap(err), sys.Stale) {
		t.Errorf("a read of what is compacted: %v", err)
	}
}

func TestWatchOfTheFuture(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client("early", nil)
	got := make(chan *kvpb.WatchReply, 1)
	go func() {
		r, err := c.Watch(t.Context(), nil, true, 3)
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	w.await("the watch", func() bool { return w.leader().server.hub.waiting.Load() > 0 })
	for i := range 3 {
		c.mustDo(t, txn(put("k", fmt.Sprint(i))))
	}
	if r := <-got; r == nil || len(r.Events) != 1 || show(r.Events[0]) != "3 k=2" {
		t.Errorf("found %v", r)
	}
}

// TestLockQueue has clients take turns: one at a time, in order, with tokens
// that rise, while leaders change.
// A client that is closed gives up what its sessions hold, and does nothing more.
func TestClosedClient(t *testing.T) {
	w := newWorld(t, nil)
	c, other := w.client("c", nil), w.client("other", nil)
	s := w.session(c, 20*time.Second)
	if _, err := s.Lock(t.Context(), []byte("l"), true, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.session(other, 20*time.Second).Lock(t.Context(), []byte("l"), true, nil); err != nil {
		t.Errorf("a lock of a client that was closed: %v", err)
	}
	if !sys.Is(s.Err(), sys.SessionGone) || s.Left() != 0 {
		t.Errorf("a session that has ended expected, found %v left, %v", s.Left(), s.Err())
	}
	_, put := c.Do(t.Context(), txn(put("k", "1")))
	_, get := c.Query(t.Context(), &kvpb.Query{Op: &kvpb.Query_Get{Get: &kvpb.Get{Key: []byte("k")}}})
	_, watch := c.Watch(t.Context(), []byte("k"), false, 1)
	_, session := c.NewSession(t.Context(), 20*time.Second)
	for _, err := range []error{put, get, watch, session} {
		if !errors.Is(err, fs.ErrClosed) || IsUnknown(err) {
			t.Errorf("expected %v, found %v", fs.ErrClosed, err)
		}
	}
}

// What a program left out is refused, not a crash of its own.
func TestCheckOfNothing(t *testing.T) {
	for _, txn := range []*kvpb.Txn{{Compares: []*kvpb.Compare{nil}}, {Changes: []*kvpb.Change{nil}}} {
		if err := Check(&kvpb.Command{Op: &kvpb.Command_Txn{Txn: txn}}); !sys.Is(err, sys.Invalid) {
			t.Errorf("%v: %v", txn, err)
		}
	}
}

func TestLockQueue(t *testing.T) {
	w := newWorld(t, nil)
	var mu sync.Mutex
	var inside int
	var last uint64
	var wg sync.WaitGroup
	for range 4 {
		c := w.client("worker", nil)
		s := w.session(c, 5*time.Second)
		wg.Go(func() {
			for range 5 {
				fence, err := s.Lock(t.Context(), []byte("l"), false, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if inside++; inside != 1 || fence <= last {
					t.Errorf("%d hold it, token %d after %d", inside, fence, last)
				}
				last = fence
				mu.Unlock()
				c.mustDo(t, txn(put("turn", fmt.Sprint(fence))))
				mu.Lock()
				inside--
				mu.Unlock()
				if err := s.Unlock(t.Context(), []byte("l")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	w.depose()
	wg.Wait()
}

// TestLockIsLostBeforeItIsGiven cuts a holder off, by the sleep of its machine
// and by a leader without a majority: it knows before anybody else gets the
// lock.
func TestLockIsLostBeforeItIsGiven(t *testing.T) {
	const ttl = 1500 * time.Millisecond
	t.Run("sleep", func(t *testing.T) {
		w := newWorld(t, nil)
		clock := &sleeper{}
		s := w.session(w.client("sleeper", clock), ttl)
		if _, err := s.Lock(t.Context(), []byte("l"), false, nil); err != nil {
			t.Fatal(err)
		}
		clock.slept.Store(int64(ttl))
		if left := s.Left(); left != 0 {
			t.Errorf("after a sleep of its time to live a session thinks it has %v", left)
		}
		if err := s.Err(); !sys.Is(err, sys.SessionGone) {
			t.Errorf("found %v", err)
		}
		clock.slept.Store(0)
		if s.Left() != 0 {
			t.Error("a lost session came back")
		}
		if _, err := s.Do(t.Context(), txn(putEphemeral("k", "v"))); !sys.Is(err, sys.SessionGone) {
			t.Errorf("a lost session still writes: %v", err)
		}
	})
	t.Run("cut off", func(t *testing.T) {
		w := newWorld(t, nil)
		// The holder has one connection, to the leader that will be cut off
		// from the others, and gets no other one.
		var cut atomic.Bool
		old := w.leader()
		holder := w.clientOf("holder", nil, w.seeds[old.id-1:old.id], &cut)
		cut.Store(true)
		s := w.session(holder, ttl)
		first, err := s.Lock(t.Context(), []byte("l"), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		next := w.session(w.client("next", nil), 20*time.Second)
		given := make(chan time.Time, 1)
		go func() {
			second, err := next.Lock(t.Context(), []byte("l"), false, nil)
			at := time.Now()
			if err != nil || second <= first {
				t.Errorf("token %d after %d: %v", second, first, err)
			}
			given <- at
		}()
		w.await("a second in the queue", func() bool { return old.server.hub.waiting.Load() > 0 })
		w.net.Isolate(old.id, true)
		<-s.Ended()
		lost := time.Now()
		if at := <-given; at.Before(lost) {
			t.Errorf("given %v before its holder knew", lost.Sub(at))
		}
		cut.Store(false)
		w.net.Isolate(old.id, false)
	})
}

// TestUnknownOutcome tells what is known of a command that failed.
func TestUnknownOutcome(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client("c", nil)
	for { // a busy machine may change its leader meanwhile
		if _, err := c.Do(t.Context(), txn(put("k", "0"))); err == nil {
			break
		} else if !IsUnknown(err) {
			t.Fatal(err)
		}
	}
	for _, n := range w.nodes { // no majority: what is proposed stays open
		w.net.Isolate(n.id, true)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.Do(ctx, txn(put("k", "1")))
	if !IsUnknown(err) {
		t.Errorf("a command whose context ended while it was on its way: %v", err)
	}
	done, stop := context.WithCancel(t.Context())
	stop()
	if _, err := c.Do(done, txn(put("k", "2"))); err == nil || IsUnknown(err) {
		t.Errorf("a command that was never sent: %v", err)
	}
	if _, err := c.Do(t.Context(), txn(put("", "2"))); !sys.Is(err, sys.Invalid) || IsUnknown(err) {
		t.Errorf("a command that was refused: %v", err)
	}
	for _, n := range w.nodes {
		w.net.Isolate(n.id, false)
	}
	res := c.mustDo(t, txn(put("k", "3")))
	a, err := c.Query(t.Context(), &kvpb.Query{Op: &kvpb.Query_Get{Get: &kvpb.Get{Key: []byte("k")}}})
	if err != nil || len(a.Entries) != 1 || string(a.Entries[0].Value) != "3" || a.Entries[0].Version > 3 || a.Revision != res.Revision {
		t.Errorf("found %v, %v", a, err)
	}
}

// TestSessionsAreEnded closes none of them: what a client that vanished held is
// released in time, also by a leader that never heard of it.
func TestSessionsAreEnded(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client("c", nil)
	vanished := must(c.NewSession(t.Context(), TTLMin))
	if _, err := vanished.Do(t.Context(), txn(putEphemeral("here", "x"))); err != nil {
		t.Fatal(err)
	}
	if _, err := vanished.Lock(t.Context(), []byte("l"), false, nil); err != nil {
		t.Fatal(err)
	}
	vanished.lost(errors.New("the test stops its renewals"))
	vanished.done.Wait()
	w.depose()
	s := w.session(c, 10*time.Second)
	if _, err := s.Lock(t.Context(), []byte("l"), true, nil); err == nil {
		t.Error("a lock was given although its holder may think that it has it")
	} else if _, held := errors.AsType[*HeldError](err); !held {
		t.Error(err)
	}
	if _, err := s.Lock(t.Context(), []byte("l"), false, nil); err != nil {
		t.Fatal(err)
	}
	a, err := c.Query(t.Context(), &kvpb.Query{Op: &kvpb.Query_List{List: &kvpb.List{}}})
	if err != nil || len(a.Entries) != 0 {
		t.Errorf("an ephemeral key outlives its session: %v %v", a, err)
	}
	header := pb.Marshal(&kvpb.RenewRequest{Session: uint64(vanished.id)})
	if _, err := c.opt.Cluster.CallLeader(t.Context(), MethodRenew, header, nil); !sys.Is(err, sys.SessionGone) {
		t.Errorf("a session that is gone was renewed: %v", err)
	}
}

// TestLockWaitEnds gives up waiting: the place in the queue goes with it.
func TestLockWaitEnds(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client("c", nil)
	holder, waiter := w.session(c, 5*time.Second), w.session(c, 5*time.Second)
	if _, err := holder.Lock(t.Context(), []byte("l"), false, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := waiter.Lock(ctx, []byte("l"), false, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("found %v", err)
	}
	a, err := c.Query(t.Context(), &kvpb.Query{Op: &kvpb.Query_Locks{Locks: &kvpb.Locks{}}})
	if err != nil || len(a.Locks) != 1 || a.Locks[0].Waiting != 0 {
		t.Errorf("found %v, %v", a, err)
	}
	if waiter.Err() != nil {
		t.Errorf("the session was lost: %v", waiter.Err())
	}
}
