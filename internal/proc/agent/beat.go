//go:build linux

package agent

import (
	"context"
	"maps"
	"runtime"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// beatGap is the least time between two heartbeats: what they tell early is
	// of use to people alone.
	beatGap = 200 * time.Millisecond
	// beatTimeout bounds one heartbeat, so that the next one may find a leader
	// before the lease is over.
	beatTimeout = proc.LostAfter / 6
)

// Trouble says in words why the node's processes cannot be looked after; empty when they can.
func (a *Agent) Trouble() string {
	if why := a.trouble.Load(); why != nil {
		return *why
	}
	return ""
}

// beats sends heartbeats until ctx is done.
func (a *Agent) beats(ctx context.Context) {
	tick := env.NewTicker(env.System{}, proc.Beat)
	defer tick.Stop()
	told := ""
	for {
		err := a.heartbeat(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			a.log.Info("the leader has not answered a heartbeat", "err", err)
		}
		a.forgetRetired(ctx)
		if pause(ctx, beatGap) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.beat:
		}
	}
}

// heartbeat tells the leader of the node, and does what it answers.
func (a *Agent) heartbeat(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	beat, err := a.report(asking)
	if err != nil {
		why := err.Error()
		a.trouble.Store(&why)
		return err
	}
	a.trouble.Store(nil)
	sent := a.clock.Boot()
	reply := &procpb.HeartbeatReply{}
	if err := a.callLeader(asking, proc.MethodHeartbeat, beat, reply); err != nil {
		return err
	}
	a.leadership, a.mark = reply.Leadership, reply.Mark
	if reply.Fence > beat.Node.Fence {
		return a.submit(ctx, reply.Fence)
	}
	if reply.LeaseNs > 0 {
		if err := a.exec.Renew(ctx, sent+time.Duration(reply.LeaseNs)); err != nil {
			return err
		}
	}
	for _, r := range reply.Stop {
		if p := a.find(taskKey{r.Job, r.Index, r.Epoch}, r.Rank); p != nil {
			a.stop(ctx, p, &stopOrder{signal: 9})
		}
	}
	return nil
}

// report is what a heartbeat says: of all processes whose end the leader does
// not know yet, so that one it misses is not here.
func (a *Agent) report(ctx context.Context) (*procpb.Heartbeat, error) {
	if now := a.clock.Boot(); a.usage == nil || now-a.measured >= proc.Beat/2 { // it is not for free
		list, err := a.exec.List(ctx)
		if err != nil {
			return nil, err
		}
		a.usage, a.measured = map[executor.ID]executor.Process{}, now
		for _, p := range list {
			if p.Status == nil {
				a.usage[p.ID] = p
			}
		}
		a.loseForgotten(list)
	}
	labels := map[string]string{"arch": runtime.GOARCH, "os": runtime.GOOS}
	maps.Copy(labels, a.opts.Labels)
	mount, trouble := a.mount()
	if trouble != "" {
		mount = ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	beat := &procpb.Heartbeat{
		Node: &procpb.Node{Id: uint64(a.opts.Node), Name: a.opts.Name, Capacity: a.capacity, Labels: proc.Labels(labels), Fence: a.fence, Mount: mount,
			Limits: limits(a.exec.Enforced())},
		Used: &procpb.Resources{CpuMilli: a.used.CpuMilli, Memory: a.used.Memory}, Leadership: a.leadership, Mark: a.mark,
	}
	for _, t := range a.tasks {
		for _, p := range t.procs {
			if p.taken || p.taking != 0 {
				continue
			}
			u := a.usage[p.id]
			beat.Running = append(beat.Running, &procpb.Running{Job: t.key.job, Index: t.key.index, Rank: p.rank, Epoch: t.key.epoch,
				CpuNs: int64(u.CPU), Rss: u.RSS})
		}
	}
	return beat, nil
}

// loseForgotten ends what the executor has told of and does not know any more,
// for the second time in a row: its records were lost while this daemon ran.
func (a *Agent) loseForgotten(list []executor.Process) {
	known := map[executor.ID]bool{}
	for _, p := range list {
		known[p.ID] = true
	}
	var lost []*process
	a.mu.Lock()
	missed := map[executor.ID]bool{}
	for id, p := range a.procs {
		if known[id] || !closed(p.seen) || p.isOver() {
			continue
		}
		if missed[id] = true; a.missed[id] {
			lost = append(lost, p)
		}
	}
	a.missed = missed
	a.mu.Unlock()
	for _, p := range lost {
		const why = "the records of the node's executor were lost: how it ended is not known"
		a.log.Warn("a process was lost", "process", p.name, "why", why)
		a.finish(p, &procpb.Process{State: procpb.State_LOST, Node: uint64(a.opts.Node), EndedNs: a.clock.Wall().UnixNano(), Why: why}, [2]int64{})
	}
}

// limits says what enforces them.
func limits(e executor.Enforced) string {
	switch {
	case e.Why != "":
		return e.Why
	case e.CPU && e.Memory:
		return string(e.Tracking)
	}
	return "none"
}

// submit takes a higher fence: the node was declared lost. What runs is of
// before and must end; only then may anything new come.
func (a *Agent) submit(ctx context.Context, fence uint64) error {
	if a.fenceNow() == 0 {
		a.log.Info("the process table has this node", "fence", fence)
	} else {
		a.log.Warn("this node was silent for so long that it was declared lost: the processes that run here are ended", "fence", fence)
	}
	if err := a.exec.Fence(ctx, fenceEpoch(fence)); err != nil {
		return err
	}
	if err := a.exec.Sweep(ctx, fenceEpoch(fence)); err != nil {
		return err
	}
	f := &newFence{fence: fence, done: make(chan struct{})}
	select {
	case a.fences <- f:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return a.heartbeat(ctx) // to be given a lease
}

// find returns a process that the agent has; nil when it has none.
func (a *Agent) find(k taskKey, rank uint32) *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := executor.ID{Job: k.job, Rank: uint64(k.index)<<32 | uint64(rank), Epoch: fenceEpoch(a.fence) | uint64(k.epoch)}
	return a.procs[id]
}

var errNoProcess = sys.E(sys.NotExist, "this node has no such process (yet, or any more)")
