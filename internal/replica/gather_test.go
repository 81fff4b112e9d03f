package replica

import (
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/koinon/koinon/paxos"
)

// TestCommandsGatherWhileTheLogWrites holds up the sync of an entry: commands
// that come in different turns of the driver meanwhile share the next entry.
func TestCommandsGatherWhileTheLogWrites(t *testing.T) {
	held := make(chan chan struct{}, 1) // a sync that is to be held up
	inSync := make(chan struct{})
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			select {
			case release := <-held:
				close(inSync)
				<-release
			default:
			}
		}
		return nil
	}))
	var ran uint64
	h, g := openAlone(t, fs, &ran)
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, _, err := g.Propose(t.Context(), Command{NS: nsNumbers}); err != nil {
		t.Fatal(err)
	}
	before := g.Status().Entries
	const n = 5
	waiters := make([]*waiter, n)
	propose := func(i int) {
		t.Helper()
		waiters[i] = &waiter{done: make(chan struct{})}
		if err := g.enqueue(&Command{NS: nsNumbers}, waiters[i]); err != nil {
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

// inDriver returns what fn says in a turn of the driver.
func inDriver(g *Group, fn func() bool) bool {
	out := make(chan bool)
	g.call(func(paxos.Time) { out <- fn() })
	return <-out
}
