package sched

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/sys"
)

const (
	second = Time(1e9)
	mib    = int64(1) << 20
)

// testNodes are three nodes of 4 CPUs and 4 GiB; n3 is the arm64 one.
func testNodes() []Node {
	var nodes []Node
	for i, arch := range []string{"amd64", "amd64", "arm64"} {
		id := sys.NodeID(i + 1)
		nodes = append(nodes, Node{ID: id, Name: id.String(), Capacity: Resources{4000, 4096 * mib}, Labels: map[string]string{"arch": arch}})
	}
	return nodes
}

func gang(id GangID, size int, cpu int64) Gang {
	return Gang{ID: id, User: "ann", Size: size, Each: Resources{CPU: cpu}}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes func(n []Node)
		gang  func(g *Gang)
		want  []sys.NodeID // none: it waits
		why   string
	}{
		{"spread over all", nil, func(g *Gang) { g.Size = 3 }, []sys.NodeID{1, 2, 3}, "spread over 3 of 3"},
		{"spread, the emptiest first", func(n []Node) { n[0].Used.CPU = 2000 }, func(g *Gang) { g.Size = 1 }, []sys.NodeID{2}, ""},
		{"twice round when there are more than nodes", nil, func(g *Gang) { g.Size = 6 }, []sys.NodeID{1, 1, 2, 2, 3, 3}, ""},
		{"pack on one", nil, func(g *Gang) { g.Size, g.Policy = 3, Pack }, []sys.NodeID{1, 1, 1}, "packed over 1 of 3"},
		{"pack, the fullest first", func(n []Node) { n[1].Used.CPU = 2000 }, func(g *Gang) { g.Size, g.Policy = 2, Pack }, []sys.NodeID{2, 2}, ""},
		{"near its bytes", nil, func(g *Gang) { g.Size, g.Near = 1, map[sys.NodeID]int64{3: 100} }, []sys.NodeID{3}, "holding 100% of the bytes"},
		{"near, as far as there is room", func(n []Node) { n[2].Used.CPU = 3000 }, func(g *Gang) { g.Size, g.Near = 2, map[sys.NodeID]int64{3: 100} }, []sys.NodeID{1, 3}, ""},
		{"labels", nil, func(g *Gang) { g.Size, g.Want = 2, []Label{{"arch", "arm64"}} }, []sys.NodeID{3, 3}, ""},
		{"named nodes", nil, func(g *Gang) { g.Size, g.On = 2, []sys.NodeID{2} }, []sys.NodeID{2, 2}, ""},
		{"not on a node that drains", func(n []Node) { n[0].Draining = true }, func(g *Gang) { g.Size = 2 }, []sys.NodeID{2, 3}, ""},
		{"not where it was refused", nil, func(g *Gang) { g.Size = 2; g.Refuse(-second/10, 2, "no room") }, []sys.NodeID{1, 3}, ""},
		{"there again after a while", nil, func(g *Gang) { g.Size = 3; g.Refuse(-second, 2, "no room") }, []sys.NodeID{1, 2, 3}, ""},
		{"all or nothing", nil, func(g *Gang) { g.Size = 13 }, nil, "room for 12 of 13 processes of 1 CPUs"},
		{"memory counts, too", nil, func(g *Gang) { g.Size, g.Each.Memory = 4, 3000*mib }, nil, "room for 3 of 4"},
		{"a node that has shrunk", func(n []Node) { n[0].Used.CPU = 9000 }, func(g *Gang) { g.Size = 9 }, nil, "room for 8 of 9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Snapshot{Nodes: testNodes(), Queue: []Gang{gang(1, 1, 1000)}}
			if c.nodes != nil {
				c.nodes(s.Nodes)
			}
			c.gang(&s.Queue[0])
			p := MakePlan(&s)
			if len(p.Start)+len(p.Wait) != 1 {
				t.Fatalf("one answer expected, found %+v", p)
			}
			why := ""
			if c.want != nil && len(p.Start) == 1 {
				why = p.Start[0].Why
			} else if c.want == nil && len(p.Wait) == 1 {
				why = p.Wait[0].Why
			} else {
				t.Fatalf("%v expected, found %+v", c.want, p)
			}
			if c.want != nil && !slices.Equal(p.Start[0].Nodes, c.want) || !strings.Contains(why, c.why) {
				t.Errorf("%v (%s) expected, found %+v", c.want, c.why, p)
			}
		})
	}
}

