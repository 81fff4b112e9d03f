package paxos

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// size is how much happens in an exploration: who campaigns, how often, how many commands each leader proposes and each
// leader tells what is chosen, how many restarts there are, and whether the leader of the first ballot changes the members.
type size struct {
	voters    []NodeID
	nodes     int // voters and others
	campaigns perNode
	commands  perNode
	tells     perNode  // rounds in which a leader tells what is chosen
	crashes   perNode  // restarts
	change    []NodeID // the voters of the change; none: no change
	prelude   bool     // begin when node 1 has been elected, everything it has sent has arrived, and no command was proposed
	// ticks is how often half a lease may pass; 0: time stands still, and leases bind nobody. When it passes, tells are
	// rounds of heartbeats, which earn leases and tell nothing. A node may campaign whenever its election timeout can
	// have ended.
	ticks     int
	transfers int // how often node 1 hands its leadership to node 2
	// losses is how often a node restarts without some of what it had accepted, or without its disk, while of every
	// majority somebody else has lost nothing. Heartbeats are told then, for they have it repaired.
	losses perNode
}

// perNode is a number for each node, from the first on; 0 for those left out.
type perNode []int

func (p perNode) of(id NodeID) int {
	if int(id) > len(p) {
		return 0
	}
	return p[id-1]
}

// sizes returns those of make test: three nodes and two ballots, told what is chosen or with a restart; a change to voters
// whose majority is none of the old ones; and a change, already proposed, from one node to three, with a restart.
func sizes() (told, crashed, shrink, grow size) {
	all, one := []NodeID{1, 2, 3}, []int{1, 1, 1}
	told = size{voters: all, nodes: 3, campaigns: []int{1, 1, 0}, commands: one, tells: one}
	crashed = size{voters: all, nodes: 3, campaigns: []int{1, 1, 0}, commands: one, crashes: one}
	shrink = size{voters: all, nodes: 3, campaigns: []int{1, 0, 1}, commands: one, tells: one, change: []NodeID{3}}
	grow = size{voters: []NodeID{1}, nodes: 3, campaigns: []int{2, 0, 1}, commands: one, crashes: []int{1}, change: all, prelude: true}
	return told, crashed, shrink, grow
}

// timed returns those in which time passes: a leader with a lease, and others that campaign while nodes restart; a new leader
// with a lease, whose predecessor has had something chosen; leadership that is handed over; and a leader with a lease that
// hands the group over to voters of whom most are new.
func timed() (leased, early, handed, moved size) {
	all := []NodeID{1, 2, 3}
	leased = size{voters: all, nodes: 3, campaigns: []int{1, 1, 1}, commands: []int{0, 1}, tells: []int{1, 1}, crashes: []int{1, 1, 1}, prelude: true, ticks: 2}
	early = size{voters: all, nodes: 3, campaigns: []int{1, 1}, commands: []int{1}, tells: []int{1, 1}, prelude: true, ticks: 2}
	handed = size{voters: all, nodes: 3, campaigns: []int{1, 1}, commands: []int{0, 1}, tells: []int{2}, crashes: []int{0, 0, 1}, prelude: true, ticks: 3, transfers: 1}
	moved = size{voters: []NodeID{1}, nodes: 3, campaigns: []int{1, 1}, commands: []int{0, 1}, tells: []int{3}, change: all, prelude: true, ticks: 2}
	return leased, early, handed, moved
}

// lossy returns those in which disks lose what they had: of two voters each, and one of three.
func lossy() (two, three size) {
	two = size{voters: []NodeID{1, 2}, nodes: 2, campaigns: []int{1, 2}, commands: []int{1, 1}, tells: []int{1, 1}, losses: []int{1, 1}}
	three = size{voters: []NodeID{1, 2, 3}, nodes: 3, campaigns: []int{1, 0, 1}, commands: []int{1, 0, 1}, losses: []int{0, 1}}
	return two, three
}

