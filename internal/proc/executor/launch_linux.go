package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/program"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// limitedThreads is how many threads stand ready to start processes with limits of v1. Moving one to its next
	// cgroup takes the kernel up to 20 ms, for which nobody should have to wait.
	limitedThreads = 4
	// answerWithin bounds how long the file system of a working directory or program may take to answer.
	answerWithin = 10 * time.Second
	// defaultPath is where programs are looked up without PATH, as execvp(3) does.
	defaultPath = "/usr/local/bin:/usr/bin:/bin"
	shell       = "/bin/sh"
)

// launcher forks. The parent of a process is a thread (PR_SET_PDEATHSIG): those here live as long as the supervisor.
type launcher struct {
	groups  *groups
	plain   chan *launch
	limited chan *launch
	hurry   chan struct{} // a start waits for a thread that stays with a process
	stop    chan struct{}
	threads sync.WaitGroup
	// forks is held from before a fork until the child is known, so that whoever finds a dead child finds it known.
	forks sync.Mutex
}

// launch is one fork.
type launch struct {
	spec   Spec
	path   string // of the program
	stdio  [3]*os.File
	marker string
	group  *group
	known  func(pid int) // called with forks held
	err    chan error
}

func newLauncher(g *groups) *launcher {
	l := &launcher{groups: g, plain: make(chan *launch), limited: make(chan *launch), hurry: make(chan struct{}), stop: make(chan struct{})}
	l.threads.Go(func() { l.serve(l.plain, nil) })
	if len(g.v1) > 0 {
		for i := range limitedThreads {
			l.threads.Go(func() { l.serveLimited(i) })
		}
	}
	return l
}

func (l *launcher) close() {
	close(l.stop)
	l.threads.Wait()
}

// placePatience is how long a start waits for a process to end and leave its place, before a thread has to make one.
const placePatience = 3 * time.Millisecond

// start starts a process whose group and files are there.
func (l *launcher) start(one *launch) error {
	c := l.plain
	if len(l.groups.v1) > 0 && one.spec.Limits != (Limits{}) {
		c = l.limited
	}
	one.err = make(chan error, 1)
	select {
	case c <- one:
		return <-one.err
	case <-time.After(placePatience):
	}
	select {
	case c <- one:
	case l.hurry <- struct{}{}:
		c <- one
	}
	return <-one.err
}

// serveLimited forks from within cgroups of v1, in which a child is from its first instruction on: a thread is moved to the
// group of the next process before there is one.
func (l *launcher) serveLimited(i int) {
	runtime.LockOSThread() // for ever: the thread ends with the goroutine
	self := cgroup1.Process{Pid: unix.Gettid()}
	at := &place{}
	defer func() { at.leave() }() // deferred first: after the thread has gone home
	defer func() {
		if err := l.groups.home.AddTask(self); err != nil {
			slog.Error("leave a cgroup", "error", err)
		}
	}()
	for n := 0; ; n++ {
		next, err := l.groups.makeV1(fmt.Sprintf("%d.%d", i, n))
		if err == nil {
			if err = next.v1.AddTask(self); err != nil { // it may be in some of it
				err = errors.Join(err, l.groups.home.AddTask(self), next.v1.Delete())
				at.leave()
			}
		}
		if err != nil {
			slog.Error("make a cgroup", "error", err)
			if more := l.refuse(err); !more {
				return
			}
			continue
		}
		at.leave()
		at = next
		if more := l.serveIn(at); !more {
			return
		}
	}
}

// stayFor is for how long a thread stays in a cgroup of v1 with a process that runs. Most of those that are many are over by
// then, and the next one finds a place that costs nothing.
const stayFor = 250 * time.Millisecond

