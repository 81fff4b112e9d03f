package executor

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// idleAfter is how long a supervisor with neither processes nor connections waits for either.
	idleAfter = 10 * time.Second
	// lockWithin is how long an earlier supervisor may take to end, once it listens no more.
	lockWithin = 10 * time.Second
	// eventsMax is how many events are told at once.
	eventsMax = 1000
)

// rank is what attempts have in common.
type rank struct{ job, rank uint64 }

// told is an event: the start of a process or, when the number is that of its end, its end.
type told struct {
	seq uint64
	p   *process
}

// supervisor is the half that runs the processes.
type supervisor struct {
	dir          string
	instance     string // no other supervisor has it
	clock        env.Clock
	records      *records
	groups       *groups
	launcher     *launcher
	tasks        sync.WaitGroup // goroutines of processes
	children     chan struct{}  // says that there are children again
	stopReaping  chan struct{}
	failed       chan error // the first trouble with which the supervisor cannot go on
	leaseTimer   *os.File   // timerfd of CLOCK_BOOTTIME
	shutdownAsks chan struct{}

	mu      sync.Mutex
	procs   map[ID]*process
	newest  map[rank]*process
	byPID   map[int]*process // children that were not reaped
	events  []told           // of procs, by seq
	changed chan struct{}    // closed when there is one more, and replaced
	fence   uint64
	lease   time.Duration // CLOCK_BOOTTIME
	closing bool
}

// Supervise runs the processes of a directory until ctx ends or nothing is left to do for it: no processes, and no
// daemon that is connected. It is the main function of a process of its own, started by Open, which must
// not do anything else: it takes over the process's children, signals and umask. At the end it kills what runs.
func Supervise(ctx context.Context, dir string) error { return supervise(ctx, dir, openGroups) }

// supervise is Supervise with another way to find cgroups.
func supervise(ctx context.Context, dir string, open func(name string) (*groups, error)) (err error) {
	// Nor do children inherit what the daemon, or who started it, has left open.
	const firstFile = 3
	if err := unix.CloseRange(firstFile, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	dir, err = filepath.Abs(dir)
	if err == nil {
		err = becomeSupervisor(dir)
	}
	if err != nil {
		return err
	}
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	self, err := daemon.Identify(os.Getpid())
	if err == nil {
		err = daemon.WritePID(filepath.Join(dir, pidName), self)
	}
	if err != nil {
		return err
	}
	s := &supervisor{
		dir: dir, instance: rand.Text(), clock: env.System{}, children: make(chan struct{}, 1), stopReaping: make(chan struct{}), failed: make(chan error, 1),
		procs: map[ID]*process{}, newest: map[rank]*process{}, byPID: map[int]*process{}, changed: make(chan struct{}),
		shutdownAsks: make(chan struct{}, 1),
	}
	if err := s.recover(open); err != nil {
		return err
	}
	s.launcher = newLauncher(s.groups)
	var own sync.WaitGroup
	own.Go(s.reap)
	own.Go(s.watchLease)
	err = s.serve(ctx)
	err = errors.Join(err, s.endAll())
	close(s.stopReaping)
	err = errors.Join(err, s.leaseTimer.Close())
	own.Wait()
	s.launcher.close()
	s.tasks.Wait()
	return errors.Join(err, s.groups.close(), s.records.close())
}

// becomeSupervisor sets what the process's children inherit, and makes it the parent of those that lose theirs.
func becomeSupervisor(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, spoolDir), 0o700); err != nil {
		return err
	}
	if err := mustPunch(dir); err != nil {
		return err
	}
	unix.Umask(0o022)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// A signal that is ignored stays so in children; one that is caught has its default action there.
	ignored, err := ignoredSignals()
	if err != nil {
		return err
	}
	caught := make(chan os.Signal, 1)
	for _, sig := range ignored {
		signal.Notify(caught, sig)
	}
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// ignoredSignals are those that this process was started with as ignored (proc(5), SigIgn): signal.Ignored knows of two only.
func ignoredSignals() ([]os.Signal, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(status), "SigIgn:")
	text, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
	if err != nil {
		return nil, fmt.Errorf("the signals that are ignored, in /proc/self/status: %w", err)
	}
	var out []os.Signal
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if mask&(1<<(sig-1)) != 0 {
			out = append(out, sig)
		}
	}
	return out, nil
}

