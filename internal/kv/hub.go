package kv

import (
	"strings"
	"sync"
	"sync/atomic"
)

// event is what somebody may wait for: a change of a key, or that a lock went
// to the next in its queue.
type event struct {
	lock bool
	key  string
}

// hub wakes those who wait on this node for what the machine changes. The
// applier only leaves word; a goroutine of the Server looks who is concerned,
// so that watches do not hold up the log.
type hub struct {
	waiting atomic.Int64  // waiters
	signal  chan struct{} // holds one: there is news

	mu     sync.Mutex
	state  state // as last published
	news   []notice
	opened func(openedSession)

	waitersMu sync.Mutex
	waiters   map[*waiter]struct{}
}

// notice is word of one revision.
type notice struct {
	rev    uint64
	events []event
	all    bool // stands for more than is known: concerns everybody
}

// newsMax bounds the notices that wait to be delivered.
const newsMax = 4096

// waiter waits for a key, all keys with a prefix, or a lock.
type waiter struct {
	event
	prefix bool
	woken  chan struct{} // closed when something came
	first  uint64        // the revision of what came first
	quiet  uint64        // nothing has come up to it, as far as hub looked
}

func newHub() *hub {
	return &hub{waiters: map[*waiter]struct{}{}, signal: make(chan struct{}, 1)}
}

// publish leaves word of a command's changes. The applier calls it before they
// can be read.
func (h *hub) publish(s state, events []event) {
	h.mu.Lock()
	h.state = s
	news := h.waiting.Load() > 0
	if news && len(h.news) == newsMax {
		h.news = append(h.news[:0], notice{rev: h.news[0].rev, all: true})
	}
	if news {
		h.news = append(h.news, notice{rev: s.rev, events: events})
	}
	h.mu.Unlock()
	if news {
		select {
		case h.signal <- struct{}{}:
		default:
		}
	}
}

// onOpened sets who hears of sessions that were opened.
func (h *hub) onOpened(fn func(openedSession)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = fn
}

func (h *hub) sessionOpened(o openedSession) {
	h.mu.Lock()
	fn := h.opened
	h.mu.Unlock()
	if fn != nil {
		fn(o)
	}
}

// last is the state as last published.
func (h *hub) last() state {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// wait begins to wait. Whatever is published from now on counts, and perhaps
// something older; leave ends it.
func (h *hub) wait(e event, prefix bool) *waiter {
	w := &waiter{event: e, prefix: prefix, woken: make(chan struct{})}
	h.waitersMu.Lock()
	defer h.waitersMu.Unlock()
	h.waiting.Add(1)
	h.waiters[w] = struct{}{}
	return w
}

// leave ends waiting. It returns the revision of what came first, 0 when
// nothing did, and up to which revision nothing came.
func (h *hub) leave(w *waiter) (first, quiet uint64) {
	h.waitersMu.Lock()
	defer h.waitersMu.Unlock()
	delete(h.waiters, w)
	h.waiting.Add(-1)
	return w.first, w.quiet
}

// deliver wakes whom the news concern.
func (h *hub) deliver() {
	h.mu.Lock()
	news := h.news
	h.news = nil
	h.mu.Unlock()
	h.waitersMu.Lock()
	defer h.waitersMu.Unlock()
	for _, n := range news {
		for w := range h.waiters {
			switch {
			case w.first != 0:
			case n.all || w.concerned(n.events):
				w.first = n.rev
				close(w.woken)
			default:
				w.quiet = n.rev
			}
		}
	}
}

// wakeAll wakes everybody, who then look for themselves.
func (h *hub) wakeAll() {
	h.waitersMu.Lock()
	defer h.waitersMu.Unlock()
	for w := range h.waiters {
		if w.first == 0 {
			w.first = w.quiet + 1
			close(w.woken)
		}
	}
}

func (w *waiter) concerned(events []event) bool {
	for _, e := range events {
		if e.lock == w.lock && (e.key == w.key || w.prefix && strings.HasPrefix(e.key, w.key)) {
			return true
		}
	}
	return false
}