// serveIn forks processes one after the other in one place, until it can be used no more, and then reports whether there is
// more to come. To move on takes the kernel long, and holds up every fork and exit of the machine meanwhile.
func (l *launcher) serveIn(at *place) (more bool) {
	for {
		if more := l.serve(l.limited, at); !more {
			return false
		}
		long := time.NewTimer(stayFor)
		select {
		case <-at.tenant.over:
			long.Stop()
			if !l.groups.asNew(at) {
				return true
			}
			at.vacate()
		case <-long.C:
			return true
		case <-l.hurry:
			long.Stop()
			return true
		case <-l.stop:
			long.Stop()
			return false
		}
	}
}

// refuse answers for a while that limits cannot be set, for a reason, and then reports whether there is more to come.
func (l *launcher) refuse(reason error) (more bool) {
	for again := time.After(retryEvery); ; {
		select {
		case <-l.stop:
			return false
		case one := <-l.limited:
			one.err <- fmt.Errorf("limits cannot be set: %w", reason)
		case <-again:
			return true
		}
	}
}

// serve forks what comes: one when it is for a place in v1, and then reports whether there is more to come; else all.
func (l *launcher) serve(c chan *launch, at *place) (more bool) {
	runtime.LockOSThread()
	program.DefaultTimers() // not this program's
	// Children inherit the mask of the thread.
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		panic("executor: pthread_sigmask: " + err.Error())
	}
	for {
		select {
		case <-l.stop:
			return false
		case one := <-c:
			var err error
			if at != nil {
				one.group.place = at.occupy()
				err = l.groups.limitV1(at, one.spec.Limits)
			}
			if err == nil {
				err = l.fork(one)
			}
			one.err <- err
			if at != nil {
				return true
			}
		}
	}
}

func (l *launcher) fork(one *launch) error {
	attr := &syscall.ProcAttr{
		Dir: one.spec.Dir,
		Env: append(one.spec.Env[:len(one.spec.Env):len(one.spec.Env)], one.marker),
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	for _, f := range one.stdio {
		attr.Files = append(attr.Files, f.Fd())
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: one.spec.UID, Gid: one.spec.GID, Groups: one.spec.Groups}
	}
	if one.group.dir != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(one.group.dir.Fd())
		// A file system that hangs holds the child between fork and exec, and us with it. Only KILL ends that.
		watchdog := time.AfterFunc(answerWithin, func() { _ = one.group.kill() }) // fails only when there is none left to kill
		defer watchdog.Stop()
	}
	l.forks.Lock()
	defer l.forks.Unlock()
	pid, err := syscall.ForkExec(one.path, one.spec.Argv, attr)
	if errors.Is(err, syscall.ENOEXEC) { // a script without "#!", as execvp(3) has it
		pid, err = syscall.ForkExec(shell, append([]string{shell, one.path}, one.spec.Argv[1:]...), attr)
	}
	if err != nil {
		return &forkError{err}
	}
	one.known(pid)
	return nil
}

// forkError is an errno of fork, chdir or exec.
type forkError struct{ error }

func (e *forkError) Unwrap() error { return e.error }

// lookUp finds the program of a Spec as execvp(3) does.
func lookUp(spec Spec) (string, error) {
	name := spec.Argv[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, kv := range spec.Env {
		if p, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = p
		}
	}
	err := fmt.Errorf("%w: %s is not in PATH (%s)", ErrNotFound, name, path)
	for dir := range strings.SplitSeq(path, ":") {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(spec.Dir, dir)
		}
		file := filepath.Join(dir, name)
		info, e := os.Stat(file)
		if e != nil || info.IsDir() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return file, nil
		}
		err = fmt.Errorf("%w: %s has no execute permission", ErrNotExecutable, file)
	}
	return "", sys.E(sys.Op("executor.Start"), sys.NotExist, err)
}

