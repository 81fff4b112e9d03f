package wire

import (
	"testing"
	"time"
)

// A flood of refusals is told of by its number, some by themselves.
func TestRefusals(t *testing.T) {
	var r refusals
	now := time.Unix(1e9, 0)
	flood := func(n int) (told, untold int) {
		for range n {
			tell, before := r.note(now)
			if tell {
				told++
			}
			untold += before
			now = now.Add(time.Millisecond)
		}
		return told, untold
	}
	if told, untold := flood(5000); told != refusalsTold || untold != 0 {
		t.Errorf("told of %d, %d of before", told, untold)
	}
	if n := r.ended(now); n != 0 {
		t.Errorf("within the window %d are told of", n)
	}
	now = now.Add(refusalsWindow)
	if n := r.ended(now); n != 5000-refusalsTold {
		t.Errorf("at its end %d are told of", n)
	}
	if n := r.ended(now); n != 0 {
		t.Errorf("%d are told of twice", n)
	}
	flood(20)
	now = now.Add(refusalsWindow)
	if told, untold := flood(3); told != 3 || untold != 20-refusalsTold {
		t.Errorf("in the next window told of %d, %d of before", told, untold)
	}
}
