package proc

import (
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/proc/procpb"
)

// hub passes on what the machine changes: to the Server of its node, which
// keeps a model of what is not over yet, and to those who wait for a job.
type hub struct {
	signal chan struct{} // holds one: there is news for the Server

	mu      sync.Mutex
	keep    bool // somebody takes the news
	news    []delta
	waiters map[uint64]chan struct{} // by job; closed by its next change
	recent  []change                 // the last changes of jobs, in the order of the log
	rows    int                      // of recent
}

// change is what a command has done to a job.
type change struct {
	job      uint64
	from, to uint64         // the version before and after; from is 0 when it was submitted
	tasks    []*procpb.Task // as the command left them
	ended    []*procpb.Report
}

// rowBytes is how much output counts as a row.
const rowBytes = 256

// rows is how many changes, tasks and processes a change is.
func (c *change) rows() int {
	n := 1 + len(c.tasks)
	for _, t := range c.tasks {
		n += len(t.Procs)
	}
	for _, r := range c.ended {
		n += 1 + (len(r.Stdout)+len(r.Stderr))/rowBytes
	}
	return n
}

// recentMax bounds the rows of recent, but for the newest change, which may be of a whole array.
const recentMax = 8192

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
	h.remember(&d)
	for _, j := range d.jobs {
		h.wake(j.Id)
	}
	for _, id := range d.gone {
		h.wake(id)
	}
	h.mu.Unlock()
	signal(h.signal)
}

// remember keeps what since needs of the changes of a command. The caller holds mu.
func (h *hub) remember(d *delta) {
	var tasks map[uint64][]*procpb.Task
	if len(d.tasks) > 0 {
		tasks = map[uint64][]*procpb.Task{}
	}
	for _, t := range d.tasks {
		tasks[t.Job] = append(tasks[t.Job], t)
	}
	var ended map[uint64][]*procpb.Report
	if len(d.ended) > 0 {
		ended = map[uint64][]*procpb.Report{}
	}
	for _, r := range d.ended {
		ended[r.Job] = append(ended[r.Job], r)
	}
	done := make(map[uint64]bool, len(d.jobs))
	for _, j := range slices.Backward(d.jobs) { // the last row of a job is how it was left
		if done[j.Id] {
			continue
		}
		done[j.Id] = true
		c := change{job: j.Id, from: d.from[j.Id], to: j.Version, tasks: tasks[j.Id], ended: ended[j.Id]}
		if c.from == c.to {
			continue // nothing that is told to those who wait
		}
		h.recent = append(h.recent, c)
		h.rows += c.rows()
	}
	for len(h.recent) > 1 && h.rows > recentMax {
		h.rows -= h.recent[0].rows()
		h.recent[0] = change{}
		h.recent = h.recent[1:]
	}
}

// since tells what changes have made of a job after one version, up to and with another one: the tasks that are newer, each as the
// last of those changes left it, and the processes that have ended, in their order. ok is false when not all of the changes are
// remembered. What it returns is shared.
func (h *hub) since(job, version, upTo uint64) (tasks []*procpb.Task, ended []*procpb.Report, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := map[uint32]bool{}
	for _, c := range slices.Backward(h.recent) {
		if c.job != job || c.to > upTo {
			continue
		}
		if c.to != upTo {
			return nil, nil, false // a change is missing: the state came by a snapshot
		}
		for _, t := range slices.Backward(c.tasks) {
			if t.Version > version && !seen[t.Index] {
				seen[t.Index] = true
				tasks = append(tasks, t)
			}
		}
		if c.to > version {
			for _, r := range slices.Backward(c.ended) {
				ended = append(ended, r)
			}
		}
		if upTo = c.from; upTo <= version {
			slices.Reverse(ended)
			return tasks, ended, true
		}
	}
	return nil, nil, false
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
