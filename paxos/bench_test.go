package paxos

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// benchGroup is a group whose network and disks cost nothing, so that what is measured is the core: of the leader
// and of all followers together.
type benchGroup struct {
	nodes []*Node
	now   Time
	done  Slot
	queue []Message
}

func newBenchGroup(tb testing.TB, size int) *benchGroup {
	tb.Helper()
	g := &benchGroup{}
	var voters []NodeID
	for id := 1; id <= size; id++ {
		voters = append(voters, NodeID(id))
	}
	for _, id := range voters {
		g.nodes = append(g.nodes, New(Config{ID: id, Voters: voters, Alpha: 4096, Rand: rand.New(rand.NewPCG(1, uint64(id))), Log: noLog{}}, Recovered{}, 0))
	}
	for g.nodes[0].role != Leader {
		g.now += 600e6
		g.nodes[0].Tick(g.now)
		g.settle(tb)
	}
	return g
}

func (g *benchGroup) settle(tb testing.TB) {
	for busy := true; busy; {
		busy = false
		for _, n := range g.nodes {
			if !n.HasReady() {
				continue
			}
			busy = true
			r := n.Ready()
			g.queue = append(append(g.queue, r.Send...), r.SendAfter...)
			n.Persisted(r.Seq)
			if len(r.Apply) > 0 {
				last := r.Apply[len(r.Apply)-1].Slot
				n.Applied(last)
				n.Truncate(last)
				g.done = max(g.done, last)
			}
		}
		queue := g.queue
		g.queue = g.queue[:0:0]
		for k := range queue {
			if err := g.nodes[queue[k].To-1].Step(g.now, queue[k]); err != nil {
				tb.Fatal(err)
			}
		}
		if len(g.queue) == 0 {
			g.queue = queue[:0]
		}
	}
}

// BenchmarkCommit is the cost of a committed command for the whole group's cores, by group size and by how many
// commands are proposed at once.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 3, 5} {
		for _, batch := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("nodes=%d/batch=%d", size, batch), func(b *testing.B) {
				g := newBenchGroup(b, size)
				data := make([]byte, 128)
				b.ReportAllocs()
				b.ResetTimer()
				for left := b.N; left > 0; left -= batch {
					g.now += 1000
					for range min(batch, left) {
						if _, _, err := g.nodes[0].Propose(g.now, data); err != nil {
							b.Fatal(err)
						}
					}
					g.settle(b)
				}
				if got := int(g.done); got < b.N {
					b.Fatalf("%d commands expected to be applied, found %d", b.N, got)
				}
			})
		}
	}
}
