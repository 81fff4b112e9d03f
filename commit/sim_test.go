package commit

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"testing"
)

// TestSimulation runs transactions over parties that crash at any step and a network that loses, repeats and reorders,
// under many seeds. KOINON_SEEDS says how many.
func TestSimulation(t *testing.T) {
	seeds := 400
	if s := os.Getenv("KOINON_SEEDS"); s != "" {
		var err error
		if seeds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	var sum simStats
	for seed := range uint64(seeds) {
		st, err := simulate(seed, 0)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		sum.add(st)
	}
	t.Logf("%d seeds: %+v", seeds, sum)
	for _, n := range []int{sum.Committed, sum.Aborted, sum.ReadOnly, sum.Epochs, sum.Fenced, sum.Crashes, sum.Stale, sum.Lost, sum.Repeated, sum.Parted} {
		if n == 0 {
			t.Fatalf("a simulation in which everything happens expected, found %+v", sum)
		}
	}
}

func TestSimulationRepeats(t *testing.T) {
	for seed := range uint64(20) {
		a, errA := simulate(seed, 0)
		b, errB := simulate(seed, 0)
		if a != b || errA != nil || errB != nil {
			t.Fatalf("seed %d: the same run expected twice, found %+v and %+v (%v, %v)", seed, a, b, errA, errB)
		}
	}
}

type simStats struct {
	Txs, Committed, Aborted, ReadOnly int
	Epochs, Fenced, Crashes, Stale    int
	Messages, Lost, Repeated          int
	Parted                            int // participants gone for ever
	TombstonesMax                     int
	Trace                             uint64
}

func (s *simStats) add(o simStats) {
	s.Txs, s.Committed, s.Aborted, s.ReadOnly = s.Txs+o.Txs, s.Committed+o.Committed, s.Aborted+o.Aborted, s.ReadOnly+o.ReadOnly
	s.Epochs, s.Fenced, s.Crashes, s.Stale = s.Epochs+o.Epochs, s.Fenced+o.Fenced, s.Crashes+o.Crashes, s.Stale+o.Stale
	s.Messages, s.Lost, s.Repeated, s.Parted = s.Messages+o.Messages, s.Lost+o.Lost, s.Repeated+o.Repeated, s.Parted+o.Parted
	s.TombstonesMax = max(s.TombstonesMax, o.TombstonesMax)
}

const (
	simMs      = Time(1e6)
	simParties = 5
	simWindow  = 6
	simChaos   = 6000 * simMs
	simHealed  = 90000 * simMs
)

type event struct {
	at Time
	n  uint64
	do func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].n < h[j].n
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	e := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return e
}

// world is one simulated run. Everything happens in events, one after the other, and every event is a step at which
// whoever takes it may crash.
type world struct {
	rng     *rand.Rand
	cfg     Config
	now     Time
	events  eventHeap
	eventNo uint64
	healed  bool
	stats   simStats
	trace   []byte
	failure error

	loss, repeat, crash float64
	delayMax            Time

	table   Table
	coords  []*simCoordinator // all incarnations, by epoch
	opening bool
	parties []*simParty

	txs map[Tx]*simTx
}

// simTx is the truth about a transaction.
type simTx struct {
	parts     []Party
	committed bool    // the log has it
	needs     []Party // of the commit
	forgotten bool
	told      *Outcome
	effects   map[Party]int
	prepared  map[Party]bool // durably, at some time
	released  map[Party]bool // durably, after having been prepared
	read      map[Party]bool
}

func simulate(seed uint64, bugs Bug) (st simStats, err error) {
	rng := rand.New(rand.NewPCG(seed, 77))
	w := &world{rng: rng, txs: map[Tx]*simTx{}}
	w.cfg = Config{PrepareTimeout: 300 * simMs, Resend: 40 * simMs, ResendMax: 400 * simMs, Window: simWindow}
	w.cfg.Sabotage(bugs)
	w.table.Sabotage(bugs)
	w.loss = []float64{0, 0.05, 0.3}[rng.IntN(3)]
	w.repeat = []float64{0, 0.1, 0.4}[rng.IntN(3)]
	w.crash = []float64{0, 0.002, 0.01, 0.03}[rng.IntN(4)]
	w.delayMax = []Time{2, 20, 200}[rng.IntN(3)] * simMs
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic at %d ms: %v\n%s", w.now/simMs, p, debug.Stack())
		}
	}()
	for id := range Party(simParties) {
		w.parties = append(w.parties, newSimParty(w, id+1))
	}
	w.open()
	w.after(0, w.client)
	w.after(0, w.trouble)
	w.after(0, w.tick)
	w.run(simChaos)
	w.healed, w.loss, w.repeat, w.crash, w.delayMax = true, 0, 0, 0, 2*simMs
	w.run(simHealed)
	if w.failure == nil {
		w.finalCheck()
	}
	h := fnv.New64a()
	h.Write(w.trace)
	w.stats.Trace = h.Sum64()
	return w.stats, w.failure
}

