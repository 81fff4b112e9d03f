package sched

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

const (
	defaultPatience = Time(30e9)
	defaultDepth    = 2000
)

// state is a plan in the making.
type state struct {
	now     Time
	nodes   []nodeState // by ID
	down    []sys.NodeID
	total   Resources
	running []Running // by Until
}

type nodeState struct {
	Node
	free   Resources // may be negative, when a node has shrunk
	held   Resources // of all that the node has, kept for gangs that have waited long
	holder GangID
	until  Time // when the holder can start at the soonest; never when nobody knows
}

const never = Time(1<<63 - 1)

func newState(s *Snapshot) *state {
	st := &state{now: s.Now, nodes: make([]nodeState, len(s.Nodes)), down: slices.Sorted(slices.Values(s.Down)), running: slices.Clone(s.Running)}
	for i, n := range s.Nodes {
		st.nodes[i] = nodeState{Node: n, free: n.Capacity.Minus(n.Used)}
		st.total = st.total.Plus(n.Capacity)
	}
	slices.SortFunc(st.nodes, func(a, b nodeState) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(st.running, func(a, b Running) int {
		return cmp.Or(cmp.Compare(a.Until, b.Until), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Uses.CPU, b.Uses.CPU), cmp.Compare(a.Uses.Memory, b.Uses.Memory))
	})
	return st
}

// MakePlan says which gangs of the queue should start now, where, and why the others wait.
func MakePlan(s *Snapshot) Plan { return newState(s).run(s, nil) }

// run plans until it is a gang's turn.
func (st *state) run(s *Snapshot, until *Gang) (p Plan) {
	users, depth := queues(s), s.DepthMax
	if depth <= 0 {
		depth = defaultDepth
	}
	failed := map[string]string{} // by shape: what does not fit once does not fit later in the same plan
	for ; ; depth-- {
		u := nextUser(s.Ledger, users)
		if u == nil {
			return p
		}
		first := 0
		if depth > 0 {
			first = st.first(u, s.patience())
		}
		g := u.queue[first]
		if g == until {
			return p
		}
		copy(u.queue[1:first+1], u.queue[:first]) // those before it move up: the queue may be long
		u.queue = u.queue[1:]
		switch shape := shapeOf(g); {
		case depth <= 0:
			p.Wait = append(p.Wait, Wait{Gang: g.ID, Why: "many others come first"})
		case s.Now < g.NotBefore:
			p.Wait = append(p.Wait, Wait{Gang: g.ID, Why: refusedLately(g, s.Now)})
		case shape != "" && failed[shape] != "":
			p.Wait = append(p.Wait, st.wait(s, g, failed[shape]))
		default:
			nodes, why := st.place(g)
			if nodes == nil {
				failed[shape] = why
				p.Wait = append(p.Wait, st.wait(s, g, why))
				continue
			}
			st.take(g, nodes)
			u.charged += Share(st.total, g.Each.Times(int64(g.Size))) * nominalSec
			p.Start = append(p.Start, Placement{Gang: g.ID, Nodes: nodes, Why: why})
		}
	}
}

// first is which gang of a user's queue has its turn, by its place in it. It is
// the oldest, unless that one would be far from its bytes: then it is the
// oldest of those like it that would be near, if they were submitted within the
// patience, so that nobody is overtaken without end (Zaharia et al., "Delay
// Scheduling", 2010; but no place stays empty for it).
func (st *state) first(u *userQueue, patience Time) int {
	queue := u.queue
	g := queue[0]
	if g.Size > 1 || len(g.Near) == 0 || len(g.Refusals) > 0 || len(queue) == 1 || u.far[shapeOf(g)] {
		return 0
	}
	cs, _ := st.candidates(g)
	if len(cs) == 0 {
		return 0
	}
	for i, h := range queue[:min(len(queue), defaultDepth)] {
		if h.Submitted-g.Submitted <= patience && h.like(g) && slices.ContainsFunc(cs, func(c candidate) bool { return st.isNear(h, c.n.ID) }) {
			return i
		}
	}
	if shape := shapeOf(g); shape != "" { // what is free becomes less in a plan, so nobody is nearer later
		if u.far == nil {
			u.far = map[string]bool{}
		}
		u.far[shape] = true
	}
	return 0
}

