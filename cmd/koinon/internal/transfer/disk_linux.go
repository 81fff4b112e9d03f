package transfer

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon"
)

// sysAttrs returns what fs.FileInfo leaves to the system.
func sysAttrs(info fs.FileInfo) (atime time.Time, uid, gid uint32) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.ModTime(), 0, 0
	}
	return time.Unix(st.Atim.Unix()), st.Uid, st.Gid
}

// setLinkAttrs changes owner and times of a symbolic link itself.
func setLinkAttrs(path string, a koinon.Attrs) error {
	if a.UID != nil || a.GID != nil {
		if err := os.Lchown(path, id(a.UID), id(a.GID)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	if a.Atime.IsZero() && a.Mtime.IsZero() {
		return nil
	}
	times := make([]unix.Timespec, 2)
	for i, t := range []time.Time{a.Atime, a.Mtime} {
		times[i] = unix.Timespec{Nsec: unix.UTIME_OMIT}
		if !t.IsZero() {
			ts, err := unix.TimeToTimespec(t)
			if err != nil {
				return err
			}
			times[i] = ts
		}
	}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}
