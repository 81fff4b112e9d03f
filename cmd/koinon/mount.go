//go:build linux && !client

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/fusefs"
	"github.com/koinon/koinon/internal/mountinfo"
	"github.com/koinon/koinon/internal/sys"
)

// mountFlags are the flags of mount.
type mountFlags struct {
	detach  bool
	logFile string
	readyFD int
}

func newMountCommand(a *app) *cobra.Command {
	var f mountFlags
	cmd := &cobra.Command{
		Use:   "mount [DIR]",
		Short: "Mount the tree on a directory",
		Long: `Mount the tree on an empty directory, until SIGINT or SIGTERM, or until somebody
unmounts it; then write out what is buffered. Without DIR, on the one that the
client configuration names.

When this process is killed the mount stays and answers errors, so that nothing
is written past it; mounting there again takes over.`,
		Example: `  koinon mount ~/tree
  koinon mount --detach ~/tree && ls ~/tree
  umount ~/tree`,
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.mount(cmd.Context(), args, f) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.detach, "detach", "d", false, "return once the tree is mounted")
	flags.StringVar(&f.logFile, "log-file", "", "log to `FILE` (rotated) instead of standard error")
	flags.IntVar(&f.readyFD, "ready-fd", 0, "say on this descriptor when the tree is mounted")
	if err := flags.MarkHidden("ready-fd"); err != nil {
		panic("koinon: expected the flag --ready-fd to exist, found: " + err.Error())
	}
	return cmd
}

// mount runs the mount command.
func (a *app) mount(ctx context.Context, args []string, f mountFlags) error {
	path, err := config.ClientPath(a.configPath)
	if err != nil {
		return err
	}
	cfg, err := config.LoadClient(path)
	if err != nil {
		return err
	}
	dir := cfg.Mount
	if len(args) > 0 {
		dir = args[0]
	}
	if dir == "" {
		return &usageError{cmd: "koinon mount", err: errors.New("give the directory to mount on: " + path + " names none")}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if f.logFile != "" {
		if cfg.Log.File, err = filepath.Abs(f.logFile); err != nil {
			return err
		}
	}
	if f.detach {
		return a.mountDetached(ctx, path, dir, cfg.Log.File)
	}
	if f.readyFD > 0 {
		daemon.KeepFromChildren(f.readyFD)
	}
	return a.mountHere(ctx, cfg, dir, func() error {
		if f.readyFD > 0 {
			return daemon.TellReady(f.readyFD, "mounted on "+dir)
		}
		a.note("mounted on %s", dir)
		return nil
	})
}

// outsideTrees refuses a mount point in a tree: the kernel takes such a mount away when the tree tells it of a change to the
// directory.
func outsideTrees(dir string) error {
	real, err := physical(dir)
	if err != nil {
		return nil // it may be a dead mount, which fusefs.Check knows to treat
	}
	mounts, err := mountinfo.List()
	if err != nil {
		return err
	}
	if m, ok := mountinfo.Of(mounts, real); ok && m.Tree() && m.Path != real {
		return fmt.Errorf("%s is in the tree that is mounted on %s: choose a directory of this machine's own", dir, m.Path)
	}
	return nil
}

// mountHere serves the mount until ctx ends or somebody unmounts it.
func (a *app) mountHere(ctx context.Context, cfg *config.Client, dir string, ready func() error) (err error) {
	log, closeLog, err := a.fileLogger(cfg.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	servePprof(ctx, log)
	// What the user can mend at once is told before the cluster is waited for.
	if err := outsideTrees(dir); err != nil {
		return err
	}
	if err := fusefs.Check(dir, log); err != nil {
		return err
	}
	c, err := client.Connect(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave(context.WithoutCancel(ctx), c)) }()
	if err := present(ctx, c); err != nil {
		return err
	}
	c.PromiseFiles()
	server, err := mountLeased(dir, c, cfg.Cluster, log)
	if err != nil {
		return err
	}
	log.Info("mounted", "dir", dir, "cluster", cfg.Cluster)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		server.Wait()
	}()
	if err := ready(); err != nil {
		return errors.Join(err, server.Unmount())
	}
	select {
	case <-gone:
		log.Info("unmounted by somebody else", "dir", dir)
		return nil
	case <-ctx.Done():
	}
	if err := server.Unmount(); err != nil {
		return err
	}
	select {
	case <-gone:
	case <-time.After(unmountPatience):
		// What they have written is stored by Close; what they still hold
		// open ends with this process.
		log.Warn("programs still use the mount; it ends without them", "dir", dir)
	}
	return nil
}

