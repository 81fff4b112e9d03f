// Package hosts drives replica.Hosts, as they are in production, through a
// simulated world: one goroutine at a time, from one seed. Driver, log writer,
// applier, snapshots and callers are coroutines (package world); clocks drift;
// disks lose and tear what was not synced, are slow, full or damaged, fail to
// sync, misdirect reads, and are lost for good; the network loses, repeats,
// delays, reorders and is cut in both directions or one; processes crash at any
// point, all at once too, freeze, stop and start; leadership is handed over;
// members come and go; logs are so short that snapshots are needed.
//
// A run has two phases. In the first faults come at random while clients write
// and read. Then everything is healed, and the group has to make progress and to
// agree.
//
// What is checked: every replica runs the same commands in the same order; no
// operation takes effect twice, however often it was sent; a write is after, and
// a read sees, everything that a client had seen before it began, which for one
// order of all commands is linearizability; what was acknowledged is there in
// the end, and equal rows on every member; a host never fails by itself unless
// its disk did.
package hosts

import (
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sim/world"
)

// nodesMax is how many nodes there may be in one run.
const nodesMax = 7

// Options choose a run. Everything that is not given follows from Seed.
type Options struct {
	Seed  uint64
	Bugs  replica.Bug // mistakes to plant in every host
	Trace func(line string)
}

// Result says how a run went.
type Result struct {
	Hash  uint64 // of the whole sequence of events
	Err   error  // what was violated, or nil
	Stats Stats
}

// Stats count what happened, so that a test can see that the faults were real.
type Stats struct {
	Events, Messages, Lost, Repeated    int
	Crashes, Blackouts, Stops, Failures int
	Pauses, HeldUp                      int
	Partitions, Transfers               int
	SlowDisks, FullDisks, FailedSyncs   int
	Torn, Damages, Wipes, LostTogether  int
	LostLogs, LostStates, OldStates     int
	LostGrown                           int // of a group that began with one voter
	Changes, ChangesRefused, Joins      int
	Commands, Writes, Reads, Unknown    int
	LocalReads                          int
	Sessions, Snapshots, Truncations    int
	Repeats, IndexReads, Elections      int
}

// cluster is everything there is.
type cluster struct {
	*world.World
	bugs    replica.Bug
	shape   shape
	stats   Stats
	nodes   []*node
	net     network
	history history
	clients []*client
	asked   map[*change]bool // changes of members under way
	made    []*change        // the first members, then what was asked for and not refused, also when everybody has lost sight of it
	healed  bool             // no more faults
	quiet   bool             // no more operations
}

// shape is what a seed chooses for its run.
type shape struct {
	voters, votersMin                 int // in the beginning, and after a member has been taken away
	electionTimeout, heartbeat        world.Instant
	sessionTTL                        world.Instant
	segmentBytes                      int64
	retainBytes, tailBytes            int64
	pipeline, batchCommands           int
	keys, valueBytes                  int
	driftPPM                          int
	faultPhase                        world.Instant
	crashEvery, blackoutEvery         world.Instant
	pauseEvery, cutEvery              world.Instant
	transferEvery, diskEvery          world.Instant
	changeEvery                       world.Instant // 0: never
	wipeEvery                         world.Instant
	syncSlow, readError, damageChance float64
	holdUp                            float64
}

// Run simulates one run to its end or to the first violation.
func Run(opt Options) Result {
	w := world.New(opt.Seed, opt.Trace)
	c := &cluster{World: w, bugs: opt.Bugs, asked: map[*change]bool{}}
	err := w.Run(func() {
		c.build()
		c.RunUntil(c.shape.faultPhase)
		c.heal()
		c.checkProgress()
		for _, n := range c.nodes {
			n.crash()
		}
	})
	c.stats.Events = w.Events
	return Result{Hash: w.Hash, Err: err, Stats: c.stats}
}

