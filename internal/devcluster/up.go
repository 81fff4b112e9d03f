//go:build linux

package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

// UpResult tells what Up has done.
type UpResult struct {
	// Created says that the cluster is new.
	Created bool
	// Started are the numbers of the nodes that Up started.
	Started []int
	// MountStarted says that Up started the mount.
	MountStarted bool
	// Mounted says that the mount serves, whoever started it.
	Mounted bool
	// Warnings tell what does not work though the cluster serves: the mount,
	// or a minority of the nodes.
	Warnings []string
}

// AlreadyRunning reports whether there was nothing to do.
func (r *UpResult) AlreadyRunning() bool { return len(r.Started) == 0 && !r.MountStarted }

// Up makes the cluster if there is none, starts what does not run, and
// returns when a leader serves and the tree is mounted. When it fails it
// stops what it has started, and kills what has not stopped when force ends;
// the error holds the end of the log of what failed.
func Up(ctx, force context.Context, opts Options) (_ *Cluster, _ *UpResult, err error) {
	opts = opts.withDefaults()
	if opts.Nodes < 0 || opts.Nodes > MaxNodes {
		return nil, nil, sys.E(sys.Op("dev up"), sys.Invalid, fmt.Sprintf("--nodes is %d: it must be 1 to %d", opts.Nodes, MaxNodes))
	}
	res := &UpResult{}
	var made bool
	if opts.Dir, made, err = makeDir(opts.Dir); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil && made && !res.Created {
			unmakeDir(opts.Dir)
		}
	}()
	if opts.Mount != "" {
		if opts.Mount, err = realMountPoint(opts.Mount); err != nil {
			return nil, nil, err
		}
		if err := besidesOurs(opts.Dir, opts.Mount); err != nil {
			return nil, nil, err
		}
	}
	lock, err := lockDir(ctx, opts.Dir, opts)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()

	c, err := Open(opts)
	if errors.As(err, new(NoClusterError)) {
		// A mount point that cannot be used must not be remembered.
		if opts.Mount != "" && !opts.NoMount {
			if err := tryMountPoint(opts.Mount); err != nil {
				return nil, nil, err
			}
		}
		if opts.Probe != nil {
			if err := opts.Probe(ctx); err != nil {
				return nil, nil, err
			}
		}
		if err := create(opts.Dir, opts); err != nil {
			return nil, nil, err
		}
		res.Created = true
		c, err = Open(opts)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := c.up(ctx, force, res); err != nil {
		return nil, nil, err
	}
	return c, res, nil
}

// checkClient finds what is wrong with what the nodes are asked with: a slip
// there must not look like theirs.
func (c *Cluster) checkClient() error {
	const op = sys.Op("dev")
	client, err := config.LoadClient(c.ClientConfig())
	if sys.Is(err, sys.NotExist) {
		return sys.E(op, sys.NotExist, c.ClientConfig()+" is missing, with which this cluster is asked: put it back")
	}
	if err != nil {
		return err
	}
	if _, err := auth.LoadCredentials(client.TLS.CA, client.TLS.Cert, client.TLS.Key); err != nil {
		return sys.E(op, fmt.Errorf("this cluster is asked with the certificate that %s names, which cannot be used: put back what `koinon dev up` has made: %w", c.ClientConfig(), err))
	}
	return nil
}

// besidesOurs refuses a mount point that is, or is within, what a cluster in dir
// keeps there.
func besidesOurs(dir, mount string) error {
	rel, err := filepath.Rel(dir, mount)
	if err != nil {
		return err
	}
	if rel == "." {
		return sys.E(sys.Op("dev up"), sys.Invalid, sys.Subject(mount), fmt.Sprintf("that is the cluster's own directory: choose another mount point with --mount, such as %s", filepath.Join(dir, "mnt")))
	}
	first, _, _ := strings.Cut(rel, string(filepath.Separator))
	if first != "mnt" && ours().MatchString(first) {
		return sys.E(sys.Op("dev up"), sys.Invalid, sys.Subject(mount), fmt.Sprintf("the cluster keeps its own files in %s: choose another mount point with --mount", filepath.Join(dir, first)))
	}
	return nil
}

// makeDir makes the cluster's directory and returns it free of symbolic
// links. A directory that holds something else is left as it is.
func makeDir(dir string) (real string, made bool, err error) {
	const op = sys.Op("dev up")
	if _, err := os.Stat(filepath.Join(dir, "dev.toml")); errors.Is(err, fs.ErrNotExist) {
		if err := checkNewDir(dir); err != nil {
			return "", false, err
		}
	}
	if _, err := os.Stat(dir); err != nil {
		made = true
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", false, sys.E(op, sys.Subject(dir), err)
	}
	real, err = filepath.EvalSymlinks(dir)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", made, sys.E(op, sys.Subject(dir), err)
	}
	return real, made, nil
}