// leave closes a client's connection, but does not wait for ever: without a
// majority, what programs have written and not closed cannot be stored. What
// they have closed is.
func leave(ctx context.Context, c *client.Client) error {
	closing, cancel := context.WithTimeout(ctx, unmountPatience)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- c.Close(closing) }()
	select {
	case err := <-closed:
		return err
	case <-time.After(unmountPatience + time.Second): // it ends with this process
		return sys.E(sys.Op("mount"), sys.Unavailable,
			fmt.Sprintf("the cluster did not take within %v what programs had written and not closed: it is lost; what they had closed is stored", unmountPatience))
	}
}

// presentWait bounds the question whether there is a tree: a mount is there,
// and its programs wait, also when the leader or its database is away.
const presentWait = 2 * time.Second

// present fails when the cluster says that it cannot serve its tree as its nodes
// run now: a mount would answer errors only, and keep a dump from being loaded.
// A new cluster has its tree in a moment.
func present(ctx context.Context, c *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, presentWait)
	defer cancel()
	for {
		_, err := c.FS().GetAttr(ctx, nil, sys.RootIno)
		if !sys.Is(err, sys.Busy) {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(presentWait / 20):
		}
	}
}

// mountLeased mounts a client's file system. The kernel keeps attributes, and
// names where it can give them up without a lock, while the client's lease
// runs; revoked ones are taken from it.
func mountLeased(dir string, c *client.Client, cluster string, log *slog.Logger) (*fusefs.Server, error) {
	var attrs, names atomic.Bool // what the kernel may keep
	left := func(may *atomic.Bool) time.Duration {
		if !may.Load() {
			return 0
		}
		return c.LeaseLeft()
	}
	server, err := fusefs.Mount(dir, c.FS(), fusefs.Options{FsName: mountinfo.TreeSource(cluster), Logger: log,
		AttrTTL:  func(sys.Ino) time.Duration { return left(&attrs) },
		EntryTTL: func(sys.Ino, string) time.Duration { return left(&names) }})
	if err != nil {
		return nil, err
	}
	forget := server.CanForgetNames()
	c.OnRevoke(func(inos []sys.Ino) { // nil is all of them: what the kernel keeps ends with the lease
		var errs []error
		if forget {
			errs = append(errs, server.ForgetNames())
		}
		for _, ino := range inos {
			errs = append(errs, server.InvalidateAttr(ino))
		}
		if err := errors.Join(errs...); err != nil {
			log.Warn("the kernel may show what was revoked for a moment", "err", err)
		}
	})
	attrs.Store(true)
	names.Store(forget)
	log.Info("leases", "kernel_keeps_names", forget)
	return server, nil
}

// unmountPatience is how long an unmount waits for those who use the mount,
// and then for what they wrote to be stored.
const unmountPatience = 5 * time.Second

// mountDetached starts this command again in the background and waits until
// the tree is mounted.
func (a *app) mountDetached(ctx context.Context, path, dir, logFile string) (err error) {
	const op = sys.Op("mount")
	if err := fusefs.Check(dir, a.logger()); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if logFile == "" {
		state, err := os.UserCacheDir()
		if err != nil {
			return sys.E(op, sys.Invalid, "the user's cache directory is not known: give --log-file FILE, or set HOME")
		}
		logFile = filepath.Join(state, "koinon", "mount.log")
		if err := os.MkdirAll(filepath.Dir(logFile), 0o700); err != nil {
			return err
		}
	}
	d, err := daemon.Start(daemon.Spec{
		Path:  self,
		Args:  []string{"mount", dir, "--config", path, "--log-file", logFile, "--ready-fd", fmt.Sprint(daemon.ReadyFD)},
		Log:   logFile,
		Ready: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	line, err := d.AwaitReady(ctx)
	if errors.Is(err, daemon.ErrGone) {
		return sys.E(op, sys.Subject(dir), "the mount did not come up: "+daemon.Ending(logFile, 5))
	} else if err != nil {
		return errors.Join(err, d.Stop())
	}
	a.note("%s (pid %d, log %s)", line, d.PID, logFile)
	return nil
}
