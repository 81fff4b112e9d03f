package paxos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestExplore goes through every order of events, and every loss, of a small group: three nodes, two of which campaign
// once each and propose one command when elected, and tell what was chosen. In no state may two nodes disagree about
// a slot. The same search has to find the mistakes that it is able to find.
func TestExplore(t *testing.T) {
	for _, c := range []struct {
		name  string
		bug   Bug
		found bool
	}{
		{"sound", 0, false},
		{"old-ballot value taken as chosen", BugOldBallot, true},
		{"suffix not proposed again", BugForgetSuffix, true},
		{"acceptance below the promise", BugAcceptOld, true},
		{"promise without accepted entries", BugPromiseForgets, true},
		{"half is a majority", BugMinorityQuorum, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := &explorer{seen: map[string]bool{}}
			trouble := x.run(newUniverse(c.bug))
			t.Logf("%d states, %s", len(x.seen), trouble)
			if c.found != (trouble != "") {
				t.Fatalf("trouble expected: %v, found: %q", c.found, trouble)
			}
		})
	}
}

// universe is one state of the whole group. Disks are instant: what a node stores is durable before it says so.
type universe struct {
	nodes     [3]*Node
	flight    []Message
	campaigns [3]bool
	proposed  [3]int // commands proposed by each node
	told      [3]bool
}

func newUniverse(bug Bug) *universe {
	u := &universe{}
	for i := range u.nodes {
		cfg := Config{ID: NodeID(i + 1), Voters: []NodeID{1, 2, 3}, Rand: rand.New(rand.NewPCG(1, 1)), Log: noLog{}}
		cfg.Sabotage(bug | BugIgnoreBarrier) // time stands still, so that leases would never end
		u.nodes[i] = New(cfg, Recovered{}, 1)
	}
	return u
}

func (u *universe) clone() *universe {
	v := *u
	v.flight = slices.Clone(u.flight)
	for i, n := range u.nodes {
		m := *n
		m.window.ring = append(make([]slotState, 0, len(n.window.ring)), n.window.ring...)
		m.peers, m.configs, m.tentative = slices.Clone(n.peers), slices.Clone(n.configs), slices.Clone(n.tentative)
		m.found.entries = slices.Clone(n.found.entries)
		v.nodes[i] = &m
	}
	return &v
}

// settle does what node i wants done. Heartbeats that tell nothing, and refusals, are as good as lost.
func (u *universe) settle(i int) {
	n := u.nodes[i]
	for n.HasReady() {
		r := n.Ready()
		n.Persisted(r.Seq)
		if n.role == Leader && u.proposed[i] == 0 {
			u.proposed[i]++
			if _, _, err := n.Propose(1, fmt.Appendf(nil, "c%d", n.cfg.ID)); err != nil {
				panic(err)
			}
		}
		for _, m := range append(r.Send, r.SendAfter...) {
			silent := m.Kind == MsgHeartbeat && m.Chosen == 0 || m.Kind == MsgHeartbeatReply || m.Reject
			if !silent {
				u.flight = append(u.flight, m)
			}
		}
		for _, e := range r.Apply {
			n.Applied(e.Slot)
		}
	}
}

// next returns every state that one event leads to.
func (u *universe) next() []*universe {
	var out []*universe
	for k := range u.flight {
		v := u.clone()
		m := v.flight[k]
		v.flight = slices.Delete(v.flight, k, k+1)
		if err := v.nodes[m.To-1].Step(1, m); err != nil {
			panic(err)
		}
		v.settle(int(m.To - 1))
		out = append(out, v)
	}
	for i, n := range u.nodes[:2] {
		if !u.campaigns[i] {
			v := u.clone()
			v.campaigns[i] = true
			v.nodes[i].campaign(Ballot{})
			v.settle(i)
			out = append(out, v)
		}
		if n.role == Leader && n.chosen > 0 && !u.told[i] {
			v := u.clone()
			v.told[i] = true
			v.nodes[i].lead.wantRound = true
			v.settle(i)
			out = append(out, v)
		}
	}
	return out
}

