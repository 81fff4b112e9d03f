// Package sched chooses nodes for gangs of processes. It is pure: from a snapshot of the nodes and the queue it makes a
// plan, the same one for the same snapshot, whatever the order in which nodes and gangs are listed. It only proposes. The
// nodes own their resources and decide by their votes; who is refused comes back with the refusal noted
// (Gang.Refuse), and the next plan proposes something else.
//
// # The order
//
// The user who has used least of late, for his weight, comes first (Ledger), with his oldest gang; so nobody waits for ever,
// because whoever goes first is charged, and what was used fades. A gang gets all its places or none.
// One that does not fit waits, and smaller ones behind it may start: that is backfill, and keeps the nodes busy.
//
// So that small ones do not keep a large gang from ever starting, one that has waited for Snapshot.Patience has places held for
// it: on the nodes where most is free already, as much as it needs, counted as if the nodes were empty. Nothing starts in
// what is held, unless it is bound to end before the gang could start anyhow. What is free on the chosen nodes can only
// grow, and a node is exchanged only for one with more, so that the gang starts when enough of what runs has ended.
//
// A user's gang of one process that would be far from its bytes lets those like it go first that would be near on what is
// free; they must have been submitted within Snapshot.Patience of it, so that it is not overtaken without end. No place
// stays empty for that.
//
// # The places
//
// Filters say which nodes will do at all: not draining, the labels wanted, among the nodes named, no recent refusal, enough
// free. Scores order them: first where the bytes are that the gang is near to, then by policy. Explain tells of every
// node why it would or would not do.
package sched

import (
	"fmt"

	"github.com/koinon/koinon/internal/sys"
)

// Time is a moment or a duration in nanoseconds, of one clock.
type Time int64

// GangID names a gang; later ones have higher numbers.
type GangID uint64

// Resources are what a process needs or a node has.
type Resources struct {
	CPU    int64 // thousandths of a CPU
	Memory int64 // bytes
}

// Plus is the sum.
func (r Resources) Plus(o Resources) Resources { return Resources{r.CPU + o.CPU, r.Memory + o.Memory} }

// Minus is the difference, which may be negative.
func (r Resources) Minus(o Resources) Resources { return Resources{r.CPU - o.CPU, r.Memory - o.Memory} }

// Times is n times r.
func (r Resources) Times(n int64) Resources { return Resources{r.CPU * n, r.Memory * n} }

// slots is how many times each fits into r, at most slotsMax.
func (r Resources) slots(each Resources) int64 {
	n := int64(slotsMax)
	if each.CPU > 0 {
		n = min(n, r.CPU/each.CPU)
	}
	if each.Memory > 0 {
		n = min(n, r.Memory/each.Memory)
	}
	if r.CPU < 0 || r.Memory < 0 {
		return 0
	}
	return n
}

// String is for people; what is nothing is left out.
func (r Resources) String() string {
	if r.Memory == 0 {
		return cpus(r.CPU) + " CPUs"
	}
	if r.Memory >= 1<<30 {
		return fmt.Sprintf("%s CPUs and %.1f GiB", cpus(r.CPU), float64(r.Memory)/(1<<30))
	}
	return fmt.Sprintf("%s CPUs and %.1f MiB", cpus(r.CPU), float64(r.Memory)/(1<<20))
}

func cpus(milli int64) string {
	if milli%1000 == 0 {
		return fmt.Sprint(milli / 1000)
	}
	return fmt.Sprintf("%.3g", float64(milli)/1000)
}

// Node is a node as the scheduler sees it.
type Node struct {
	ID       sys.NodeID
	Name     string
	Capacity Resources
	Used     Resources         // reserved now, and proposed but not decided yet
	Labels   map[string]string // arch, os, gpu, and what people have set
	Draining bool              // takes nothing new
}

// Label is one that a gang wants a node to have.
type Label struct{ Key, Value string }

// Policy says how a gang's processes lie on the nodes.
type Policy uint8

// The policies.
const (
	Spread Policy = iota // over as many nodes as there are, the emptiest first
	Pack                 // on as few as possible, the fullest first
)

// Gang is a number of processes that start together or not at all.
type Gang struct {
	ID        GangID
	User      string
	Size      int       // processes, from 1 to SizeMax
	Each      Resources // for every one of them; at least one of the two is not zero
	Want      []Label
	On        []sys.NodeID         // the only nodes that will do; none: all
	Near      map[sys.NodeID]int64 // bytes held there of what the gang wants to be near to
	Policy    Policy
	Limit     Time // it is stopped after running for so long; zero: nobody knows how long it runs
	Submitted Time

	// What refusals have left behind; see Refuse.
	Tries     int
	NotBefore Time
	Refusals  []Refusal
}

// Refusal is a node's no.
type Refusal struct {
	Node   sys.NodeID
	Reason string
	Count  int
	At     Time
	Until  Time // the node is not asked again for this gang before
}

// Limits.
const (
	SizeMax  = 1 << 16
	slotsMax = 1 << 20

	refusalWait    = Time(500e6) // doubled from refusal to refusal
	refusalWaitMax = Time(60e9)
)

func backoff(tries int) Time {
	if tries > 16 {
		return refusalWaitMax
	}
	return min(refusalWait<<tries, refusalWaitMax)
}

// Refuse notes that a node has refused the gang, or has not answered. The next proposal leaves it out for a while that grows
// from refusal to refusal, and so does, after the first one, the time to the next proposal.
func (g *Gang) Refuse(now Time, node sys.NodeID, reason string) {
	if g.Tries++; g.Tries > 1 {
		g.NotBefore = now + backoff(g.Tries-2)
	}
	for i := range g.Refusals {
		if r := &g.Refusals[i]; r.Node == node {
			*r = Refusal{Node: node, Reason: reason, Count: r.Count + 1, At: now, Until: now + backoff(r.Count)}
			return
		}
	}
	g.Refusals = append(g.Refusals, Refusal{Node: node, Reason: reason, Count: 1, At: now, Until: now + backoff(0)})
}

// Running is a share of a node's Used of which it is known when it ends.
type Running struct {
	Node  sys.NodeID
	Uses  Resources
	Until Time // at the latest
}

// Snapshot is what a plan is made from. It is not written to.
type Snapshot struct {
	Now     Time
	Nodes   []Node
	Down    []sys.NodeID // that are not among Nodes because they do not answer
	Queue   []Gang
	Running []Running // may be incomplete; what is not here may run for ever
	Ledger  *Ledger   // nil: nobody has used anything
	// Patience is how long a gang waits before places are held for it, and how much younger may overtake it; zero: 30 s.
	Patience Time
	// DepthMax is how many gangs are looked at; the rest waits for the next plan. Zero: 2,000.
	DepthMax int
}

// Placement starts a gang: rank i on Nodes[i]. Nodes of neighbouring ranks are neighbours, too.
type Placement struct {
	Gang  GangID
	Nodes []sys.NodeID
	Why   string // for people
}

// Wait says why a gang does not start now.
type Wait struct {
	Gang GangID
	Why  string       // for people; Explain tells more
	Held []sys.NodeID // nodes where places are held for it
}

// Plan is what should happen now. Start is in the order of precedence.
type Plan struct {
	Start []Placement
	Wait  []Wait
}
