package sim

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/paxos"
)

// Options choose a run. Everything that is not given follows from Seed.
type Options struct {
	Seed  uint64
	Nodes int       // 0: 1, 3 or 5, mostly 3
	Fixed bool      // nobody joins or leaves
	Bugs  paxos.Bug // mistakes to plant in every node
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
	Events, Messages, Lost, Repeated         int
	Crashes, Pauses, Partitions, Damages     int
	Writes, LeaseReads, IndexReads, Unknown  int
	Elections, Snapshots, Truncations, Slots int
	Transfers                                int
	Changes, ChangesRefused, Configurations  int // of members: proposed, refused for a reason, applied
	Reformats, Torn, SlowDisks, FullDisks    int
	Coups, ClockJumps                        int
}

// Add adds up two counts.
func (s *Stats) Add(o Stats) {
	s.Events += o.Events
	s.Messages += o.Messages
	s.Lost += o.Lost
	s.Repeated += o.Repeated
	s.Crashes += o.Crashes
	s.Pauses += o.Pauses
	s.Partitions += o.Partitions
	s.Damages += o.Damages
	s.Writes += o.Writes
	s.LeaseReads += o.LeaseReads
	s.IndexReads += o.IndexReads
	s.Unknown += o.Unknown
	s.Elections += o.Elections
	s.Snapshots += o.Snapshots
	s.Truncations += o.Truncations
	s.Slots += o.Slots
	s.Transfers += o.Transfers
	s.Changes += o.Changes
	s.ChangesRefused += o.ChangesRefused
	s.Configurations += o.Configurations
	s.Reformats += o.Reformats
	s.Torn += o.Torn
	s.SlowDisks += o.SlowDisks
	s.FullDisks += o.FullDisks
	s.Coups += o.Coups
	s.ClockJumps += o.ClockJumps
}

// group is everything there is.
type group struct {
	*world.World
	opt   Options
	stats Stats

	shape     shape
	replicas  []*replica
	net       network
	history   history
	clients   []*client
	healed    bool          // no more faults
	lullUntil world.Instant // clients wait
	quiet     bool          // no more operations
}

// shape is the configuration that a seed chooses for its run.
type shape struct {
	alpha, messageBytes, cacheBytes  int
	electionTimeout, heartbeat       world.Instant
	tick                             world.Instant
	driftPPM                         int
	jumps                            bool // clocks jump while nodes run, so that nobody may go by a lease
	faultPhase                       world.Instant
	crashEvery, pauseEvery, cutEvery world.Instant
	transferEvery                    world.Instant
	clockEvery, diskEvery            world.Instant
	changeEvery, reformatEvery       world.Instant // 0: never
	coupEvery                        world.Instant
	syncSlow                         float64 // chance that a sync takes long
	readError                        float64 // chance that the log cannot be read
	damage                           float64 // chance that a crash damages the log
	keep                             int     // slots kept when the log is cut
}

// Run simulates one run to its end or to the first violation.
func Run(opt Options) Result {
	w := &group{World: world.New(opt.Seed, opt.Trace), opt: opt}
	err := w.Run(func() {
		w.build()
		w.RunUntil(w.shape.faultPhase)
		w.heal()
		w.checkProgress()
	})
	w.stats.Events = w.Events
	return Result{Hash: w.Hash, Err: err, Stats: w.stats}
}

func (w *group) build() {
	n := w.opt.Nodes
	if n == 0 {
		n = []int{3, 3, 3, 3, 5, 5, 1}[w.Rand.IntN(7)]
	}
	w.shape = shape{
		alpha:           []int{2, 3, 4, 16, 64}[w.Rand.IntN(5)],
		messageBytes:    []int{1, 300, 4096, 1 << 20}[w.Rand.IntN(4)],
		cacheBytes:      []int{1, 4096, 1 << 20}[w.Rand.IntN(3)],
		electionTimeout: 200 * world.Millisecond,
		heartbeat:       []world.Instant{20, 40}[w.Rand.IntN(2)] * world.Millisecond,
		tick:            10 * world.Millisecond,
		driftPPM:        []int{0, 1000, 50_000}[w.Rand.IntN(3)],
		jumps:           w.opt.Seed%8 == 6,
		faultPhase:      5 * world.Second,
		crashEvery:      w.Pick(300*world.Millisecond, 3*world.Second),
		pauseEvery:      w.Pick(300*world.Millisecond, 3*world.Second),
		cutEvery:        w.Pick(200*world.Millisecond, 2*world.Second),
		transferEvery:   w.Pick(500*world.Millisecond, 5*world.Second),
		clockEvery:      w.Pick(200*world.Millisecond, 2*world.Second),
		diskEvery:       w.Pick(300*world.Millisecond, 4*world.Second),
		syncSlow:        []float64{0, 0.02, 0.1}[w.Rand.IntN(3)],
		readError:       []float64{0, 0, 0.1}[w.Rand.IntN(3)],
		damage:          []float64{0, 0, 0.5}[w.Rand.IntN(3)],
		keep:            []int{0, 10, 200}[w.Rand.IntN(3)],
	}
	if w.Chance(0.3) { // leaders come and go all the time
		w.shape.crashEvery = w.Pick(100*world.Millisecond, 400*world.Millisecond)
		w.shape.cutEvery = w.Pick(150*world.Millisecond, 500*world.Millisecond)
		w.shape.transferEvery = w.Pick(100*world.Millisecond, 500*world.Millisecond)
	}
	if w.Chance(0.7) && !w.opt.Fixed {
		w.shape.changeEvery = w.Pick(50*world.Millisecond, 800*world.Millisecond)
		w.shape.reformatEvery = w.Pick(500*world.Millisecond, 5*world.Second)
		w.shape.coupEvery = w.Pick(500*world.Millisecond, 3*world.Second)
		if w.Chance(0.4) { // little else happens, so that much can be changed
			w.shape.crashEvery, w.shape.pauseEvery = w.Pick(2*world.Second, 10*world.Second), w.Pick(2*world.Second, 10*world.Second)
			w.shape.cutEvery, w.shape.diskEvery = w.Pick(2*world.Second, 10*world.Second), w.Pick(2*world.Second, 10*world.Second)
			w.shape.transferEvery, w.shape.damage = w.Pick(2*world.Second, 10*world.Second), 0
		}
	}
	w.net = newNetwork(w, n)
	for id := 1; id <= n; id++ {
		w.replicas = append(w.replicas, newReplica(w, paxos.NodeID(id), n))
	}
	w.history = newHistory(w.replicas[0].voters)
	for _, r := range w.replicas {
		r.start()
	}
	for id := range 3 {
		w.clients = append(w.clients, newClient(w, id))
	}
	w.scheduleFaults()
}

// digestOf folds an entry into a rolling digest of everything applied before it.
func digestOf(before uint64, e *paxos.Entry) uint64 {
	h := fnv.New64a()
	var head [17]byte
	binary.LittleEndian.PutUint64(head[:], before)
	binary.LittleEndian.PutUint64(head[8:], uint64(e.Slot))
	head[16] = byte(e.Kind)
	h.Write(head[:])
	h.Write(e.Data)
	return h.Sum64()
}