func (w *world) run(until Time) {
	for len(w.events) > 0 && w.events[0].at <= until && w.failure == nil {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.do()
	}
}

func (w *world) after(d Time, do func()) {
	w.eventNo++
	heap.Push(&w.events, event{w.now + d, w.eventNo, do})
}

func (w *world) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("at %d ms: "+format, append([]any{w.now / simMs}, args...)...)
	}
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }
func (w *world) delay() Time           { return Time(w.rng.Int64N(int64(w.delayMax))) }

// mark adds to the trace of the run.
func (w *world) mark(what byte, n ...uint64) {
	w.trace = append(w.trace, what)
	for _, x := range n {
		w.trace = binary.AppendUvarint(w.trace, x)
	}
}

// tick lets everybody notice the time.
func (w *world) tick() {
	for _, c := range w.coords {
		if c.c != nil {
			c.c.Tick(w.now)
			c.drain()
		}
	}
	for _, p := range w.parties {
		for _, r := range p.replicas {
			r.p.Tick(w.now)
			r.drain()
		}
		p.reap()
	}
	w.after(10*simMs, w.tick)
}

// client begins transactions until the chaos is over.
func (w *world) client() {
	if w.healed {
		return
	}
	w.after(Time(w.rng.Int64N(int64(60*simMs))), w.client)
	c := w.anyCoordinator()
	if c == nil {
		return
	}
	var parts []Part
	for _, p := range w.parties {
		if !p.parted && w.chance(0.5) {
			parts = append(parts, Part{Party: p.id, Payload: []byte{byte(w.rng.IntN(20))}})
		}
	}
	tx, err := c.c.Begin(w.now, parts)
	if err != nil {
		return
	}
	w.mark('b', tx.Epoch, tx.Seq)
	w.stats.Txs++
	t := &simTx{effects: map[Party]int{}, prepared: map[Party]bool{}, released: map[Party]bool{}, read: map[Party]bool{}}
	for _, p := range parts {
		t.parts = append(t.parts, p.Party)
	}
	if w.txs[tx] != nil {
		w.fail("%v begins twice", tx)
	}
	w.txs[tx] = t
	if w.chance(0.05) {
		w.after(w.delay(), func() {
			if c.c != nil {
				_ = c.c.Abort(tx, "the client went away") // too late is fine
				c.drain()
			}
		})
	}
	c.drain()
}

// trouble starts coordinators that nobody needs, changes leaders of participants, and takes a participant away.
func (w *world) trouble() {
	if w.healed {
		for _, c := range w.coords[:len(w.coords)-1] {
			c.c = nil
		}
		if w.newest() == nil {
			w.open()
		}
		w.after(100*simMs, w.trouble)
		return
	}
	w.after(Time(w.rng.Int64N(int64(600*simMs))), w.trouble)
	switch p := w.parties[w.rng.IntN(simParties)]; w.rng.IntN(5) {
	case 0, 1:
		w.open()
	case 2:
		p.takeOver()
	case 3:
		if w.stats.Parted == 0 && w.chance(0.1) && !p.parted {
			w.stats.Parted++
			p.parted, p.replicas = true, nil
			for _, c := range w.coords {
				if c.c != nil {
					c.c.Lost(p.id)
					c.drain()
				}
			}
		}
	}
}

// finalCheck is after everything has had time to come to rest.
func (w *world) finalCheck() {
	if len(w.table.Commits) > 0 {
		w.fail("nothing expected to be left in the table, found %v", w.table.Commits)
	}
	for tx, t := range w.txs {
		if t.committed != t.forgotten {
			w.fail("%v committed but not finished", tx)
		}
		for _, id := range t.needs {
			if t.effects[id] != 1 && !w.parties[id-1].parted {
				w.fail("%v expected once at %d, found %d times", tx, id, t.effects[id])
			}
		}
	}
	for _, p := range w.parties {
		if p.parted {
			continue
		}
		r := p.newest()
		if d := r.p.InDoubt(); len(d) > 0 {
			w.fail("nothing expected in doubt at %d, found %v", p.id, d)
		}
		for _, k := range p.recovered().Records {
			if k.State == Prepared {
				w.fail("%v expected to be finished at %d, found prepared", k.Tx, p.id)
			}
		}
	}
}
