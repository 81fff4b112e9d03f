package hosts

import (
	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/internal/sys"
)

// network carries what nodes send, badly.
type network struct {
	c                  *cluster
	loss, repeat, far  float64
	delayMin, delayMax world.Instant
	cut                [nodesMax + 1][nodesMax + 1]bool // by sender and receiver
	generation         int                              // of the present partition
}

func newNetwork(c *cluster) network {
	return network{c: c,
		loss: world.OneOf(c.World, 0, 0.01, 0.1, 0.3), repeat: world.OneOf(c.World, 0, 0.05, 0.5), far: world.OneOf(c.World, 0, 0.01),
		delayMin: 30 * world.Microsecond,
		delayMax: world.OneOf(c.World, 100*world.Microsecond, 2*world.Millisecond, 10*world.Millisecond)}
}

// send has do run at the receiver, if it gets there: now, or when the
// receiver's pause is over.
func (n *network) send(from, to sys.NodeID, do func(at *life)) {
	c := n.c
	c.stats.Messages++
	if n.cut[from][to] || c.Chance(n.loss) {
		c.stats.Lost++
		return
	}
	n.carry(from, to, do)
	for c.Chance(n.repeat) {
		c.stats.Repeated++
		n.carry(from, to, do)
	}
}

func (n *network) carry(from, to sys.NodeID, do func(at *life)) {
	c := n.c
	d := c.Pick(n.delayMin, n.delayMax)
	if c.Chance(n.far) {
		d = c.Pick(n.delayMax, world.Second)
	}
	c.After(d, func() {
		if int(to) > len(c.nodes) || n.cut[from][to] || c.nodes[to-1].life == nil {
			c.stats.Lost++
			return
		}
		at := c.nodes[to-1].life
		at.deliver(func() {
			if at.handler != nil {
				do(at)
			}
		})
	})
}

// partition cuts links at random, both ways or one way, for a while.
func (n *network) partition() {
	c := n.c
	n.join()
	c.stats.Partitions++
	one := c.someNode().id
	how, deaf := c.Rand.IntN(4), c.Chance(0.5)
	half := sys.NodeID(1 + c.Rand.IntN(len(c.nodes)))
	for i := sys.NodeID(1); i <= nodesMax; i++ {
		for k := sys.NodeID(1); k <= nodesMax; k++ {
			switch how {
			case 0: // one node alone
				n.cut[i][k] = i != k && (i == one || k == one)
			case 1: // one node deaf, or mute
				n.cut[i][k] = i != k && (deaf && k == one || !deaf && i == one)
			case 2: // every link on its own, each direction on its own
				n.cut[i][k] = i != k && c.Chance(0.35)
			case 3:
				n.cut[i][k] = (i <= half) != (k <= half)
			}
		}
	}
	n.generation++
	generation := n.generation
	c.After(c.Pick(50*world.Millisecond, 1200*world.Millisecond), func() {
		if n.generation == generation {
			n.join()
		}
	})
}

func (n *network) join() { n.cut = [nodesMax + 1][nodesMax + 1]bool{} }

// heal makes the network good.
func (n *network) heal() {
	n.generation++
	n.join()
	n.loss, n.repeat, n.far = 0, 0, 0
}
