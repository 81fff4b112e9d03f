//go:build linux

package agent

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// task is what a committed reservation became.
type task struct {
	key   taskKey
	res   *procpb.Reservation
	need  *procpb.Resources
	procs []*process
	alive int // processes that have not ended; Agent.mu
	owed  int // processes whose end the leader does not know; Agent.mu
}

// process is a rank of a task.
type process struct {
	task  *task
	rank  uint32
	id    executor.ID
	name  proc.Name
	node  uint64
	taken bool // the leader knew its end when the agent came up

	seen  chan struct{} // closed when the executor has told of it
	began chan struct{} // closed when it runs, or never will
	over  chan struct{} // closed when it has ended
	input input

	taking time.Duration // when the leader took the end; Agent.mu

	mu      sync.Mutex
	pid     int
	started time.Time
	order   *stopOrder      // it was asked to end
	end     *procpb.Process // once over
	printed [2]int64        // bytes of stdout and stderr, once over
	files   [2]sys.Ino      // in the tree; 0: none
	acked   [2]int64        // the spool may not have what is before
	unborn  *procpb.Process // how it ended without a start, as the store had it
	report  *procpb.Report  // of its end
}

// stopOrder is a wish that a process should end.
type stopOrder struct {
	signal syscall.Signal
	grace  time.Duration
}

// era is what runs under one fence.
type era struct {
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
}

func newEra(ctx context.Context) *era {
	e := &era{}
	e.ctx, e.cancel = context.WithCancel(ctx)
	return e
}

func (e *era) end() {
	e.cancel()
	e.work.Wait()
}

// newTask makes a task; ranks is what the store knows of its processes, nil of
// a new one.
func (a *Agent) newTask(res *procpb.Reservation, ranks map[uint32]*savedRank) *task {
	t := &task{key: taskKey{res.Job, res.Index, res.Epoch}, res: res, need: need(res)}
	for _, rank := range res.Ranks {
		p := &process{task: t, rank: rank, node: uint64(a.opts.Node), id: attempt(res, rank), name: proc.ProcessName(res.Spec, res.Job, res.Index, rank),
			seen: make(chan struct{}), began: make(chan struct{}), over: make(chan struct{})}
		p.input.init()
		if was := ranks[rank]; was != nil {
			p.taken, p.files, p.unborn = was.taken, was.files, was.unborn
		}
		p.input.lost = ranks != nil
		t.procs = append(t.procs, p)
	}
	return t
}

// attempt names a process at the executor. Later tries have higher epochs, and
// all that was under an earlier fence of the node has lower ones.
func attempt(res *procpb.Reservation, rank uint32) executor.ID {
	return executor.ID{Job: res.Job, Rank: uint64(res.Index)<<32 | uint64(rank), Epoch: fenceEpoch(res.Fence) | uint64(res.Epoch)}
}

// fenceEpoch is the lowest epoch at the executor under a fence.
func fenceEpoch(fence uint64) uint64 { return fence << 32 }

// begin runs a task. A try of a task that is there already is not begun again.
func (a *Agent) begin(t *task) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tasks[t.key] != nil {
		return
	}
	a.tasks[t.key] = t
	for _, p := range t.procs {
		if p.taken {
			continue
		}
		t.alive++
		t.owed++
		a.procs[p.id] = p
		e := a.era
		e.work.Go(func() { a.run(e, p) })
	}
	if t.alive > 0 {
		a.use(t.need, 1)
	}
	a.beat.set()
}

const (
	// streamAfter is how long a process runs before its output goes to the tree
	// as it comes.
	streamAfter = 250 * time.Millisecond
	// beganAfter is how long a process runs before that is reported: of one that
	// ends sooner only the end is.
	beganAfter = 100 * time.Millisecond
)