// TestExplore goes through every order of events, and every loss, of a small group. In no state may two nodes disagree
// about a slot, nor a node with what was chosen before it restarted. The same search has to find the mistakes that it is
// able to find. KOINON_EXPLORE=1 searches larger groups; see docs/consensus.md.
func TestExplore(t *testing.T) {
	if os.Getenv("KOINON_EXPLORE") != "" {
		exploreLarge(t)
		return
	}
	told, crashed, shrink, grow := sizes()
	leased, early, handed, moved := timed()
	two, three := lossy()
	for _, c := range []struct {
		name  string
		size  size
		bug   Bug
		found bool
	}{
		{"sound", told, 0, false},
		{"sound with a crash", crashed, 0, false},
		{"old-ballot value taken as chosen", told, BugOldBallot, true},
		{"suffix not proposed again", told, BugForgetSuffix, true},
		{"acceptance below the promise", told, BugAcceptOld, true},
		{"promise without accepted entries", told, BugPromiseForgets, true},
		{"half is a majority", told, BugMinorityQuorum, true},
		{"sound change to one", shrink, 0, false},
		{"sound change to three with a crash", grow, 0, false},
		{"configuration in force when proposed", shrink, BugActivateNow, true},
		{"election by one configuration", grow, BugOneConfigPhase1, true},
		{"sound with leases", leased, 0, false},
		{"promise in spite of a lease", leased, BugIgnoreBarrier, true},
		{"no lease wait after restart", leased, BugNoLeaseWait, true},
		{"lease counted from receipt", leased, BugLeaseFromReceipt, true},
		{"sound with a lease that follows another", early, 0, false},
		{"reads before the suffix is applied", early, BugEarlyRead, true},
		{"sound with a transfer", handed, 0, false},
		{"lease kept during transfer", handed, BugTransferKeeps, true},
		{"sound change with a lease", moved, 0, false},
		{"sound when either of two loses what it had", two, 0, false},
		{"sound when one of three does", three, 0, false},
		{"damaged replica votes", three, BugDamagedVotes, true},
		{"promise of a damaged replica taken as a full one", three, BugMuteTells, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			explore(t, c.size, c.bug, c.found)
		})
	}
}

func exploreLarge(t *testing.T) {
	told, crashed, shrink, grow := sizes()
	both, three, two, swap := told, told, told, shrink
	one, twice := []int{1, 1, 1}, []int{2, 2, 2}
	both.crashes = one
	three.campaigns, three.tells = one, nil
	two.commands, two.tells = twice, nil
	swap.campaigns, swap.prelude, swap.crashes = one, true, one
	crashed.commands = twice
	grow.crashes = []int{1, 0, 1}
	pair, trio := lossy()
	pair.campaigns, pair.commands, pair.tells = []int{2, 2}, []int{2, 1}, []int{2, 1}
	trio.tells = []int{1, 0, 1}
	leased, _, handed, _ := timed()
	rounds, leaders, transfers := leased, leased, handed
	rounds.campaigns, rounds.tells, rounds.ticks = []int{1, 1}, []int{2, 1}, 3
	leaders.commands, leaders.crashes, leaders.ticks = []int{1, 1}, []int{0, 0, 1}, 3
	transfers.tells = []int{1, 1}
	for _, c := range []struct {
		name string
		size size
	}{
		{"told and crashed", both}, {"three ballots", three}, {"two commands", two}, {"two commands and a crash", crashed},
		{"change to one, three ballots and a crash", swap}, {"change to three and crashes", grow},
		{"leases and three rounds", rounds}, {"leases of two leaders", leaders}, {"transfer and leases of two leaders", transfers},
		{"either of two loses what it had, more often", pair}, {"one of three does, and is repaired", trio},
	} {
		t.Run(c.name, func(t *testing.T) { explore(t, c.size, 0, false) })
	}
}

func explore(t *testing.T, s size, bug Bug, found bool) {
	t.Helper()
	x := &explorer{size: s, bug: bug, seen: map[[16]byte]struct{}{}}
	trouble := x.run()
	t.Logf("%d states %s", len(x.seen), trouble)
	if found != (trouble != "") {
		t.Fatalf("trouble expected: %v, found: %q", found, trouble)
	}
}

// universe is one state of the whole group. Disks are instant: what a node stores is durable before it says so. Nodes
// are shared between universes and copied before they change.
type universe struct {
	boxes   []box
	flight  []flying // ascending keys
	decided []string // what some node has known to be chosen, by slot
	changed bool
	now     Time // every clock's
	ticks   int
}