// like says that two gangs may start on the same nodes, as far as room goes.
func (g *Gang) like(o *Gang) bool {
	return g == o || g.Size == o.Size && g.Each == o.Each && g.Limit == o.Limit && slices.Equal(g.Want, o.Want) && slices.Equal(g.On, o.On) &&
		len(g.Refusals)+len(o.Refusals) == 0
}

// isNear says that a node holds about as much of what a gang is near to as any
// node that would do.
func (st *state) isNear(g *Gang, id sys.NodeID) bool {
	var most int64
	for i := range st.nodes {
		if n := &st.nodes[i]; g.Near[n.ID] > most && n.refuses(g, st.now) == "" {
			most = g.Near[n.ID]
		}
	}
	return most > 0 && g.Near[id] > most-most/8
}

// userQueue holds a user's gangs, the oldest first.
type userQueue struct {
	user    string
	charged uint64
	queue   []*Gang
	far     map[string]bool // shapes of which nobody would be near his bytes
}

func queues(s *Snapshot) []*userQueue {
	byUser := map[string]*userQueue{}
	var users []*userQueue
	for i := range s.Queue {
		g := &s.Queue[i]
		u := byUser[g.User]
		if u == nil {
			u = &userQueue{user: g.User}
			byUser[g.User] = u
			users = append(users, u)
		}
		u.queue = append(u.queue, g)
	}
	for _, u := range users {
		slices.SortFunc(u.queue, func(a, b *Gang) int { return cmp.Compare(a.ID, b.ID) })
	}
	return users
}

// nextUser is the one who has used least, for his weight, among those who have gangs left; among equals the one with the oldest.
func nextUser(l *Ledger, users []*userQueue) (best *userQueue) {
	var least uint64
	for _, u := range users {
		if len(u.queue) == 0 {
			continue
		}
		used := l.weighted(u.user, u.charged)
		if best == nil || used < least || used == least && u.queue[0].ID < best.queue[0].ID {
			best, least = u, used
		}
	}
	return best
}

// shapeOf is the same for gangs that fit alike; empty for one that is like no other.
func shapeOf(g *Gang) string {
	if len(g.Want) > 0 || len(g.On) > 0 || len(g.Refusals) > 0 {
		return ""
	}
	return fmt.Sprint(g.Size, g.Each, g.Limit)
}

func refusedLately(g *Gang, now Time) string {
	last := slices.MaxFunc(g.Refusals, func(a, b Refusal) int { return cmp.Compare(a.At, b.At) })
	return fmt.Sprintf("%v refused: %s; tried %d times, next in %.1f s", last.Node, last.Reason, g.Tries, float64(g.NotBefore-now)/1e9)
}

// refuses says why a node will not do, whatever is free on it; empty when it will.
func (n *nodeState) refuses(g *Gang, now Time) string {
	if n.Draining {
		return "is being drained"
	}
	if len(g.On) > 0 && !slices.Contains(g.On, n.ID) {
		return "is not among the nodes asked for"
	}
	for _, l := range g.Want {
		if have, ok := n.Labels[l.Key]; !ok {
			return fmt.Sprintf("has no label %s (%s wanted)", l.Key, l.Value)
		} else if have != l.Value {
			return fmt.Sprintf("has %s=%s (%s wanted)", l.Key, have, l.Value)
		}
	}
	for _, r := range g.Refusals {
		if r.Node == n.ID && now < r.Until {
			return fmt.Sprintf("refused %.1f s ago: %s; asked again in %.1f s", float64(now-r.At)/1e9, r.Reason, float64(r.Until-now)/1e9)
		}
	}
	return ""
}

// open is what a gang may take of a node: what is free, without what is held for others, unless it has ended by then.
func (n *nodeState) open(g *Gang, now Time) Resources {
	if n.holder == 0 || g.Limit > 0 && n.until != never && now+g.Limit <= n.until {
		return n.free
	}
	f := n.free.Minus(n.held)
	return Resources{min(f.CPU, n.free.CPU), min(f.Memory, n.free.Memory)}
}

