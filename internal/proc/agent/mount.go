//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/mountinfo"
	"github.com/koinon/koinon/internal/sys"
)

// findMounts tells where this machine has the whole tree of the cluster, the oldest mount first.
func (a *Agent) findMounts() ([]string, error) {
	mounts, err := a.mounts.List()
	if err != nil {
		return nil, sys.E(sys.Op("agent.mount"), err)
	}
	var paths []string
	for _, m := range mounts {
		if seen, _ := mountinfo.Of(mounts, m.Path); a.isTree(m) && a.isTree(seen) && !slices.Contains(paths, m.Path) {
			paths = append(paths, m.Path)
		}
	}
	return paths, nil
}

func (a *Agent) isTree(m mountinfo.Mount) bool {
	return m.Tree() && m.Cluster() == a.opts.ID && m.Root == "/"
}

// mount is where processes have the tree here: the first of its mounts that
// answers, so that no other mount that comes or goes moves them. It is "" when
// the tree is nowhere, or that is not known. Where no mount answers, trouble says
// so.
func (a *Agent) mount() (path, trouble string) {
	paths, err := a.opts.Mounts()
	if err != nil {
		a.log.Warn("where the tree is mounted is not known", "err", err)
	}
	dead := *a.dead.Load()
	var why []string
	for _, p := range paths {
		err, bad := dead[p]
		if !bad {
			return p, ""
		}
		why = append(why, fmt.Sprintf("%s (%v)", p, err))
	}
	if len(paths) == 0 {
		return "", ""
	}
	return paths[0], fmt.Sprintf("the tree does not answer on this node, where it is mounted on %s: mount it again", strings.Join(why, " and "))
}

const (
	// mountLook is how often the agent looks whether the mounts answer.
	mountLook = 2 * time.Second
	// mountPatience is how long one may take to.
	mountPatience = 10 * time.Second
)

// mountAnswer is what a mount said when it was asked.
type mountAnswer struct {
	path string
	err  error
}

// watchMounts looks whether the tree answers where it is mounted, until ctx is
// done: where it does not, every process would fail for want of its working
// directory. A start that fails for that has it look at once, and goes on with
// another mount, or what was to start is given back.
//
// Each mount is asked apart, and never again before it has answered: one that
// hangs holds who asks it for as long as it hangs.
func (a *Agent) watchMounts(ctx context.Context) {
	tick := env.NewTicker(env.System{}, mountLook)
	defer tick.Stop()
	asked := map[string]time.Time{} // when, of those that have not answered
	answers := make(chan mountAnswer)
	for look := true; ; {
		paths, err := a.opts.Mounts()
		if err == nil { // or mount warns of it
			a.forgetMounts(paths)
		}
		for _, path := range paths {
			switch began, waits := asked[path]; {
			case waits && time.Since(began) > mountPatience:
				a.noteMount(path, unix.ETIMEDOUT)
			case look && !waits:
				asked[path] = time.Now()
				go askMount(ctx, path, answers)
			}
		}
		look = true
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.mountDoubt:
		case answer := <-answers:
			delete(asked, answer.path)
			a.noteMount(answer.path, answer.err)
			look = false
		}
	}
}

// askMount asks a mount for something that the kernel does not keep, as it does
// attributes.
func askMount(ctx context.Context, path string, answers chan<- mountAnswer) {
	var st unix.Statfs_t
	answer := mountAnswer{path, unix.Statfs(path, &st)}
	select {
	case answers <- answer:
	case <-ctx.Done():
	}
}

// noteMount takes in what a mount has answered. Errors other than these are of a
// mount that is alive.
func (a *Agent) noteMount(path string, err error) {
	bad := errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ETIMEDOUT)
	dead := maps.Clone(*a.dead.Load())
	if _, was := dead[path]; was == bad {
		return
	}
	if bad {
		dead[path] = err
		a.log.Warn("a mount of the tree does not answer: nothing starts in it", "path", path, "err", err)
	} else {
		delete(dead, path)
		a.log.Info("a mount of the tree answers again", "path", path)
	}
	a.dead.Store(&dead)
}

// forgetMounts forgets what is not mounted any more.
func (a *Agent) forgetMounts(mounted []string) {
	dead := maps.Clone(*a.dead.Load())
	maps.DeleteFunc(dead, func(path string, _ error) bool { return !slices.Contains(mounted, path) })
	a.dead.Store(&dead)
}
