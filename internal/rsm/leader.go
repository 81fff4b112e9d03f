package rsm

import (
	"errors"
	"fmt"

	"github.com/koinon/koinon/internal/sys"
)

// LeaderError is the cause of a sys.NotLeader error, and of a sys.Unavailable
// one that was caused by a change of leader.
type LeaderError struct {
	// Leader is who leads as far as this replica knows, 0 when nobody.
	Leader sys.NodeID
	// Proposed says that the command had been proposed: it may take effect.
	// Retrying it under its (Session, Seq) is safe.
	Proposed bool
}

// Error names the leader.
func (e *LeaderError) Error() string {
	switch {
	case e.Proposed:
		return fmt.Sprintf("leadership was lost before the outcome was known; the leader may be %v", e.Leader)
	case e.Leader == 0:
		return "no leader is known"
	}
	return fmt.Sprintf("the leader is %v", e.Leader)
}

// LeaderOf returns the leader that err points to. It is false when err has
// none or the leader is not known.
func LeaderOf(err error) (sys.NodeID, bool) {
	le, ok := errors.AsType[*LeaderError](err)
	if !ok || le.Leader == 0 {
		return 0, false
	}
	return le.Leader, true
}
