package sim

import (
	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/paxos"
)

// network carries messages, badly.
type network struct {
	w          *group
	loss       float64
	repeat     float64
	delayMin   world.Instant
	delayMax   world.Instant
	far        float64  // chance of a much longer delay
	cut        [][]bool // cut[from][to]
	generation int      // of the present partition
}

func newNetwork(w *group, n int) network {
	net := network{
		w:        w,
		loss:     []float64{0, 0.01, 0.1, 0.3}[w.Rand.IntN(4)],
		repeat:   []float64{0, 0.05, 0.5}[w.Rand.IntN(3)],
		delayMin: 50 * world.Microsecond,
		delayMax: []world.Instant{100 * world.Microsecond, 2 * world.Millisecond, 15 * world.Millisecond}[w.Rand.IntN(3)],
		far:      []float64{0, 0.01}[w.Rand.IntN(2)],
	}
	for range n {
		net.cut = append(net.cut, make([]bool, n))
	}
	return net
}

// grow makes room for one more replica, whose links are whole.
func (net *network) grow() {
	for i := range net.cut {
		net.cut[i] = append(net.cut[i], false)
	}
	net.cut = append(net.cut, make([]bool, len(net.cut)+1))
}

// send starts a message on its way.
func (net *network) send(m paxos.Message) {
	w := net.w
	w.stats.Messages++
	w.Mark('s', uint64(m.Kind), uint64(m.From), uint64(m.To), m.Ballot.Round, uint64(m.Ballot.Node), uint64(m.Slot), uint64(m.Next), uint64(m.Chosen), m.Seq, uint64(len(m.Entries)))
	if net.cut[m.From-1][m.To-1] || w.Chance(net.loss) {
		w.stats.Lost++
		return
	}
	net.carry(m)
	for w.Chance(net.repeat) {
		w.stats.Repeated++
		net.carry(m)
	}
}

func (net *network) carry(m paxos.Message) {
	d := net.w.Pick(net.delayMin, net.delayMax)
	if net.w.Chance(net.far) {
		d = net.w.Pick(net.delayMax, world.Second)
	}
	net.w.After(d, func() {
		if net.cut[m.From-1][m.To-1] {
			net.w.stats.Lost++
			return
		}
		net.w.replicas[m.To-1].receive(m)
	})
}

// partition cuts links at random, both ways or one way, until the next partition or until it heals.
func (net *network) partition() {
	w := net.w
	n := len(net.cut)
	net.join()
	w.stats.Partitions++
	switch w.Rand.IntN(4) {
	case 0: // one node alone
		k := int(w.someReplica().id) - 1
		for i := range n {
			net.cut[i][k], net.cut[k][i] = i != k, i != k
		}
	case 1: // one node deaf, or mute
		k, deaf := int(w.someReplica().id)-1, w.Chance(0.5)
		for i := range n {
			if deaf {
				net.cut[i][k] = i != k
			} else {
				net.cut[k][i] = i != k
			}
		}
	case 2: // every link on its own, each direction on its own
		for i := range n {
			for k := range n {
				net.cut[i][k] = i != k && w.Chance(0.35)
			}
		}
	case 3: // two halves
		for i := range n {
			for k := range n {
				net.cut[i][k] = (i < n/2) != (k < n/2)
			}
		}
	}
	net.joinAfter(w.Pick(50*world.Millisecond, 1500*world.Millisecond))
}

// cutPair cuts both directions between two nodes.
func (net *network) cutPair(a, b paxos.NodeID) {
	net.cut[a-1][b-1], net.cut[b-1][a-1] = true, true
}

// joinAfter ends this partition after a while, unless another one has begun.
func (net *network) joinAfter(d world.Instant) {
	net.generation++
	gen := net.generation
	net.w.After(d, func() {
		if net.generation == gen {
			net.join()
		}
	})
}

// join removes all cuts.
func (net *network) join() {
	for i := range net.cut {
		clear(net.cut[i])
	}
}

// heal makes the network good.
func (net *network) heal() {
	net.generation++
	net.join()
	net.loss, net.repeat, net.far = 0, 0, 0
}
