// Package placement decides which nodes hold which placement group, and how to
// get from one table to the next with the fewest moves. It is pure: the same
// arguments give the same table on every machine, so the calculation may run
// inside a replicated command. All arithmetic is on integers for that reason.
//
// Where a group goes is decided by weighted rendezvous hashing (Thaler and
// Ravishankar, 1998; weighted as by Schindelhain and Schomaker, 2005): each
// node draws a number for the group, and those with the lowest hold it. A
// quota in proportion to the weights bounds what a node gets, and replicas of
// one group go to as many failure domains as there are.
package placement

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/koinon/koinon/internal/sys"
)

// Limits and defaults.
const (
	// DefaultPGs is how many placement groups a cluster has unless it is told
	// otherwise when it is made.
	DefaultPGs = 256
	// MaxPGs is how many a SliceID can name.
	MaxPGs = 1 << sys.PGBits
	// DefaultReplicas and MaxReplicas bound the copies of a block.
	DefaultReplicas = 3
	MaxReplicas     = 16
	// MaxWeight is the largest weight of a node.
	MaxWeight = 1 << 30
)

// Node is a node as placement sees it.
type Node struct {
	ID sys.NodeID
	// Zone is the failure domain: a rack, a site. Nodes without one are all
	// in the same.
	Zone string
	// Weight is the node's share, usually its capacity in GiB, at most
	// MaxWeight. A node of weight 0 gets nothing and gives away what it has:
	// it is being drained. It stays a source until its groups are settled.
	Weight uint32
}

// Assign returns the first table, of epoch 1, for pgs groups (a power of two
// up to MaxPGs) of so many replicas.
func Assign(nodes []Node, pgs, replicas int) (*Table, error) {
	if err := checkSize(pgs, replicas); err != nil {
		return nil, sys.E(sys.Op("placement.Assign"), err)
	}
	empty := &Table{Replicas: replicas, PGs: make([][]sys.NodeID, pgs), From: make([][]sys.NodeID, pgs)}
	return Reassign(empty, nodes)
}

// Reassign returns the table that follows old when the cluster has these
// nodes. What need not move does not: replicas move off nodes that are gone or
// drained, to restore the number of replicas, to spread a group over more
// failure domains, and to bring every node to its quota, rounded up or down, as
// far as failure domains allow.
// Nodes that lose a group and still exist become its sources. When nothing
// changes, old itself is returned; otherwise the epoch is one higher.
func Reassign(old *Table, nodes []Node) (*Table, error) {
	const op = sys.Op("placement.Reassign")
	if err := checkSize(len(old.PGs), old.Replicas); err != nil {
		return nil, sys.E(op, err)
	}
	p, err := newPlan(old, nodes)
	if err != nil {
		return nil, sys.E(op, err)
	}
	p.keep(old)
	for pg := range p.groups {
		p.fill(pg)
	}
	p.spreadZones()
	p.balance()
	t := p.table(old)
	if slices.EqualFunc(t.PGs, old.PGs, slices.Equal) && slices.EqualFunc(t.From, old.clone().From, slices.Equal) {
		return old, nil
	}
	t.Epoch++
	return t, nil
}

// plan is a table in the making. Nodes are known by their place in nodes.
type plan struct {
	nodes  []Node
	place  map[sys.NodeID]int
	zones  map[string]int
	zone   []int // of each node
	groups [][]int
	load   []int
	// fresh has a bit for each replica that was not there before: moving it
	// again costs nothing.
	fresh []uint32
	had   [][]int  // who held each group before
	draws []uint64 // of each group by each node
	// low and high bound what each node should hold.
	low, high []int
	// width is how many replicas each group gets.
	width int
}

