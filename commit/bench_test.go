package commit

import (
	"fmt"
	"testing"
)

// BenchmarkTransaction is the cost of a committed transaction for the cores of its coordinator, its table and all its
// participants together, with a network, disks and a log that cost nothing.
func BenchmarkTransaction(b *testing.B) {
	for _, n := range []int{1, 3, 16} {
		b.Run(fmt.Sprintf("participants=%d", n), func(b *testing.B) {
			var table Table
			table.Apply(Record{Kind: RecordOpen})
			c := NewCoordinator(Config{}, table.Epoch, nil, 0)
			var parties []*Participant
			var parts []Part
			for i := range n {
				parties = append(parties, NewParticipant(Config{}, Party(i+1), Recovered{}, 0))
				parts = append(parts, Part{Party: Party(i + 1), Payload: []byte("some part of the whole")})
			}
			committed := 0
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Begin(0, parts); err != nil {
					b.Fatal(err)
				}
				committed += settle(b, &table, c, parties)
			}
			if committed != b.N {
				b.Fatalf("%d commits expected, found %d", b.N, committed)
			}
		})
	}
}

// settle lets everything happen, and returns how many transactions were committed. Everybody votes yes.
func settle(b *testing.B, table *Table, c *Coordinator, parties []*Participant) (committed int) {
	for c.HasReady() {
		r := c.Ready()
		for _, o := range r.Outcomes {
			if o.Committed {
				committed++
			}
		}
		for _, k := range r.Agree {
			c.Agreed(0, k, table.Apply(k))
		}
		for _, m := range r.Send {
			p := parties[m.Party-1]
			if err := p.Step(0, m); err != nil {
				b.Fatal(err)
			}
			for p.HasReady() {
				pr := p.Ready()
				p.Persisted(pr.Seq)
				for _, answer := range pr.SendAfter {
					if err := c.Step(0, answer); err != nil {
						b.Fatal(err)
					}
				}
				for _, q := range pr.Prepare {
					if err := p.Vote(0, q.Tx, Yes, ""); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
	}
	return committed
}
