package placement

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/koinon/koinon/internal/sys"
)

func nodesOf(weights ...uint32) []Node {
	var nodes []Node
	for i, w := range weights {
		nodes = append(nodes, Node{ID: sys.NodeID(i + 1), Weight: w, Zone: fmt.Sprint("z", i)})
	}
	return nodes
}

// loads counts the groups of each node.
func loads(t *Table) map[sys.NodeID]int {
	m := make(map[sys.NodeID]int)
	for _, list := range t.PGs {
		for _, id := range list {
			m[id]++
		}
	}
	return m
}

// moves counts the replicas of b that a does not have.
func moves(a, b *Table) int {
	n := 0
	for pg := range b.PGs {
		for _, id := range b.PGs[pg] {
			if !slices.Contains(a.PGs[pg], id) {
				n++
			}
		}
	}
	return n
}

func mustAssign(t interface{ Fatalf(string, ...any) }, nodes []Node, pgs, replicas int) *Table {
	table, err := Assign(nodes, pgs, replicas)
	if err != nil {
		t.Fatalf("Assign: %v", err)
	}
	return table
}

func mustReassign(t interface{ Fatalf(string, ...any) }, old *Table, nodes []Node) *Table {
	table, err := Reassign(old, nodes)
	if err != nil {
		t.Fatalf("Reassign: %v", err)
	}
	return table
}

func TestAssignGivesEveryGroupItsReplicas(t *testing.T) {
	for _, c := range []struct{ nodes, pgs, replicas, want int }{
		{1, 1, 1, 1}, {1, 256, 3, 1}, {2, 256, 3, 2}, {3, 256, 3, 3}, {5, 256, 3, 3}, {20, 1024, 2, 2}, {4, 65536, 3, 3},
	} {
		table := mustAssign(t, nodesOf(slices.Repeat([]uint32{100}, c.nodes)...), c.pgs, c.replicas)
		if table.Epoch != 1 || len(table.PGs) != c.pgs {
			t.Fatalf("%+v: epoch %d, %d groups", c, table.Epoch, len(table.PGs))
		}
		for pg, list := range table.PGs {
			sorted := slices.Clone(list)
			slices.Sort(sorted)
			if len(slices.Compact(sorted)) != c.want {
				t.Fatalf("%+v: group %d on %v", c, pg, list)
			}
		}
	}
}