func newPlan(old *Table, nodes []Node) (*plan, error) {
	p := &plan{place: make(map[sys.NodeID]int), zones: make(map[string]int)}
	p.nodes = slices.Clone(nodes)
	slices.SortFunc(p.nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	able := 0
	for i, n := range p.nodes {
		if n.ID == 0 || n.Weight > MaxWeight {
			return nil, sys.E(sys.Invalid, fmt.Sprintf("node %v of weight %d", n.ID, n.Weight))
		}
		if _, twice := p.place[n.ID]; twice {
			return nil, sys.E(sys.Invalid, fmt.Sprintf("node %v is named twice", n.ID))
		}
		p.place[n.ID] = i
		if _, known := p.zones[n.Zone]; !known {
			p.zones[n.Zone] = len(p.zones)
		}
		p.zone = append(p.zone, p.zones[n.Zone])
		if n.Weight > 0 {
			able++
		}
	}
	if able == 0 {
		return nil, sys.E(sys.Unavailable, "no node can hold blocks: add one, or give one a weight")
	}
	p.width = min(old.Replicas, able)
	p.groups, p.fresh, p.had = make([][]int, len(old.PGs)), make([]uint32, len(old.PGs)), make([][]int, len(old.PGs))
	p.load = make([]int, len(p.nodes))
	p.quotas()
	p.draws = make([]uint64, 0, len(p.groups)*len(p.nodes))
	for pg := range p.groups {
		for _, n := range p.nodes {
			p.draws = append(p.draws, draw(pg, n))
		}
	}
	return p, nil
}

// quotas computes what each node should hold: its share of all replicas by
// weight, but no more than every group once. What such a node cannot take is
// shared by the others.
func (p *plan) quotas() {
	p.low, p.high = make([]int, len(p.nodes)), make([]int, len(p.nodes))
	left := uint64(len(p.groups)) * uint64(p.width)
	weight, full := uint64(0), make([]bool, len(p.nodes))
	for i, n := range p.nodes {
		weight += uint64(n.Weight)
		full[i] = n.Weight == 0
	}
	for again := true; again; {
		again = false
		for i, n := range p.nodes {
			if !full[i] && left*uint64(n.Weight) >= uint64(len(p.groups))*weight {
				full[i], again = true, true
				p.low[i], p.high[i] = len(p.groups), len(p.groups)
				left -= uint64(len(p.groups))
				weight -= uint64(n.Weight)
			}
		}
	}
	for i, n := range p.nodes {
		if !full[i] {
			share := left * uint64(n.Weight)
			p.low[i] = int(share / weight)
			p.high[i] = int((share + weight - 1) / weight)
		}
	}
}

// keep takes over what can stay as it is.
func (p *plan) keep(old *Table) {
	for pg, list := range old.PGs {
		for _, id := range list {
			i, ok := p.place[id]
			if !ok {
				continue
			}
			p.had[pg] = append(p.had[pg], i)
			if p.nodes[i].Weight > 0 && len(p.groups[pg]) < p.width {
				p.groups[pg] = append(p.groups[pg], i)
				p.load[i]++
			}
		}
	}
}

// fill gives a group the replicas that it lacks.
func (p *plan) fill(pg int) {
	for len(p.groups[pg]) < p.width {
		best := -1
		for i := range p.nodes {
			if p.nodes[i].Weight > 0 && !slices.Contains(p.groups[pg], i) && (best < 0 || p.better(pg, i, best)) {
				best = i
			}
		}
		p.fresh[pg] |= 1 << len(p.groups[pg])
		p.groups[pg] = append(p.groups[pg], best)
		p.load[best]++
	}
}

// better reports whether node a should rather hold pg than node b: first those
// in zones that hold less of it, then those below their quota, then the lower
// draw.
func (p *plan) better(pg, a, b int) bool {
	if x, y := p.inZone(pg, a), p.inZone(pg, b); x != y {
		return x < y
	}
	if x, y := p.load[a] >= p.high[a], p.load[b] >= p.high[b]; x != y {
		return y
	}
	return p.draw(pg, a) < p.draw(pg, b)
}

// inZone returns how many replicas of pg are in the zone of a node.
func (p *plan) inZone(pg, node int) int {
	n := 0
	for _, i := range p.groups[pg] {
		if p.zone[i] == p.zone[node] {
			n++
		}
	}
	return n
}

// spreadZones moves replicas to zones that have fewer of a group.
func (p *plan) spreadZones() {
	for pg, group := range p.groups {
		for at, from := range group {
			best := -1
			for i := range p.nodes {
				if p.nodes[i].Weight > 0 && !slices.Contains(group, i) && p.inZone(pg, i) < p.inZone(pg, from)-1 &&
					(best < 0 || p.better(pg, i, best)) {
					best = i
				}
			}
			if best >= 0 {
				p.move(pg, at, best)
			}
		}
	}
}

// balance brings nodes within their quotas, round by round, as long as a round
// makes it better. The last rounds forget which replicas are new, so that
// balancing the outcome again changes nothing.
func (p *plan) balance() {
	for _, forget := range []bool{false, true} {
		if forget {
			clear(p.fresh)
		}
		for before := p.imbalance(); before > 0; {
			groups, load, fresh := make([][]int, len(p.groups)), slices.Clone(p.load), slices.Clone(p.fresh)
			for pg := range groups {
				groups[pg] = slices.Clone(p.groups[pg])
			}
			p.round()
			after := p.imbalance()
			if after >= before {
				p.groups, p.load, p.fresh = groups, load, fresh
				break
			}
			before = after
			if forget {
				clear(p.fresh)
			}
		}
	}
}

// imbalance returns by how many replicas nodes are out of their quotas.
func (p *plan) imbalance() int {
	n := 0
	for i, load := range p.load {
		n += max(0, p.low[i]-load) + max(0, load-p.high[i])
	}
	return n
}

// round lets nodes below their quotas take from those above, then those with
// room what is above, then nodes below from those that can spare. What is left
// goes by way of third nodes.
func (p *plan) round() {
	order := make([]int, len(p.nodes))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p.load[a]-p.low[a], p.load[b]-p.low[b]) })
	for _, step := range []struct{ want, spare []int }{{p.low, p.high}, {p.high, p.high}, {p.low, p.low}} {
		for _, to := range order {
			p.take(to, step.want[to], step.spare)
		}
	}
	for _, free := range []bool{true, false} {
		for p.augment(p.high, p.high, free) || p.augment(p.low, p.low, free) {
		}
	}
}

