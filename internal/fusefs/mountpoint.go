//go:build linux

package fusefs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const opMount = sys.Op("fusefs.Mount")

func rootCred() *metapb.Cred { return &metapb.Cred{} }

// prepare checks that dir can be mounted on and that this process may mount,
// and returns dir's absolute path. A dead mount of ours is taken away.
func prepare(dir string, log *slog.Logger) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", sys.E(opMount, sys.Invalid, sys.Subject(dir), err)
	}
	if err := clearDead(dir, log); err != nil {
		return "", err
	}
	// The kernel knows mount points by their real paths.
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if err := clearDead(dir, log); err != nil {
		return "", err
	}
	if err := checkDir(dir); err != nil {
		return "", err
	}
	return dir, checkRight()
}

// clearDead takes away what a Koinon that died has left mounted at dir.
func clearDead(dir string, log *slog.Logger) error {
	for range 8 { // dead mounts may lie on top of each other
		var st unix.Statfs_t // which the kernel does not keep, as it does attributes
		if err := unix.Statfs(dir, &st); !errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		m, err := findMount(dir)
		if err != nil {
			return sys.E(opMount, sys.Subject(dir), err)
		}
		if m == nil {
			return nil // a directory above it is dead; the check says so
		}
		if m.fstype != "fuse."+subtype {
			return sys.E(opMount, sys.Busy, sys.Subject(dir),
				fmt.Sprintf("a dead mount of type %s is there; take it away with: umount -l %s", m.fstype, dir))
		}
		if err := unmountDir(dir, true); err != nil {
			return sys.E(opMount, sys.Busy, sys.Subject(dir),
				fmt.Errorf("a dead mount of koinon is there; take it away with: umount -l %s: %w", dir, err))
		}
		log.Info("took away a dead mount of koinon", "dir", dir)
	}
	return sys.E(opMount, sys.Busy, sys.Subject(dir), "too many dead mounts are there; take them away with: umount -l "+dir)
}

// checkDir checks that dir is an empty directory that nothing is mounted on.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && isLink(dir): // as koinon dev stop leaves it
		return sys.E(opMount, sys.NotExist, sys.Subject(dir), fmt.Sprintf("it is a link to nowhere; make a mount point of it: rm %s && mkdir %s", dir, dir))
	case errors.Is(err, fs.ErrNotExist):
		return sys.E(opMount, sys.NotExist, sys.Subject(dir), "there is no such directory: make the mount point first: mkdir -p "+dir)
	case err != nil:
		return sys.E(opMount, sys.Subject(dir), err)
	case !info.IsDir():
		return sys.E(opMount, sys.NotDir, sys.Subject(dir), "a mount point is a directory")
	}
	m, err := findMount(dir)
	if err != nil {
		return sys.E(opMount, sys.Subject(dir), err)
	}
	if m != nil && m.fstype == "fuse."+subtype {
		return sys.E(opMount, sys.Busy, sys.Subject(dir), "koinon is mounted there already")
	}
	if m != nil {
		return sys.E(opMount, sys.Busy, sys.Subject(dir),
			fmt.Sprintf("%s (type %s) is mounted there; choose another directory", m.source, m.fstype))
	}
	d, err := os.Open(dir)
	if err != nil {
		return sys.E(opMount, sys.Access, sys.Subject(dir), err)
	}
	defer d.Close()
	if _, err := d.Readdirnames(1); !errors.Is(err, io.EOF) {
		if err != nil {
			return sys.E(opMount, sys.Subject(dir), err)
		}
		return sys.E(opMount, sys.NotEmpty, sys.Subject(dir), "a mount would hide what is in it; choose an empty directory")
	}
	return nil
}

func isLink(path string) bool {
	_, err := os.Readlink(path)
	return err == nil
}

// checkRight checks that there is FUSE and that this process may mount.
func checkRight() error {
	const dev = "/dev/fuse"
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return sys.E(opMount, sys.NotSupported, sys.Subject(dev),
			"this system has no FUSE: load it with: modprobe fuse (in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN)")
	case errors.Is(err, fs.ErrPermission):
		return sys.E(opMount, sys.Permission, sys.Subject(dev), "no right to use FUSE: run as root, or join the group that owns "+dev)
	case err != nil:
		return sys.E(opMount, sys.Subject(dev), err)
	}
	if err := f.Close(); err != nil {
		return sys.E(opMount, sys.Subject(dev), err)
	}
	if os.Geteuid() != 0 {
		if _, err := fusermount(); err != nil {
			return sys.E(opMount, sys.Permission, err)
		}
	}
	return nil
}

// fusermount returns the path of the tool that mounts for those who are not
// root.
func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount", "/bin/fusermount3", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("only root mounts without fusermount3: run as root, or install the package fuse3")
}

// mountError says why the kernel would not mount.
func mountError(dir string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return sys.E(opMount, sys.Permission, sys.Subject(dir),
			fmt.Errorf("no right to mount: run as root (in a container: --cap-add SYS_ADMIN): %w", err))
	}
	return sys.E(opMount, sys.Subject(dir), err)
}

// mountInfo is a line of /proc/self/mountinfo.
type mountInfo struct {
	device string // "major:minor"
	fstype string
	source string
}

// findMount returns what is mounted at dir, the topmost, nil when nothing is.
func findMount(dir string) (*mountInfo, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found *mountInfo
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// See proc_pid_mountinfo(5): ID, parent, device, root, mount point,
		// options, optional fields, "-", type, source, options.
		fields := strings.Fields(lines.Text())
		dash := -1
		for k, field := range fields {
			if field == "-" {
				dash = k
				break
			}
		}
		if dash < 6 || len(fields) < dash+3 || unescape(fields[4]) != dir {
			continue
		}
		found = &mountInfo{device: fields[2], fstype: fields[dash+1], source: unescape(fields[dash+2])}
	}
	return found, lines.Err()
}

// unescape undoes the octal escapes of spaces, tabs, newlines and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for k := 0; k < len(s); k++ {
		if s[k] == '\\' && k+3 < len(s) {
			if n, err := strconv.ParseUint(s[k+1:k+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				k += 3
				continue
			}
		}
		b.WriteByte(s[k])
	}
	return b.String()
}