// TestNobodyToAsk: why a gang waits when there is no node that could be asked.
func TestNobodyToAsk(t *testing.T) {
	for want, down := range map[string][]sys.NodeID{"sign of life": nil, "all nodes are down": {1, 2}} {
		if p := MakePlan(&Snapshot{Queue: []Gang{gang(1, 1, 1000)}, Down: down}); len(p.Wait) != 1 || !strings.Contains(p.Wait[0].Why, want) {
			t.Errorf("%q expected, found %+v", want, p)
		}
	}
}

// TestNearerFirst: where the oldest would be far from its bytes, those like it that
// are near go first, and nobody who came much later.
func TestNearerFirst(t *testing.T) {
	for _, c := range []struct {
		name  string
		other func(g *Gang)
		first GangID
	}{
		{"one that is near", func(*Gang) {}, 2},
		{"not one that is far, too", func(g *Gang) { g.Near = map[sys.NodeID]int64{2: 100} }, 1},
		{"not one that came much later", func(g *Gang) { g.Submitted = 31 * second }, 1},
		{"not one that needs less", func(g *Gang) { g.Each.CPU = 500 }, 1},
		{"not somebody else's", func(g *Gang) { g.User = "bob" }, 1},
		{"not one that was refused", func(g *Gang) { g.Refuse(0, 2, "no") }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Snapshot{Now: 60 * second, Nodes: testNodes(), Queue: []Gang{gang(1, 1, 1000), gang(2, 1, 1000)}}
			s.Nodes[0].Used.CPU, s.Nodes[1].Used.CPU, s.Nodes[2].Used.CPU = 4000, 4000, 3000
			s.Queue[0].Near, s.Queue[1].Near = map[sys.NodeID]int64{1: 100, 2: 95}, map[sys.NodeID]int64{2: 100, 3: 95}
			c.other(&s.Queue[1])
			p := MakePlan(&s)
			if len(p.Start) != 1 || p.Start[0].Gang != c.first || p.Start[0].Nodes[0] != 3 {
				t.Errorf("gang %d on n3 expected, found %+v", c.first, p)
			}
		})
	}
}

// TestExplain: every node says why it will not do.
func TestExplain(t *testing.T) {
	s := Snapshot{Nodes: testNodes(), Now: 10 * second}
	s.Nodes = append(s.Nodes, s.Nodes[0], s.Nodes[0], s.Nodes[0])
	for i := range s.Nodes {
		s.Nodes[i].ID = sys.NodeID(i + 1)
	}
	s.Nodes[1].Draining = true
	s.Nodes[3].Used = Resources{3500, 4000 * mib}
	s.Nodes[4].Labels = nil
	g := gang(7, 2, 1500)
	g.Each.Memory = 512 * mib
	g.Want = []Label{{"arch", "amd64"}}
	g.On = []sys.NodeID{1, 2, 3, 4, 5}
	g.Refuse(10*second-second/10, 1, "its reservations are full")
	s.Queue = []Gang{g}
	want := []string{
		"refused 0.1 s ago: its reservations are full; asked again in 0.4 s",
		"is being drained",
		"has arch=arm64 (amd64 wanted)",
		"room for 0 of 2: 0.5 of 4 CPUs free, 1.5 needed for each; 96 of 4096 MiB free, 512 needed for each",
		"has no label arch (amd64 wanted)",
		"is not among the nodes asked for",
	}
	for i, r := range Explain(&s, 7) {
		if r.Why != want[i] || r.Node != sys.NodeID(i+1) {
			t.Errorf("node %d: %q expected, found %+v", i+1, want[i], r)
		}
	}
	if Explain(&s, 8) != nil {
		t.Error("nothing expected of a gang that is not in the queue")
	}
}