// unmakeDir takes away what makeDir and lockDir have made, unless there is more in it by now.
func unmakeDir(dir string) {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) <= 1 {
		_ = os.Remove(filepath.Join(dir, "lock"))
		_ = os.Remove(dir)
	}
}

// up does the work of Up under the lock.
func (c *Cluster) up(ctx, force context.Context, res *UpResult) error {
	if n := c.opts.Nodes; n != 0 && n != c.saved.Nodes {
		return sys.E(sys.Op("dev up"), sys.Invalid, sys.Subject(c.dir), fmt.Sprintf(
			"this cluster has %s, not %d: leave --nodes out to run it, make another with --dir, or delete this one with `koinon dev reset`",
			count(c.saved.Nodes, "node"), n))
	}
	if err := errors.Join(c.checkClient(), usable(c.nodes)); err != nil {
		return err
	}
	for _, e := range []struct {
		flag, what string
		want, has  engine.Ref
	}{{"--meta", "metadata", c.opts.Meta, c.Meta().URL}, {"--blocks", "blocks", c.opts.Blocks.URL, c.Blocks().URL}} {
		if e.want != "" && !e.want.Same(e.has) {
			return sys.E(sys.Op("dev up"), sys.Invalid, sys.Subject(c.dir), fmt.Sprintf(
				"this cluster keeps its %s elsewhere (%q): leave %s out to run it, or make another with --dir", e.what, e.has, e.flag))
		}
	}
	mounted, err := c.chooseMount()
	if err != nil {
		return err
	}
	res.Mounted = mounted
	wantMount := !c.opts.NoMount && !mounted
	if wantMount {
		if err := c.prepareMount(); err != nil {
			return err
		}
	}
	missing, err := c.notRunning()
	if err != nil {
		return err
	}
	if err := c.startNodes(ctx, missing, res); err != nil {
		return errors.Join(err, c.undo(force, missing))
	}
	for _, n := range missing {
		res.Started = append(res.Started, n.number)
	}
	if small := c.smallDisk(); small != "" {
		res.Warnings = append(res.Warnings, small)
	}
	if !wantMount {
		return nil
	}
	c.say("mounting %s", c.saved.Mount)
	if err := c.startMount(ctx, force); ctx.Err() != nil {
		return errors.Join(ctx.Err(), c.undo(force, missing))
	} else if err != nil {
		res.Warnings = append(res.Warnings, fmt.Sprintf(
			"the tree is not mounted, the nodes serve without: %v\ntry again with `koinon dev up`; `koinon ls`, `koinon cp` and the like work without a mount", err))
		return nil
	}
	res.MountStarted, res.Mounted = true, true
	return nil
}

// copies is how many nodes keep each block, where there are as many.
const copies = 3

// smallDisk says that there is little room for blocks on the disk of the nodes;
// "" where there is more, where it is not known, and where blocks are not kept
// there.
func (c *Cluster) smallDisk() string {
	const little = 1 << 30
	var st unix.Statfs_t
	if c.Blocks().URL != "" || unix.Statfs(c.dir, &st) != nil {
		return ""
	}
	free, kept := st.Bavail*uint64(st.Bsize), uint64(config.DefaultMinFree)
	if free >= little {
		return ""
	}
	room := (max(free, kept) - kept) / uint64(min(copies, len(c.nodes)))
	return fmt.Sprintf("the disk of %s has %d MiB free, of which %d stay free (min_free): there is room for about %d MiB of files",
		c.dir, free>>20, kept>>20, room>>20)
}

// chooseMount takes over --mount, and reports whether the mount runs.
func (c *Cluster) chooseMount() (mounted bool, err error) {
	_, st, err := c.mountProcess().find()
	if err != nil {
		return false, err
	}
	want := c.opts.Mount
	if want == "" || want == c.saved.Mount {
		return st == running, nil
	}
	if st == running {
		return false, sys.E(sys.Op("dev up"), sys.Busy, sys.Subject(want), fmt.Sprintf(
			"this cluster is mounted on %s: stop it first with `koinon dev stop`, or mount it a second time with `koinon mount %s`", c.saved.Mount, want))
	}
	if !c.opts.NoMount {
		if err := tryMountPoint(want); err != nil {
			return false, err
		}
	}
	if err := openMountPoint(c.saved.Mount); err != nil { // of which nobody will know any more
		return false, err
	}
	if err := c.editClient(func(client *config.Client) { client.Mount = want }); err != nil {
		return false, err
	}
	c.saved.Mount, c.saved.MountMade = want, false
	return false, saveState(c.dir, c.saved)
}

// notRunning returns the nodes to start.
func (c *Cluster) notRunning() ([]*node, error) {
	var missing []*node
	for _, n := range c.nodes {
		_, st, err := n.find()
		if err != nil {
			return nil, err
		}
		if st != running {
			missing = append(missing, n)
		}
	}
	return missing, nil
}

