package executor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/sys"
)

// process is an attempt that the supervisor knows. Fields without another word are guarded by supervisor.mu.
type process struct {
	id      ID
	begun   time.Time
	proc    daemon.Process // zero when it is not known
	run     uint64         // sequence number of the event that it started, 0 for none yet
	end     uint64
	status  *Status // nil while it runs
	spools  [2]*spool
	cause   Cause // why it is being ended, "" for not
	sent    map[syscall.Signal]bool
	group   *group
	reaped  bool
	stdin   *os.File // keeps the input open
	timeout *time.Timer
	grace   *time.Timer
	killAt  time.Time // when grace fires

	outs     [2]*os.File   // read ends of the outputs; set before started is closed
	started  chan struct{} // closed when startErr is known
	startErr error
	ended    chan struct{} // closed when the end is told
}

func newProcess(id ID, begun time.Time) *process {
	return &process{id: id, begun: begun, sent: map[syscall.Signal]bool{}, started: make(chan struct{}), ended: make(chan struct{})}
}

// family is what belongs to a process where there is no cgroup.
func (s *supervisor) family(p *process) family {
	f := family{marker: marker(s.groups.name, p.id)}
	if !p.reaped {
		f.leader = p.proc.PID
	}
	return f
}

// start starts a process, or waits for the start of the same attempt that is under way.
func (s *supervisor) start(ctx context.Context, req startRequest) (struct{}, error) {
	spec := req.spec()
	if err := check(spec); err != nil {
		return struct{}{}, err
	}
	p, fresh, err := s.admit(spec.ID)
	if err != nil {
		return struct{}{}, err
	}
	if !fresh {
		select {
		case <-p.started:
			return struct{}{}, p.startErr
		case <-ctx.Done():
			return struct{}{}, ctx.Err()
		}
	}
	// Whoever asked may leave: what has begun is seen through.
	p.startErr = s.launch(p, spec, req.SpoolMax)
	if p.startErr != nil {
		s.drop(p)
	}
	close(p.started)
	return struct{}{}, p.startErr
}

// admit says whether an attempt may start: it returns the process, and whether it is new.
func (s *supervisor) admit(id ID) (*process, bool, error) {
	const op = sys.Op("executor.Start")
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[id]; p != nil {
		return p, false, nil
	}
	newest := s.newest[rank{id.Job, id.Rank}]
	switch {
	case s.closing:
		return nil, false, sys.E(op, sys.Unavailable, errEnding)
	case s.clock.Boot() >= s.lease:
		return nil, false, sys.E(op, sys.Unavailable, "the node has no lease: it is not connected to the cluster")
	case id.Epoch < s.fence:
		return nil, false, sys.E(op, sys.StaleEpoch, sys.Subject(id.String()), "epochs below "+strconv.FormatUint(s.fence, 10)+" are closed")
	case newest != nil && newest.id.Epoch > id.Epoch:
		return nil, false, sys.E(op, sys.StaleEpoch, sys.Subject(id.String()), "a later attempt has been here: "+newest.id.String())
	case newest != nil && newest.status == nil:
		return nil, false, sys.E(op, sys.Busy, sys.Subject(id.String()), "an earlier attempt still runs: "+newest.id.String())
	}
	p := newProcess(id, s.clock.Wall())
	s.add(p)
	return p, true, nil
}