func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for begun := time.Now(); ; pause(ctx, retryEvery) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		} else if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(begun) > lockWithin || ctx.Err() != nil {
			return nil, errors.Join(sys.E(sys.Busy, sys.Subject(dir), "another supervisor runs here", err), f.Close())
		}
	}
}

// recover reads the records, makes sure that nothing of an earlier supervisor runs any more, and records that as lost.
func (s *supervisor) recover(open func(name string) (*groups, error)) error {
	var err error
	if s.records, err = openRecords(filepath.Join(s.dir, recordsName), s.replay); err != nil {
		return err
	}
	// Whoever knows events that are lost hears of all that come.
	s.records.seq = max(s.records.seq, uint64(s.clock.Wall().UnixNano()))
	if s.leaseTimer, err = newBootTimer(); err != nil {
		return err
	}
	if s.groups, err = open(supervisorName(s.dir)); err != nil {
		return err
	}
	for _, p := range s.procs {
		if p.status == nil && p.proc.PID != 0 {
			if err := p.proc.Signal(unix.SIGKILL); err != nil && !errors.Is(err, daemon.ErrGone) {
				return err
			}
		}
	}
	if err := (family{marker: marker(s.groups.name, ID{}), prefix: true}).kill(); err != nil {
		return err
	}
	for _, p := range s.procs {
		close(p.started)
		for i := range p.spools {
			if p.spools[i], err = recoverSpool(s.dir, p.id, Stream(i+1)); err != nil {
				return err
			}
		}
		if p.status != nil {
			close(p.ended)
			continue
		}
		s.recordEnd(p, &Status{Cause: Lost, Ended: s.clock.Wall(), Stdout: p.spools[0].state.Size, Stderr: p.spools[1].state.Size})
	}
	if err := s.discardUnknown(); err != nil {
		return err
	}
	select {
	case err := <-s.failed:
		return err
	default:
		return nil
	}
}

