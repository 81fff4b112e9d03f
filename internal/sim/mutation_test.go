package sim

import (
	"testing"

	"github.com/koinon/koinon/paxos"
)

// TestMutations plants one known mistake after the other. The simulator is worth something only if it finds each.
func TestMutations(t *testing.T) {
	for _, m := range []struct {
		name string
		bug  paxos.Bug
		hint uint64 // a seed that has found it, tried first; another one does when the simulator has changed
	}{
		{"own vote before sync", paxos.BugVoteBeforeSync, 68},
		{"old-ballot value taken as chosen", paxos.BugOldBallot, 1},
		{"no lease wait after restart", paxos.BugNoLeaseWait, 441},
		{"hole without no-op", paxos.BugForgetNoop, 95},
		{"suffix not proposed again", paxos.BugForgetSuffix, 2},
		{"any reported entry wins", paxos.BugAnyReported, 152},
		{"reads before the suffix is applied", paxos.BugEarlyRead, 2},
		{"promise in spite of a lease", paxos.BugIgnoreBarrier, 22},
		{"lease counted from receipt", paxos.BugLeaseFromReceipt, 17},
		{"acceptance below the promise", paxos.BugAcceptOld, 9},
		{"promise without accepted entries", paxos.BugPromiseForgets, 1},
		{"read index without a round", paxos.BugReadNoRound, 19},
		{"ballot sent before it is durable", paxos.BugReuseBallot, 1},
		{"half is a majority", paxos.BugMinorityQuorum, 1},
		{"lease kept during transfer", paxos.BugTransferKeeps, 562},
		{"damaged replica votes", paxos.BugDamagedVotes, 38},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			const seedsMax = 3000
			for n := uint64(0); n <= seedsMax; n++ {
				seed := n
				if n == 0 {
					seed = m.hint
				}
				if res := Run(Options{Seed: seed, Bugs: m.bug}); res.Err != nil {
					t.Logf("found by run %d, with seed %d: %.200v", n+1, seed, res.Err)
					return
				}
			}
			t.Errorf("not found with %d seeds", seedsMax)
		})
	}
}
