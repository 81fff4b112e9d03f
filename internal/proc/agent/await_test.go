//go:build linux

package agent

import (
	"testing"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
)

// Who has heard from the leader that a process runs waits for it where it is
// reserved only; of what is neither there nor reserved nobody waits.
func TestAwaitReserved(t *testing.T) {
	a := &Agent{holds: map[commit.Tx]*hold{}, procs: map[executor.ID]*process{}, settled: make(chan struct{}), beat: newWake()}
	key, tx := taskKey{job: 7, epoch: 1}, commit.Tx{Epoch: 1, Seq: 1}
	if p := a.await(t.Context(), key, 0); p != nil {
		t.Errorf("found %v where nothing is", p)
	}
	res := &procpb.Reservation{Job: 7, Epoch: 1, Ranks: []uint32{0}, Spec: &procpb.Spec{}}
	a.hold(tx, res)
	found := make(chan *process)
	go func() { found <- a.await(t.Context(), key, 0) }()
	want := &process{}
	a.mu.Lock()
	a.procs[attempt(res, 0)] = want
	a.mu.Unlock()
	a.release(tx)
	if p := <-found; p != want {
		t.Errorf("found %v, want what the reservation became", p)
	}
}
