package sim

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime/debug"

	"github.com/koinon/koinon/paxos"
)

// Nanoseconds of simulated time, the same for everybody. Nodes see it through their own clocks.
type instant int64

const (
	microsecond instant = 1e3
	millisecond instant = 1e6
	second      instant = 1e9
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

// violation is how a check ends a run.
type violation struct{ error }

// world is everything there is.
type world struct {
	opt      Options
	rng      *rand.Rand
	now      instant
	queue    eventQueue
	eventSeq uint64
	hash     uint64
	stats    Stats

	shape     shape
	replicas  []*replica
	net       network
	history   history
	clients   []*client
	healed    bool    // no more faults
	lullUntil instant // clients wait
	quiet     bool    // no more operations
}

// shape is the configuration that a seed chooses for its run.
type shape struct {
	alpha, messageBytes, cacheBytes  int
	electionTimeout, heartbeat       instant
	tick                             instant
	driftPPM                         int
	jumps                            bool // clocks jump while nodes run, so that nobody may go by a lease
	faultPhase                       instant
	crashEvery, pauseEvery, cutEvery instant
	transferEvery                    instant
	clockEvery, diskEvery            instant
	changeEvery, reformatEvery       instant // 0: never
	coupEvery                        instant
	syncSlow                         float64 // chance that a sync takes long
	readError                        float64 // chance that the log cannot be read
	damage                           float64 // chance that a crash damages the log
	keep                             int     // slots kept when the log is cut
}

// event is something that happens at a time. Events of the same time happen in the order in which they were made.
type event struct {
	at  instant
	seq uint64
	do  func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push is for container/heap.
func (q *eventQueue) Push(x any) { *q = append(*q, x.(event)) }

// Pop is for container/heap.
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return e
}

// Run simulates one run to its end or to the first violation.
func Run(opt Options) (res Result) {
	w := &world{opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 0x6b6f696e6f6e)), hash: fnvOffset}
	defer func() {
		if p := recover(); p != nil {
			v, ok := p.(violation)
			if !ok {
				v = violation{fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
			}
			res = Result{Err: fmt.Errorf("seed %d, at %d us: %w", opt.Seed, w.now/microsecond, v.error)}
		}
		res.Hash, res.Stats = w.hash, w.stats
	}()
	w.build()
	w.runUntil(w.shape.faultPhase)
	w.heal()
	w.checkProgress()
	return res
}

func (w *world) build() {
	n := w.opt.Nodes
	if n == 0 {
		n = []int{3, 3, 3, 3, 5, 5, 1}[w.rng.IntN(7)]
	}
	w.shape = shape{
		alpha:           []int{2, 3, 4, 16, 64}[w.rng.IntN(5)],
		messageBytes:    []int{1, 300, 4096, 1 << 20}[w.rng.IntN(4)],
		cacheBytes:      []int{1, 4096, 1 << 20}[w.rng.IntN(3)],
		electionTimeout: 200 * millisecond,
		heartbeat:       []instant{20, 40}[w.rng.IntN(2)] * millisecond,
		tick:            10 * millisecond,
		driftPPM:        []int{0, 1000, 50_000}[w.rng.IntN(3)],
		jumps:           w.opt.Seed%8 == 6,
		faultPhase:      5 * second,
		crashEvery:      w.pick(300*millisecond, 3*second),
		pauseEvery:      w.pick(300*millisecond, 3*second),
		cutEvery:        w.pick(200*millisecond, 2*second),
		transferEvery:   w.pick(500*millisecond, 5*second),
		clockEvery:      w.pick(200*millisecond, 2*second),
		diskEvery:       w.pick(300*millisecond, 4*second),
		syncSlow:        []float64{0, 0.02, 0.1}[w.rng.IntN(3)],
		readError:       []float64{0, 0, 0.1}[w.rng.IntN(3)],
		damage:          []float64{0, 0, 0.5}[w.rng.IntN(3)],
		keep:            []int{0, 10, 200}[w.rng.IntN(3)],
	}
	if w.chance(0.3) { // leaders come and go all the time
		w.shape.crashEvery = w.pick(100*millisecond, 400*millisecond)
		w.shape.cutEvery = w.pick(150*millisecond, 500*millisecond)
		w.shape.transferEvery = w.pick(100*millisecond, 500*millisecond)
	}
	if w.chance(0.7) && !w.opt.Fixed {
		w.shape.changeEvery = w.pick(50*millisecond, 800*millisecond)
		w.shape.reformatEvery = w.pick(500*millisecond, 5*second)
		w.shape.coupEvery = w.pick(500*millisecond, 3*second)
		if w.chance(0.4) { // little else happens, so that much can be changed
			w.shape.crashEvery, w.shape.pauseEvery = w.pick(2*second, 10*second), w.pick(2*second, 10*second)
			w.shape.cutEvery, w.shape.diskEvery = w.pick(2*second, 10*second), w.pick(2*second, 10*second)
			w.shape.transferEvery, w.shape.damage = w.pick(2*second, 10*second), 0
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

// after makes something happen later.
func (w *world) after(d instant, do func()) {
	w.eventSeq++
	heap.Push(&w.queue, event{at: w.now + d, seq: w.eventSeq, do: do})
}

func (w *world) runUntil(end instant) {
	for len(w.queue) > 0 && w.queue[0].at <= end {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		w.stats.Events++
		e.do()
	}
	w.now = end
}

// pick returns a random span in [lo, hi).
func (w *world) pick(lo, hi instant) instant { return lo + instant(w.rng.Int64N(int64(hi-lo))) }

// chance is true with probability p.
func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// fail ends the run.
func (w *world) fail(format string, args ...any) { panic(violation{fmt.Errorf(format, args...)}) }

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// mark folds an event into the trace hash.
func (w *world) mark(what byte, values ...uint64) {
	h := (w.hash ^ uint64(what)) * fnvPrime
	h = (h ^ uint64(w.now)) * fnvPrime
	for _, v := range values {
		h = (h ^ v) * fnvPrime
	}
	w.hash = h
	if w.opt.Trace != nil {
		w.opt.Trace(fmt.Sprintf("%10d %c %v", w.now/microsecond, what, values))
	}
}

// trace writes a line for people.
func (w *world) trace(format string, args ...any) {
	if w.opt.Trace != nil {
		w.opt.Trace(fmt.Sprintf("%10d   ", w.now/microsecond) + fmt.Sprintf(format, args...))
	}
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