// TestRefusals: another proposal at once, then at growing intervals, each leaving out who has refused.
func TestRefusals(t *testing.T) {
	s := Snapshot{Nodes: testNodes(), Queue: []Gang{gang(1, 1, 1000)}}
	g := &s.Queue[0]
	var asked []sys.NodeID
	for s.Now = 0; s.Now < 4*second; s.Now += second / 100 {
		p := MakePlan(&s)
		if len(p.Start) == 1 {
			asked = append(asked, p.Start[0].Nodes[0])
			g.Refuse(s.Now, p.Start[0].Nodes[0], "no")
			continue
		}
		if why := p.Wait[0].Why; !strings.Contains(why, "refused: no; tried") && !strings.Contains(why, "room for 0") {
			t.Fatalf("a reason expected that names the refusal, found %q", why)
		}
	}
	// 1 at 0 s, 2 at once, then waits of 0.5, 1, 2 s and so on; 1's first refusal has passed by the third.
	if len(asked) < 4 || len(asked) > 6 || asked[0] != 1 || asked[1] != 2 {
		t.Errorf("a few proposals to different nodes expected in 4 s, found %v", asked)
	}
	if g.Tries != len(asked) {
		t.Errorf("%d tries expected, found %d", len(asked), g.Tries)
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		gang func(g *Gang)
		want string // "" when it can start some day
	}{
		{"fits when all is empty", func(g *Gang) { g.Size = 12 }, ""},
		{"one too many", func(g *Gang) { g.Size = 13 }, "room for 12 processes of 1 CPUs in all, 13 wanted"},
		{"larger than any node", func(g *Gang) { g.Each.CPU = 4500 }, "the largest node has 4 CPUs and 4.0 GiB"},
		{"unknown label", func(g *Gang) { g.Want = []Label{{"gpu", "a100"}} }, "n3 has no label gpu (a100 wanted)"},
		{"unknown node", func(g *Gang) { g.On = []sys.NodeID{9} }, "is not among the nodes asked for"},
		{"no process", func(g *Gang) { g.Size = 0 }, "a gang of 1 to 65536"},
		{"nothing needed", func(g *Gang) { g.Each = Resources{} }, "needs some CPU or memory"},
		{"less than nothing", func(g *Gang) { g.Each.Memory = -1 }, "needs some CPU or memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := testNodes()
			nodes[0].Used, nodes[1].Draining = nodes[0].Capacity, true // that passes
			g := gang(1, 1, 1000)
			c.gang(&g)
			err := Check(&g, nodes)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q expected, found %v", c.want, err)
			}
			if err != nil && g.Size > 0 && g.Each.CPU > 0 && g.Each.Memory == 0 && !errors.Is(err, ErrNever) {
				t.Errorf("ErrNever expected, found %v", err)
			}
		})
	}
}

// TestHold: a gang that has waited long gets places held, and what is known to end in time may start there.
func TestHold(t *testing.T) {
	s := Snapshot{Nodes: testNodes(), Now: 100 * second}
	for i := range s.Nodes {
		s.Nodes[i].Used.CPU = 2000
		s.Running = append(s.Running, Running{Node: s.Nodes[i].ID, Uses: Resources{CPU: 2000}, Until: 110 * second})
	}
	large := gang(1, 8, 1000)
	small, short, long := gang(2, 1, 1000), gang(3, 1, 1000), gang(4, 1, 1000)
	short.Limit, long.Limit = 10*second, 11*second
	s.Queue = []Gang{large, small, short, long}
	for i := range s.Queue {
		s.Queue[i].Submitted = 90 * second
	}
	started := func() (ids []GangID) {
		for _, p := range MakePlan(&s).Start {
			ids = append(ids, p.Gang)
		}
		return ids
	}
	if ids := started(); !slices.Equal(ids, []GangID{2, 3, 4}) {
		t.Errorf("backfill expected, found %v", ids)
	}
	// The large one holds two nodes, n1 and n2. There is room for two on n3, which nobody holds.
	s.Queue[0].Submitted = 0
	s.Nodes[2].Used.CPU = 4000
	if ids := started(); !slices.Equal(ids, []GangID{3}) {
		t.Errorf("only what ends in time expected, found %v", ids)
	}
	w := MakePlan(&s).Wait[0]
	if !slices.Equal(w.Held, []sys.NodeID{1, 2}) || !strings.Contains(w.Why, "held on 2 nodes") {
		t.Errorf("places held on n1 and n2 expected, found %+v", w)
	}
	if r := Explain(&s, 2); !strings.Contains(r[0].Why, "4 CPUs held for another") || r[0].Holder != 1 || r[2].Holder != 0 {
		t.Errorf("a reason expected that names the hold, found %+v", r)
	}
	s.Running[0].Until = 111 * second
	if ids := started(); !slices.Equal(ids, []GangID{3, 4}) {
		t.Errorf("what ends before the last of the held places is free expected, found %v", ids)
	}
	s.Running = s.Running[1:]
	if ids := started(); len(ids) > 0 {
		t.Errorf("nothing expected in held places when nobody knows how long they will be needed, found %v", ids)
	}
	for i := range s.Nodes {
		s.Nodes[i].Used = Resources{}
	}
	if ids := started(); !slices.Equal(ids, []GangID{1, 2, 3, 4}) {
		t.Errorf("all expected to start, found %v", ids)
	}
}