// hop is a replica that may move: place at of group pg, to a node.
type hop struct{ pg, at, to int }

// augment moves one replica from a node that holds more than spare says to one
// that holds less than want says, over as many nodes in between as it takes,
// and reports whether there was a way: the augmenting path of a flow (Ford and
// Fulkerson, 1956), found breadth first. A free one moves only what is new
// anyway, or back to where it was.
func (p *plan) augment(spare, want []int, free bool) bool {
	held := make([][]hop, len(p.nodes)) // by node
	for pg, group := range p.groups {
		for at, node := range group {
			held[node] = append(held[node], hop{pg: pg, at: at})
		}
	}
	reached := make([]*hop, len(p.nodes)) // how
	var queue []int
	for i := range p.nodes {
		if p.load[i] > spare[i] {
			reached[i] = &hop{pg: -1}
			queue = append(queue, i)
		}
	}
	for ; len(queue) > 0; queue = queue[1:] {
		for _, h := range held[queue[0]] {
			for to := range p.nodes {
				if reached[to] != nil || !p.may(h.pg, h.at, to) ||
					free && p.fresh[h.pg]&(1<<h.at) == 0 && !slices.Contains(p.had[h.pg], to) {
					continue
				}
				reached[to] = &hop{h.pg, h.at, to}
				queue = append(queue, to)
				if p.load[to] < want[to] && p.follow(reached, to) {
					return true
				}
			}
		}
	}
	return false
}

// follow moves the replicas on the way to a node, the last one first. It moves
// none and is false when the way leads through a group twice, whose second
// move the first might make wrong.
func (p *plan) follow(reached []*hop, to int) bool {
	var way []hop
	for h := reached[to]; h.pg >= 0; h = reached[p.groups[h.pg][h.at]] {
		if slices.ContainsFunc(way, func(o hop) bool { return o.pg == h.pg }) {
			return false
		}
		way = append(way, *h)
	}
	for _, h := range way {
		p.move(h.pg, h.at, h.to)
	}
	return true
}

// may reports whether a node may take over a replica: it must be able to, not
// hold the group yet, and not spread it over fewer zones.
func (p *plan) may(pg, at, to int) bool {
	from := p.groups[pg][at]
	return p.nodes[to].Weight > 0 && !slices.Contains(p.groups[pg], to) &&
		(p.zone[from] == p.zone[to] || p.inZone(pg, to) < p.inZone(pg, from))
}

