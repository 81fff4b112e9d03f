//go:build linux

package devcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/sys"
)

// lockPoll is how often a lock that another process holds is tried again.
const lockPoll = 50 * time.Millisecond

// fileLock is a file locked by flock(2). The kernel drops it when the process
// ends, however that comes about. Processes started from here do not inherit
// it: os opens files close-on-exec.
type fileLock struct{ f *os.File }

// tryLock returns nil, nil when another process holds the lock.
func tryLock(path string) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, f.Close()
		} else if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// The file may have been deleted, by a reset, between open and lock.
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			return &fileLock{f}, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

func (l *fileLock) unlock() error { return l.f.Close() }

// lockDir takes the lock under which a cluster is changed, and waits for
// another command that holds it.
func lockDir(ctx context.Context, dir string, opts Options) (*fileLock, error) {
	deadline := time.Now().Add(opts.ReadyTimeout + opts.Grace)
	for told := false; ; told = true {
		l, err := tryLock(filepath.Join(dir, "lock"))
		if l != nil || err != nil {
			return l, err
		}
		if !told {
			opts.Progress("waiting for another command that changes " + dir)
		}
		if time.Now().After(deadline) {
			return nil, sys.E(sys.Op("dev"), sys.Busy, sys.Subject(dir),
				fmt.Sprintf("another `koinon dev` command holds %s: let it end, or stop it", filepath.Join(dir, "lock")))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}