// drop forgets a process that could not be started.
func (s *supervisor) drop(p *process) {
	if p.group != nil {
		s.tasks.Go(func() { s.log("remove a cgroup", p.id, p.group.remove()) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.remove(p); err != nil {
		s.fail(err)
	}
	close(p.ended)
}

// launch does the steps of a start: the record, which survives the supervisor, the files, the cgroup, the fork.
func (s *supervisor) launch(p *process, spec Spec, spoolMax int64) error {
	found := prepare(spec) // takes as long as a file system takes to answer: meanwhile
	if _, err := s.records.append(record{Kind: recordBegin, ID: p.id, At: p.begun}); err != nil {
		return err
	}
	g, err := s.groups.make(p.id.String(), spec.Limits)
	if err != nil {
		return sys.E(sys.Op("executor.Start"), sys.Unavailable, err)
	}
	one := &launch{spec: spec, marker: marker(s.groups.name, p.id), group: g}
	s.mu.Lock()
	p.group = g
	s.mu.Unlock()
	one.known = func(pid int) { s.known(p, pid) }
	if err = s.stdio(p, one); err != nil {
		err = sys.E(sys.Op("executor.Start"), sys.Unavailable, err)
	} else if one.path, err = found(); err == nil {
		if err = s.launcher.start(one); err != nil {
			err = explain(err, spec, one.path)
		}
	}
	s.closeAll(p, one.stdio[:])
	if err != nil {
		s.closeAll(p, append(p.outs[:], p.stdin))
		return err
	}
	for i, r := range p.outs {
		p.spools[i] = newSpool(s.dir, p.id, Stream(i+1), spoolMax)
		s.tasks.Go(func() { p.spools[i].copy(r) })
	}
	return s.running(p, spec)
}

// closeAll closes files that may not have been opened.
func (s *supervisor) closeAll(p *process, files []*os.File) {
	for _, f := range files {
		if f != nil {
			s.log("close a file", p.id, f.Close())
		}
	}
}

// prepare begins to look for the directory and the program, and returns what waits for the program's path. Their file system may
// hang.
func prepare(spec Spec) func() (string, error) {
	type found struct {
		path string
		err  error
	}
	answer := make(chan found, 1)
	go func() { // ends when the file system answers, for which nobody can wait
		var f found
		if f.err = checkDir(spec.Dir); f.err == nil {
			f.path, f.err = lookUp(spec)
		}
		answer <- f
	}()
	return func() (string, error) {
		select {
		case f := <-answer:
			return f.path, f.err
		case <-time.After(answerWithin):
			return "", sys.E(sys.Op("executor.Start"), sys.Unavailable, sys.Subject(spec.Dir), ErrAway)
		}
	}
}

// stdio makes the three files of a process. They belong to its user, so that it can open /dev/stdout and its like.
func (s *supervisor) stdio(p *process, one *launch) (err error) {
	if one.spec.Stdin {
		if one.stdio[0], p.stdin, err = os.Pipe(); err != nil {
			return err
		}
	} else if one.stdio[0], err = os.Open(os.DevNull); err != nil {
		return err
	}
	for i := range p.outs {
		if p.outs[i], one.stdio[i+1], err = os.Pipe(); err != nil {
			return err
		}
	}
	for i, f := range one.stdio {
		if os.Geteuid() == 0 && (i > 0 || one.spec.Stdin) {
			err = errors.Join(err, f.Chown(int(one.spec.UID), int(one.spec.GID)))
		}
	}
	return err
}

// known notes a child before anybody can reap it.
func (s *supervisor) known(p *process, pid int) {
	id, err := daemon.Identify(pid)
	if err != nil {
		s.log("identify a process", p.id, err)
		id.PID = pid
	}
	s.mu.Lock()
	p.proc = id
	s.byPID[pid] = p
	s.mu.Unlock()
	select {
	case s.children <- struct{}{}:
	default:
	}
}

// running records that a process runs, and starts its clocks.
func (s *supervisor) running(p *process, spec Spec) error {
	s.mu.Lock()
	seq, err := s.records.append(record{Kind: recordRun, ID: p.id, Process: &p.proc})
	if err == nil {
		p.run = seq
		s.tellLater(seq, p)
		if spec.Timeout > 0 {
			p.timeout = time.AfterFunc(spec.Timeout, func() { s.end(p, TimedOut, spec.KillGrace) })
		}
	}
	condemned := p.cause != "" && p.killAt.IsZero() // by who came before the fork
	if !p.killAt.IsZero() {
		s.signalGroup(p, syscall.SIGTERM)
	}
	s.mu.Unlock()
	if err != nil {
		s.fail(err)
	}
	if condemned {
		s.kill(p)
	}
	return nil // it runs: what is wrong now is told by its end
}

// end asks a process to end, and kills it after the grace time. A process that is ending for another reason goes on
// to do so, perhaps sooner.
func (s *supervisor) end(p *process, why Cause, grace time.Duration) {
	s.mu.Lock()
	if p.status != nil {
		s.mu.Unlock()
		return
	}
	if p.cause == "" {
		p.cause = why
	}
	if grace <= 0 {
		s.mu.Unlock()
		s.kill(p)
		return
	}
	if at := time.Now().Add(grace); p.grace == nil || at.Before(p.killAt) {
		if p.grace != nil {
			p.grace.Stop()
		}
		p.killAt = at
		p.grace = time.AfterFunc(grace, func() { s.kill(p) })
	}
	s.signalGroup(p, syscall.SIGTERM)
	s.signalGroup(p, syscall.SIGCONT) // who is stopped would not hear
	s.mu.Unlock()
}

// signalGroup sends a signal to the process group while the process is known not to be reaped. mu is held.
func (s *supervisor) signalGroup(p *process, sig syscall.Signal) bool {
	if p.proc.PID == 0 || p.reaped {
		return false
	}
	return unix.Kill(-p.proc.PID, sig) == nil
}

// kill kills all that belongs to a process. Its cause must be set.
func (s *supervisor) kill(p *process) {
	s.mu.Lock()
	g := p.group
	ended := p.status != nil
	f := s.family(p)
	s.signalGroup(p, syscall.SIGKILL)
	s.mu.Unlock()
	switch {
	case ended || g == nil: // before the fork: running looks again
	case g.tracked():
		s.log("kill", p.id, g.kill())
	default:
		s.log("kill", p.id, f.kill())
	}
}

// reap takes in all children that end, ours and those that were left to us, until close.
func (s *supervisor) reap() {
	for {
		pid, err := nextDead()
		if errors.Is(err, unix.ECHILD) {
			select {
			case <-s.children:
				continue
			case <-s.stopReaping:
				return
			}
		} else if err != nil {
			s.fail(err)
			return
		}
		s.launcher.forks.Lock()
		s.mu.Lock()
		p := s.byPID[pid]
		s.mu.Unlock()
		if p != nil && !p.group.tracked() {
			// While the leader is a zombie its number is nobody else's.
			s.log("clean up", p.id, s.family(p).kill())
		}
		var ws unix.WaitStatus
		var usage unix.Rusage
		s.mu.Lock()
		got, err := unix.Wait4(pid, &ws, unix.WNOHANG, &usage)
		if p != nil && got == pid {
			p.reaped = true
			delete(s.byPID, pid)
		}
		s.mu.Unlock()
		s.launcher.forks.Unlock()
		if p != nil && got == pid {
			s.tasks.Go(func() { s.finish(p, ws, usage) })
		} else if err != nil && !errors.Is(err, unix.ECHILD) { // a fork whose exec failed was reaped by who forked
			s.fail(err)
		}
	}
}

// finish cleans up after a process has ended, records that, and tells it.
func (s *supervisor) finish(p *process, ws unix.WaitStatus, usage unix.Rusage) {
	<-p.started
	s.mu.Lock()
	for _, t := range []*time.Timer{p.timeout, p.grace} {
		if t != nil {
			t.Stop()
		}
	}
	cause, sent := p.cause, p.sent
	stdin := p.stdin
	p.stdin = nil
	s.mu.Unlock()
	if err := s.sweepUp(p); err != nil {
		s.fail(err)
	}
	st := &Status{Cause: cause, Code: ws.ExitStatus(), Ended: s.clock.Wall(), RSS: p.group.peak()}
	if st.RSS == 0 {
		st.RSS = ownPeak(usage)
	}
	if ws.Signaled() {
		st.Signal, st.Core, st.Code = ws.Signal(), ws.CoreDump(), 0
	}
	st.CPU = max(p.group.cpu(), time.Duration(usage.Utime.Nano()+usage.Stime.Nano()))
	switch {
	case cause != "":
	case (st.Signal == syscall.SIGKILL || st.Code != 0) && p.group.oom():
		st.Cause = OOM
	case st.Signal != 0 && sent[st.Signal]:
		st.Cause = Signaled
	default:
		st.Cause = Exited
	}
	st.Stdout = p.spools[0].drain(p.outs[0]).Size
	st.Stderr = p.spools[1].drain(p.outs[1]).Size
	s.recordEnd(p, st)
	runtime.Gosched() // who waits for the end goes before what is left to clean up
	if stdin != nil {
		s.log("close the input", p.id, stdin.Close())
	}
	s.log("remove the cgroup", p.id, p.group.remove())
}

// ownPeak is the most memory that a process had resident, in bytes; 0 when that is not known. From fork to exec it has the
// supervisor's memory, and the kernel counts that.
func ownPeak(usage unix.Rusage) int64 {
	ours, err := residentPeak()
	if peak := usage.Maxrss << 10; err == nil && peak > ours+countError() {
		return peak
	}
	return 0
}

// countError bounds by how much two counts of the same resident memory differ, in bytes. The kernel counts pages of three
// kinds, each CPU up to a batch of its own before it adds them to the sum (percpu_counter_batch in lib/percpu_counter.c).
func countError() int64 {
	cpus := int64(runtime.NumCPU())
	return 3 * cpus * max(32, 2*cpus) * int64(os.Getpagesize())
}

// sweepUp kills what a process has left behind, and returns when it is gone.
func (s *supervisor) sweepUp(p *process) error {
	if p.group.tracked() {
		if len(p.group.pids()) == 0 {
			return nil
		}
		return errors.Join(p.group.kill(), awaitEmpty(p.group.path))
	}
	s.mu.Lock()
	f := s.family(p)
	idle := len(s.byPID) == 0
	s.mu.Unlock()
	if err := f.kill(); err != nil || !idle {
		return err
	}
	// What was left to us by parents that have died, and does not say whose it is, belongs to nothing that runs.
	return family{orphan: os.Getpid()}.kill()
}

// recordEnd makes an end known.
func (s *supervisor) recordEnd(p *process, st *Status) {
	s.mu.Lock()
	seq, err := s.records.append(record{Kind: recordEnd, ID: p.id, Status: st})
	if err == nil {
		p.end, p.status = seq, st
		s.tell(seq, p)
	}
	s.mu.Unlock()
	if err != nil {
		s.fail(err)
		return
	}
	close(p.ended)
}

func (s *supervisor) log(doing string, id ID, err error) {
	if err != nil {
		slog.Error(doing, "process", id.String(), "error", err)
	}
}