// lease is a round number, and begin a time of which the first lease is long over.
const (
	lease = Time(1000)
	begin = 10 * lease
)

// box is a node with what it may still do.
type box struct {
	node                       *Node
	key                        string
	campaigns, commands, tells int
	crashes, transfers, losses int
	rounds                     uint64 // the last round that is heard of
	lent                       Time   // until when readers were told that there is no other leader
}

type flying struct {
	m   Message
	key string
}

type explorer struct {
	size size
	bug  Bug
	seen map[[16]byte]struct{}
}

func (x *explorer) config(id NodeID) Config {
	cfg := Config{ID: id, Alpha: 2, ElectionTimeout: lease, Lease: lease, Rand: rand.New(rand.NewPCG(1, 1)), Log: noLog{}}
	if slices.Contains(x.size.voters, id) {
		cfg.Voters = x.size.voters
	}
	bug := x.bug
	if x.size.ticks == 0 {
		bug |= BugIgnoreBarrier // leases would never end
	}
	cfg.Sabotage(bug)
	return cfg
}

func (x *explorer) first() *universe {
	u := &universe{changed: len(x.size.change) == 0, now: begin, ticks: x.size.ticks}
	for id := NodeID(1); id <= NodeID(x.size.nodes); id++ {
		rec := Recovered{}
		if !slices.Contains(x.size.voters, id) {
			rec.Configs = Initial(x.size.voters) // knows the group without being in it
		}
		b := box{node: New(x.config(id), rec, u.now), campaigns: x.size.campaigns.of(id), crashes: x.size.crashes.of(id), losses: x.size.losses.of(id)}
		b.key = u.nodeKey(&b)
		u.boxes = append(u.boxes, b)
	}
	u.boxes[0].transfers = x.size.transfers
	if x.size.prelude {
		u.boxes[0].campaigns--
		u.boxes[0].rounds = 1
		u.boxes[0].node.campaign(Ballot{})
		for x.settle(u, 0); len(u.flight) > 0; {
			x.arrive(u, 0)
		}
	}
	for i := range u.boxes {
		id := u.boxes[i].node.cfg.ID
		u.boxes[i].commands, u.boxes[i].tells = x.size.commands.of(id), x.size.tells.of(id)
	}
	return u
}

// arrive delivers the k-th message in flight.
func (x *explorer) arrive(u *universe, k int) {
	m := u.flight[k].m
	u.flight = slices.Delete(u.flight, k, k+1)
	if err := u.boxes[m.To-1].node.Step(u.now, m); err != nil && err != ErrUnknownPeer {
		panic(err)
	}
	x.settle(u, int(m.To-1))
}

// run searches from the beginning and returns the first trouble, or nothing. A node that stops itself counts.
func (x *explorer) run() (trouble string) {
	defer func() {
		if p := recover(); p != nil {
			trouble = fmt.Sprint(p)
		}
	}()
	stack := []*universe{x.first()}
	for len(stack) > 0 {
		u := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, v := range x.next(u) {
			if s := v.disagreement(); s != "" {
				return s
			}
			if s := v.staleLease(); s != "" {
				return s
			}
			v.prune()
			if k := v.key(); !x.visited(k) {
				stack = append(stack, v)
			}
		}
	}
	return ""
}

func (x *explorer) visited(k [16]byte) bool {
	_, ok := x.seen[k]
	x.seen[k] = struct{}{}
	return ok
}