func (c *cluster) build() {
	c.shape = shape{
		voters:          world.OneOf(c.World, 3, 3, 3, 3, 5, 1),
		electionTimeout: 200 * world.Millisecond,
		heartbeat:       world.OneOf(c.World, 20*world.Millisecond, 40*world.Millisecond),
		sessionTTL:      world.OneOf(c.World, 700*world.Millisecond, 30*world.Second),
		segmentBytes:    world.OneOf[int64](c.World, 64<<10, 256<<10),
		retainBytes:     world.OneOf[int64](c.World, 8<<10, 64<<10),
		tailBytes:       world.OneOf[int64](c.World, 1, 4<<10, 32<<10),
		pipeline:        world.OneOf(c.World, 1, 8),
		batchCommands:   world.OneOf(c.World, 2, 2048),
		keys:            world.OneOf(c.World, 16, 256),
		valueBytes:      world.OneOf(c.World, 16, 200, 2000, 8000),
		driftPPM:        world.OneOf(c.World, 0, 900),
		faultPhase:      world.OneOf[world.Instant](c.World, 3, 3, 3, 3, 3, 12) * world.Second,
		crashEvery:      c.Pick(200*world.Millisecond, 2*world.Second),
		blackoutEvery:   c.Pick(world.Second, 6*world.Second),
		pauseEvery:      c.Pick(300*world.Millisecond, 2*world.Second),
		cutEvery:        c.Pick(200*world.Millisecond, 2*world.Second),
		transferEvery:   c.Pick(300*world.Millisecond, 3*world.Second),
		diskEvery:       c.Pick(300*world.Millisecond, 3*world.Second),
		wipeEvery:       c.Pick(500*world.Millisecond, 4*world.Second),
		syncSlow:        world.OneOf(c.World, 0, 0.02, 0.1),
		readError:       world.OneOf(c.World, 0, 0, 0.05),
		damageChance:    world.OneOf(c.World, 0, 0.5),
		holdUp:          world.OneOf(c.World, 0, 0.0003, 0.003),
	}
	if c.Chance(0.6) {
		c.shape.changeEvery = c.Pick(100*world.Millisecond, 800*world.Millisecond)
	}
	if c.shape.votersMin = 2; c.shape.voters == 1 && c.Chance(0.8) { // it grows, and stays so large that disks may be lost
		c.shape.votersMin = 3
		c.shape.retainBytes, c.shape.tailBytes = 8<<10, 1
		c.shape.changeEvery = c.Pick(50*world.Millisecond, 300*world.Millisecond)
		c.shape.wipeEvery = c.Pick(200*world.Millisecond, 2*world.Second)
		c.shape.faultPhase = world.OneOf[world.Instant](c.World, 4, 12) * world.Second
	}
	if c.Chance(0.3) { // little else happens, so that much is written
		c.shape.crashEvery, c.shape.blackoutEvery = c.Pick(world.Second, 8*world.Second), c.Pick(world.Second, 8*world.Second)
		c.shape.cutEvery, c.shape.pauseEvery = c.Pick(world.Second, 8*world.Second), c.Pick(world.Second, 8*world.Second)
	}
	c.net = newNetwork(c)
	c.history = history{c: c, digests: map[position]uint64{}, byOp: map[uint64]position{}, acked: map[uint64]position{}}
	for range c.shape.voters {
		newNode(c, false)
	}
	first := &change{}
	for _, n := range c.nodes {
		first.voters = append(first.voters, n.id)
		n.start()
	}
	c.made = []*change{first}
	for id := range 4 {
		c.clients = append(c.clients, newClient(c, id))
	}
	c.scheduleFaults()
}

// must ends the run when the simulation itself cannot go on.
func (c *cluster) must(err error) {
	if err != nil {
		c.Fail("the simulation fails: %v", err)
	}
}

// leader returns a node that takes itself for the leader and is awake, or nil.
func (c *cluster) leader() *node {
	for _, n := range c.nodes {
		if g := n.group(); g != nil && g.Leading() != 0 && c.Now >= n.life.proc.PausedUntil {
			return n
		}
	}
	return nil
}

// someNode is any one, the leader more often than others.
func (c *cluster) someNode() *node {
	if n := c.leader(); n != nil && c.Chance(0.4) {
		return n
	}
	return c.nodes[c.Rand.IntN(len(c.nodes))]
}
