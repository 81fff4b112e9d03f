//go:build linux

package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// subtype makes the mount's type fuse.koinon.
const subtype = "koinon"

// The bounds of a mount, in bytes and requests.
const (
	maxWrite      = 1 << 20
	maxReadAhead  = 1 << 20
	maxBackground = 128
)

// Options are a mount's.
type Options struct {
	// AttrTTL tells how long the kernel may keep an inode's attributes, from
	// the moment it is asked on; EntryTTL how long it may keep what a name in
	// a directory leads to, or that it leads nowhere. They are asked after the
	// tree was. Without them nothing is kept.
	AttrTTL  func(ino sys.Ino) time.Duration
	EntryTTL func(parent sys.Ino, name string) time.Duration
	// FsName is the first column of df(1); default "koinon".
	FsName string
	// Logger gets what goes wrong; default slog.Default.
	Logger *slog.Logger
	// Debug logs every request.
	Debug bool
}

func (o *Options) setDefaults() {
	if o.AttrTTL == nil {
		o.AttrTTL = func(sys.Ino) time.Duration { return 0 }
	}
	if o.EntryTTL == nil {
		o.EntryTTL = func(sys.Ino, string) time.Duration { return 0 }
	}
	if o.FsName == "" {
		o.FsName = subtype
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Server is a mount that is being served.
type Server struct {
	dir    string
	raw    *rawFS
	fuse   *fuse.Server
	log    *slog.Logger
	epoch  *epoch
	served chan struct{} // closed when the kernel has let go of the mount

	unmountOnce sync.Once
	unmountErr  error
}

// Check says why Mount could not mount at dir, before there is a file system to
// mount. It takes away a dead mount of ours, as Mount does.
func Check(dir string, log *slog.Logger) error {
	_, err := prepare(dir, log)
	return err
}

// Mount shows vfs at dir, an empty directory, and serves it until Unmount, or
// until somebody else unmounts it. The caller keeps vfs and closes it after
// Wait. A process should not use its own mount: it can block all of its
// threads. The error tells what to do.
//
// When the process dies without Unmount the dead mount stays: whoever uses it
// gets ENOTCONN, and nothing that is meant for the tree can get into the
// directory below it. The next Mount there takes it away, and so does umount(8).
func Mount(dir string, vfs *vfs.FS, opts Options) (*Server, error) {
	opts.setDefaults()
	dir, err := prepare(dir, opts.Logger)
	if err != nil {
		return nil, err
	}
	asRoot := os.Geteuid() == 0
	point, names := dir, &epoch{fd: -1}
	if asRoot {
		// The device is opened here and not by go-fuse, which leaves it to be
		// inherited by every program that this process starts: one of them
		// would keep the mount of a dead server from being seen as dead.
		fd, err := mountDirect(dir, opts.FsName)
		if err != nil {
			return nil, mountError(dir, err)
		}
		point, names = "/dev/fd/"+strconv.Itoa(fd), openEpoch(fd)
	}
	raw := &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), fs: vfs, opts: opts, root: rootCred()}
	server, err := fuse.NewServer(raw, point, &fuse.MountOptions{
		AllowOther:        asRoot,
		Options:           []string{"default_permissions"},
		MaxBackground:     maxBackground,
		MaxWrite:          maxWrite,
		MaxReadAhead:      maxReadAhead,
		FsName:            opts.FsName,
		Name:              subtype,
		Debug:             opts.Debug,
		Logger:            slog.NewLogLogger(opts.Logger.Handler(), slog.LevelWarn),
		DisableSplice:     true, // what is read comes from memory: writev(2) copies it once
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2,
	})
	if err != nil {
		if asRoot {
			err = errors.Join(err, names.close(), unmountDir(dir, true))
		}
		return nil, mountError(dir, err)
	}
	s := &Server{dir: dir, raw: raw, fuse: server, log: opts.Logger, epoch: names, served: make(chan struct{})}
	go s.serve()
	if err := server.WaitMount(); err != nil {
		return nil, errors.Join(mountError(dir, err), s.Unmount())
	}
	if asRoot {
		s.widenReadAhead()
	}
	return s, nil
}