// next returns every state that one event leads to.
func (x *explorer) next(u *universe) (out []*universe) {
	for k := range u.flight {
		if k > 0 && u.flight[k].key == u.flight[k-1].key {
			continue
		}
		v := u.clone(int(u.flight[k].m.To - 1))
		x.arrive(v, k)
		out = append(out, v)
	}
	for i := range u.boxes {
		b := &u.boxes[i]
		if b.campaigns > 0 && b.node.mayLead() && !b.node.repair.damaged && x.timedOut(b.node, u.now) {
			v := u.clone(i)
			v.boxes[i].campaigns--
			v.boxes[i].node.advance(u.now)
			v.boxes[i].node.campaign(Ballot{})
			x.settle(v, i)
			out = append(out, v)
		}
		if b.tells > 0 && b.node.role == Leader && (b.node.chosen > 0 || x.size.ticks > 0) {
			v := u.clone(i)
			v.boxes[i].tells--
			v.boxes[i].node.advance(u.now)
			v.boxes[i].node.lead.wantRound = true
			v.boxes[i].rounds = v.boxes[i].node.lead.round + 1
			x.settle(v, i)
			out = append(out, v)
		}
		if b.crashes > 0 && (b.node.role != Follower || b.node.chosen > 0 || x.size.ticks > 0) { // a follower loses nothing else
			v := u.clone(i)
			v.boxes[i].crashes--
			v.boxes[i].node, v.boxes[i].lent = x.restart(b.node, u.now), 0
			x.settle(v, i)
			out = append(out, v)
		}
		if b.losses > 0 && x.bears(u, i) {
			for _, n := range x.lose(u, i) {
				v := u.clone(i)
				v.boxes[i].losses--
				v.boxes[i].node = n
				x.settle(v, i)
				out = append(out, v)
			}
		}
		if b.transfers > 0 && b.node.role == Leader {
			v := u.clone(i)
			v.boxes[i].transfers--
			if err := v.boxes[i].node.Transfer(u.now, 2); err == nil {
				v.boxes[i].lent = 0 // given up: nobody goes by it any more
				x.settle(v, i)
				out = append(out, v)
			}
		}
	}
	if u.ticks > 0 {
		v := *u
		v.ticks--
		v.now += lease / 2
		v.flight, v.boxes, v.decided = slices.Clone(u.flight), slices.Clone(u.boxes), slices.Clone(u.decided)
		for i := range v.boxes {
			v.boxes[i].key = v.nodeKey(&v.boxes[i])
		}
		out = append(out, &v)
	}
	return out
}

// timedOut reports whether a node may campaign. An election timeout is no shorter than a lease and begins with it, so that a
// node that has granted one does not campaign before it is over; and a leader does not campaign by itself.
func (x *explorer) timedOut(n *Node, now Time) bool {
	return x.size.ticks == 0 || n.role != Leader && now >= n.barrier
}

// restart returns a node that starts from what another one has stored. What was known to be chosen is not.
func (x *explorer) restart(n *Node, now Time) *Node {
	rec := Recovered{Promised: n.promised}
	for s := n.window.lo; s < n.window.hi; s++ {
		if st := n.window.at(s); st.held() {
			rec.Entries = append(rec.Entries, st.entry)
		}
	}
	if len(n.cfg.Voters) == 0 {
		rec.Configs = Initial(x.size.voters)
	}
	return New(x.config(n.cfg.ID), rec, now)
}

// bears reports whether of every majority somebody else than node i has lost nothing.
func (x *explorer) bears(u *universe, i int) bool {
	whole := 0
	for k := range u.boxes {
		if k != i && !u.boxes[k].node.repair.damaged {
			whole++
		}
	}
	return 2*whole >= len(u.boxes)
}

// lose returns node i as it starts without the first, the last, or all of the entries that it had, and without its disk, when
// all others have told what they have promised.
func (x *explorer) lose(u *universe, i int) (out []*Node) {
	n := u.boxes[i].node
	whole := x.restart(n, u.now)
	entries := []Entry{}
	for s := whole.window.lo; s < whole.window.hi; s++ {
		if st := whole.window.at(s); st.held() {
			entries = append(entries, st.entry)
		}
	}
	start := func(rec Recovered) {
		rec.Damaged = true
		m := New(x.config(n.cfg.ID), rec, u.now)
		m.life = n.life + 2
		out = append(out, m)
	}
	if k := len(entries); k > 0 {
		start(Recovered{Promised: n.promised})
		if k > 1 {
			start(Recovered{Promised: n.promised, Entries: entries[1:]})
			start(Recovered{Promised: n.promised, Entries: entries[:k-1]})
		}
	}
	told := Ballot{}
	for k := range u.boxes {
		if o := u.boxes[k].node; k != i && told.Less(o.promised) {
			told = o.promised
		}
	}
	start(Recovered{Promised: told})
	return out
}

