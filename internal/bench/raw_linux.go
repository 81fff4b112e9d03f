package bench

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// handle is an open file. Package os would offer every file to the poller,
// which on FUSE is a request of its own, so the timed path makes the system
// calls itself.
type handle int

// openRaw is open(2); flags are those of package os.
func openRaw(path string, flags int, mode uint32) (handle, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err == nil {
			return handle(fd), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// writeAt writes all of p.
func (h handle) writeAt(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(int(h), p, off)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return os.NewSyscallError("pwrite", err)
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readAt reads until p is full or the file ends.
func (h handle) readAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		n, err := unix.Pread(int(h), p[total:], off+int64(total))
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return total, os.NewSyscallError("pread", err)
		}
		if n == 0 {
			break
		}
		total += n
	}
	return total, nil
}

func (h handle) fsync() error {
	for {
		err := unix.Fsync(int(h))
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fsync", err)
		}
	}
}

// close does not retry: on Linux the descriptor is gone even on EINTR.
func (h handle) close() error {
	err := unix.Close(int(h))
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return os.NewSyscallError("close", err)
}

// lstatRaw returns the size and whether path is a directory.
func lstatRaw(path string) (size int64, dir bool, err error) {
	var st unix.Stat_t
	for {
		err = unix.Lstat(path, &st)
		if err == nil {
			return st.Size, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return 0, false, &os.PathError{Op: "lstat", Path: path, Err: err}
		}
	}
}

func renameRaw(from, to string) error {
	for {
		err := unix.Rename(from, to)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
	}
}

func unlinkRaw(path string) error {
	for {
		err := unix.Unlink(path)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "unlink", Path: path, Err: err}
		}
	}
}

// settle writes everything back (sync(2)).
func settle() { unix.Sync() }

// dropCaches empties the kernel's caches of clean pages, dentries and inodes
// (proc_sys_vm(5)); settle makes them clean.
func dropCaches() error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}
