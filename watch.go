package koinon

import (
	"context"
	"iter"

	"github.com/koinon/koinon/internal/kv/kvpb"
)

// Event is a change of a key.
type Event struct {
	Deleted bool // Entry then has Key, Revision and Session only
	Entry
	Replaced uint64 // revision of what was there before, 0 when nothing was
}

// WatchOptions say what to watch.
type WatchOptions struct {
	Key    string
	Prefix bool   // all keys that begin with Key
	From   uint64 // the first revision to show; 0: what comes after the first Next
}

// Watch shows changes in the order of their revisions, each once, with no gap,
// whichever node leads meanwhile. It holds nothing between two calls of Next:
// one that is not asked for long enough finds its history compacted, and says
// so. Not safe for concurrent use.
type Watch struct {
	c       kvClient
	opt     WatchOptions
	next    uint64
	pending []Event // that have come and have not been shown, all below next
}

// Watch begins a watch. It sends nothing yet.
func (k *KV) Watch(opt WatchOptions) *Watch { return &Watch{c: k.c, opt: opt, next: opt.From} }

// Next waits for changes, a few seconds at most, and returns them. No event
// means that there was none up to Revision. After an error it may be called
// again, and goes on where it was; after ErrCompacted begin another watch.
func (w *Watch) Next(ctx context.Context) ([]Event, error) {
	if events := w.pending; len(events) > 0 { // a loop was left before them
		w.pending = nil
		return events, nil
	}
	r, err := w.c.Watch(ctx, []byte(w.opt.Key), w.opt.Prefix, w.next)
	if err != nil {
		return nil, kvError(err)
	}
	w.next = r.Revision + 1
	events := make([]Event, 0, len(r.Events))
	for _, e := range r.Events {
		events = append(events, newEvent(e))
	}
	return events, nil
}

func newEvent(e *kvpb.Event) Event {
	return Event{Deleted: e.Deleted, Entry: newEntry(e.Entry), Replaced: e.Replaced}
}

// Revision is up to where everything has been shown. A watch From the next one
// goes on without gap, in this process or another. It is 0 before the first
// Next of a watch without From.
func (w *Watch) Revision() uint64 {
	if len(w.pending) > 0 { // others of its transaction may have been shown
		return w.pending[0].Revision - 1
	}
	return max(w.next, 1) - 1
}

// Events is Next for a loop. It ends after the first error. The event at which a
// loop is left counts as shown; those after it come next.
func (w *Watch) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			events, err := w.Next(ctx)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for w.pending = events; len(w.pending) > 0; {
				e := w.pending[0]
				w.pending = w.pending[1:]
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}
