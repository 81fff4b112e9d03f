//go:build linux

// Package daemon starts processes that outlive the one that started them, and
// finds them again: by a PID file that tells a process from a later one that
// happens to have the same PID.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/program"
)

// ErrGone says that a process has ended, or never was.
var ErrGone = errors.New("the process has ended")

// Process is the identity of a process. The PID alone is not: it is used
// again after the process has ended.
type Process struct {
	PID   int
	Start uint64 // clock ticks from boot to the start, field 22 of /proc/PID/stat
	Boot  string // /proc/sys/kernel/random/boot_id at that time
}

// Identify returns the identity of the process that has pid now, ErrGone when
// there is none.
func Identify(pid int) (Process, error) {
	data, err := ReadKernel("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Process{}, ErrGone
	} else if err != nil {
		return Process{}, err
	}
	start, err := parseStart(string(data))
	if err != nil {
		return Process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start, Boot: boot}, nil
}

// ReadKernel reads a file that the kernel makes, as those of /proc and cgroups are. os.ReadFile, which has the file watched by
// epoll meanwhile, takes twice as many system calls. Errors are of os.Open's kinds.
func ReadKernel(path string) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	const most = 4096                     // of most files
	text := make([]byte, 0, most)
	for {
		text = slices.Grow(text, 1)
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, text[len(text):cap(text)]) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return text, nil
		}
		text = text[:len(text)+n]
	}
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Boot is the ID of this boot of the machine, which no process outlives.
func Boot() (string, error) { return bootID() }

var bootID = sync.OnceValues(func() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
})

// Alive reports whether the process runs. One that is being killed does until
// its last thread has ended, and with it what it held: its ports, its locks.
func (p Process) Alive() (bool, error) {
	fd, err := p.open()
	if errors.Is(err, ErrGone) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, unix.Close(fd)
}

// Signal sends sig to exactly this process: ErrGone when it has ended, also
// when another has its PID now.
func (p Process) Signal(sig unix.Signal) error {
	fd, err := p.open()
	if err != nil {
		return err
	}
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = ErrGone
	}
	return errors.Join(err, unix.Close(fd))
}

// pollSlice bounds how late Wait sees the end of its context.
const pollSlice = 50 * time.Millisecond

// Stop asks the process to end by SIGTERM and does not wait. One that has
// ended is no error.
func (p Process) Stop() error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	return nil
}

// Wait returns nil once the process has ended, or ctx's error.
func (p Process) Wait(ctx context.Context) error {
	fd, err := p.open()
	if errors.Is(err, ErrGone) {
		return nil
	} else if err != nil {
		return err
	}
	for ended := false; !ended && err == nil; {
		if ended, err = hasEnded(fd, pollSlice); !ended && err == nil {
			err = ctx.Err()
		}
	}
	if err == nil {
		p.reap()
	}
	return errors.Join(err, unix.Close(fd))
}

// hasEnded waits at most for the given time until the process behind a pidfd
// has ended, with all its threads.
func hasEnded(fd int, wait time.Duration) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait/time.Millisecond))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("poll a process: %w", err)
	}
	return n > 0, nil
}

// reap takes an ended child of this process off the kernel's list. For a
// process that is no child, or that was waited for elsewhere, there is nothing
// to do, which wait4(2) says by an error.
func (p Process) reap() {
	_, _ = syscall.Wait4(p.PID, nil, syscall.WNOHANG, nil)
}

// Open returns a descriptor of the process that has the number pid now
// (pidfd_open(2)); ErrGone when none has. The caller closes it.
func Open(pid int) (int, error) {
	if pid <= 0 {
		return 0, ErrGone
	}
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // the last two: it is a thread's, in older and newer kernels
		return 0, ErrGone
	}
	return 0, fmt.Errorf("open process %d: %w", pid, err)
}