// candidate is a node that has passed the filters.
type candidate struct {
	n     *nodeState
	room  int64 // processes that fit still
	taken int64
	near  int64 // in thousandths of all that the gang is near to
}

func (st *state) candidates(g *Gang) (cs []candidate, room int64) {
	var bytes int64
	for i := range st.nodes {
		bytes += g.Near[st.nodes[i].ID]
	}
	for i := range st.nodes {
		n := &st.nodes[i]
		k := n.open(g, st.now).slots(g.Each)
		if k == 0 || n.refuses(g, st.now) != "" {
			continue
		}
		c := candidate{n: n, room: k}
		if bytes > 0 {
			c.near = int64(float64(g.Near[n.ID]) / float64(bytes) * 1000)
		}
		cs = append(cs, c)
		room += k
	}
	return cs, room
}

// place chooses a node for every process, or says why it cannot.
func (st *state) place(g *Gang) ([]sys.NodeID, string) {
	cs, room := st.candidates(g)
	if room < int64(g.Size) {
		if why := st.unusable(g); why != "" {
			return nil, why
		}
		return nil, st.tooLittle(g, room)
	}
	for range g.Size {
		best := -1
		var most int64
		for i := range cs {
			if c := &cs[i]; c.room > 0 {
				if score := c.score(g); best < 0 || score > most {
					best, most = i, score
				}
			}
		}
		cs[best].room--
		cs[best].taken++
	}
	nodes := make([]sys.NodeID, 0, g.Size)
	var local int64
	used := 0
	for _, c := range cs {
		for range c.taken {
			nodes = append(nodes, c.n.ID)
		}
		if c.taken > 0 {
			local += c.near
			used++
		}
	}
	why := fmt.Sprintf("%s over %d of %d nodes with room", [...]string{"spread", "packed"}[g.Policy&1], used, len(cs))
	if len(g.Near) > 0 {
		why += fmt.Sprintf(", holding %d%% of the bytes to be near to", (local+5)/10)
	}
	return nodes, why
}

// unusable says why none of the nodes that a gang names will do, whatever is free
// there; empty when one will, or when it names none.
func (st *state) unusable(g *Gang) string {
	var why []string
	for _, id := range g.On {
		at := slices.IndexFunc(st.nodes, func(n nodeState) bool { return n.ID == id })
		reason := "is down"
		if at >= 0 {
			reason = st.nodes[at].refuses(g, st.now)
		}
		if reason == "" {
			return ""
		}
		why = append(why, fmt.Sprintf("%v %s", id, reason))
	}
	return strings.Join(why, "; ")
}

// tooLittle says that there is room for too few processes, and which nodes take nothing new.
func (st *state) tooLittle(g *Gang, room int64) string {
	var drained []sys.NodeID // of those that would do
	usable := 0
	for _, n := range st.nodes { // copies
		draining := n.Draining
		n.Draining = false
		if n.refuses(g, st.now) != "" {
			continue
		}
		usable++
		if draining {
			drained = append(drained, n.ID)
		}
	}
	switch {
	case len(drained) > 0 && len(drained) == usable && len(g.On)+len(g.Want)+len(st.down) == 0:
		return "all nodes are being drained"
	case len(st.nodes) == 0 && len(st.down) > 0:
		return "all nodes are down"
	case len(st.nodes) == 0:
		return "no node has given a sign of life to this leader yet: it has just begun"
	}
	return fmt.Sprintf("room for %d of %d processes of %v now", room, g.Size, g.Each) + are(st.down, "down") + are(drained, "being drained")
}

// namesMax is how many nodes are named to who waits.
const namesMax = 3

// are says what some nodes are, as a further part of a sentence; nothing of no nodes.
func are(nodes []sys.NodeID, what string) string {
	switch k := len(nodes); k {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("; %v is %s", nodes[0], what)
	default:
		var names []string
		for _, id := range nodes[:min(k, namesMax)] {
			names = append(names, id.String())
		}
		if k > namesMax {
			names = append(names, fmt.Sprintf("and %d more", k-namesMax))
		}
		return fmt.Sprintf("; %s are %s", strings.Join(names, ", "), what)
	}
}

