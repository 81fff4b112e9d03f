package koinon

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/kv"
	"github.com/koinon/koinon/internal/kv/kvpb"
)

// changes is a kvClient that has some changes to show, three at a time, of which
// each two have one revision.
type changes struct {
	kvClient
	last uint64
}

func (c changes) Watch(_ context.Context, _ []byte, _ bool, from uint64) (*kvpb.WatchReply, error) {
	r := &kvpb.WatchReply{Revision: max(from, 1) - 1}
	for rev := max(from, 1); rev <= c.last && len(r.Events) < 3; rev++ {
		for i := range 2 {
			r.Events = append(r.Events, &kvpb.Event{Entry: &kvpb.Entry{Key: fmt.Append(nil, rev, ".", i), ModRevision: rev}})
		}
		r.Revision = rev
	}
	return r, nil
}

func (changes) NewSession(context.Context, time.Duration) (*kv.Session, error) {
	panic("not asked for")
}

// A loop over events may be left anywhere: what was not shown comes next, from the
// same watch, and from another one that begins behind its revision.
func TestWatchLeftEarly(t *testing.T) {
	const last = 5
	var all []string
	for rev := 1; rev <= last; rev++ {
		all = append(all, fmt.Sprint(rev, ".0"), fmt.Sprint(rev, ".1"))
	}
	k := &KV{c: changes{last: last}}
	for stop := 1; stop <= len(all); stop++ {
		w := k.Watch(WatchOptions{Prefix: true, From: 1})
		var seen []string
		upTo := func(w *Watch, n int) {
			for e, err := range w.Events(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if seen = append(seen, e.Key); len(seen) == n {
					return
				}
			}
		}
		upTo(w, stop)
		rev := w.Revision()
		if whole := uint64(stop / 2); rev != whole {
			t.Errorf("after %d events: revision %d expected, found %d", stop, whole, rev)
		}
		if stop < len(all) {
			upTo(w, len(all))
		}
		if !slices.Equal(seen, all) {
			t.Errorf("left after %d: found %q", stop, seen)
		}
		if rev == last {
			continue
		}
		seen = slices.Clone(all[:2*rev]) // a transaction of which only a part was shown is shown again
		if upTo(k.Watch(WatchOptions{Prefix: true, From: rev + 1}), len(all)); !slices.Equal(seen, all) {
			t.Errorf("begun again after %d: found %q", stop, seen)
		}
	}
}
