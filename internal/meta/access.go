package meta

import (
	"errors"

	"github.com/koinon/koinon/internal/meta/metapb"
)

// CheckAccess refuses what the mode bits of an inode do not allow its caller,
// as the rules do: want is rwx bits, 4 read, 2 write, 1 execute. It is for
// those who answer from a copy of the attributes. The error is a *sys.Error.
func CheckAccess(a *metapb.Attr, cred *metapb.Cred, want uint32) error {
	err := (&step{cred: cred}).check(a, want)
	if no, ok := errors.AsType[*refusal](err); ok {
		return no.failure("meta.Access").Err()
	}
	return err
}
