package bench

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A worker is one thread of a test. Only ops is read by others while it runs.
type worker struct {
	id       int
	n        int // how many workers there are
	buf      []byte
	base     time.Time
	now      time.Duration // since base, at the end of the latest operation
	deadline time.Duration
	halt     *atomic.Bool
	ops      atomic.Int64
	bytes    int64
	hist     hist
	errs     int
	samples  []string
}

// stop reports whether the worker should make no further operation: the run
// was cancelled, the test's time is over, or too much has failed.
func (w *worker) stop() bool {
	return w.halt.Load() || w.now >= w.deadline || w.errs >= errorsMax
}

// start returns the time, to be handed to done.
func (w *worker) start() time.Duration { return time.Since(w.base) }

// done records an operation that began at start and moved bytes. A failed one
// counts as an error only.
func (w *worker) done(start time.Duration, bytes int64, err error) {
	w.now = time.Since(w.base)
	if err != nil {
		w.fail(err)
		return
	}
	w.hist.add(w.now - start)
	w.bytes += bytes
	w.ops.Add(1)
}

func (w *worker) fail(err error) {
	w.errs++
	if len(w.samples) < samplesMax {
		w.samples = append(w.samples, err.Error())
	}
}

// outcome is what the workers of one test did together.
type outcome struct {
	ops     int64
	bytes   int64
	elapsed time.Duration // from the common start to the end of the last worker
	hist    hist
	errs    int
	samples []string
}

func (o *outcome) merge(other *outcome) {
	o.ops += other.ops
	o.bytes += other.bytes
	o.elapsed += other.elapsed
	o.hist.merge(&other.hist)
	o.errs += other.errs
	o.samples = append(o.samples, other.samples...)
	if len(o.samples) > samplesMax {
		o.samples = o.samples[:samplesMax]
	}
}

// A crew is a set of workers with their buffers, used for one test after the
// other.
type crew struct {
	workers []*worker
	halt    atomic.Bool
}

func newCrew(n int, bufSize int64) *crew {
	c := &crew{workers: make([]*worker, n)}
	for i := range c.workers {
		w := &worker{id: i, n: n, halt: &c.halt, buf: make([]byte, bufSize)}
		fill(w.buf, uint64(i))
		c.workers[i] = w
	}
	return c
}

// run lets every worker do work, at most for limit, and waits for all of them.
// It stops early when ctx is done. report is called with the operations done
// so far while the workers run.
func (c *crew) run(ctx context.Context, limit time.Duration, work func(*worker), report func(ops int64, elapsed time.Duration)) *outcome {
	c.halt.Store(false)
	defer context.AfterFunc(ctx, func() { c.halt.Store(true) })()
	runtime.GC() // now, rather than in the middle

	var ready, finished sync.WaitGroup
	gate := make(chan struct{})
	var base time.Time
	for _, w := range c.workers {
		*w = worker{id: w.id, n: w.n, buf: w.buf, halt: w.halt, deadline: limit}
		ready.Add(1)
		finished.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			<-gate
			w.base = base
			work(w)
			w.now = time.Since(w.base)
		})
	}
	ready.Wait()
	base = time.Now()
	close(gate)
	c.watch(&finished, base, report)

	out := &outcome{}
	for _, w := range c.workers {
		out.merge(&outcome{ops: w.ops.Load(), bytes: w.bytes, hist: w.hist, errs: w.errs, samples: w.samples})
		out.elapsed = max(out.elapsed, w.now)
	}
	return out
}

// watch reports progress until the workers have finished.
func (c *crew) watch(finished *sync.WaitGroup, base time.Time, report func(int64, time.Duration)) {
	if report == nil {
		finished.Wait()
		return
	}
	over := make(chan struct{})
	go func() { // ends with the workers, which the loop below waits for
		finished.Wait()
		close(over)
	}()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			var ops int64
			for _, w := range c.workers {
				ops += w.ops.Load()
			}
			report(ops, time.Since(base))
		}
	}
}

// fill writes bytes that do not compress (xorshift64*).
func fill(p []byte, seed uint64) {
	x := seed*0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d
	for i := range p {
		x ^= x >> 12
		x ^= x << 25
		x ^= x >> 27
		p[i] = byte(x * 0x2545f4914f6cdd1d >> 56)
	}
}

// stamp marks every page of p, which belongs at off of the file numbered
// file, with the page's own identity.
func stamp(p []byte, file, off uint64) {
	for at := 0; at+8 <= len(p); at += pageSize {
		putStamp(p[at:], stampOf(file, off+uint64(at)))
	}
}

// checkStamps reports the first page of p that does not carry its stamp.
func checkStamps(p []byte, file, off uint64) error {
	for at := 0; at+8 <= len(p); at += pageSize {
		if want, got := stampOf(file, off+uint64(at)), getStamp(p[at:]); got != want {
			return fmt.Errorf("wrong bytes at offset %d: expected stamp %#x, found %#x", off+uint64(at), want, got)
		}
	}
	return nil
}

// stampOf is never 0, so zeroes are never right.
func stampOf(file, off uint64) uint64 {
	return (file<<40^off)*0x9e3779b97f4a7c15 | 1
}

func putStamp(p []byte, v uint64) {
	for i := range 8 {
		p[i] = byte(v >> (8 * i))
	}
}

func getStamp(p []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(p[i]) << (8 * i)
	}
	return v
}