// clone returns a copy in which node i may be changed.
func (u *universe) clone(i int) *universe {
	v := *u
	v.flight, v.boxes, v.decided = slices.Clone(u.flight), slices.Clone(u.boxes), slices.Clone(u.decided)
	n := u.boxes[i].node
	m := *n
	m.window.ring = slices.Clone(n.window.ring)
	m.peers, m.configs, m.tentative = slices.Clone(n.peers), slices.Clone(n.configs), slices.Clone(n.tentative)
	m.found.entries = slices.Clone(n.found.entries)
	v.boxes[i].node = &m
	return &v
}

// settle does what node i wants done. Heartbeats that tell nothing, and refusals, are as good as lost.
func (x *explorer) settle(u *universe, i int) {
	b := &u.boxes[i]
	n := b.node
	for n.HasReady() {
		r := n.Ready()
		n.Persisted(r.Seq)
		if n.role == Leader && !u.changed && n.lead.next > n.lead.suffixEnd {
			u.changed = true
			n.startChange(Configuration{Voters: x.size.change})
		}
		if n.role == Leader && b.commands > 0 {
			if _, _, err := n.Propose(u.now, fmt.Appendf(nil, "%d.%d", n.cfg.ID, b.commands)); err == nil {
				b.commands--
			}
		}
		for _, m := range append(r.Send, r.SendAfter...) {
			if x.heard(b, &m) {
				u.flight = append(u.flight, flying{m, messageKey(&m)})
			}
		}
		for _, e := range r.Apply {
			n.Applied(e.Slot)
		}
	}
	if until, _ := n.LeaseRead(); n.role == Leader {
		b.lent = max(b.lent, until)
	}
	b.key = u.nodeKey(b)
	slices.SortFunc(u.flight, func(a, b flying) int { return strings.Compare(a.key, b.key) })
}

// heard reports whether a message is worth being sent. When time passes heartbeats say nothing but that a leader lives, as
// long as members stay, and a leader sends as many rounds as it may.
func (x *explorer) heard(b *box, m *Message) bool {
	switch {
	case m.Reject && !m.Mute:
		return false
	case x.size.losses != nil && (m.Kind == MsgHeartbeat || m.Kind == MsgHeartbeatReply):
		m.Seq, m.At = 0, 0
		return m.Kind == MsgHeartbeat && b.rounds > 0 || m.Next > m.Chosen+1
	case x.size.ticks == 0:
		if m.Kind == MsgHeartbeat {
			m.Seq, m.At = 0, 0 // nobody answers
		}
		return !(m.Kind == MsgHeartbeat && m.Chosen == 0 || m.Kind == MsgHeartbeatReply)
	case m.Kind == MsgHeartbeat:
		if len(x.size.change) == 0 {
			m.Chosen = 0
		}
		return m.Seq <= b.rounds
	case m.Kind == MsgHeartbeatReply:
		m.Slot, m.Next = 0, 0
	}
	return true
}

// prune forgets messages that can change nothing any more. What is lost is as good as never delivered.
func (u *universe) prune() {
	u.flight = slices.DeleteFunc(u.flight, func(f flying) bool {
		m := &f.m
		n := u.boxes[m.To-1].node
		switch m.Kind {
		case MsgPrepare, MsgHeartbeat:
			return m.Ballot.Less(n.promised)
		case MsgAccept:
			return m.Ballot.Less(n.promised) && !n.cfg.bugs.has(BugAcceptOld)
		case MsgPromise:
			return n.role != Candidate && n.role != Leader || n.ballot != m.Ballot
		case MsgAccepted:
			return n.role != Leader || n.ballot != m.Ballot || m.Next <= n.chosen+1
		case MsgHeartbeatReply:
			return n.role != Leader || n.ballot != m.Ballot || m.Seq <= n.peers[n.index(m.From)].ackSeq || m.At+lease <= u.now
		case MsgTimeoutNow:
			return n.promised != m.Ballot
		case MsgLearn:
			return len(m.Entries) == 0 || m.Entries[len(m.Entries)-1].Slot <= n.chosen
		}
		return false
	})
}

// disagreement compares what the nodes take to be chosen with each other and with what was.
func (u *universe) disagreement() string {
	for i := range u.boxes {
		n := u.boxes[i].node
		for s := n.window.lo; s <= n.chosen; s++ {
			e := &n.window.at(s).entry
			value := fmt.Sprintf("%v %q", e.Kind, e.Data)
			for len(u.decided) < int(s) {
				u.decided = append(u.decided, "")
			}
			if was := u.decided[s-1]; was != "" && was != value {
				return fmt.Sprintf("slot %d was %s, node %d has %s", s, was, n.cfg.ID, value)
			}
			u.decided[s-1] = value
		}
	}
	return ""
}

