package sim

import (
	"testing"

	"github.com/koinon/koinon/internal/sim/simtest"
	"github.com/koinon/koinon/paxos"
)

// mutation is a known mistake.
type mutation struct {
	name string
	bug  paxos.Bug
	seed uint64 // the first seed that finds it; another one does when the simulator has changed
}

func mutations() []mutation {
	return []mutation{
		{"own vote before sync", paxos.BugVoteBeforeSync, 1},
		{"old-ballot value taken as chosen", paxos.BugOldBallot, 2},
		{"no lease wait after restart", paxos.BugNoLeaseWait, 113},
		{"hole without no-op", paxos.BugForgetNoop, 115},
		{"suffix not proposed again", paxos.BugForgetSuffix, 1},
		{"any reported entry wins", paxos.BugAnyReported, 1361},
		{"reads before the suffix is applied", paxos.BugEarlyRead, 2},
		{"promise in spite of a lease", paxos.BugIgnoreBarrier, 50},
		{"lease counted from receipt", paxos.BugLeaseFromReceipt, 71},
		{"acceptance below the promise", paxos.BugAcceptOld, 234},
		{"promise without accepted entries", paxos.BugPromiseForgets, 2},
		{"read index without a round", paxos.BugReadNoRound, 708},
		{"ballot sent before it is durable", paxos.BugReuseBallot, 1},
		{"half is a majority", paxos.BugMinorityQuorum, 1},
		{"lease kept during transfer", paxos.BugTransferKeeps, 4},
		{"damaged replica votes", paxos.BugDamagedVotes, 32},
		{"promise of a damaged replica taken as a full one", paxos.BugMuteTells, 13},
		{"configuration in force when proposed", paxos.BugActivateNow, 3},
		{"configuration in force when chosen", paxos.BugWrongQuorum, 3},
		{"election by one configuration", paxos.BugOneConfigPhase1, 38},
		{"no promises from new voters", paxos.BugNoNewPrepare, 46},
		{"learners vote", paxos.BugLearnerVotes, 1},
		{"lease by one configuration", paxos.BugLeaseOldConfig, 760},
		{"snapshot without its configuration", paxos.BugSnapshotOldConfig, 7},
		{"restart with the first configuration", paxos.BugRecoverOldConfig, 28},
	}
}

// TestMutations plants one known mistake after the other. The simulator is worth something only if it finds each. With
// KOINON_MUTATIONS set it looks for the first seed that does and prints the table; else it tries the seed that is known,
// and others only when that one does not find the mistake any more.
func TestMutations(t *testing.T) {
	for _, m := range mutations() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			simtest.Find(t, m.name, m.seed, 5000, func(seed uint64) error { return Run(Options{Seed: seed, Bugs: m.bug}).Err })
		})
	}
}