// run is the life of a process, until its end is on its way to the leader.
func (a *Agent) run(e *era, p *process) {
	ctx := e.ctx
	if err := a.start(ctx, p); err != nil {
		return // ctx is done
	}
	close(p.began)
	if p.task.res.Spec.Stdin {
		e.work.Go(func() { a.feed(ctx, p) })
	}
	began := time.AfterFunc(beganAfter, func() { a.began.add(p) })
	defer began.Stop()
	timer := time.NewTimer(streamAfter)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-p.over:
	case <-timer.C:
	}
	recorded, why := false, ""
	if p.goesToTree() {
		why, recorded = a.record(ctx, p), true
		if ctx.Err() != nil {
			return // and why is nothing but that
		}
	}
	select {
	case <-ctx.Done():
		return
	case <-p.over: // which may be heard of later than the end of its output
	}
	r, err := a.endReport(p, recorded, why)
	if err != nil {
		a.log.Error("what a process printed cannot be read", "process", p.name, "err", err)
	}
	p.mu.Lock()
	p.report = r
	p.mu.Unlock()
	a.ended.add(p)
}

// goesToTree says that the agent writes the files of a process's output: when
// it has begun to, still runs, or has printed too much for a report.
func (p *process) goesToTree() bool {
	if !p.isOver() {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files[0] != 0 || max(p.printed[0], p.printed[1]) > proc.InlineMax
}

// Pauses between tries to start a process: without a lease nothing starts.
const (
	startPauseMin = 10 * time.Millisecond
	startPauseMax = time.Second
)

// start has the executor start a process, or notes why it cannot be. It returns
// nil when the process runs or has ended, and ctx's error else.
func (a *Agent) start(ctx context.Context, p *process) error {
	if p.unborn != nil {
		a.finish(p, p.unborn, [2]int64{})
		return nil
	}
	mount, _ := a.mount()
	spec := a.spec(p, mount)
	for wait := startPauseMin; ; wait = min(2*wait, startPauseMax) {
		if p.ordered() != nil {
			return a.unborn(ctx, p, &procpb.Process{State: procpb.State_KILLED, ExitCode: 128 + uint32(p.ordered().signal), Signal: uint32(p.ordered().signal),
				Why: "it was stopped before it was started"})
		}
		err := a.exec.Start(ctx, spec)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch kind := sys.KindOf(err); {
		case failedForGood(err, kind):
			return a.unborn(ctx, p, &procpb.Process{State: procpb.State_FAILED, ExitCode: uint32(executor.ExitCode(err)), Why: err.Error()})
		case errors.Is(err, executor.ErrAway):
			other, trouble := a.mount()
			if trouble != "" {
				return a.unborn(ctx, p, &procpb.Process{State: procpb.State_LOST, ExitCode: proc.ExitTrouble, Why: trouble, Unstarted: true})
			}
			if other != mount {
				mount, spec = other, a.spec(p, other)
				continue
			}
			a.mountDoubt.set()
		case kind == sys.StaleEpoch:
			<-ctx.Done() // a fence has been raised, which ends this era
			return ctx.Err()
		}
		a.log.Debug("a process does not start yet", "process", p.name, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.seen:
			return nil // it was started by an earlier run of the daemon
		case <-time.After(wait):
		}
	}
	if o := p.ordered(); o != nil { // it came while the process was being started
		a.stop(ctx, p, o)
	}
	return nil
}

// failedForGood says that a process will not start however often it is tried.
func failedForGood(err error, kind sys.Kind) bool {
	for _, bad := range []error{executor.ErrNotFound, executor.ErrNotExecutable, executor.ErrNoDirectory, executor.ErrNoUser} {
		if errors.Is(err, bad) {
			return true
		}
	}
	switch kind {
	case sys.Unavailable, sys.Busy, sys.Interrupted, sys.StaleEpoch:
		return false
	}
	return true
}

// unborn ends a process that was not started: for good, so that nobody starts
// it later while the leader has it as ended.
func (a *Agent) unborn(ctx context.Context, p *process, end *procpb.Process) error {
	end.EndedNs = a.clock.Wall().UnixNano()
	end.Node = uint64(a.opts.Node)
	for {
		err := a.store.setUnborn(p, end)
		if err == nil {
			break
		}
		a.log.Error("the end of a process cannot be stored", "process", p.name, "err", err)
		if err := pause(ctx, startPauseMax); err != nil {
			return err
		}
	}
	a.finish(p, end, [2]int64{})
	return nil
}

// finish says that a process has ended.
func (a *Agent) finish(p *process, end *procpb.Process, printed [2]int64) {
	p.mu.Lock()
	again := p.end != nil
	if !again {
		p.end, p.printed = end, printed
		close(p.over)
	}
	p.mu.Unlock()
	if again {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.task.alive--; p.task.alive == 0 {
		a.use(p.task.need, -1)
	}
}

// watch takes in what the executor tells.
func (a *Agent) watch(ctx context.Context) {
	for e := range a.exec.Events(ctx, 0) {
		a.mu.Lock()
		p := a.procs[e.ID]
		a.mu.Unlock()
		if p == nil {
			a.disown(ctx, e)
			continue
		}
		p.note(e)
		if e.Status != nil {
			a.finish(p, a.ending(e), [2]int64{e.Status.Stdout, e.Status.Stderr})
		}
	}
}

// note takes in that a process runs or ran.
func (p *process) note(e executor.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !closed(p.seen) {
		close(p.seen)
	}
	p.pid, p.started = e.PID, e.Started
}

// disown ends what the executor has and the agent does not know: the leader had
// taken its end, or a fence has dropped it.
func (a *Agent) disown(ctx context.Context, e executor.Event) {
	var err error
	if e.Status == nil {
		err = a.exec.Stop(ctx, e.ID, 0)
	} else {
		err = a.exec.Forget(ctx, e.ID)
	}
	if err != nil && ctx.Err() == nil && !sys.Is(err, sys.Busy) {
		a.log.Warn("a process that nobody wants stays", "process", e.ID, "err", err)
	}
}

// ending tells how a process ended, in the table's words.
func (a *Agent) ending(e executor.Event) *procpb.Process {
	s := e.Status
	end := &procpb.Process{Node: uint64(a.opts.Node), Pid: uint32(e.PID), EndedNs: s.Ended.UnixNano(), ExitCode: uint32(s.ExitCode()),
		Signal: uint32(s.Signal), CpuNs: int64(s.CPU), RssMax: s.RSS, Oom: s.Cause == executor.OOM}
	if !e.Started.IsZero() {
		end.StartedNs = e.Started.UnixNano()
	}
	switch s.Cause {
	case executor.Stopped, executor.Signaled, executor.TimedOut:
		end.State = procpb.State_KILLED
	case executor.Fenced:
		end.State, end.Why = procpb.State_LOST, "the node lost the leader's lease: it was killed"
	case executor.Lost:
		end.State, end.Why = procpb.State_LOST, "its supervisor or its machine died: how it ended is not known"
	case executor.OOM:
		end.State, end.Why = procpb.State_FAILED, "it needed more memory than it had asked for"
	default:
		if end.State = procpb.State_EXITED; end.ExitCode != 0 {
			end.State = procpb.State_FAILED
		}
	}
	return end
}

// closed says whether a channel on which nothing is sent is closed.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (p *process) ordered() *stopOrder {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.order
}

// stop asks a process to end, now or, if it has not started, then.
func (a *Agent) stop(ctx context.Context, p *process, o *stopOrder) {
	p.mu.Lock()
	p.order = o
	p.mu.Unlock()
	if err := a.exec.Stop(ctx, p.id, o.grace); err != nil && !sys.Is(err, sys.NotExist) && ctx.Err() == nil {
		a.log.Warn("a process could not be stopped", "process", p.name, "err", err)
	}
}

// abandon drops everything that is not of a fence to come. What ran has ended.
func (a *Agent) abandon() {
	a.era.end()
	a.began.clear()
	a.ended.clear()
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, p := range a.procs {
		a.retired = append(a.retired, p)
		delete(a.procs, id)
	}
	clear(a.holds)
	a.settle()
	clear(a.tasks)
	a.used.CpuMilli, a.used.Memory = 0, 0
	a.era = newEra(a.runCtx)
}
