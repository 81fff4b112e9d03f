//go:build linux

package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/daemon"
)

// Kill ends the nodes with the given numbers by SIGKILL, as a power cut
// would, all at once, and returns when they are gone. A node that does not
// run is an error, told after the others have been killed.
func (c *Cluster) Kill(numbers ...int) error {
	nodes, err := c.pick(numbers)
	if err != nil {
		return err
	}
	var errs []error
	var killed []daemon.Process
	for _, n := range nodes {
		id, st, err := n.find()
		if err == nil && st != running {
			err = fmt.Errorf("%s does not run; start it with `koinon dev start %d`", n.name, n.number)
		}
		if err == nil {
			err = id.Signal(unix.SIGKILL)
		}
		if err == nil {
			killed = append(killed, id)
			c.say("killed node %d (pid %d)", n.number, id.PID)
		} else if !errors.Is(err, daemon.ErrGone) {
			errs = append(errs, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	for _, id := range killed {
		errs = append(errs, id.Wait(ctx))
	}
	return errors.Join(errs...)
}

// Start starts the nodes with the given numbers and returns when they answer,
// whether there is a leader or not. One that runs already is left alone.
func (c *Cluster) Start(ctx context.Context, numbers ...int) (err error) {
	nodes, err := c.pick(numbers)
	if err == nil {
		err = errors.Join(c.checkClient(), usable(nodes))
	}
	if err != nil {
		return err
	}
	lock, err := lockDir(ctx, c.dir, c.opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	var started []*node
	for _, n := range nodes {
		if goesOn, err := c.goesOn(ctx, n); err != nil {
			return err
		} else if goesOn {
			c.say("node %d runs already", n.number)
			continue
		}
		if err := n.checkPort(); err != nil {
			return err
		}
		if err := c.startNode(n); err != nil {
			return err
		}
		started = append(started, n)
	}
	return c.awaitAnswers(ctx, started)
}

// awaitAnswers waits until the nodes answer. What does not is left running:
// it may only be slow.
func (c *Cluster) awaitAnswers(ctx context.Context, nodes []*node) error {
	p := c.newProbe()
	defer p.close()
	waiting, cancel := context.WithTimeout(ctx, c.opts.ReadyTimeout)
	defer cancel()
	for {
		answers := p.answers(waiting)
		var waitFor []*node
		for _, n := range nodes {
			if a, ok := answers[n.id]; ok {
				c.say("node %d is up", n.number)
				if a.Trouble != "" {
					c.say("node %d: %s", n.number, a.Trouble)
				}
				continue
			}
			if _, st, err := n.find(); err != nil {
				return err
			} else if st != running {
				return n.failure("did not come up")
			}
			waitFor = append(waitFor, n)
		}
		if nodes = waitFor; len(nodes) == 0 {
			return nil
		}
		select {
		case <-waiting.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errors.Join(nodes[0].failure(fmt.Sprintf("does not answer after %v", c.opts.ReadyTimeout)), p.err)
		case <-time.After(readyPoll):
		}
	}
}

// endingWait is how long a process that does not answer may still be one that was
// killed just now, and is about to end.
const endingWait = 2 * time.Second

// goesOn says that a node runs and is not about to end, as one that was killed is.
func (c *Cluster) goesOn(ctx context.Context, n *node) (bool, error) {
	id, st, err := n.find()
	if err != nil || st != running {
		return false, err
	}
	p := c.newProbe()
	defer p.close()
	waiting, cancel := context.WithTimeout(ctx, endingWait)
	defer cancel()
	for waiting.Err() == nil {
		if _, ok := p.answers(waiting)[n.id]; ok {
			return true, nil
		}
		soon, cancel := context.WithTimeout(waiting, readyPoll)
		err := id.Wait(soon)
		cancel()
		if err == nil {
			return false, nil
		}
	}
	return true, ctx.Err()
}

// Stop unmounts the tree, which writes out what is buffered, then stops the
// nodes. What does not stop within Options.Grace, or until ctx ends, is
// killed. Nothing that was acknowledged is lost either way.
func (c *Cluster) Stop(ctx context.Context) (err error) {
	// The lock is waited for even when ctx has ended: that only hurries.
	lock, err := lockDir(context.Background(), c.dir, c.opts)
	if errors.Is(err, fs.ErrNotExist) && !c.exists() {
		return nil // reset by somebody else
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	return c.stop(ctx)
}

func (c *Cluster) stop(ctx context.Context) error {
	return errors.Join(c.stopMount(ctx), c.stopNodes(ctx, c.nodes))
}

// stopMount ends the mount's process and takes away what it left mounted.
func (c *Cluster) stopMount(ctx context.Context) error {
	m := c.mountProcess()
	_, st, err := m.find()
	if err != nil {
		return err
	}
	_, mounted, err := mountAt(c.saved.Mount)
	if err != nil {
		return err
	}
	if st == running {
		c.say("unmounting %s", c.saved.Mount)
	}
	killed, err := m.stop(ctx, c.opts.Grace)
	if err != nil {
		return err
	}
	if killed {
		c.say("the mount did not end by itself and was killed; its log is %s", m.log())
	}
	return errors.Join(clearStale(c.saved.Mount), c.closeMountPoint(mounted || st == running))
}

// stopNodes stops the nodes side by side.
func (c *Cluster) stopNodes(ctx context.Context, nodes []*node) error {
	errs := make([]error, len(nodes))
	killed := make([]bool, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		if _, st, err := n.find(); err == nil && st == running {
			c.say("stopping node %d", n.number)
		}
		wg.Go(func() {
			killed[i], errs[i] = n.stop(ctx, c.opts.Grace)
			_, err := n.supervisor().stop(ctx, c.opts.Grace) // outlives a node that was killed
			errs[i] = errors.Join(errs[i], err)
		})
	}
	wg.Wait()
	for i, n := range nodes {
		if killed[i] {
			c.say("node %d did not stop by itself and was killed; its log is %s", n.number, n.log())
		}
	}
	return errors.Join(errs...)
}

// Reset stops the cluster and deletes it with all data. Files in its
// directory that are not its own stay. Further mounts of its tree are unmounted
// first; where programs use one nothing is deleted, and the error is Busy.
func (c *Cluster) Reset(ctx context.Context) (err error) {
	lock, err := lockDir(ctx, c.dir, c.opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	if err := c.unmountOthers(); err != nil {
		return err
	}
	if err := errors.Join(c.stop(ctx), openMountPoint(c.saved.Mount)); err != nil {
		return err
	}
	// A user without a configuration directory has no current cluster either.
	if _, err := config.Current(); err == nil {
		if err := config.UnsetCurrent(c.ClientConfig()); err != nil {
			return err
		}
	}
	if err := removeState(c.dir); err != nil {
		return err
	}
	for _, name := range []string{"watch", "lock"} {
		if err := os.Remove(c.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(c.dir); err != nil && !isNotEmpty(err) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}