// staleLease looks for a leader whose readers, by a lease that it has or has lent, miss what is known to be chosen.
func (u *universe) staleLease() string {
	for i := range u.boxes {
		b := &u.boxes[i]
		until, slot := b.node.LeaseRead()
		if until == 0 {
			until, slot = b.lent, b.node.chosen
		}
		if u.now < until && int(slot) < len(u.decided) {
			return fmt.Sprintf("node %d holds a lease for reads at %d, slot %d is chosen", b.node.cfg.ID, slot, len(u.decided))
		}
	}
	return ""
}

// key tells states apart by what the future depends on.
func (u *universe) key() (k [16]byte) {
	h := fnv.New128a()
	for i := range u.boxes {
		b := &u.boxes[i]
		h.Write([]byte{byte(b.campaigns), byte(b.commands), byte(b.tells), byte(b.crashes), byte(b.transfers), byte(b.losses)})
		h.Write([]byte(b.key))
	}
	h.Write([]byte{byte(len(u.decided)), byte(u.ticks)})
	for _, d := range u.decided {
		h.Write([]byte(d))
		h.Write([]byte{0})
	}
	for _, f := range u.flight {
		h.Write([]byte(f.key))
		h.Write([]byte{0xff})
	}
	if u.changed {
		h.Write([]byte{1})
	}
	h.Sum(k[:0])
	return k
}

func appendBallot(b []byte, x Ballot) []byte { return append(b, byte(x.Round), byte(x.Node)) }

func appendEntry(b []byte, e *Entry) []byte {
	b = appendBallot(b, e.Ballot)
	b = append(b, byte(e.Slot), byte(e.Kind), byte(len(e.Data)))
	return append(b, e.Data...)
}

// left is how many half leases of a time are to come: all that are over are the same.
func (u *universe) left(t Time) byte { return byte((max(0, t-u.now) + lease/2 - 1) / (lease / 2)) }

func (u *universe) nodeKey(bx *box) string {
	n := bx.node
	b := []byte{byte(n.role), byte(n.chosen), byte(n.roundMax), byte(len(n.peers)), byte(n.life), byte(n.mute)}
	if n.repair.damaged {
		b = append(b, 1, byte(n.repair.target))
		if n.repair.known {
			b = append(b, 1)
		}
	}
	b = appendBallot(b, n.promised)
	if n.role == Candidate || n.role == Leader {
		b = append(b, byte(n.votes), byte(n.found.base))
		for i := range n.peers {
			b = append(b, byte(n.peers[i].id), byte(n.peers[i].page))
		}
		for k := range n.found.entries {
			b = appendEntry(b, &n.found.entries[k])
		}
	}
	if n.role == Leader {
		b = append(b, byte(n.lead.next), byte(n.lead.suffixEnd))
	}
	if u.ticks > 0 || u.now > begin {
		b = append(b, u.left(n.barrier), u.left(bx.lent))
		if n.role == Leader {
			b = append(b, u.left(n.lead.leaseUntil), byte(n.lead.round), byte(n.lead.transferTo))
			for i := range n.peers {
				b = append(b, u.left(n.peers[i].grantAt+lease), byte(n.peers[i].ackSeq))
			}
		}
	}
	for i := range n.configs {
		b = append(b, byte(n.configs[i].From))
	}
	for s := n.window.lo; s < n.window.hi; s++ {
		st := n.window.at(s)
		b = appendEntry(b, &st.entry)
		if n.role == Leader && s > n.chosen {
			b = append(b, byte(st.votes))
		}
	}
	return string(b)
}

func messageKey(m *Message) string {
	b := []byte{byte(m.Kind), byte(m.From), byte(m.To), byte(m.Slot), byte(m.Next), byte(m.Chosen), byte(m.Seq), byte((m.At - begin) / (lease / 2))}
	b = appendBallot(b, m.Ballot)
	if m.Mute {
		b = append(b, 1)
	}
	for k := range m.Entries {
		b = appendEntry(b, &m.Entries[k])
	}
	return string(b)
}
