package commit

import (
	"fmt"
	"strings"
	"testing"
)

// mutations are the deliberate mistakes. The simulation has to find each, the explorer those that it finds within
// a second or two.
var mutations = []struct {
	name    string
	bug     Bug
	explore bool
}{
	{"yes before it is durable", BugVoteBeforeDurable, true},
	{"acknowledgement before it is durable", BugAckBeforeDurable, true},
	{"votes counted, not voters", BugCountVotes, true},
	{"a late vote counts as yes", BugVoteMissing, true},
	{"commit told before it is agreed", BugCommitUnagreed, true},
	{"abort while the commit is being agreed", BugAbortWhileAgreeing, true},
	{"no fence against earlier epochs", BugNoFence, true},
	{"epoch used again", BugReuseEpoch, true},
	{"undecided answered as unknown", BugUnknownPending, true},
	{"later epoch answered as unknown", BugUnknownLater, false},
	{"forgotten after the first acknowledgement", BugForgetEarly, true},
	{"no tombstones", BugNoTombstone, false},
	{"tombstones dropped without a floor", BugNoFloor, false},
	{"in doubt until patience ends", BugExpire, true},
	{"prepared state lost in a restart", BugForgetPrepared, false},
	{"commits lost in a take-over", BugForgetCommits, true},
	{"unknown commit acknowledged by a deposed replica", BugAckUnproved, false},
}

// TestMutations plants one known mistake after the other, and prints after how many seeds each was found.
func TestMutations(t *testing.T) {
	const seedsMax = 2000
	rows := make([]string, len(mutations))
	t.Run("simulation", func(t *testing.T) {
		for i, m := range mutations {
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(seedsMax) {
					if _, err := simulate(seed, m.bug); err != nil {
						found, _, _ := strings.Cut(err.Error(), "\n")
						rows[i] = fmt.Sprintf("%-50s %4d  %.90s", m.name, seed+1, found)
						return
					}
				}
				t.Errorf("not found with %d seeds", seedsMax)
			})
		}
	})
	t.Logf("mistake, seeds needed, how it shows\n%s", strings.Join(rows, "\n"))
}
