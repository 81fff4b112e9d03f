package koinon

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/koinon/koinon/internal/sys"
)

// errnos is the table from kinds of errors to errnos; kinds that are not in
// it are EIO.
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
	sys.Range:        syscall.ERANGE,
	sys.TooBig:       syscall.E2BIG,
	sys.Loop:         syscall.ELOOP,
	sys.CrossDevice:  syscall.EXDEV,
	sys.NotSupported: syscall.EOPNOTSUPP,
	sys.Busy:         syscall.EBUSY,
	sys.Stale:        syscall.ENOENT, // a path whose file went away between two looks
	sys.BadHandle:    syscall.EBADF,
	sys.Interrupted:  syscall.EINTR,
	sys.ReadOnly:     syscall.EROFS,
}

// cause is the error inside what this package returns.
type cause struct {
	err  error
	kind sys.Kind
}

// Error names the kind alone where that says everything: the path is told by
// the error around it. What this package says itself is for people as it is.
func (c *cause) Error() string {
	if e, ok := c.err.(*sys.Error); ok && e.Op == "" && e.Subject == "" && e.Err != nil {
		return e.Err.Error()
	}
	switch c.kind {
	case sys.NotExist, sys.Exist, sys.NotDir, sys.IsDir, sys.NotEmpty, sys.Access, sys.NameTooLong, sys.Loop:
		return c.kind.String()
	case sys.Stale:
		return sys.NotExist.String()
	case sys.NoSpace:
		if root := sys.Root(c.err); root != nil { // which block found no room says nothing
			return sys.E(c.kind, root).Error()
		}
	}
	return c.err.Error()
}

// Unwrap returns the error as the tree gave it.
func (c *cause) Unwrap() error { return c.err }

// Is makes errors.Is answer for errnos and for the errors of io/fs.
func (c *cause) Is(target error) bool {
	errno, ok := errnos[c.kind]
	if !ok {
		errno = syscall.EIO
	}
	if want, ok := target.(syscall.Errno); ok {
		return want == errno
	}
	switch target {
	case fs.ErrNotExist:
		return errno == syscall.ENOENT
	case fs.ErrExist:
		return errno == syscall.EEXIST || errno == syscall.ENOTEMPTY
	case fs.ErrPermission:
		return errno == syscall.EPERM || errno == syscall.EACCES
	case fs.ErrInvalid:
		return errno == syscall.EINVAL
	}
	return false
}

// explain makes the inside of an error: nil stays nil.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sys.Error](err); ok {
		return &cause{err: err, kind: e.Kind}
	}
	return err
}

// pathError wraps err, if there is one.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return err
	}
	return &fs.PathError{Op: op, Path: path, Err: explain(err)}
}

// linkError wraps err, if there is one.
func linkError(op, from, to string, err error) error {
	if err == nil {
		return nil
	}
	return &os.LinkError{Op: op, Old: from, New: to, Err: explain(err)}
}
