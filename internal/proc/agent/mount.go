//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// findMount tells where this machine has the tree of the cluster; "" when
// nowhere. Of several mounts it is the newest of the whole tree.
func (a *Agent) findMount() (string, error) {
	mounts, err := a.mounts.List()
	if err != nil {
		return "", sys.E(sys.Op("agent.mount"), err)
	}
	for _, m := range slices.Backward(mounts) {
		if m.Tree() && m.Cluster() == a.opts.ID && m.Root == "/" {
			return m.Path, nil
		}
	}
	return "", nil
}

// mount is where the tree is here, "" when it is not or that is not known.
func (a *Agent) mount() string {
	m, err := a.opts.Mount()
	if err != nil {
		a.log.Warn("where the tree is mounted is not known", "err", err)
	}
	return m
}

const (
	// mountLook is how often the agent looks whether the mount answers.
	mountLook = 2 * time.Second
	// mountPatience is how long it may take to.
	mountPatience = 10 * time.Second
)

// watchMount looks whether the tree answers where it is mounted, until ctx is
// done: where it does not, every process would fail for want of its working
// directory. A start that fails for that has it look at once, and what was
// to start is given back.
func (a *Agent) watchMount(ctx context.Context) {
	tick := env.NewTicker(env.System{}, mountLook)
	defer tick.Stop()
	var answer chan error // to what was asked and not answered yet
	for {
		if path := a.mount(); path == "" {
			a.mountTrouble.Store(nil)
		} else {
			if answer == nil {
				answer = make(chan error, 1)
				go func(c chan<- error) { // a mount that hangs holds it, for as long as it hangs
					var st unix.Statfs_t // which the kernel does not keep, as it does attributes
					c <- unix.Statfs(path, &st)
				}(answer)
			}
			select {
			case err := <-answer:
				answer = nil
				a.noteMount(path, err)
			case <-time.After(mountPatience):
				a.noteMount(path, unix.ETIMEDOUT)
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.mountDoubt:
		}
	}
}

// noteMount takes in what a mount has answered. Other errors are of a mount that
// is alive.
func (a *Agent) noteMount(path string, err error) {
	if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ETIMEDOUT) {
		if a.mountTrouble.Swap(nil) != nil {
			a.log.Info("the mount of the tree answers again", "path", path)
		}
		return
	}
	trouble := fmt.Sprintf("the tree does not answer on this node, where it is mounted on %s (%v): mount it again", path, err)
	if a.mountTrouble.Swap(&trouble) == nil {
		a.log.Warn("nothing starts here: the mount of the tree does not answer", "path", path, "err", err)
	}
}