// discardUnknown removes the spools of attempts whose records the machine has lost.
func (s *supervisor) discardUnknown() error {
	files, err := os.ReadDir(filepath.Join(s.dir, spoolDir))
	if err != nil {
		return err
	}
	for _, f := range files {
		var id ID
		if n, _ := fmt.Sscanf(f.Name(), spoolName, &id.Job, &id.Rank, &id.Epoch); n == 3 && s.procs[id] == nil {
			if err := discard(s.dir, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// replay applies a record of the log.
func (s *supervisor) replay(rec record) error {
	p := s.procs[rec.ID]
	if p == nil && rec.Kind != recordFence && rec.Kind != recordForget {
		if rec.Kind != recordBegin {
			return sys.E(sys.Corrupt, sys.Subject(rec.ID.String()), "a record of a process that was not begun")
		}
		p = newProcess(rec.ID, rec.At)
		s.add(p)
	}
	switch rec.Kind {
	case recordRun:
		p.run, p.proc = rec.Seq, *rec.Process
		s.events = append(s.events, told{rec.Seq, p})
	case recordEnd:
		p.end, p.status = rec.Seq, rec.Status
		s.events = append(s.events, told{rec.Seq, p})
	case recordForget:
		if p != nil {
			s.removeFrom(p)
		}
	case recordFence:
		s.fence = max(s.fence, rec.Epoch)
	}
	return nil
}

// live is the state as records. mu is held.
func (s *supervisor) live() []record {
	recs := []record{{Kind: recordFence, Epoch: s.fence}}
	for _, p := range s.procs {
		recs = append(recs, record{Kind: recordBegin, ID: p.id, At: p.begun})
	}
	for _, e := range s.events {
		if e.seq == e.p.end {
			recs = append(recs, record{Kind: recordEnd, ID: e.p.id, Seq: e.seq, Status: e.p.status})
		} else {
			recs = append(recs, record{Kind: recordRun, ID: e.p.id, Seq: e.seq, Process: &e.p.proc})
		}
	}
	return recs
}

// add and removeFrom keep the maps. mu is held.
func (s *supervisor) add(p *process) {
	s.procs[p.id] = p
	s.newest[rank{p.id.Job, p.id.Rank}] = p
}

func (s *supervisor) removeFrom(p *process) {
	delete(s.procs, p.id)
	if k := (rank{p.id.Job, p.id.Rank}); s.newest[k] == p {
		delete(s.newest, k)
	}
	s.events = slices.DeleteFunc(s.events, func(e told) bool { return e.p == p })
}

// remove forgets a process, on disk too. mu is held.
func (s *supervisor) remove(p *process) error {
	if _, err := s.records.append(record{Kind: recordForget, ID: p.id}); err != nil {
		return err
	}
	s.removeFrom(p)
	if s.records.full() {
		if err := s.records.compact(s.live()); err != nil {
			return err
		}
	}
	return discard(s.dir, p.id)
}

// tell tells an event, which is in the records already. mu is held.
func (s *supervisor) tell(seq uint64, p *process) {
	s.events = append(s.events, told{seq, p})
	s.wake()
}

// tellLater tells an event with the next one, and at the latest soon. mu is held.
func (s *supervisor) tellLater(seq uint64, p *process) {
	s.events = append(s.events, told{seq, p})
	time.AfterFunc(soon, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wake()
	})
}

// soon is how long a start may be told after it: of many processes it is told together with the end.
const soon = 20 * time.Millisecond

// wake wakes who waits for events. mu is held.
func (s *supervisor) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// fail ends the supervisor, and with it what it runs: it can no longer record what happens.
func (s *supervisor) fail(err error) {
	slog.Error("the supervisor cannot go on", "error", err)
	select {
	case s.failed <- err:
	default:
	}
}

// endAll kills what runs, and returns when all ends are told.
func (s *supervisor) endAll() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	return s.fenceOff(context.Background(), func(*process) bool { return true })
}

// fenceOff kills what runs of those chosen, and returns when their ends are told.
func (s *supervisor) fenceOff(ctx context.Context, chosen func(*process) bool) error {
	var those []*process
	s.mu.Lock()
	for _, p := range s.procs {
		if p.status == nil && chosen(p) {
			if p.cause == "" {
				p.cause = Fenced
			}
			p.killAt = time.Time{}
			those = append(those, p)
		}
	}
	s.mu.Unlock()
	var kills sync.WaitGroup
	for _, p := range those {
		kills.Go(func() { s.kill(p) })
	}
	kills.Wait()
	for _, p := range those {
		select {
		case <-p.ended:
		case err := <-s.failed:
			s.fail(err)
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// watchLease fences everything off when the lease runs out, until the timer is closed.
func (s *supervisor) watchLease() {
	for buf := make([]byte, 8); ; {
		if _, err := s.leaseTimer.Read(buf); errors.Is(err, os.ErrClosed) {
			return
		} else if err != nil {
			s.fail(err)
			return
		}
		s.mu.Lock()
		over := s.clock.Boot() >= s.lease // or it was renewed just now
		s.mu.Unlock()
		if over {
			slog.Warn("the lease ran out: all processes are killed")
			s.tasks.Go(func() {
				if err := s.fenceOff(context.Background(), func(*process) bool { return true }); err != nil {
					slog.Error("end what ran under the lease", "error", err)
				}
			})
		}
	}
}

func newBootTimer() (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return os.NewFile(uintptr(fd), "lease"), nil
}

// renew sets the end of the lease.
func (s *supervisor) renew(_ context.Context, req renewRequest) (struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = req.Until
	raw, err := s.leaseTimer.SyscallConn()
	if err != nil {
		return struct{}{}, err
	}
	// A time of 0 would stop the timer.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(req.Until), 1))}
	cerr := raw.Control(func(fd uintptr) { err = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil) })
	return struct{}{}, errors.Join(err, cerr)
}

// nextDead waits for a child that has ended and leaves it as it is (waitid(2)).
func nextDead() (int, error) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		const pidOffset = 16 // of si_pid, on 64-bit machines
		return int(int32(binary.NativeEndian.Uint32((*[128]byte)(unsafe.Pointer(&info))[pidOffset:]))), err
	}
}
