package commit

import "flag"

// Bug is a set of deliberate mistakes, for tests that prove that a simulation notices them.
type Bug uint32

// The known mistakes.
const (
	BugVoteBeforeDurable  Bug = 1 << iota // a yes leaves before the prepared state is durable
	BugAckBeforeDurable                   // an acknowledgement leaves before the change is durable
	BugCountVotes                         // votes are counted, not voters: a repeated yes counts twice
	BugVoteMissing                        // a vote that is late counts as yes
	BugCommitUnagreed                     // participants are told to commit before the log has agreed
	BugAbortWhileAgreeing                 // a timeout aborts although the commit is on its way into the log
	BugNoFence                            // the log takes commits of earlier epochs
	BugReuseEpoch                         // a new coordinator goes on in its predecessor's epoch
	BugUnknownPending                     // a question about an undecided transaction is answered with unknown
	BugUnknownLater                       // so is one about a later coordinator's transaction
	BugForgetEarly                        // the first acknowledgement ends a transaction
	BugNoTombstone                        // a finished transaction leaves nothing behind
	BugNoFloor                            // tombstones go when the coordinator says so, but late prepares are welcome
	BugExpire                             // a participant in doubt gives up by itself
	BugForgetPrepared                     // a restarted participant does not know what it has prepared
	BugForgetCommits                      // a new coordinator does not know what its predecessors have committed
	BugAckUnproved                        // a replica that may be deposed acknowledges what it does not know
)

// Sabotage plants bugs in the coordinators and participants that will be made from this configuration. It panics
// outside of go test.
func (c *Config) Sabotage(b Bug) {
	testsOnly()
	c.bugs = b
}

// Sabotage plants bugs in a table. It panics outside of go test.
func (t *Table) Sabotage(b Bug) {
	testsOnly()
	t.bugs = b
}

func testsOnly() {
	if flag.Lookup("test.v") == nil {
		panic("commit: Sabotage is for tests")
	}
}

// has reports whether a bug was planted.
func (b Bug) has(x Bug) bool { return b&x != 0 }
