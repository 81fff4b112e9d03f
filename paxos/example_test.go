package paxos_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/koinon/koinon/paxos"
)

// replica is the smallest possible driver: its log is a map and its state a slice, both of which count as durable at once.
type replica struct {
	node    *paxos.Node
	log     map[paxos.Slot]paxos.Entry
	applied paxos.Slot
	state   []string
	members paxos.History // belongs to state, and is stored with it
}

// Entries reads the log back for followers that lag.
func (r *replica) Entries(lo, hi paxos.Slot, _ int) ([]paxos.Entry, error) {
	var out []paxos.Entry
	for s := lo; s < hi; s++ {
		e, ok := r.log[s]
		if !ok {
			break
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, errors.New("not in the log")
	}
	return out, nil
}

// cluster is the network, a queue, and the clock.
type cluster struct {
	clock    paxos.Time
	replicas []*replica // of node 1, 2, ...
}

// start adds a replica. Without voters it waits until a leader speaks to it.
func (c *cluster) start(voters []paxos.NodeID) {
	id := paxos.NodeID(len(c.replicas) + 1)
	r := &replica{log: map[paxos.Slot]paxos.Entry{}}
	if len(voters) > 0 {
		r.members = paxos.Initial(voters)
	}
	r.node = paxos.New(paxos.Config{ID: id, Voters: voters, Alpha: 16, Rand: rand.New(rand.NewPCG(1, uint64(id))), Log: r}, paxos.Recovered{}, c.clock)
	c.replicas = append(c.replicas, r)
}

// handle does what the node wants done and returns what is to be delivered.
func (c *cluster) handle(r *replica, rd paxos.Ready) []paxos.Message {
	out := rd.Send
	if rd.Seq != 0 {
		for _, e := range rd.Accept {
			r.log[e.Slot] = e
		}
		// A real driver writes rd.Promised too, syncs, and only then:
		r.node.Persisted(rd.Seq)
		out = append(out, rd.SendAfter...)
	}
	for _, e := range rd.Apply {
		if e.Slot <= r.applied {
			continue // a snapshot was faster
		}
		if e.Kind == paxos.Command {
			r.state = append(r.state, string(e.Data))
		}
		r.applied, r.members = e.Slot, r.members.Apply(&e)
		r.node.Applied(e.Slot)
	}
	for _, s := range rd.SnapshotTo { // a real driver streams it
		to := c.replicas[s.To-1]
		to.applied, to.state, to.members = r.applied, slices.Clone(r.state), r.members
		to.node.InstalledSnapshot(r.applied, r.members)
		r.node.SnapshotDone(s.To, r.applied, true)
	}
	return out
}

// run lets time pass, ten milliseconds at a time, until something is so, and reports the leader.
func (c *cluster) run(until func(leader *replica) bool) *replica {
	for range 1000 {
		c.clock += 10e6
		for _, r := range c.replicas {
			r.node.Tick(c.clock)
		}
		c.deliver()
		for _, r := range c.replicas {
			if r.node.Status().Role == paxos.Leader && until(r) {
				return r
			}
		}
	}
	panic("nothing comes of it")
}

func (c *cluster) deliver() {
	for busy := true; busy; {
		busy = false
		for _, r := range c.replicas {
			for r.node.HasReady() {
				busy = true
				for _, m := range c.handle(r, r.node.Ready()) {
					if err := c.replicas[m.To-1].node.Step(c.clock, m); err != nil {
						fmt.Println(err)
					}
				}
			}
		}
	}
}

// change proposes other members until they are in force: before, the leader may have to wait for something.
func (c *cluster) change(members paxos.Configuration) {
	c.run(func(leader *replica) bool {
		if leader.node.Configs()[0].Equal(members) {
			return true
		}
		if _, err := leader.node.ProposeConfig(c.clock, members); errors.Is(err, paxos.ErrNoQuorum) {
			fmt.Println(err)
		}
		return false // other errors say what the leader waits for
	})
}

// Three nodes agree on two commands. Then a fourth one joins, first as a learner, and becomes a voter.
func Example() {
	c := &cluster{}
	for range 3 {
		c.start([]paxos.NodeID{1, 2, 3})
	}
	leader := c.run(func(*replica) bool { return true })
	for _, command := range []string{"one", "two"} {
		if _, _, err := leader.node.Propose(c.clock, []byte(command)); err != nil {
			fmt.Println(err)
		}
	}
	c.deliver()
	c.start(nil)
	c.change(paxos.Configuration{Voters: []paxos.NodeID{1, 2, 3}, Learners: []paxos.NodeID{4}})
	c.change(paxos.Configuration{Voters: []paxos.NodeID{1, 2, 3, 4}})
	c.run(func(*replica) bool { return c.replicas[3].node.Status().Voter })
	for i, r := range c.replicas {
		fmt.Println(i+1, r.state, r.members)
	}
	// Output:
	// 1 [one two] [{35 [1 2 3 4]}]
	// 2 [one two] [{35 [1 2 3 4]}]
	// 3 [one two] [{35 [1 2 3 4]}]
	// 4 [one two] [{35 [1 2 3 4]}]
}