// mountDirect opens the FUSE device and mounts it at dir by mount(2), as only
// root may. It returns the device, which is not inherited by children.
func mountDirect(dir, source string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=%d,max_read=%d,default_permissions,allow_other",
		fd, unix.S_IFDIR, os.Getegid(), maxWrite)
	if err := unix.Mount(source, dir, "fuse."+subtype, unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return -1, errors.Join(os.NewSyscallError("mount", err), unix.Close(fd))
	}
	return fd, nil
}

// serve answers the kernel until it lets go. Wait waits for it.
func (s *Server) serve() {
	defer close(s.served)
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { s.raw.interrupts.watch(stop) })
	s.fuse.Serve()
	if err := s.epoch.close(); err != nil {
		s.log.Warn("closing the mount's second descriptor", "err", err)
	}
	close(stop)
	watch.Wait()
	for _, f := range s.raw.handles.removeAll() {
		f.Release()
	}
}

// Dir returns the absolute path of the mount point.
func (s *Server) Dir() string { return s.dir }

// Serve returns when the mount is gone, whoever unmounted it, and everything in
// it was answered.
func (s *Server) Serve() { s.Wait() }

// Wait is Serve.
func (s *Server) Wait() {
	<-s.served
}

// Unmount takes the mount away. When it is in use, it is detached instead: no
// path leads to it any more, and those who use it are served until they are
// done, which Wait waits for. Further calls return the same.
func (s *Server) Unmount() error {
	s.unmountOnce.Do(func() { s.unmountErr = s.unmount() })
	return s.unmountErr
}

func (s *Server) unmount() error {
	select {
	case <-s.served:
		return nil // somebody else has unmounted it
	default:
	}
	err := unmountDir(s.dir, false)
	if err == nil || errors.Is(err, unix.EINVAL) { // not mounted: somebody else was faster
		return nil
	}
	s.log.Warn("the mount is in use: detaching it", "dir", s.dir, "err", err)
	if err := unmountDir(s.dir, true); err != nil {
		return sys.E(sys.Op("fusefs.Unmount"), sys.Busy, sys.Subject(s.dir), err)
	}
	return nil
}

// InvalidateAttr makes the kernel forget an inode's attributes, without a lock
// of the inode, so that it cannot wait for a request that waits for the caller.
// Of the requests only a write may call it: the others answer with attributes, which would come back by that.
func (s *Server) InvalidateAttr(ino sys.Ino) error {
	return notified(s.fuse.InodeNotify(uint64(ino), -1, 0))
}

// InvalidateData makes the kernel forget an inode's attributes and pages. It
// may wait for a request on that inode.
func (s *Server) InvalidateData(ino sys.Ino) error {
	return notified(s.fuse.InodeNotify(uint64(ino), 0, 0))
}

// InvalidateEntry makes the kernel forget what a name leads to. It may wait
// for a request on the directory.
func (s *Server) InvalidateEntry(parent sys.Ino, name string) error {
	return notified(s.fuse.EntryNotify(uint64(parent), name))
}

// notified is the error of a notification. That the kernel did not know the
// inode is none.
func notified(status fuse.Status) error {
	if status == fuse.OK || status == fuse.ENOENT {
		return nil
	}
	return sys.E(sys.Op("fusefs.Invalidate"), error(unix.Errno(status)))
}

// widenReadAhead lets the kernel read ahead more than the 128 KiB that it
// allows a FUSE mount, which only root may set. A kernel that refuses reads
// ahead less.
func (s *Server) widenReadAhead() {
	m, err := findMount(s.dir)
	if err != nil || m == nil {
		return
	}
	name := filepath.Join("/sys/class/bdi", m.device, "read_ahead_kb")
	if err := os.WriteFile(name, []byte(strconv.Itoa(maxReadAhead>>10)), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Debug("the kernel's read-ahead stays as it is", "err", err)
	}
}

// unmountDir unmounts a directory; detach takes it away even in use.
func unmountDir(dir string, detach bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if detach {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(dir, flags)
	}
	tool, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", dir}
	if detach {
		args = []string{"-u", "-z", dir}
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, out)
	}
	return nil
}
