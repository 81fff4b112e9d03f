//go:build linux

package fusefs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/koinon/koinon/internal/sys"
)

// errnos is what a mount answers for each kind of error. Kinds that are not in
// it, and errors without a kind, are EIO.
var errnos = map[sys.Kind]syscall.Errno{
	sys.NotExist:     syscall.ENOENT,
	sys.Exist:        syscall.EEXIST,
	sys.NotDir:       syscall.ENOTDIR,
	sys.IsDir:        syscall.EISDIR,
	sys.NotEmpty:     syscall.ENOTEMPTY,
	sys.Permission:   syscall.EPERM,
	sys.Access:       syscall.EACCES,
	sys.NameTooLong:  syscall.ENAMETOOLONG,
	sys.Invalid:      syscall.EINVAL,
	sys.NoSpace:      syscall.ENOSPC,
	sys.TooManyLinks: syscall.EMLINK,
	sys.FileTooLarge: syscall.EFBIG,
	sys.NoXattr:      syscall.ENODATA,
	sys.Range:        syscall.ERANGE,
	sys.TooBig:       syscall.E2BIG,
	sys.Loop:         syscall.ELOOP,
	sys.CrossDevice:  syscall.EXDEV,
	sys.NotSupported: syscall.EOPNOTSUPP,
	sys.Busy:         syscall.EBUSY,
	sys.Stale:        syscall.ESTALE,
	sys.BadHandle:    syscall.EBADF,
	sys.Interrupted:  syscall.EINTR,
	sys.ReadOnly:     syscall.EROFS,
}

// statusOf maps an error to what the kernel is answered.
func statusOf(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if errno, ok := errnos[sys.KindOf(err)]; ok {
		return fuse.Status(errno)
	}
	if errors.Is(err, context.Canceled) {
		return fuse.EINTR
	}
	return fuse.EIO
}
