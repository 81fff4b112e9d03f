package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/koinon/koinon"
)

// foreground makes a job and stays with it to its end.
func (p *procsApp) foreground(ctx context.Context, procs *koinon.Procs, spec koinon.JobSpec) error {
	// A signal is passed on to the job, so it must not end the calls.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	signals, release := p.signals()
	defer release()
	if ctx.Err() != nil { // a signal came before signals did: nothing was asked for yet
		return context.Cause(ctx)
	}
	r := &attended{procsApp: p, procs: procs, spec: spec, line: p.newStatusLine()}
	defer r.line.clear()
	stops := r.stops(life, signals, ctx.Done())
	made := make(chan error, 1)
	go func() {
		var err error
		r.id, err = procs.Submit(life, spec)
		made <- err
	}()
	for asked := 0; ; {
		select {
		case err := <-made:
			if err != nil {
				return err
			}
			return r.attend(life, stops, asked)
		case <-stops:
			if asked++; asked > 1 {
				return &exitError{130, errMayBeMade}
			}
			p.note("koinon: waiting for the cluster's answer, then the job is stopped; Ctrl-C again does not wait")
		}
	}
}

// errMayBeMade is of a submission that was given up.
var errMayBeMade = errors.New("the cluster has not answered, so the job may have been made: look with `koinon ps -a` before you try again")

// attended is a job in the foreground.
type attended struct {
	*procsApp
	procs *koinon.Procs
	spec  koinon.JobSpec
	id    uint64
	line  *statusLine

	mu   sync.Mutex
	job  koinon.Job // as last heard of
	told string     // why it waits, withoutNumbers
}

