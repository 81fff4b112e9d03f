package proc

import "sync"

// hub passes on what the machine changes: to the Server of its node, which
// keeps a model of what is not over yet, and to those who wait for a job.
type hub struct {
	signal chan struct{} // holds one: there is news for the Server

	mu      sync.Mutex
	keep    bool // somebody takes the news
	news    []delta
	waiters map[uint64]chan struct{} // by job; closed by its next change
}

func newHub() *hub { return &hub{signal: make(chan struct{}, 1), waiters: map[uint64]chan struct{}{}} }

// publish is called by the applier, before what it tells of can be read.
func (h *hub) publish(d delta) {
	if len(d.jobs)+len(d.nodes)+len(d.gone) == 0 {
		return
	}
	h.mu.Lock()
	if h.keep {
		h.news = append(h.news, d)
	}
	for _, j := range d.jobs {
		h.wake(j.Id)
	}
	for _, id := range d.gone {
		h.wake(id)
	}
	h.mu.Unlock()
	signal(h.signal)
}

func (h *hub) wake(job uint64) {
	if w := h.waiters[job]; w != nil {
		close(w)
		delete(h.waiters, job)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// subscribe has news kept from now on, or not any more.
func (h *hub) subscribe(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keep, h.news = on, nil
}

// take returns the news in the order of the log.
func (h *hub) take() []delta {
	h.mu.Lock()
	defer h.mu.Unlock()
	news := h.news
	h.news = nil
	return news
}

// changed returns a channel that is closed by the next change of a job. What
// can be read after that, by Group.Read, holds the change.
func (h *hub) changed(job uint64) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.waiters[job]
	if w == nil {
		w = make(chan struct{})
		h.waiters[job] = w
	}
	return w
}

// wakeAll wakes everybody, who then look for themselves.
func (h *hub) wakeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.waiters {
		h.wake(id)
	}
}