// take gives node to groups until it has want of them, from nodes that hold
// more than spare says: first replicas that are new anyway, then others, each
// in the order of the node's draws.
func (p *plan) take(to, want int, spare []int) {
	if p.nodes[to].Weight == 0 || p.load[to] >= want {
		return
	}
	var choices []int
	for pg, group := range p.groups {
		if !slices.Contains(group, to) {
			choices = append(choices, pg)
		}
	}
	slices.SortFunc(choices, func(a, b int) int {
		return cmp.Or(cmp.Compare(p.draw(a, to), p.draw(b, to)), cmp.Compare(a, b))
	})
	for _, fresh := range []bool{true, false} {
		for _, pg := range choices {
			if p.load[to] >= want {
				return
			}
			if at := p.donor(pg, to, spare, fresh); at >= 0 {
				p.move(pg, at, to)
			}
		}
	}
}

// donor returns the replica of pg that node to should take over: that of the
// node which is most above what spare says. It is -1 when there is none, or
// when zones would be spread less.
func (p *plan) donor(pg, to int, spare []int, fresh bool) int {
	best, most := -1, 0
	for at, from := range p.groups[pg] {
		if fresh && p.fresh[pg]&(1<<at) == 0 || !p.may(pg, at, to) {
			continue
		}
		if over := p.load[from] - spare[from]; over > most {
			best, most = at, over
		}
	}
	return best
}

// move puts node to in the place at of a group.
func (p *plan) move(pg, at, to int) {
	p.load[p.groups[pg][at]]--
	p.groups[pg][at] = to
	p.fresh[pg] |= 1 << at
	if slices.Contains(p.had[pg], to) {
		p.fresh[pg] &^= 1 << at
	}
	p.load[to]++
}

// table makes a table of the plan; sources are who held a group before.
func (p *plan) table(old *Table) *Table {
	t := &Table{Epoch: old.Epoch, Replicas: old.Replicas}
	t.PGs, t.From = make([][]sys.NodeID, len(p.groups)), make([][]sys.NodeID, len(p.groups))
	for pg, group := range p.groups {
		for _, i := range group {
			t.PGs[pg] = append(t.PGs[pg], p.nodes[i].ID)
		}
		for _, list := range [][]sys.NodeID{old.Sources(sys.PG(pg)), old.PGs[pg]} {
			for _, id := range list {
				if _, exists := p.place[id]; exists && !slices.Contains(t.PGs[pg], id) && !slices.Contains(t.From[pg], id) {
					t.From[pg] = append(t.From[pg], id)
				}
			}
		}
	}
	return t
}

func (p *plan) draw(pg, node int) uint64 { return p.draws[pg*len(p.nodes)+node] }

// draw returns the number that a node draws for a group: -log2 of a uniform
// hash over the node's weight, so that the chance of the lowest draw is in
// proportion to the weight. A node without weight draws nothing.
func draw(pg int, node Node) uint64 {
	if node.Weight == 0 {
		return 1<<64 - 1
	}
	h := mix(uint64(node.ID)*0x9e3779b97f4a7c15 + mix(uint64(pg)+1))
	hi, lo := bits.Mul64(negLog2(h), 1<<17)
	q, _ := bits.Div64(hi, lo, uint64(node.Weight))
	return q
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// negLog2 returns -log2((h+1)/2^64) with 40 binary digits after the point. It
// works digit by digit on integers: floating point differs between machines.
func negLog2(h uint64) uint64 {
	if h == 1<<64-1 {
		return 0
	}
	h++
	whole := bits.LeadingZeros64(h)
	x := h << whole // in [1,2) as 1.63
	frac := uint64(0)
	for range 40 {
		frac <<= 1
		hi, lo := bits.Mul64(x, x)
		if hi>>63 != 0 { // the square is 2 or more
			frac |= 1
			x = hi
		} else {
			x = hi<<1 | lo>>63
		}
	}
	// log2(h/2^64) = 63-whole+frac-64 = -(whole+1)+frac
	return uint64(whole+1)<<40 - frac
}
