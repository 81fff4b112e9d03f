package paxos_test

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/koinon/koinon/paxos"
)

// replica is the smallest possible driver: its log is a map, which counts as durable at once, its network a queue.
type replica struct {
	node  *paxos.Node
	log   map[paxos.Slot]paxos.Entry
	state []string
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

// handle does what the node wants done and returns what is to be delivered.
func (r *replica) handle(rd paxos.Ready) []paxos.Message {
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
		if e.Kind == paxos.Command {
			r.state = append(r.state, string(e.Data))
		}
		r.node.Applied(e.Slot)
	}
	return out
}

func Example() {
	voters := []paxos.NodeID{1, 2, 3}
	replicas := map[paxos.NodeID]*replica{}
	for _, id := range voters {
		r := &replica{log: map[paxos.Slot]paxos.Entry{}}
		r.node = paxos.New(paxos.Config{ID: id, Voters: voters, Rand: rand.New(rand.NewPCG(1, uint64(id))), Log: r}, paxos.Recovered{}, 0)
		replicas[id] = r
	}
	var leader *replica
	proposed := false
	for clock := paxos.Time(0); clock < 3e9; clock += 10e6 { // three seconds, ten milliseconds at a time
		for _, id := range voters {
			r := replicas[id]
			r.node.Tick(clock)
			if r.node.Status().Role == paxos.Leader && !proposed {
				leader, proposed = r, true
				for _, command := range []string{"one", "two"} {
					if _, _, err := r.node.Propose(clock, []byte(command)); err != nil {
						fmt.Println(err)
					}
				}
			}
		}
		for busy := true; busy; {
			busy = false
			for _, id := range voters {
				for r := replicas[id]; r.node.HasReady(); {
					busy = true
					for _, m := range r.handle(r.node.Ready()) {
						if err := replicas[m.To].node.Step(clock, m); err != nil {
							fmt.Println(err)
						}
					}
				}
			}
		}
	}
	fmt.Println("somebody leads:", leader != nil)
	for _, id := range voters {
		fmt.Println(id, replicas[id].state)
	}
	// Output:
	// somebody leads: true
	// 1 [one two]
	// 2 [one two]
	// 3 [one two]
}