// score of the next process on a candidate. Locality counts most; then how full the node would be, which Spread avoids
// and Pack seeks; then how many processes of the gang are there already.
func (c *candidate) score(g *Gang) int64 {
	full := 0.0
	used := c.n.Capacity.Minus(c.n.free).Plus(g.Each.Times(c.taken + 1))
	for _, d := range [][2]int64{{used.CPU, c.n.Capacity.CPU}, {used.Memory, c.n.Capacity.Memory}} {
		if d[1] > 0 {
			full = max(full, float64(d[0])/float64(d[1]))
		}
	}
	policy := int64(full * 1000)
	if g.Policy == Spread {
		policy = -policy - 1000*c.taken
	} else {
		policy += 1000 * min(c.taken, 1)
	}
	return 4*c.near + policy
}

func (st *state) take(g *Gang, nodes []sys.NodeID) {
	for _, id := range nodes {
		n := st.node(id)
		n.free = n.free.Minus(g.Each)
	}
}

func (st *state) node(id sys.NodeID) *nodeState {
	i, found := slices.BinarySearchFunc(st.nodes, id, func(n nodeState, id sys.NodeID) int { return cmp.Compare(n.ID, id) })
	if !found {
		panic(fmt.Sprintf("sched: a node of the snapshot expected, found %v", id))
	}
	return &st.nodes[i]
}

// Reason tells of one node what it means to one gang.
type Reason struct {
	Node sys.NodeID
	Name string
	Room int64  // processes that would fit now
	Why  string // why not all of the gang
	// Holder is the gang for which some of what is short is held; 0 for none.
	Holder GangID
}

// Explain tells of every node, by ID, whether a gang of the queue would find room there when it is its turn in the next
// plan, and why not. Nil when there is no such gang.
func Explain(s *Snapshot, id GangID) []Reason {
	i := slices.IndexFunc(s.Queue, func(g Gang) bool { return g.ID == id })
	if i < 0 {
		return nil
	}
	g, st := &s.Queue[i], newState(s)
	st.run(s, g)
	reasons := make([]Reason, 0, len(st.nodes))
	for i := range st.nodes {
		n := &st.nodes[i]
		r := Reason{Node: n.ID, Name: n.Name, Why: n.refuses(g, s.Now)}
		if r.Why == "" {
			r.Room = min(n.open(g, st.now).slots(g.Each), int64(g.Size))
			if r.Room < int64(g.Size) {
				r.Why = fmt.Sprintf("room for %d of %d: %s", r.Room, g.Size, n.lacks(g, st.now))
				if n.open(g, st.now) != n.free {
					r.Holder = n.holder
				}
			}
		}
		reasons = append(reasons, r)
	}
	for _, id := range st.down {
		reasons = append(reasons, Reason{Node: id, Name: id.String(), Why: "is down"})
	}
	slices.SortFunc(reasons, func(a, b Reason) int { return cmp.Compare(a.Node, b.Node) })
	return reasons
}

// lacks names the resources that are short.
func (n *nodeState) lacks(g *Gang, now Time) string {
	var short []string
	want, open := g.Each.Times(int64(g.Size)), n.open(g, now)
	if open.CPU < want.CPU {
		short = append(short, fmt.Sprintf("%s of %s CPUs free, %s needed for each", cpus(max(n.free.CPU, 0)), cpus(n.Capacity.CPU), cpus(g.Each.CPU)))
	}
	if open.Memory < want.Memory {
		short = append(short, fmt.Sprintf("%d of %d MiB free, %d needed for each", max(n.free.Memory, 0)>>20, n.Capacity.Memory>>20, g.Each.Memory>>20))
	}
	if open != n.free {
		short = append(short, fmt.Sprintf("%v held for another that has waited long", n.held))
	}
	return strings.Join(short, "; ")
}