// check finds what is wrong with a Spec by itself.
func check(spec Spec) error {
	bad := func(text string) error {
		return sys.E(sys.Op("executor.Start"), sys.Invalid, sys.Subject(spec.ID.String()), text)
	}
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return bad("no command")
	}
	if !filepath.IsAbs(spec.Dir) {
		return bad("the working directory is not an absolute path")
	}
	for _, ss := range [][]string{spec.Argv, spec.Env, {spec.Dir}} {
		for _, s := range ss {
			if strings.IndexByte(s, 0) >= 0 {
				return bad("a NUL in the command, the environment or the directory")
			}
		}
	}
	if spec.Limits.CPU < 0 || spec.Limits.Memory < 0 || spec.Timeout < 0 || spec.KillGrace < 0 {
		return bad("a negative limit or time")
	}
	// The highest ID means "no change" to setuid(2) and its kin.
	if spec.UID == ^uint32(0) || spec.GID == ^uint32(0) {
		return sys.E(sys.Op("executor.Start"), sys.Invalid, fmt.Errorf("%w: uid %d, gid %d", ErrNoUser, spec.UID, spec.GID))
	}
	if os.Geteuid() != 0 && (spec.UID != uint32(os.Geteuid()) || spec.GID != uint32(os.Getegid())) {
		return sys.E(sys.Op("executor.Start"), sys.Permission, fmt.Errorf(
			"the daemon runs as user %d and cannot start processes of user %d, group %d: run it as root", os.Geteuid(), spec.UID, spec.GID))
	}
	return nil
}

// checkDir finds out whether there is a working directory. It asks the file system
// that it is on: for a while the kernel knows the directories of a mount that has
// died, and what starts in one is lost.
func checkDir(dir string) error {
	const op = sys.Op("executor.Start")
	var info unix.Statx_t
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		err = unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_FORCE_SYNC, unix.STATX_TYPE, &info)
	}
	if err == nil && info.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED): // fuse(4), of a server that has died
		return sys.E(op, sys.Unavailable, fmt.Errorf("%w: %w", ErrAway, err))
	}
	return sys.E(op, sys.NotExist, fmt.Errorf("%w: %w", ErrNoDirectory, err))
}

// explain says what an error of a start means: the kernel gives the same errnos for directory and program.
func explain(err error, spec Spec, path string) error {
	const op = sys.Op("executor.Start")
	if fork := (*forkError)(nil); !errors.As(err, &fork) {
		return sys.E(op, sys.Unavailable, err)
	}
	if dir := checkDir(spec.Dir); dir != nil {
		return dir
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(spec.Dir, path)
	}
	_, missing := os.Stat(path)
	switch {
	case errors.Is(err, unix.ENOENT) && missing == nil:
		return sys.E(op, sys.NotExist, fmt.Errorf("%w: the interpreter of %s does not exist", ErrNotExecutable, path))
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return sys.E(op, sys.NotExist, fmt.Errorf("%w: %s", ErrNotFound, path))
	case errors.Is(err, unix.EACCES) && !searchable(spec):
		return sys.E(op, sys.Access, fmt.Errorf("%w: %s: %w", ErrNoDirectory, spec.Dir, fs.ErrPermission))
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EISDIR),
		errors.Is(err, unix.ETXTBSY), errors.Is(err, unix.ENAMETOOLONG):
		return sys.E(op, sys.Access, fmt.Errorf("%w: %s: %w", ErrNotExecutable, path, err))
	case errors.Is(err, unix.E2BIG):
		return sys.E(op, sys.TooBig, fmt.Errorf("%w: command and environment are too long: %w", ErrNotExecutable, err))
	case errors.Is(err, unix.EPERM):
		return sys.E(op, sys.Permission, err)
	}
	return sys.E(op, sys.Unavailable, err)
}

// searchable reports whether the modes of the working directory and of those above it let the user in.
func searchable(spec Spec) bool {
	for dir := spec.Dir; ; dir = filepath.Dir(dir) {
		if !lets(spec, dir) {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

func lets(spec Spec, dir string) bool {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return false
	}
	bit := uint32(0o001)
	switch {
	case spec.UID == 0:
		return true
	case st.Uid == spec.UID:
		bit = 0o100
	case st.Gid == spec.GID:
		bit = 0o010
	}
	for _, g := range spec.Groups {
		if g == st.Gid && st.Uid != spec.UID {
			bit = 0o010
		}
	}
	return st.Mode&bit != 0
}
