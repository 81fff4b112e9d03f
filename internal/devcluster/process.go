//go:build linux

package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
)

// tailLines is how much of a log is shown when its process fails.
const tailLines = 15

// process is a process of the cluster: its directory holds its PID file and
// its log.
type process struct {
	name string // "node 2", "the mount"
	dir  string
}

func (p *process) log() string     { return filepath.Join(p.dir, "log") }
func (p *process) pidFile() string { return filepath.Join(p.dir, "pid") }

// state tells a process that was stopped from one that died.
type state int

const (
	stopped state = iota // never started, or stopped as it should be
	dead                 // was started and is gone
	running
)

// find returns the process as its PID file tells it.
func (p *process) find() (daemon.Process, state, error) {
	id, err := daemon.ReadPID(p.pidFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return daemon.Process{}, stopped, nil
	case err != nil:
		return daemon.Process{}, stopped, err
	}
	alive, err := id.Alive()
	switch {
	case err != nil:
		return daemon.Process{}, stopped, fmt.Errorf("%s (pid %d): %w", p.name, id.PID, err)
	case alive:
		return id, running, nil
	}
	return id, dead, nil
}

// start starts the process and records it.
func (p *process) start(s daemon.Spec) (*daemon.Daemon, error) {
	s.Log = p.log()
	d, err := daemon.Start(s)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	if err := daemon.WritePID(p.pidFile(), d.Process); err != nil {
		// A process that cannot be found again must not be left behind.
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.name, err), d.Signal(unix.SIGKILL), d.Close())
	}
	return d, nil
}

// logRoom is the free space in bytes below which a log lacks its end.
const logRoom = 64 << 10

// failure words that the process ended or does not work, with the end of its
// log.
func (p *process) failure(what string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(p.log()), &st); err == nil && st.Bavail*uint64(st.Bsize) < logRoom {
		return fmt.Errorf("%s %s: the disk of %s is full: free some space there and start it again", p.name, what, filepath.Dir(p.log()))
	}
	return fmt.Errorf("%s %s: %s", p.name, what, daemon.Ending(p.log(), tailLines))
}

// stop ends the process if it runs: SIGTERM, then after grace, or at once
// when ctx ends, SIGKILL. It returns when the process is gone, and reports
// whether it had to be killed.
func (p *process) stop(ctx context.Context, grace time.Duration) (killed bool, err error) {
	id, st, err := p.find()
	if err != nil {
		return false, err
	}
	if st == running {
		if killed, err = terminate(ctx, id, grace); err != nil {
			return killed, fmt.Errorf("stop %s (pid %d): %w", p.name, id.PID, err)
		}
	}
	if err := os.Remove(p.pidFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return killed, err
	}
	return killed, nil
}

func terminate(ctx context.Context, id daemon.Process, grace time.Duration) (killed bool, err error) {
	if ctx.Err() == nil {
		if err := id.Signal(unix.SIGTERM); errors.Is(err, daemon.ErrGone) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		waiting, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if err := id.Wait(waiting); err == nil {
			return false, nil
		} else if waiting.Err() == nil {
			return false, err
		}
	}
	return true, kill(id)
}

// killWait is how long the kernel may take to end a process that got SIGKILL.
const killWait = 10 * time.Second

// kill sends SIGKILL and waits for the end.
func kill(id daemon.Process) error {
	if err := id.Signal(unix.SIGKILL); errors.Is(err, daemon.ErrGone) {
		return nil
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	return id.Wait(ctx)
}