// open returns a descriptor of the process (pidfd_open(2)), which stays that
// process's even when it ends. The identity is checked after opening, so
// there is no moment in which another could take its place.
func (p Process) open() (int, error) {
	fd, err := Open(p.PID)
	if err != nil {
		return 0, err
	}
	now, err := Identify(p.PID)
	ended := false
	if err == nil && now != p {
		err = ErrGone
	} else if err == nil {
		ended, err = hasEnded(fd, 0)
	}
	if ended {
		p.reap()
		err = ErrGone
	}
	if err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// parseStart returns the start time in proc_pid_stat(5). The second field is
// the name of the program in parentheses and may hold blanks and parentheses.
func parseStart(s string) (uint64, error) {
	const firstField, startField = 3, 22
	end := strings.LastIndexByte(s, ')')
	if end < 0 {
		return 0, errors.New("no name of a program in it")
	}
	fields := strings.Fields(s[end+1:])
	if len(fields) <= startField-firstField {
		return 0, fmt.Errorf("%d fields after the name, expected at least %d", len(fields), startField-firstField+1)
	}
	return strconv.ParseUint(fields[startField-firstField], 10, 64)
}

// WritePID writes the identity to a file that ReadPID reads.
func WritePID(path string, p Process) error {
	tmp := path + ".new"
	text := fmt.Sprintf("%d %d %s\n", p.PID, p.Start, p.Boot)
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// ReadPID returns the identity in the file, whether the process still runs or
// not; fs.ErrNotExist when there is no file.
func ReadPID(path string) (Process, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Process{}, err
	}
	var p Process
	if n, err := fmt.Sscanf(string(text), "%d %d %s", &p.PID, &p.Start, &p.Boot); n != 3 {
		return Process{}, fmt.Errorf("%s is not a PID file of koinon (%w): remove it if no koinon runs", path, err)
	}
	return p, nil
}

// Spec tells what to start.
type Spec struct {
	Path string   // the program; os.Executable is the one that this process runs, whatever has become of its file
	Args []string // without the program's name
	Log  string   // file that gets standard output and error, appended
	// Ready asks for a pipe on descriptor ReadyFD, on which the program tells
	// by one line that it is usable.
	Ready bool
}

// ReadyFD is the descriptor on which a program started with Spec.Ready finds
// its pipe.
const ReadyFD = 3

// Daemon is a process that was just started.
type Daemon struct {
	Process
	ready *os.File // nil without Spec.Ready
}

// Start starts the program in a session of its own, so that neither the end
// of this process nor a signal from its terminal reaches it. Close the Daemon
// when its readiness is no longer awaited; the process goes on.
func Start(s Spec) (*Daemon, error) {
	log, err := os.OpenFile(s.Log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.Path, s.Args...)
	if self, err := os.Executable(); err == nil && self == s.Path {
		if cmd.Path, err = program.Self(); err != nil {
			return nil, errors.Join(err, log.Close())
		}
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	d := &Daemon{}
	var childEnd *os.File
	if s.Ready {
		if d.ready, childEnd, err = os.Pipe(); err != nil {
			return nil, errors.Join(err, log.Close())
		}
		cmd.ExtraFiles = []*os.File{childEnd}
	}
	err = cmd.Start()
	if childEnd != nil {
		err = errors.Join(err, childEnd.Close())
	}
	if err = errors.Join(err, log.Close()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	pid := cmd.Process.Pid
	// From here on it is reaped by whoever finds that it has ended. Until then
	// even one that has failed at once has its PID.
	if err = cmd.Process.Release(); err == nil {
		d.Process, err = Identify(pid)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// AwaitReady returns the line by which the program said that it is usable.
// ErrGone says that it ended, or closed the pipe, without a word.
func (d *Daemon) AwaitReady(ctx context.Context) (string, error) {
	if d.ready == nil {
		panic("daemon: expected a Daemon started with Spec.Ready, found one without")
	}
	stop := context.AfterFunc(ctx, func() {
		// Pipes have deadlines; a failure would show as a Read that blocks
		// until the program speaks or ends, both of which end it.
		_ = d.ready.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	var line []byte
	buf := make([]byte, 512)
	for {
		n, err := d.ready.Read(buf)
		line = append(line, buf[:n]...)
		if text, _, ok := strings.Cut(string(line), "\n"); ok {
			return text, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		} else if err != nil {
			return "", ErrGone
		}
	}
}

// Close gives up waiting for readiness. It does not end the process.
func (d *Daemon) Close() error {
	if d.ready == nil {
		return nil
	}
	return d.ready.Close()
}

// KeepFromChildren makes the pipe on descriptor fd close in the processes that
// this one starts, so that they do not keep it open. Call it at once.
func KeepFromChildren(fd int) { unix.CloseOnExec(fd) }

// TellReady writes line to the pipe on descriptor fd and closes it. A reader
// that has left is no error.
func TellReady(fd int, line string) error {
	f := os.NewFile(uintptr(fd), "ready")
	if f == nil {
		return fmt.Errorf("descriptor %d is not open", fd)
	}
	_, err := f.WriteString(line + "\n")
	if errors.Is(err, unix.EPIPE) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// Ending says by the log of a process of this program that has ended how it
// did: the error that it ended with, else the last lines.
func Ending(path string, n int) string {
	tail := Tail(path, n)
	if tail == "" {
		return "its log " + path + " is empty"
	}
	if last, ok := strings.CutPrefix(tail[strings.LastIndexByte(tail, '\n')+1:], "koinon: "); ok {
		return last + " (its log: " + path + ")"
	}
	return "the end of its log " + path + ":\n" + tail
}

// Tail returns the last n lines of a file, "" when it cannot be read. It reads
// at most the last 64 KiB.
func Tail(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, min(info.Size(), 64<<10))
	if _, err := f.ReadAt(buf, info.Size()-int64(len(buf))); err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(buf), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