func TestBadArgumentsAreRefused(t *testing.T) {
	for name, f := range map[string]func() error{
		"no power of two":   func() error { _, err := Assign(nodesOf(1), 100, 3); return err },
		"too many groups":   func() error { _, err := Assign(nodesOf(1), 1<<17, 3); return err },
		"no replicas":       func() error { _, err := Assign(nodesOf(1), 256, 0); return err },
		"node 0":            func() error { _, err := Assign([]Node{{Weight: 1}}, 256, 3); return err },
		"a node twice":      func() error { _, err := Assign([]Node{{ID: 1, Weight: 1}, {ID: 1, Weight: 1}}, 256, 3); return err },
		"too much weight":   func() error { _, err := Assign(nodesOf(MaxWeight+1), 256, 3); return err },
		"reassign no table": func() error { _, err := Reassign(&Table{}, nodesOf(1)); return err },
	} {
		if err := f(); !sys.Is(err, sys.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if _, err := Assign(nodesOf(0, 0), 256, 3); !sys.Is(err, sys.Unavailable) {
		t.Errorf("nodes without weight: %v, want Unavailable", err)
	}
}

// Reads the draws against the formula in floating point.
func TestDrawFollowsTheFormula(t *testing.T) {
	for _, h := range []uint64{0, 1, 1 << 20, 1<<63 - 1, 1 << 63, 0xdeadbeefcafebabe, 1<<64 - 2, 1<<64 - 1} {
		want := -(math.Log2(float64(h)+1) - 64) * (1 << 40)
		if got := float64(negLog2(h)); math.Abs(got-want) > 1024 {
			t.Errorf("negLog2(%#x) = %v, want %v", h, got, want)
		}
	}
}

// The table is written to logs and computed on machines of different kinds: it
// must never change for the same arguments.
func TestAssignIsStable(t *testing.T) {
	table := mustAssign(t, nodesOf(100, 200, 100, 50, 100), 8, 3)
	want := "[[n4 n1 n2] [n2 n4 n5] [n1 n4 n2] [n2 n3 n5] [n5 n3 n2] [n5 n2 n3] [n1 n5 n2] [n2 n3 n1]]"
	if got := fmt.Sprint(table.PGs); got != want {
		t.Errorf("Assign gave\n%s, want\n%s", got, want)
	}
}

// cluster draws nodes with weights and zones.
func cluster(t *rapid.T, zoned bool) []Node {
	n := rapid.IntRange(1, 14).Draw(t, "nodes")
	var nodes []Node
	for i := range n {
		node := Node{ID: sys.NodeID(i + 1), Weight: uint32(rapid.IntRange(1, 8).Draw(t, "weight") * 100)}
		if zoned {
			node.Zone = fmt.Sprint("z", rapid.IntRange(0, 4).Draw(t, "zone"))
		}
		nodes = append(nodes, node)
	}
	return nodes
}

func zonesOf(nodes []Node) map[sys.NodeID]string {
	m := make(map[sys.NodeID]string)
	for _, n := range nodes {
		m[n.ID] = n.Zone
	}
	return m
}

// sound checks what holds of every table: the right number of different able
// nodes, and as many failure domains as possible.
func sound(t *rapid.T, table *Table, nodes []Node) {
	zone, able, zones := zonesOf(nodes), map[sys.NodeID]bool{}, map[string]int{}
	for _, n := range nodes {
		if n.Weight > 0 {
			able[n.ID] = true
			zones[n.Zone]++
		}
	}
	width := min(table.Replicas, len(able))
	for pg, list := range table.PGs {
		used := map[string]bool{}
		for i, id := range list {
			if !able[id] || slices.Contains(list[:i], id) {
				t.Fatalf("group %d on %v", pg, list)
			}
			used[zone[id]] = true
		}
		if len(list) != width || len(used) < min(width, len(zones)) {
			t.Fatalf("group %d on %v: %d nodes in %d zones, want %d in %d", pg, list, len(list), len(used), width, min(width, len(zones)))
		}
		for _, id := range table.From[pg] {
			if slices.Contains(list, id) || zone[id] == "" && len(zones) > 1 && !slices.ContainsFunc(nodes, func(n Node) bool { return n.ID == id }) {
				t.Fatalf("group %d on %v has source %v", pg, list, id)
			}
		}
	}
}

// balanced checks that every node has its quota, rounded up or down.
func balanced(t *rapid.T, table *Table, nodes []Node) {
	p, err := newPlan(table, nodes)
	if err != nil {
		t.Fatal(err)
	}
	load := loads(table)
	for i, n := range p.nodes {
		if l := load[n.ID]; l < p.low[i] || l > p.high[i] {
			t.Fatalf("node %v of weight %d holds %d, quota %d to %d; loads %v", n.ID, n.Weight, l, p.low[i], p.high[i], load)
		}
	}
}

func TestTablesAreSoundAndBalanced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := cluster(t, false)
		table := mustAssign(t, nodes, 256, rapid.IntRange(1, 5).Draw(t, "replicas"))
		sound(t, table, nodes)
		balanced(t, table, nodes)
		slices.Reverse(nodes)
		if again := mustAssign(t, nodes, 256, table.Replicas); !slices.EqualFunc(again.PGs, table.PGs, slices.Equal) {
			t.Fatal("the order of the nodes changed the table")
		}
		if again := mustReassign(t, table, nodes); again != table {
			t.Fatalf("reassigning to the same nodes moved %d replicas", moves(table, again))
		}
	})
}

// A large node among small ones can be filled only by way of others.
func TestALargeNodeGetsItsQuota(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.SliceOfN(rapid.Uint32Range(1, 3), 8, 14).Draw(t, "small")
		nodes := nodesOf(append(small, rapid.Uint32Range(4, 12).Draw(t, "large"))...)
		for i := range nodes {
			nodes[i].Zone, nodes[i].Weight = "", nodes[i].Weight*100
		}
		table := mustAssign(t, nodes, 256, 5)
		sound(t, table, nodes)
		balanced(t, table, nodes)
	})
}

func TestZonesAreSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := cluster(t, true)
		table := mustAssign(t, nodes, 128, rapid.IntRange(1, 4).Draw(t, "replicas"))
		sound(t, table, nodes)
		for step := range 4 {
			switch rapid.IntRange(0, 2).Draw(t, "change") {
			case 0:
				nodes = append(nodes, Node{ID: sys.NodeID(step + 100), Weight: 300, Zone: fmt.Sprint("z", rapid.IntRange(0, 6).Draw(t, "zone"))})
			case 1:
				nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "which")].Weight = 200
			default:
				if at := rapid.IntRange(0, len(nodes)-1).Draw(t, "which"); len(nodes) > 1 {
					nodes = slices.Delete(slices.Clone(nodes), at, at+1)
				}
			}
			table = mustReassign(t, table, nodes)
			sound(t, table, nodes)
		}
	})
}

func TestJoinMovesOnlyToTheNewNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := cluster(t, false)
		old := mustAssign(t, nodes, 256, 3)
		joined := append(slices.Clone(nodes), Node{ID: 99, Weight: uint32(rapid.IntRange(1, 8).Draw(t, "weight") * 100)})
		table := mustReassign(t, old, joined)
		sound(t, table, joined)
		balanced(t, table, joined)
		if table.Epoch != old.Epoch+1 {
			t.Fatalf("epoch %d after %d", table.Epoch, old.Epoch)
		}
		// A little more than the new node's own may move when quotas shift by
		// rounding, at most one group a node.
		if m, own := moves(old, table), loads(table)[99]; m > own+len(joined) {
			t.Fatalf("%d replicas moved, the new node got %d", m, own)
		}
		for pg := range table.PGs {
			for _, id := range old.PGs[pg] {
				if !slices.Contains(table.PGs[pg], id) && !slices.Contains(table.From[pg], id) {
					t.Fatalf("group %d moved off %v, which is no source: %v", pg, id, table.From[pg])
				}
			}
		}
	})
}

func TestLossMovesOnlyWhatWasLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := append(cluster(t, false), Node{ID: 50, Weight: 400}, Node{ID: 51, Weight: 400}, Node{ID: 52, Weight: 400})
		old := mustAssign(t, nodes, 256, 3)
		at := rapid.IntRange(0, len(nodes)-1).Draw(t, "lost")
		gone, drained := nodes[at].ID, rapid.Bool().Draw(t, "drained")
		left := slices.Clone(nodes)
		if drained {
			left[at].Weight = 0
		} else {
			left = slices.Delete(left, at, at+1)
		}
		table := mustReassign(t, old, left)
		sound(t, table, left)
		balanced(t, table, left)
		// Quotas may shift so that a node must take more than it can inherit.
		if m, lost := moves(old, table), loads(old)[gone]; m > lost+lost/2+len(nodes) {
			t.Fatalf("%d replicas moved, the node held %d", m, lost)
		}
		for pg, list := range old.PGs {
			if slices.Contains(list, gone) && slices.Contains(table.From[pg], gone) != drained {
				t.Fatalf("group %d: drained %v, sources %v", pg, drained, table.From[pg])
			}
		}
		all := make([]sys.PG, len(table.PGs))
		for pg := range all {
			all[pg] = sys.PG(pg)
		}
		settled := table.Settle(all)
		if settled.Settle(all) != settled || drained && settled.Epoch != table.Epoch+1 {
			t.Fatal("Settle")
		}
	})
}

func TestMoreNodesRestoreTheReplicas(t *testing.T) {
	table := mustAssign(t, nodesOf(1, 1), 256, 3)
	table = mustReassign(t, table, nodesOf(1, 1, 1, 1))
	for pg, list := range table.PGs {
		if len(list) != 3 {
			t.Fatalf("group %d on %v after two nodes joined", pg, list)
		}
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	table := mustReassign(t, mustAssign(t, nodesOf(3, 1, 4, 1, 5), 64, 3), nodesOf(3, 1, 0, 1, 5))
	again, err := Unmarshal(table.Marshal())
	if err != nil || again.Epoch != table.Epoch || again.Replicas != 3 || !slices.EqualFunc(again.PGs, table.PGs, slices.Equal) ||
		!slices.EqualFunc(again.From, table.From, slices.Equal) {
		t.Fatalf("round trip: %v, %v", again, err)
	}
	if m := table.Members(); !slices.Equal(m, []sys.NodeID{1, 2, 3, 4, 5}) {
		t.Fatalf("members %v", m)
	}
	for _, b := range [][]byte{nil, []byte("x"), table.Marshal()[:20]} {
		if _, err := Unmarshal(b); !sys.Is(err, sys.Corrupt) {
			t.Fatalf("Unmarshal of garbage: %v", err)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(mustAssign(f, nodesOf(1, 2, 3), 8, 3).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := Unmarshal(b)
		if err != nil {
			return
		}
		if _, err := Unmarshal(table.Marshal()); err != nil {
			t.Fatalf("a table that was read cannot be read again: %v", err)
		}
	})
}

func BenchmarkReassign65536(b *testing.B) {
	nodes := nodesOf(slices.Repeat([]uint32{100}, 30)...)
	old := mustAssign(b, nodes, 65536, 3)
	for b.Loop() {
		mustReassign(b, old, nodes[:29])
	}
}