// startNodes starts the nodes and waits until a leader serves and they all
// answer. A minority that fails is a warning in a cluster that had served
// before.
func (c *Cluster) startNodes(ctx context.Context, missing []*node, res *UpResult) error {
	if len(missing) == 0 {
		return nil
	}
	for _, n := range missing {
		if err := n.checkPort(); err != nil {
			return err
		}
	}
	failed := make(map[*node]error)
	for _, n := range missing {
		c.say("starting node %d on %s", n.number, n.addr)
		if err := c.startNode(n); err != nil {
			if err := c.lose(n, err, failed, res); err != nil {
				return err
			}
		}
	}
	return c.awaitNodes(ctx, missing, failed, res)
}

// lose notes that a node cannot be started. That is an error unless a cluster
// that has served before can go on without it.
func (c *Cluster) lose(n *node, err error, failed map[*node]error, res *UpResult) error {
	failed[n] = err
	if res.Created || len(c.nodes)-len(failed) <= len(c.nodes)/2 {
		return err
	}
	res.Warnings = append(res.Warnings, err.Error())
	return nil
}

func (c *Cluster) startNode(n *node) error {
	d, err := n.start(daemon.Spec{
		Path: c.opts.Binary,
		Args: []string{"serve", "--config", filepath.Join(n.dir, "node.toml")},
	})
	if err != nil {
		return err
	}
	return d.Close()
}

// startMount starts the mount and waits until it is usable.
func (c *Cluster) startMount(ctx, force context.Context) (err error) {
	m := c.mountProcess()
	d, err := m.start(daemon.Spec{
		Path:  c.opts.Binary,
		Args:  []string{"mount", c.saved.Mount, "--config", c.ClientConfig(), "--log-file", m.log(), "--ready-fd", fmt.Sprint(daemon.ReadyFD)},
		Ready: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	waiting, cancel := context.WithTimeout(ctx, c.opts.ReadyTimeout)
	defer cancel()
	_, err = d.AwaitReady(waiting)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, daemon.ErrGone):
		err = m.failure("did not come up")
	case ctx.Err() == nil:
		err = m.failure(fmt.Sprintf("was not ready within %v", c.opts.ReadyTimeout))
	}
	return errors.Join(err, c.stopMount(force))
}

// undo stops the nodes that a failed Up has started, whose own context may be
// over.
func (c *Cluster) undo(force context.Context, started []*node) error {
	if len(started) > 0 {
		c.say("stopping what was started")
	}
	return c.stopNodes(force, started)
}

// readyPoll is how often the nodes are asked while they start.
const readyPoll = 100 * time.Millisecond

// awaitNodes waits until all of started, but for the failed, answer and the
// cluster has a leader.
func (c *Cluster) awaitNodes(ctx context.Context, started []*node, failed map[*node]error, res *UpResult) error {
	c.say("waiting for a leader")
	p := c.newProbe()
	defer p.close()
	waiting, cancel := context.WithTimeout(ctx, c.opts.ReadyTimeout)
	defer cancel()
	for {
		for _, n := range started {
			if _, st, err := n.find(); err != nil {
				return err
			} else if st != running && failed[n] == nil {
				if err := c.lose(n, n.failure("did not come up"), failed, res); err != nil {
					return err
				}
			}
		}
		answers := p.answers(waiting)
		if hasLeader(answers) && answered(answers, started, failed) {
			for _, n := range started {
				if trouble := answers[n.id].Trouble; trouble != "" {
					res.Warnings = append(res.Warnings, fmt.Sprintf("node %d: %s", n.number, trouble))
				}
			}
			return nil
		}
		select {
		case <-waiting.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return c.notReady(answers, p.err)
		case <-time.After(readyPoll):
		}
	}
}

func hasLeader(answers map[sys.NodeID]Answer) bool {
	for _, a := range answers {
		if a.Role == RoleLeader {
			return true
		}
	}
	return false
}

// answered reports whether all nodes but the failed have answered.
func answered(answers map[sys.NodeID]Answer, nodes []*node, failed map[*node]error) bool {
	for _, n := range nodes {
		if _, ok := answers[n.id]; !ok && failed[n] == nil {
			return false
		}
	}
	return true
}

// notReady words why the cluster does not serve after ReadyTimeout: by the
// log of a node that does not answer, else of the first.
func (c *Cluster) notReady(answers map[sys.NodeID]Answer, cause error) error {
	for _, n := range c.nodes {
		if _, ok := answers[n.id]; !ok {
			return errors.Join(n.failure(fmt.Sprintf("does not answer after %v", c.opts.ReadyTimeout)), cause)
		}
	}
	return errors.Join(c.nodes[0].failure(fmt.Sprintf("and the others have no leader after %v", c.opts.ReadyTimeout)), cause)
}

// count writes "1 node", "3 nodes".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
