// Package metapb is the tree as it is sent and logged: generated from
// meta.proto, with what a Failure needs to become an error again.
package metapb

import (
	"github.com/koinon/koinon/internal/sys"
)

// Err returns the failure as a *sys.Error, nil for a nil failure.
func (f *Failure) Err() error {
	if f == nil {
		return nil
	}
	args := []any{sys.Op(f.GetOp()), sys.Kind(f.GetKind()), sys.Subject(f.GetSubject())}
	if f.GetCause() != "" {
		args = append(args, f.GetCause())
	}
	return sys.E(args...)
}
