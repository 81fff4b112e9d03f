package paxos

import "flag"

// Bug is a set of deliberate mistakes, for tests that prove that a simulator notices them.
type Bug uint32

// The known mistakes. Each is one that has been made in earnest somewhere.
const (
	BugVoteBeforeSync   Bug = 1 << iota // the leader counts its own vote before it is durable
	BugOldBallot                        // "chosen up to N" is believed of entries accepted at an older ballot
	BugNoLeaseWait                      // a restarted follower promises at once
	BugForgetNoop                       // a hole found at an election stays a hole the leader steps over
	BugForgetSuffix                     // a new leader does not propose again what promises reported
	BugAnyReported                      // of several reported entries the first one wins, not the newest ballot's
	BugEarlyRead                        // a new leader serves reads before the suffix is applied
	BugIgnoreBarrier                    // acceptors promise although a leader holds a lease
	BugLeaseFromReceipt                 // the leader counts its lease from the answer, not from the sending
	BugAcceptOld                        // acceptors accept below what they have promised
	BugPromiseForgets                   // a promise does not report entries accepted earlier
	BugReadNoRound                      // ReadIndex answers without asking a majority
	BugReuseBallot                      // the ballot of a new campaign may leave before it is durable
	BugMinorityQuorum                   // half of the voters pass for a majority
	BugTransferKeeps                    // a leader keeps its lease while it transfers leadership
	BugDamagedVotes                     // a damaged replica votes
	BugMuteTells                        // a promise of a damaged replica counts as if it had told what it accepted

	BugActivateNow       // a new configuration decides as soon as it is proposed
	BugWrongQuorum       // a new configuration decides as soon as it is chosen, before its first slot
	BugOneConfigPhase1   // an election asks only the configuration in force
	BugNoNewPrepare      // a leader proposes under a new configuration without promises from there
	BugLearnerVotes      // learners count like voters
	BugLeaseOldConfig    // a lease counts only the configuration in force while another is on its way
	BugSnapshotOldConfig // the configuration that comes with a snapshot is ignored
	BugRecoverOldConfig  // a restarted node starts with the group's first configuration
)

// Sabotage plants bugs in a node that will be made from this configuration. It panics outside of go test.
func (c *Config) Sabotage(b Bug) {
	if flag.Lookup("test.v") == nil {
		panic("paxos: Sabotage is for tests")
	}
	c.bugs = b
}

// has reports whether a bug was planted.
func (b Bug) has(x Bug) bool { return b&x != 0 }
