package sys

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of trouble an error is, so that an edge can map it to an
// errno, an HTTP status or an exit code in one table.
type Kind uint8

// The kinds. The comment gives the errno that a mount answers.
const (
	Other        Kind = iota // EIO
	NotExist                 // ENOENT
	Exist                    // EEXIST
	NotDir                   // ENOTDIR
	IsDir                    // EISDIR
	NotEmpty                 // ENOTEMPTY
	Permission               // EPERM: the operation is never allowed to this caller
	Access                   // EACCES: the mode bits say no
	NameTooLong              // ENAMETOOLONG
	Invalid                  // EINVAL
	NoSpace                  // ENOSPC
	TooManyLinks             // EMLINK
	FileTooLarge             // EFBIG
	NoXattr                  // ENODATA
	Range                    // ERANGE
	TooBig                   // E2BIG
	Loop                     // ELOOP
	CrossDevice              // EXDEV
	NotSupported             // EOPNOTSUPP
	Busy                     // EBUSY
	Stale                    // ESTALE: the inode is gone
	BadHandle                // EBADF
	Corrupt                  // EIO: bytes do not match their checksum
	Unavailable              // EIO: no majority or no replica answered in time; the message names who is missing
	NotLeader                // never leaves the cluster: ask the node named in the error
	NotInline                // never leaves vfs: the file has slices, so write slices
	StaleEpoch               // never leaves the cluster: fetch the map and retry
	SessionGone              // EIO: the session expired; its unacknowledged operations may not have happened
	Interrupted              // EINTR
	ReadOnly                 // EROFS
	kindCount
)

var kindNames = [kindCount]string{
	"error", "no such file or directory", "file exists", "not a directory", "is a directory",
	"directory not empty", "operation not permitted", "permission denied", "name too long",
	"invalid argument", "no space left", "too many links", "file too large", "no such attribute",
	"result too large", "argument list too long", "too many levels of symbolic links",
	"cross-device link", "operation not supported", "busy", "stale file handle", "bad file handle",
	"corrupt data", "unavailable", "not the leader", "not inline", "stale map epoch",
	"session expired", "interrupted", "read-only",
}

// String returns the kind in words.
func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Op is the operation that failed, as "meta.Rename".
type Op string

// Subject is what the operation was done to: a path, an inode, an address.
type Subject string

// Error is the error of every package of Koinon. Op and Subject may be empty;
// Err, the cause, may be nil.
type Error struct {
	Op      Op
	Kind    Kind
	Subject Subject
	Err     error
}

// E builds an *Error from arguments told apart by their type: Op, Kind,
// Subject, error (the cause) and string (a cause in words). When no Kind is
// given, the cause's kind is taken over. Any other type panics.
func E(args ...any) error {
	e := &Error{}
	kinded := false
	for _, a := range args {
		switch v := a.(type) {
		case Op:
			e.Op = v
		case Kind:
			e.Kind, kinded = v, true
		case Subject:
			e.Subject = v
		case string:
			e.Err = errors.New(v)
		case error:
			e.Err = v
		case nil:
		default:
			panic(fmt.Sprintf("sys.E: expected Op, Kind, Subject, string or error, found %T", a))
		}
	}
	if !kinded {
		e.Kind = KindOf(e.Err)
	}
	return e
}

// Error writes "op subject: kind: cause", leaving out what is empty, and the
// kind where the cause says it.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(string(e.Op))
	if e.Subject != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(string(e.Subject))
	}
	sep := func() {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
	}
	if e.Kind != Other && (e.Err == nil || KindOf(e.Err) != e.Kind && !strings.Contains(e.Err.Error(), e.Kind.String())) {
		sep()
		b.WriteString(e.Kind.String())
	}
	if e.Err != nil {
		sep()
		b.WriteString(e.Err.Error())
	}
	if b.Len() == 0 {
		return e.Kind.String()
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Root is what an error was at first, without what was being done and to what
// while it was passed on; nil when its kind says everything.
func Root(err error) error {
	for {
		e, ok := err.(*Error)
		if !ok {
			return err
		}
		err = e.Err
	}
}

// KindOf returns the kind of the outermost *Error in err's chain, Other when
// there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Other
}

// Is reports whether err is not nil and of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
