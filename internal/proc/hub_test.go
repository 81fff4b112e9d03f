package proc

import (
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
)

// TestWhatIsRememberedIsBounded: old changes are forgotten, and a change that was missed is noticed.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	h := newHub()
	change := func(v uint64) delta {
		return delta{jobs: []*procpb.Job{{Id: 1, Version: v}}, tasks: []*procpb.Task{{Job: 1, Index: uint32(v), Version: v}}, from: map[uint64]uint64{1: v - 1}}
	}
	const last = 3 * recentMax
	for v := uint64(1); v <= last; v++ {
		h.publish(change(v))
	}
	if h.rows > recentMax || h.rows != 2*len(h.recent) {
		t.Errorf("expected at most %d rows, found %d in %d changes", recentMax, h.rows, len(h.recent))
	}
	if tasks, _, ok := h.since(1, last-10, last-3); !ok || len(tasks) != 7 {
		t.Errorf("expected the 7 tasks between two versions, found %d (%v)", len(tasks), ok)
	}
	if _, _, ok := h.since(1, 1, last); ok {
		t.Error("expected that so old a change is not remembered")
	}
	if _, _, ok := h.since(2, 0, 1); ok {
		t.Error("expected nothing about a job that was never heard of")
	}
	h.publish(change(last + 2))
	if _, _, ok := h.since(1, last-1, last+2); ok {
		t.Error("expected the gap to be noticed")
	}
	big := delta{jobs: []*procpb.Job{{Id: 1, Version: last + 3}}, from: map[uint64]uint64{1: last + 2}}
	for range 2 * recentMax {
		big.tasks = append(big.tasks, &procpb.Task{Job: 1, Version: last + 3})
	}
	h.publish(big)
	if len(h.recent) != 1 {
		t.Errorf("expected a large change to displace the others, found %d", len(h.recent))
	}
	h.publish(change(last + 4))
	if len(h.recent) != 1 || h.rows != 2 {
		t.Errorf("expected a large change to go with the next one, found %d changes, %d rows", len(h.recent), h.rows)
	}
	h.publish(delta{jobs: []*procpb.Job{{Id: 2, Version: 7}}, from: map[uint64]uint64{2: 7}})
	if len(h.recent) != 1 {
		t.Errorf("expected nothing to be kept of a job of which nothing is told, found %d", len(h.recent))
	}
}
