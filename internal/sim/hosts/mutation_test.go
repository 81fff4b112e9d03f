package hosts

import (
	"testing"

	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sim/simtest"
)

// mutation is a known mistake.
type mutation struct {
	name string
	bug  replica.Bug
	seed uint64 // the first seed that finds it; another one does when the simulator has changed
}

func mutations() []mutation {
	return []mutation{
		{"vote before sync", replica.BugVoteBeforeSync, 1},
		{"failed sync ignored", replica.BugIgnoreSyncError, 8},
		{"promise not logged", replica.BugPromiseNotLogged, 224},
		{"wiped replica votes", replica.BugWipedVotes, 1},
		{"damaged replica votes", replica.BugDamagedVotes, 10},
		{"log cut behind what is not durable", replica.BugTruncateEarly, 1},
		{"applied slot written after the state", replica.BugAppliedBehind, 1},
		{"commands see local time", replica.BugLocalTime, 1},
		{"restart forgets results of sessions", replica.BugForgetResults, 1},
		{"snapshot without sessions", replica.BugSnapshotNoSessions, 1},
		{"read under a lease that has ended", replica.BugReadNoLease, 196},
		{"lease read does not wait for its slot", replica.BugReadNoSlot, 22},
		{"index read does not wait for its slot", replica.BugReadNoWait, 11},
		{"state that names one voter is believed", replica.BugStateBelieved, 1635},
	}
}

// TestMutations plants one known mistake after the other in the hosts, as that
// of package sim does in the core.
func TestMutations(t *testing.T) {
	for _, m := range mutations() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			simtest.Find(t, m.name, m.seed, 2000, func(seed uint64) error { return Run(Options{Seed: seed, Bugs: m.bug}).Err })
		})
	}
}
