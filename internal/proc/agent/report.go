//go:build linux

package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

const (
	// reportBytes bounds what the reports of one call carry.
	reportBytes = 1 << 20
	// reportTimeout bounds one call.
	reportTimeout  = 10 * time.Second
	reportPauseMin = 50 * time.Millisecond
	reportPauseMax = 2 * time.Second
)

// reporter tells the leader of processes: one call at a time, and what comes
// meanwhile goes with the next.
type reporter struct {
	a      *Agent
	method wire.Method // MethodBegan or MethodEnded
	wake   wake

	mu    sync.Mutex
	queue []*process
	round uint64 // raised by clear
}

func (r *reporter) add(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, p)
	r.wake.set()
}

// clear drops what waits: nobody wants to know any more.
func (r *reporter) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = nil
	r.round++
}

// run reports until ctx is done.
func (r *reporter) run(ctx context.Context) {
	wait, told := reportPauseMin, ""
	for {
		batch, reports, round := r.next()
		if len(batch) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-r.wake:
			}
			continue
		}
		err := r.send(ctx, reports)
		if err == nil {
			err = r.sent(batch, round)
		}
		if err == nil {
			wait, told = reportPauseMin, ""
			continue
		}
		r.mu.Lock()
		if r.round == round {
			r.queue = append(batch, r.queue...)
		}
		r.mu.Unlock()
		if ctx.Err() == nil && told != err.Error() {
			told = err.Error()
			r.a.log.Warn("the leader has not taken reports of processes", "method", r.method, "err", err)
		}
		if pause(ctx, wait) != nil {
			return
		}
		wait = min(2*wait, reportPauseMax)
	}
}

// next takes the reports of one call off the queue. Of a process that has ended
// only that is told.
func (r *reporter) next() (batch []*process, reports []*procpb.Report, round uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bytes := 0
	for len(r.queue) > 0 && len(batch) < proc.ReportsMax && bytes < reportBytes {
		p := r.queue[0]
		r.queue = r.queue[1:]
		report := p.reportFor(r.method)
		if report == nil {
			continue
		}
		batch, reports = append(batch, p), append(reports, report)
		bytes += pb.Size(report)
	}
	return batch, reports, r.round
}

func (r *reporter) send(ctx context.Context, reports []*procpb.Report) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	var req pb.Message = &procpb.Ended{Reports: reports}
	if r.method == proc.MethodBegan {
		req = &procpb.Began{Reports: reports}
	}
	reply := &procpb.Result{}
	if err := r.a.callLeader(ctx, r.method, req, reply); err != nil {
		return err
	}
	f := reply.Failure
	if f == nil {
		return nil
	}
	err := sys.E(sys.Kind(f.Kind), sys.Subject(f.Subject), f.Cause)
	switch sys.KindOf(err) {
	case sys.NotExist, sys.Invalid: // it will say so for ever
		r.a.log.Warn("the leader does not want reports of processes", "err", err)
		return nil
	}
	return err
}

// sent takes in that the leader knows.
func (r *reporter) sent(batch []*process, round uint64) error {
	if r.method == proc.MethodBegan {
		return nil
	}
	r.mu.Lock()
	stale := r.round != round
	r.mu.Unlock()
	if stale {
		return nil
	}
	return r.a.takenEnds(batch)
}

// reportFor is the report of a process for a method; nil: none is needed.
func (p *process) reportFor(m wire.Method) *procpb.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m == proc.MethodEnded {
		return p.report
	}
	if p.end != nil || p.started.IsZero() {
		return nil
	}
	return p.newReport(&procpb.Process{Node: p.node, Pid: uint32(p.pid), StartedNs: p.started.UnixNano(), State: procpb.State_RUNNING})
}

func (p *process) newReport(state *procpb.Process) *procpb.Report {
	k := p.task.key
	return &procpb.Report{Job: k.job, Index: k.index, Rank: p.rank, Epoch: k.epoch, Node: p.node, Process: state}
}

// endReport makes the report of an end, with what the process printed where
// that is not in the tree.
func (a *Agent) endReport(p *process, recorded bool, why string) (*procpb.Report, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	r := p.newReport(p.end)
	if r.Recorded = recorded; !recorded {
		var errs [2]error
		r.Stdout, errs[0] = a.printed(p, 0)
		r.Stderr, errs[1] = a.printed(p, 1)
		if err = errors.Join(errs[:]...); err != nil && why == "" {
			why = cutReason(err)
		}
	}
	p.end.Cut = why
	if p.end.Why == "" {
		p.end.Why = why
	}
	return r, err
}

// printed reads a whole small output. The caller holds p.mu.
func (a *Agent) printed(p *process, i int) ([]byte, error) {
	if p.printed[i] == 0 {
		return nil, nil
	}
	b := make([]byte, p.printed[i])
	n, err := a.exec.Output(p.id, streams[i]).ReadAt(b, 0)
	if errors.Is(err, io.EOF) && n == len(b) {
		err = nil
	}
	return b[:n], err
}

// takenEnds notes that the leader knows the ends of processes: they need not be
// told again. What they printed stays for a while for those who read it here.
func (a *Agent) takenEnds(batch []*process) error {
	a.mu.Lock()
	var done []*task
	owed := map[*task]int{}
	for _, p := range batch {
		if owed[p.task]++; owed[p.task] == p.task.owed {
			done = append(done, p.task)
		}
	}
	a.mu.Unlock()
	if err := a.store.setTaken(batch, done); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range batch {
		p.task.owed--
		p.taking = a.clock.Boot()
		a.retired = append(a.retired, p)
	}
	for _, t := range done {
		if a.tasks[t.key] == t {
			delete(a.tasks, t.key)
		}
	}
	return nil
}

// keepEnded is how long the node has the output of a process after the leader
// has taken its end.
const keepEnded = 30 * time.Second

// forgetRetired drops what has been kept for long enough.
func (a *Agent) forgetRetired(ctx context.Context) {
	now := a.clock.Boot()
	for {
		a.mu.Lock()
		if len(a.retired) == 0 || a.retired[0].taking != 0 && now-a.retired[0].taking < keepEnded {
			a.mu.Unlock()
			return
		}
		p := a.retired[0]
		a.retired = a.retired[1:]
		delete(a.procs, p.id)
		a.mu.Unlock()
		if err := a.exec.Forget(ctx, p.id); err != nil && ctx.Err() == nil {
			a.log.Warn("the executor keeps a process that is done", "process", p.name, "err", err)
		}
	}
}