// Who waits for named nodes is told what is the matter with those.
func TestWaitsForNamedNodes(t *testing.T) {
	nodes := []Node{{ID: 1, Name: "n1", Capacity: Resources{CPU: 4000}}, {ID: 2, Name: "n2", Capacity: Resources{CPU: 4000}, Draining: true}}
	for _, tc := range []struct {
		on   []sys.NodeID
		cpu  int64
		want string
	}{
		{[]sys.NodeID{2}, 1000, "n2 is being drained"},
		{[]sys.NodeID{3}, 1000, "n3 is down"},
		{[]sys.NodeID{2, 3}, 1000, "n2 is being drained; n3 is down"},
		{[]sys.NodeID{1, 3}, 9000, "room for 0 of 1 processes of 9 CPUs now"},
		{[]sys.NodeID{1, 2}, 9000, "room for 0 of 1 processes of 9 CPUs now; n2 is being drained"},
		{nil, 9000, "room for 0 of 1 processes of 9 CPUs now; n2 is being drained"},
	} {
		p := MakePlan(&Snapshot{Nodes: nodes, Queue: []Gang{{ID: 1, Size: 1, Each: Resources{CPU: tc.cpu}, On: tc.on}}})
		if len(p.Wait) != 1 || p.Wait[0].Why != tc.want {
			t.Errorf("on %v: %+v, want %q", tc.on, p, tc.want)
		}
	}
}

// Who waits where nodes are being drained is told which, or that all are.
func TestWaitsForDrainedNodes(t *testing.T) {
	for _, tc := range []struct {
		draining int // of six nodes
		down     []sys.NodeID
		want     string
	}{
		{0, nil, "room for 0 of 1 processes of 9 CPUs now"},
		{1, nil, "room for 0 of 1 processes of 9 CPUs now; n1 is being drained"},
		{3, nil, "room for 0 of 1 processes of 9 CPUs now; n1, n2, n3 are being drained"},
		{5, nil, "room for 0 of 1 processes of 9 CPUs now; n1, n2, n3, and 2 more are being drained"},
		{6, nil, "all nodes are being drained"},
		{0, []sys.NodeID{8, 7}, "room for 0 of 1 processes of 9 CPUs now; n7, n8 are down"},
		{1, []sys.NodeID{7}, "room for 0 of 1 processes of 9 CPUs now; n7 is down; n1 is being drained"},
		{6, []sys.NodeID{7}, "room for 0 of 1 processes of 9 CPUs now; n7 is down; n1, n2, n3, and 3 more are being drained"},
	} {
		s := &Snapshot{Queue: []Gang{{ID: 1, Size: 1, Each: Resources{CPU: 9000}}}, Down: tc.down}
		for i := range 6 {
			id := sys.NodeID(i + 1)
			s.Nodes = append(s.Nodes, Node{ID: id, Name: id.String(), Capacity: Resources{CPU: 4000}, Draining: i < tc.draining})
		}
		if p := MakePlan(s); len(p.Wait) != 1 || p.Wait[0].Why != tc.want {
			t.Errorf("%d draining: %+v, want %q", tc.draining, p, tc.want)
		}
		if rs := Explain(s, 1); len(rs) != 6+len(tc.down) || len(tc.down) > 0 && (rs[6].Node != 7 || rs[6].Why != "is down") {
			t.Errorf("explained: %+v", rs)
		}
	}
	down := &Snapshot{Queue: []Gang{{ID: 1, Size: 1, Each: Resources{CPU: 9000}}}, Down: []sys.NodeID{1, 2}}
	if p := MakePlan(down); len(p.Wait) != 1 || p.Wait[0].Why != "all nodes are down" {
		t.Errorf("%+v", p)
	}
}

// BenchmarkLongQueue plans with 10,000 gangs in the queue, also where none of
// them can be near its bytes.
func BenchmarkLongQueue(b *testing.B) {
	for name, near := range map[string]map[sys.NodeID]int64{"plain": nil, "far": {9: 1}} {
		b.Run(name, func(b *testing.B) {
			s := Snapshot{Nodes: testNodes(), Now: second}
			for id := GangID(1); id <= 10_000; id++ {
				g := gang(id, 1, 1)
				g.Near = near
				s.Queue = append(s.Queue, g)
			}
			for b.Loop() {
				MakePlan(&s)
			}
		})
	}
}