// prune forgets messages that can change nothing any more. What is lost is as good as never delivered.
func (u *universe) prune() {
	u.flight = slices.DeleteFunc(u.flight, func(m Message) bool {
		n := u.nodes[m.To-1]
		switch m.Kind {
		case MsgPrepare, MsgHeartbeat:
			return m.Ballot.Less(n.promised)
		case MsgAccept:
			return m.Ballot.Less(n.promised) && !n.cfg.bugs.has(BugAcceptOld)
		case MsgPromise:
			return n.role != Candidate || n.ballot != m.Ballot
		case MsgAccepted:
			return n.role != Leader || n.ballot != m.Ballot || m.Next <= n.chosen+1
		case MsgLearn:
			return len(m.Entries) == 0 || m.Entries[len(m.Entries)-1].Slot <= n.chosen
		}
		return false
	})
}

// key tells states apart by what the future depends on.
func (u *universe) key() string {
	b := make([]byte, 0, 512)
	num := func(v ...uint64) {
		for _, x := range v {
			b = append(b, byte(x))
		}
	}
	ballot := func(x Ballot) { num(x.Round, uint64(x.Node)) }
	entry := func(e *Entry) {
		ballot(e.Ballot)
		num(uint64(e.Slot), uint64(e.Kind), uint64(len(e.Data)))
		b = append(b, e.Data...)
	}
	for i, n := range u.nodes {
		num(uint64(n.role), uint64(n.chosen), uint64(u.proposed[i]), uint64(n.roundMax))
		b = fmt.Append(b, u.campaigns[i], u.told[i])
		ballot(n.promised)
		if n.role == Candidate {
			num(n.votes)
			for k := range n.found.entries {
				entry(&n.found.entries[k])
			}
		}
		if n.role == Leader {
			num(uint64(n.lead.next))
		}
		for s := n.window.lo; s < n.window.hi; s++ {
			st := n.window.at(s)
			entry(&st.entry)
			if n.role == Leader && s > n.chosen {
				num(st.votes)
			}
		}
		b = append(b, '|')
	}
	flight := make([]string, 0, len(u.flight))
	for _, m := range u.flight {
		mark := len(b)
		num(uint64(m.Kind), uint64(m.From), uint64(m.To), uint64(m.Slot), uint64(m.Next), uint64(m.Chosen))
		ballot(m.Ballot)
		for k := range m.Entries {
			entry(&m.Entries[k])
		}
		flight = append(flight, string(b[mark:]))
		b = b[:mark]
	}
	slices.Sort(flight)
	for _, f := range flight {
		b = append(append(b, f...), ';')
	}
	return string(b)
}

// disagreement compares what the nodes take to be chosen.
func (u *universe) disagreement() string {
	for s := Slot(1); s <= 2; s++ {
		var first *Entry
		for _, n := range u.nodes {
			if st := n.window.at(s); s <= n.chosen && st.held() {
				if first != nil && !sameValue(first, &st.entry) {
					return fmt.Sprintf("slot %d is %v and %v", s, first, st.entry)
				}
				first = &st.entry
			}
		}
	}
	return ""
}

type explorer struct{ seen map[string]bool }

// run searches from a state and returns the first trouble, or nothing. A node that stops itself counts.
func (x *explorer) run(first *universe) (trouble string) {
	defer func() {
		if p := recover(); p != nil {
			trouble = fmt.Sprint(p)
		}
	}()
	stack := []*universe{first}
	for len(stack) > 0 {
		u := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if s := u.disagreement(); s != "" {
			return s
		}
		for _, v := range u.next() {
			v.prune()
			if k := v.key(); !x.seen[k] {
				x.seen[k] = true
				stack = append(stack, v)
			}
		}
	}
	return ""
}
