package replica

import (
	"log/slog"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

// Config says how a Host runs. Dir, FS, Clock, Self and Transport are required;
// every other field has the default that its comment gives.
type Config struct {
	// Dir is the host's own directory. It is made when it does not exist.
	Dir   string
	FS    envfs.FS
	Clock env.Clock
	// Cluster is the cluster's ID. A directory of another cluster is refused.
	Cluster string
	// Self is this node.
	Self sys.NodeID
	// Voters are the voters of groups that begin, this node among them. It
	// counts only when the directory is made, for from then on the groups' own
	// state says who is in them (see Group.Reconfigure). None: this node joins
	// groups that there are; it waits until a leader that has added it speaks
	// to it.
	Voters []Peer
	// Peers are the nodes that may be members, see Host.SetPeers. Default: Voters.
	Peers []Peer
	// Groups are the groups that this host serves, always the same. Default: group 0.
	Groups    []sys.GroupID
	Transport Transport
	// Sched runs the host. Default env.Goroutines.
	Sched  env.Sched
	Logger *slog.Logger // default: discard

	// Rejoin says that this node had voted before and lost its directory: a
	// host that starts with an empty directory then does not vote until it
	// has been repaired from the others. Without it an empty directory is
	// that of a node that never voted. The only one of Voters, without Others,
	// knows of nobody to learn from, and is not opened.
	Rejoin bool
	// Others says that this node has had others beside it: a state that names this
	// node alone, where something has been lost, is an old one, and the others, for
	// whom see Host.SetPeers, know more. Without it such a node is not opened.
	Others bool
	// Mark is a file outside of Dir, such as beside the node's key. It is made
	// before the replica may vote for the first time; where it is, an empty
	// directory is one that was lost, as with Rejoin. It also says which change of
	// members the replica has known to be over: a directory that ends before that is
	// an old one. Empty: nobody notices.
	Mark string

	// Tick is how often time is shown to the core. Default 10 ms.
	Tick time.Duration
	// Heartbeat is the leader's interval. Default 50 ms.
	Heartbeat time.Duration
	// ElectionTimeout is the least time without a leader before a replica
	// stands; a random half of it is added. Default 300 ms.
	ElectionTimeout time.Duration
	// Lease is how long followers promise a leader that nobody else will
	// become leader. Default 250 ms; at most ElectionTimeout.
	Lease time.Duration
	// SessionTTL is how long a session lives without a sign of life. Default 30 s.
	SessionTTL time.Duration

	// Pipeline is how many entries a leader has in flight before it lets
	// commands gather for the next one. Default 8.
	Pipeline int
	// BatchBytes and BatchCommands bound one entry. Defaults 1 MiB and 2048; a
	// quarter of a segment at most.
	BatchBytes    int
	BatchCommands int
	// QueueBytes bounds the commands that wait to be proposed in a group; a
	// further one is refused with sys.Busy. Default 64 MiB.
	QueueBytes int

	// SegmentBytes is the size of a log segment, two of which are filled when a
	// directory is made. Default 32 MiB.
	SegmentBytes int64
	// RetainBytes is how much log there may be before the state is flushed
	// and the log cut. Default 64 MiB.
	RetainBytes int64
	// TailBytes is how much of the log is kept behind the flushed state for
	// followers that lag. Default 32 MiB.
	TailBytes int64
	// ReserveBytes is the free disk space below which new commands are
	// refused with sys.NoSpace. Default 64 MiB; negative turns it off.
	ReserveBytes int64

	// BlockCacheBytes and MemTableBytes are Pebble's. Defaults 32 and 16 MiB.
	BlockCacheBytes int64
	MemTableBytes   uint64

	// DigestEvery is how many slots lie between two comparisons of the
	// replicas' digests. Default 1024.
	DigestEvery uint64

	// Seed feeds the randomness of elections and identifiers. 0: from the system.
	Seed uint64

	bugs Bug // planted by Sabotage
}

// withDefaults returns c with every zero field replaced by its default.
func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Tick, 10*time.Millisecond)
	def(&c.Heartbeat, 50*time.Millisecond)
	def(&c.ElectionTimeout, 300*time.Millisecond)
	def(&c.Lease, 250*time.Millisecond)
	def(&c.SessionTTL, 30*time.Second)
	orInt(&c.Pipeline, 8)
	orInt(&c.BatchBytes, 1<<20)
	orInt(&c.BatchCommands, 2048)
	orInt(&c.QueueBytes, 64<<20)
	orInt(&c.SegmentBytes, 32<<20)
	c.BatchBytes = min(c.BatchBytes, int(c.SegmentBytes/4)) // a record has to fit
	orInt(&c.RetainBytes, 64<<20)
	orInt(&c.TailBytes, 32<<20)
	orInt(&c.ReserveBytes, 64<<20)
	orInt(&c.BlockCacheBytes, 32<<20)
	orInt(&c.MemTableBytes, 16<<20)
	orInt(&c.DigestEvery, 1024)
	if c.Peers == nil {
		c.Peers = c.Voters
	}
	if len(c.Groups) == 0 {
		c.Groups = []sys.GroupID{0}
	}
	if c.Sched == nil {
		c.Sched = env.Goroutines{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func orInt[T int | int64 | uint64](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// check refuses a configuration that cannot run.
func (c Config) check() error {
	const op = sys.Op("replica.Open")
	switch {
	case c.Dir == "":
		return sys.E(op, sys.Invalid, "Dir is empty")
	case c.FS == nil || c.Clock == nil || c.Transport == nil:
		return sys.E(op, sys.Invalid, "FS, Clock and Transport are required")
	case c.Self == 0:
		return sys.E(op, sys.Invalid, "Self is 0")
	case c.Lease > c.ElectionTimeout:
		return sys.E(op, sys.Invalid, "Lease is longer than ElectionTimeout")
	case c.Heartbeat >= c.Lease:
		return sys.E(op, sys.Invalid, "Heartbeat is not shorter than Lease")
	}
	seen := map[sys.NodeID]bool{}
	for _, p := range c.Voters {
		if p.ID == 0 || seen[p.ID] {
			return sys.E(op, sys.Invalid, sys.Subject(p.ID.String()), "voters must be distinct and not 0")
		}
		seen[p.ID] = true
	}
	if len(seen) > 0 && !seen[c.Self] {
		return sys.E(op, sys.Invalid, sys.Subject(c.Self.String()), "Self is not among Voters: leave Voters empty for a node that joins")
	}
	groups := map[sys.GroupID]bool{}
	for _, g := range c.Groups {
		if groups[g] {
			return sys.E(op, sys.Invalid, "Groups names a group twice")
		}
		groups[g] = true
	}
	return nil
}
