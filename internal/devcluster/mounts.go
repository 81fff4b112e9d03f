//go:build linux

package devcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/mountinfo"
	"github.com/koinon/koinon/internal/sys"
)

// mountAt returns what is mounted on path.
func mountAt(path string) (mountinfo.Mount, bool, error) {
	all, err := mountinfo.List()
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Path == path {
			return all[i], true, nil
		}
	}
	return mountinfo.Mount{}, false, err
}

// mountedBelow returns a mount point in or below dir, "" when there is none.
func mountedBelow(dir string) (string, error) {
	all, err := mountinfo.List()
	for _, m := range all {
		if m.Path == dir || strings.HasPrefix(m.Path, dir+"/") {
			return m.Path, nil
		}
	}
	return "", err
}

// answerWait is how long a mount whose process is gone may take to say so.
const answerWait = 2 * time.Second

// clearStale takes away a mount of ours whose process is gone. The caller
// knows that the cluster's own mount process does not run; one that another
// process serves is left alone.
func clearStale(path string) error {
	m, ok, err := mountAt(path)
	if err != nil || !ok || !m.Tree() {
		return err
	}
	// With its process gone, the kernel answers ENOTCONN at once, unless a
	// child that the process left behind holds the connection open without
	// serving it. Then only breaking the connection frees those who wait.
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t // which the kernel does not keep, as it does attributes
		answer <- unix.Statfs(path, &st)
	}()
	select {
	case err := <-answer:
		if !errors.Is(err, unix.ENOTCONN) {
			return nil
		}
	case <-time.After(answerWait):
		// The answer comes when the connection is broken, at the latest when
		// this process ends.
		err := unix.Unmount(path, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return unmountLazily(path)
}

// mountsOf lists where the tree of a cluster is mounted, the last first, as
// they can be unmounted.
func mountsOf(all []mountinfo.Mount, cluster string) []string {
	var paths []string
	for _, m := range slices.Backward(all) {
		if m.Tree() && m.Cluster() == cluster {
			paths = append(paths, m.Path)
		}
	}
	return paths
}

// unmountOthers unmounts the tree wherever it is mounted beside the cluster's
// own mount point.
func (c *Cluster) unmountOthers() error {
	all, err := mountinfo.List()
	if err != nil {
		return err
	}
	for _, path := range mountsOf(all, c.saved.Cluster) {
		if path == c.saved.Mount {
			continue
		}
		if err := clearStale(path); err != nil {
			return err
		}
		if _, still, err := mountAt(path); err != nil {
			return err
		} else if !still {
			continue
		}
		c.say("unmounting %s", path)
		if err := unmount(path, 0); err != nil {
			return sys.E(sys.Op("dev reset"), sys.Busy, sys.Subject(path), fmt.Sprintf(
				"the tree is mounted there too and cannot be unmounted (%v), so nothing was deleted: end the programs that use it, run `umount %s`, and reset again", err, path))
		}
	}
	return nil
}

// unmountLazily takes the mount out of the tree now; what programs still hold
// open goes when they let go.
func unmountLazily(path string) error { return unmount(path, unix.MNT_DETACH) }

// unmount unmounts, by the program that may where this process may not.
func unmount(path string, flags int) error {
	err := unix.Unmount(path, flags|unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	args := []string{"-u", "--", path}
	if flags&unix.MNT_DETACH != 0 {
		args = append([]string{"-z"}, args...)
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3 %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// tryMountPoint refuses a mount point that cannot be made, or on which a mount
// would hide something. It leaves what it finds.
func tryMountPoint(path string) error {
	made, err := prepareMountPoint(path)
	if made {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// prepareMount makes the mount point usable, and notes whether it is ours.
func (c *Cluster) prepareMount() error {
	made, err := prepareMountPoint(c.saved.Mount)
	if err != nil || !made || c.saved.MountMade {
		return err
	}
	c.saved.MountMade = true
	return saveState(c.dir, c.saved)
}

// notMounted is where a mount point of ours leads while nothing is mounted: to
// nowhere, and nobody can make it. A directory would take what is written past
// the tree, and then be in the way of the next mount; where there is nothing,
// cp -r makes a directory.
const notMounted = "/proc/not-mounted/run: koinon dev up"

// closeMountPoint leaves notMounted in place of the mount point while nothing
// is mounted there, if it was made by us. One that the user gave stays, and so
// does what somebody has written into ours while nothing was mounted. Where it
// was mounted until now, what programs have written there since is kept beside
// it, and told: from this moment on they get errors.
func (c *Cluster) closeMountPoint(wasMounted bool) error {
	path := c.saved.Mount
	if !c.saved.MountMade && path != c.path("mnt") {
		return nil
	}
	if _, there, err := mountAt(path); err != nil || there {
		return err
	}
	if !wasMounted {
		if there, err := os.ReadDir(path); err == nil && len(there) > 0 {
			return nil
		}
	}
	aside, err := closePath(path)
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, fs.ErrNotExist): // mounted again meanwhile; taken away with all around it
		return nil
	case err != nil:
		return sys.E(sys.Op("dev"), sys.Subject(path), fmt.Errorf("close the mount point: %w", err))
	case aside != "":
		c.say("what was written to %s while it was being unmounted is not in the tree, but in %s", path, aside)
	}
	return nil
}

// closePath puts notMounted in the place of a directory, in one step, and deletes
// that, or returns where it is when it is not empty. What is no directory stays.
func closePath(path string) (aside string, err error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return "", os.Symlink(notMounted, path)
	case err != nil || !info.IsDir():
		return "", err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), filepath.Base(path)+".unmounted-")
	if err != nil {
		return "", err
	}
	aside = filepath.Join(dir, filepath.Base(path))
	if err := os.Symlink(notMounted, aside); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	if err := unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	if err := unix.Rmdir(aside); isNotEmpty(err) {
		return aside, nil
	} else if err != nil {
		return "", err
	}
	return "", os.Remove(dir)
}

// openMountPoint takes away what closeMountPoint has left.
func openMountPoint(path string) error {
	if to, err := os.Readlink(path); err != nil || to != notMounted {
		return nil // there is no such link, which is what is wanted
	}
	return os.Remove(path)
}

// prepareMountPoint makes the mount point if it is missing, which it reports,
// and refuses one on which a mount would hide something.
func prepareMountPoint(path string) (made bool, err error) {
	const op = sys.Op("dev up")
	if err := clearStale(path); err != nil {
		return false, sys.E(op, sys.Subject(path), fmt.Errorf("take away a mount whose process is gone: %w", err))
	}
	if m, ok, err := mountAt(path); err != nil {
		return false, err
	} else if ok {
		return false, sys.E(op, sys.Busy, sys.Subject(path),
			fmt.Sprintf("%s (%s) is mounted there: unmount it with `umount %s`, or choose another directory with --mount", m.Source, m.Type, path))
	}
	if err := openMountPoint(path); err != nil {
		return false, sys.E(op, sys.Subject(path), err)
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return false, sys.E(op, sys.Subject(path), fmt.Errorf("make the mount point: %w", err))
		}
		return true, nil
	} else if err != nil {
		return false, sys.E(op, sys.Subject(path), err)
	}
	if !info.IsDir() {
		return false, sys.E(op, sys.NotDir, sys.Subject(path), "choose another mount point with --mount")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return false, sys.E(op, sys.Subject(path), err)
	}
	if len(entries) > 0 {
		return false, sys.E(op, sys.NotEmpty, sys.Subject(path), "a mount would hide what is in it: empty it, or choose another mount point with --mount")
	}
	return false, nil
}

// realMountPoint makes path absolute and free of symbolic links, as the
// kernel lists it. What is mounted there is not asked: a mount whose process
// is gone does not answer, and one whose nodes are down does not soon.
func realMountPoint(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(parent, filepath.Base(path))
	}
	if _, is, err := mountAt(path); is || err != nil {
		return path, err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, nil
	}
	return path, nil // to be made
}

func isNotEmpty(err error) bool {
	return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)
}
