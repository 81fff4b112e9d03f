package commit_test

import (
	"fmt"

	"github.com/koinon/koinon/commit"
)

// shop is the smallest possible participant: it has a stock, and its disk is a variable.
type shop struct {
	name     string
	stock    int
	reserved map[commit.Tx]bool
	p        *commit.Participant
}

// handle does what the participant wants done and returns what is to be delivered.
func (s *shop) handle() (out []commit.Message) {
	for s.p.HasReady() {
		r := s.p.Ready()
		out = append(out, r.Send...)
		for _, c := range r.Changes { // a real driver writes these and r.Floor down, syncs, and only then goes on
			switch c.State {
			case commit.Committed:
				s.stock--
				delete(s.reserved, c.Tx)
			case commit.Aborted:
				delete(s.reserved, c.Tx)
			}
		}
		if r.Seq != 0 {
			s.p.Persisted(r.Seq)
			out = append(out, r.SendAfter...)
		}
		for _, q := range r.Prepare {
			vote, reason := commit.Yes, ""
			if s.stock <= len(s.reserved) {
				vote, reason = commit.No, string(q.Payload)+" is sold out"
			} else {
				s.reserved[q.Tx] = true
			}
			if err := s.p.Vote(0, q.Tx, vote, reason); err != nil {
				fmt.Println(err)
			}
		}
	}
	return out
}

// Two customers want a cup and a spoon, both or nothing. There is one spoon.
func Example() {
	shops := map[commit.Party]*shop{1: {name: "cups", stock: 2}, 2: {name: "spoons", stock: 1}}
	for id, s := range shops {
		s.reserved = map[commit.Tx]bool{}
		s.p = commit.NewParticipant(commit.Config{}, id, commit.Recovered{}, 0)
	}
	// The log is a table that one replica applies at once. A real one is agreed upon first.
	var table commit.Table
	table.Apply(commit.Record{Kind: commit.RecordOpen})
	c := commit.NewCoordinator(commit.Config{}, table.Epoch, table.Commits, 0)

	for range 2 {
		if _, err := c.Begin(0, []commit.Part{{Party: 1, Payload: []byte("cup")}, {Party: 2, Payload: []byte("spoon")}}); err != nil {
			fmt.Println(err)
		}
		for c.HasReady() {
			r := c.Ready()
			for _, o := range r.Outcomes {
				fmt.Printf("%v committed: %v %q\n", o.Tx, o.Committed, o.Reason)
			}
			for _, k := range r.Agree {
				c.Agreed(0, k, table.Apply(k))
			}
			for _, m := range r.Send {
				if err := shops[m.Party].p.Step(0, m); err != nil {
					fmt.Println(err)
				}
				for _, answer := range shops[m.Party].handle() {
					if err := c.Step(0, answer); err != nil {
						fmt.Println(err)
					}
				}
			}
		}
	}
	fmt.Println("cups:", shops[1].stock, "spoons:", shops[2].stock, "reserved:", len(shops[1].reserved)+len(shops[2].reserved))
	// Output:
	// 1.1 committed: true ""
	// 1.2 committed: false "spoon is sold out"
	// cups: 1 spoons: 0 reserved: 0
}
