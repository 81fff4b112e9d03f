package replica

import "flag"

// Bug is a set of deliberate mistakes, for tests that prove that a simulator
// notices them.
type Bug uint32

// The known mistakes.
const (
	BugVoteBeforeSync     Bug = 1 << iota // votes leave, and count, before the log has been synced
	BugIgnoreSyncError                    // what the log failed to write counts as written
	BugPromiseNotLogged                   // a promise is not written with what needs it
	BugWipedVotes                         // a replica whose disk was replaced votes as if it never had
	BugDamagedVotes                       // a replica votes although its log has lost records
	BugTruncateEarly                      // the log is cut behind what is applied but not durable
	BugAppliedBehind                      // the applied slot is written after the state, not with it
	BugLocalTime                          // commands see the replica's own time
	BugForgetResults                      // a restart forgets the results of sessions
	BugSnapshotNoSessions                 // a snapshot comes without the sessions
	BugReadNoLease                        // a read goes by a lease that may have ended
	BugReadNoSlot                         // a read under a lease does not wait for what is known to be chosen
	BugReadNoWait                         // a read by read index does not wait until the state is as far
	BugStateBelieved                      // a replica that has lost records leads where its state names it alone
)

// Sabotage plants bugs in a host that will be opened from this configuration.
// It panics outside of go test.
func (c *Config) Sabotage(b Bug) {
	if flag.Lookup("test.v") == nil {
		panic("replica: Sabotage is for tests")
	}
	c.bugs = b
}

// has reports whether a bug was planted.
func (b Bug) has(x Bug) bool { return b&x != 0 }
