package sim

import "github.com/koinon/koinon/paxos"

// network carries messages, badly.
type network struct {
	w          *world
	loss       float64
	repeat     float64
	delayMin   instant
	delayMax   instant
	far        float64  // chance of a much longer delay
	cut        [][]bool // cut[from][to]
	generation int      // of the present partition
}

func newNetwork(w *world, n int) network {
	net := network{
		w:        w,
		loss:     []float64{0, 0.01, 0.1, 0.3}[w.rng.IntN(4)],
		repeat:   []float64{0, 0.05, 0.5}[w.rng.IntN(3)],
		delayMin: 50 * microsecond,
		delayMax: []instant{100 * microsecond, 2 * millisecond, 15 * millisecond}[w.rng.IntN(3)],
		far:      []float64{0, 0.01}[w.rng.IntN(2)],
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
	w.mark('s', uint64(m.Kind), uint64(m.From), uint64(m.To), m.Ballot.Round, uint64(m.Ballot.Node), uint64(m.Slot), uint64(m.Next), uint64(m.Chosen), m.Seq, uint64(len(m.Entries)))
	if net.cut[m.From-1][m.To-1] || w.chance(net.loss) {
		w.stats.Lost++
		return
	}
	net.carry(m)
	for w.chance(net.repeat) {
		w.stats.Repeated++
		net.carry(m)
	}
}

func (net *network) carry(m paxos.Message) {
	d := net.w.pick(net.delayMin, net.delayMax)
	if net.w.chance(net.far) {
		d = net.w.pick(net.delayMax, second)
	}
	net.w.after(d, func() {
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
	switch w.rng.IntN(4) {
	case 0: // one node alone
		k := int(w.someReplica().id) - 1
		for i := range n {
			net.cut[i][k], net.cut[k][i] = i != k, i != k
		}
	case 1: // one node deaf, or mute
		k, deaf := int(w.someReplica().id)-1, w.chance(0.5)
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
				net.cut[i][k] = i != k && w.chance(0.35)
			}
		}
	case 3: // two halves
		for i := range n {
			for k := range n {
				net.cut[i][k] = (i < n/2) != (k < n/2)
			}
		}
	}
	net.joinAfter(w.pick(50*millisecond, 1500*millisecond))
}

// cutPair cuts both directions between two nodes.
func (net *network) cutPair(a, b paxos.NodeID) {
	net.cut[a-1][b-1], net.cut[b-1][a-1] = true, true
}

// joinAfter ends this partition after a while, unless another one has begun.
func (net *network) joinAfter(d instant) {
	net.generation++
	gen := net.generation
	net.w.after(d, func() {
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