// stops passes on signals, without those that come twice (see sameSignal). One that came before signals did is told by early.
func (r *attended) stops(ctx context.Context, signals <-chan os.Signal, early <-chan struct{}) <-chan struct{} {
	stops := make(chan struct{})
	go func() {
		var last time.Time
		for {
			select {
			case <-signals:
			case <-early:
			case <-ctx.Done():
				return
			}
			early = nil // the first signal comes by both ways
			if last.IsZero() || time.Since(last) >= r.same {
				select {
				case stops <- struct{}{}:
					last = time.Now()
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return stops
}

// waitPatience is how long a job may wait before that is told, and how often
// the reason is looked at.
const waitPatience = time.Second

// attend follows the job to its end; asked is how often it has been asked to
// stop before.
func (r *attended) attend(ctx context.Context, stops <-chan struct{}, asked int) error {
	var asides sync.WaitGroup
	defer asides.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	kill := func() {
		signal := syscall.SIGTERM
		if asked > 1 {
			signal = syscall.SIGKILL
		}
		asides.Go(func() { r.kill(ctx, int(signal)) })
	}
	if asked > 0 {
		kill()
	}
	type end struct {
		job *koinon.Job
		err error
	}
	ended := make(chan end, 1)
	go func() {
		job, err := r.follow(ctx)
		ended <- end{job, err}
	}()
	tick := time.NewTicker(waitPatience)
	defer tick.Stop()
	for {
		select {
		case e := <-ended:
			if e.err != nil {
				return r.broken(ctx, e.err)
			}
			return r.outcome(ctx, e.job)
		case <-stops:
			switch asked++; asked {
			case 1:
				r.say("asking job %d to stop; Ctrl-C again kills it", r.id)
			case 2:
				r.say("killing job %d; Ctrl-C again leaves it alone", r.id)
			default:
				return &exitError{130, fmt.Errorf("job %d may go on: `koinon ps` shows it", r.id)}
			}
			kill()
		case <-tick.C:
			asides.Go(func() { r.tellWait(ctx) })
		}
	}
}

// say tells the user something about the job.
func (r *attended) say(format string, args ...any) {
	r.line.clear()
	r.note("koinon: "+format, args...)
}

func (r *attended) kill(ctx context.Context, signal int) {
	_, err := r.procs.Kill(ctx, strconv.FormatUint(r.id, 10), signal, caller())
	if err != nil && ctx.Err() == nil {
		r.line.clear()
		r.complain(&toldError{fmt.Sprintf("cannot stop job %d: %s", r.id, words(err)), err})
	}
}

// follow passes output and input on until the job has ended.
func (r *attended) follow(ctx context.Context) (*koinon.Job, error) {
	name := strconv.FormatUint(r.id, 10)
	t := &tagged{name: name, out: r.out, err: r.err}
	opt := koinon.FollowOptions{
		Output: func(c koinon.Chunk) error {
			r.line.clear()
			return t.write(c)
		},
		Changed: func(j koinon.Job) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.job = j
		},
	}
	if r.spec.Stdin {
		opt.Stdin = r.in
	}
	return r.procs.Follow(ctx, name, opt)
}

// tellWait says why nothing of the job runs yet.
func (r *attended) tellWait(ctx context.Context) {
	waits := func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.job.Tasks.Running == 0 && r.job.Tasks.Ended() == 0
	}
	if r.quiet || !waits() {
		r.line.clear()
		return
	}
	d, err := r.procs.Inspect(ctx, strconv.FormatUint(r.id, 10))
	if err != nil || !waits() {
		return // it is only news
	}
	why := waitReason(d)
	r.mu.Lock()
	reason := strings.Map(withoutNumbers, why)
	known := reason == r.told
	r.told = reason
	r.mu.Unlock()
	text := fmt.Sprintf("koinon: job %d waits: %s", r.id, strings.TrimPrefix(why, "waits "))
	switch {
	case why == "":
	case r.line.shown():
		r.line.set(text)
	case !known:
		r.note("%s", text)
	}
}

// withoutNumbers leaves out what makes a reason that is told another one each second, such as the time to the next try.
func withoutNumbers(r rune) rune {
	if r == '.' || '0' <= r && r <= '9' {
		return -1
	}
	return r
}

// waitReason is why a job waits, in one line.
func waitReason(d *koinon.JobDetails) string {
	for _, e := range d.Waiting {
		if e.Why != "" {
			return e.Why
		}
	}
	if len(d.BlockedBy) > 0 {
		words := make([]string, len(d.BlockedBy))
		for i, id := range d.BlockedBy {
			words[i] = strconv.FormatUint(id, 10)
		}
		return "for job " + strings.Join(words, ", ")
	}
	return ""
}

// broken is what is to be said when the job cannot be followed to its end. When
// nobody reads its output it has no use any more, as in a pipe of the shell.
func (r *attended) broken(ctx context.Context, err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		r.kill(ctx, int(syscall.SIGTERM))
		return &exitError{code: codeSignal + int(syscall.SIGPIPE)}
	}
	return &toldError{fmt.Sprintf("job %d goes on, `koinon logs -f %d` and `koinon wait %d` follow it: %s", r.id, r.id, r.id, words(err)), err}
}

// outcome is the exit code of a job that has ended, with what its processes
// cannot have said themselves.
func (r *attended) outcome(ctx context.Context, job *koinon.Job) error {
	lost := cut(ctx, r.procs, job)
	code := job.Exit()
	if code == 0 && lost == nil {
		return nil
	} else if code == 0 {
		return &exitError{koinon.ExitTrouble, lost}
	}
	return &exitError{code, errors.Join(r.failure(ctx, r.procs, job), lost)}
}

// nameOf is by which name a job, or a part of one, is asked for.
func nameOf(job *koinon.Job) string { return cmp.Or(job.Part, strconv.FormatUint(job.ID, 10)) }

// cut says whose output is not whole, and why; nil when all is.
func cut(ctx context.Context, procs *koinon.Procs, job *koinon.Job) error {
	if job.Cut == 0 {
		return nil
	}
	name := nameOf(job)
	d, err := procs.Inspect(ctx, name)
	if err != nil {
		return &toldError{fmt.Sprintf("of job %s the output is not whole; why is not to be had: %s", name, words(err)), err}
	}
	for _, t := range d.TaskList {
		for _, q := range t.Processes {
			if q.Cut == "" {
				continue
			}
			others := ""
			if job.Cut > 1 {
				others = fmt.Sprintf("; so was that of %d others", job.Cut-1)
			}
			return fmt.Errorf("job %s: %s%s", q.Name, q.Cut, others)
		}
	}
	return nil
}

// failure says what has become of a job, or a part of one, that did not end
// well; nil when its exit code says everything.
func (p *procsApp) failure(ctx context.Context, procs *koinon.Procs, job *koinon.Job) error {
	ranked := strings.Contains(job.Part, ":")
	single := (!job.Array || strings.Contains(job.Part, ".")) && (job.Size == 1 || ranked)
	if single && job.State == koinon.StateFailed && job.Exit() < koinon.ExitTrouble {
		return nil
	}
	name := nameOf(job)
	d, err := procs.Inspect(ctx, name)
	if err != nil {
		return &toldError{fmt.Sprintf("job %s is %s; why is not to be had: %s", name, job.State, words(err)), err}
	}
	var failed []koinon.Task
	for _, t := range d.TaskList {
		if ranked {
			t = ofRank(t, job)
		}
		if t.State.Over() && t.State != koinon.StateExited {
			failed = append(failed, t)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	first := failed[0]
	if single && first.State == koinon.StateFailed && reason(first) == "" {
		return nil
	}
	text := fmt.Sprintf("job %s %s", first.Name, endWords(first))
	if job.Array && !strings.Contains(job.Part, ".") {
		text = fmt.Sprintf("%d of %d tasks did not succeed: %s", len(failed), job.Tasks.Total, text)
	}
	return errors.New(text)
}

// ofRank is a task of which only one process is told, with how that ended, as a part of a job.
func ofRank(t koinon.Task, job *koinon.Job) koinon.Task {
	if len(t.Processes) != 1 {
		return t // it was never run
	}
	q := t.Processes[0]
	if t.Name = q.Name; !q.State.Over() || job.Tasks.Total == 1 && q.State != job.State {
		return t // the task was taken out of the queue, after a try that does not count
	}
	if q.State != koinon.StateKilled { // who killed it is known of the task
		t.Why, t.TimedOut = q.Why, false
	}
	t.State, t.ExitCode = q.State, q.ExitCode
	return t
}

// reason is why a task ended as it did, where that is known.
func reason(t koinon.Task) string {
	if t.TimedOut {
		return "its time was over"
	}
	if q := decider(t); t.Why == "" && q != nil {
		return q.Why
	}
	return t.Why
}

// decider is the process whose end decided that of a task that did not end well: the first that did not, and when the task is lost
// the first that was; nil for none.
func decider(t koinon.Task) (first *koinon.Process) {
	for i := range t.Processes {
		q := &t.Processes[i]
		if q.Ended == nil || q.State == koinon.StateExited || t.State == koinon.StateLost && q.State != koinon.StateLost {
			continue
		}
		if first == nil || q.Ended.Before(*first.Ended) {
			first = q
		}
	}
	return first
}

// endWords says how a task ended that did not end well.
func endWords(t koinon.Task) string {
	words := map[koinon.State]string{
		koinon.StateFailed: "failed with exit code " + exitWords(t.State, t.ExitCode, 0), koinon.StateKilled: "was ended",
		koinon.StateLost: "was lost with its node", koinon.StateCancelled: "was never run",
	}[t.State]
	if q := decider(t); q != nil && len(t.Processes) > 1 {
		words += fmt.Sprintf(", rank %d on %s first", q.Rank, nodeID(q.Node))
	}
	if why := reason(t); why != "" {
		words += ": " + why
	}
	return words
}
