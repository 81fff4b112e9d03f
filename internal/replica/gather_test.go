package replica

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/paxos"
)

// holdSyncs returns a disk that holds up the next sync of a log when a channel
// is sent to held, until that is closed; inSync gets one when it does.
func holdSyncs() (fs vfs.FS, held chan chan struct{}, inSync chan struct{}) {
	held, inSync = make(chan chan struct{}, 1), make(chan struct{})
	fs = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			select {
			case release := <-held:
				inSync <- struct{}{}
				<-release
			default:
			}
		}
		return nil
	}))
	return fs, held, inSync
}

// TestRepairedWhenThatIsDurable: a crash before would bring the damage back, so
// nobody is told earlier that it is over.
func TestRepairedWhenThatIsDurable(t *testing.T) {
	fs, held, inSync := holdSyncs()
	var ran uint64
	h, g := openAlone(t, fs, env.System{}, &ran)
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	damaged := func() bool {
		return inDriver(g, func() bool { g.publishStatus(); return g.Status().Damaged != "" })
	}
	if _, _, err := g.Propose(t.Context(), rsm.Command{NS: nsNumbers}); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	w := &waiter{done: make(chan struct{})}
	inDriver(g, func() bool {
		g.d.damaged = true // the core knows better, and tells so with the next entry
		held <- release
		if err := g.enqueue(&rsm.Command{NS: nsNumbers}, w); err != nil {
			t.Error(err)
		}
		return true
	})
	<-inSync
	if !damaged() {
		t.Error("the repair is not durable: damage expected, found none")
	}
	close(release)
	<-w.done
	for damaged() {
		runtime.Gosched() // until the driver has taken in that it is durable
	}
}

// TestCommandsGatherWhileTheLogWrites holds up the sync of an entry: commands
// that come in different turns of the driver meanwhile share the next entry.
func TestCommandsGatherWhileTheLogWrites(t *testing.T) {
	fs, held, inSync := holdSyncs()
	var ran uint64
	h, g := openAlone(t, fs, env.System{}, &ran)
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, _, err := g.Propose(t.Context(), rsm.Command{NS: nsNumbers}); err != nil {
		t.Fatal(err)
	}
	before := g.Status().Entries
	const n = 5
	waiters := make([]*waiter, n)
	propose := func(i int) {
		t.Helper()
		waiters[i] = &waiter{done: make(chan struct{})}
		if err := g.enqueue(&rsm.Command{NS: nsNumbers}, waiters[i]); err != nil {
			t.Fatal(err)
		}
	}
	release := make(chan struct{})
	held <- release
	propose(0)
	<-inSync
	for i := 1; i < n; i++ {
		propose(i)
		for range 2 { // when the second one runs, a turn has seen the command
			if inDriver(g, h.idle) {
				t.Fatal("idle while the log writes")
			}
		}
	}
	close(release)
	for _, w := range waiters {
		<-w.done
		if w.out.err != nil {
			t.Fatal(w.out.err)
		}
	}
	if got := g.Status().Entries - before; got != 2 {
		t.Fatalf("%d commands: 2 entries expected, found %d", n, got)
	}
	for !inDriver(g, h.idle) {
		runtime.Gosched() // until the driver has taken in that all is done
	}
}

// stopped is a clock that stands still once told to.
type stopped struct {
	env.System
	at atomic.Int64 // 0: it runs
}

func (c *stopped) Boot() time.Duration {
	if at := c.at.Load(); at != 0 {
		return time.Duration(at)
	}
	return c.System.Boot()
}

// TestCommandsGatherWhileMoreAreUnderWay holds up the answers of an entry of
// three commands: one that comes meanwhile waits, and does not go for others,
// until as many have come, or a tick has passed.
func TestCommandsGatherWhileMoreAreUnderWay(t *testing.T) {
	clock := &stopped{}
	var ran uint64
	h, g := openAlone(t, vfs.NewMem(), clock, &ran)
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	applying, release := make(chan struct{}), make(chan struct{})
	g.OnApply(nsNumbers, func(rsm.Stamp, any) {
		applying <- struct{}{}
		<-release
	})
	clock.at.Store(int64(clock.System.Boot()))
	var waiters []*waiter
	propose := func(n int) {
		for range n {
			w := &waiter{done: make(chan struct{})}
			waiters = append(waiters, w)
			if err := g.enqueue(&rsm.Command{NS: nsNumbers}, w); err != nil {
				t.Error(err)
			}
		}
	}
	inDriver(g, func() bool { propose(3); return true })
	<-applying
	entries := func() uint64 {
		inDriver(g, h.idle) // when the second one runs, a turn has seen what was proposed
		inDriver(g, h.idle)
		return g.Status().Entries
	}
	before := entries()
	for _, c := range []struct {
		commands int
		passes   time.Duration
		more     uint64 // entries
		why      string
	}{
		{1, 0, 0, "one waits for three"},
		{1, 0, 0, "two wait for three"},
		{1, 0, 1, "as many wait as are under way"},
		{5, 0, 0, "five wait for six"},
		{0, h.cfg.Tick, 1, "nobody waits longer than a tick"},
	} {
		propose(c.commands)
		clock.at.Add(int64(c.passes))
		if got := entries() - before; got != c.more {
			t.Fatalf("%s: %d more entries expected, found %d", c.why, c.more, got)
		}
		before += c.more
	}
	propose(1)
	if got := entries() - before; got != 0 {
		t.Fatalf("one waits for eleven: no entry expected, found %d", got)
	}
	close(release)
	for range len(waiters) - 1 {
		<-applying
	}
	for _, w := range waiters {
		<-w.done // the last one too, though time stands still
	}
}

// inDriver returns what fn says in a turn of the driver.
func inDriver(g *Group, fn func() bool) bool {
	out := make(chan bool)
	g.call(func(paxos.Time) { out <- fn() })
	return <-out
}
