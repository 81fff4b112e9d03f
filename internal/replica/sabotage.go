package replica

import "flag"

// Bug is a set of deliberate mistakes, for tests that prove that a simulator
// notices them.
type Bug uint32

// The known mistakes.
const (
	BugVoteBeforeSync Bug = 1 << iota // votes leave, and count, before the log is synced
	BugNoStateWithEntries
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
