package sched

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/koinon/koinon/internal/sys"
	"pgregory.net/rapid"
)

func drawSnapshot(t *rapid.T) Snapshot {
	s := Snapshot{Now: 1000 * second, Ledger: &Ledger{Use: map[string]uint64{}}}
	arches := []string{"amd64", "arm64"}
	for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
		n := Node{ID: sys.NodeID(i + 1), Capacity: Resources{rapid.Int64Range(0, 8000).Draw(t, "cpu"), rapid.Int64Range(0, 8).Draw(t, "GiB") << 30}}
		n.Used = Resources{rapid.Int64Range(0, 9000).Draw(t, "used cpu"), rapid.Int64Range(0, 9).Draw(t, "used GiB") << 30}
		n.Labels = map[string]string{"arch": rapid.SampledFrom(arches).Draw(t, "arch")}
		n.Draining = rapid.IntRange(0, 5).Draw(t, "draining") == 0
		if rapid.Bool().Draw(t, "known end") {
			s.Running = append(s.Running, Running{n.ID, n.Used, s.Now + Time(rapid.IntRange(-5, 100).Draw(t, "ends"))*second})
		}
		s.Nodes = append(s.Nodes, n)
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "gangs") {
		g := Gang{ID: GangID(i + 1), User: rapid.SampledFrom([]string{"ann", "bob", "cem"}).Draw(t, "user"), Size: rapid.IntRange(1, 6).Draw(t, "size")}
		g.Each = Resources{rapid.Int64Range(1, 4000).Draw(t, "each cpu"), rapid.Int64Range(0, 2).Draw(t, "each GiB") << 30}
		g.Policy = rapid.SampledFrom([]Policy{Spread, Pack}).Draw(t, "policy")
		g.Submitted = Time(rapid.IntRange(900, 1000).Draw(t, "submitted")) * second
		g.Limit = Time(rapid.IntRange(0, 90).Draw(t, "limit")) * second
		if rapid.IntRange(0, 3).Draw(t, "wants") == 0 {
			g.Want = []Label{{"arch", rapid.SampledFrom(arches).Draw(t, "arch")}}
		}
		if rapid.IntRange(0, 3).Draw(t, "near") == 0 {
			g.Near = map[sys.NodeID]int64{1: rapid.Int64Range(0, 100).Draw(t, "near 1"), 2: rapid.Int64Range(0, 100).Draw(t, "near 2")}
		}
		if rapid.IntRange(0, 3).Draw(t, "refused") == 0 {
			g.Refuse(s.Now-Time(rapid.IntRange(0, 1000).Draw(t, "ms ago"))*second/1000, 1, "no")
		}
		s.Queue = append(s.Queue, g)
	}
	s.Ledger.Use["ann"] = rapid.Uint64Range(0, billion).Draw(t, "use of ann")
	s.Ledger.Use["bob"] = rapid.Uint64Range(0, billion).Draw(t, "use of bob")
	return s
}

// TestPlans: of every snapshot, whatever it is, a plan starts gangs whole, only where they may and within what is free,
// answers for every gang, and does not depend on the order in which things are listed.
func TestPlans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSnapshot(t)
		p := MakePlan(&s)
		answers := map[GangID]int{}
		free := map[sys.NodeID]Resources{}
		for _, n := range s.Nodes {
			free[n.ID] = n.Capacity.Minus(n.Used)
		}
		for _, st := range p.Start {
			answers[st.Gang]++
			g := s.Queue[st.Gang-1]
			if len(st.Nodes) != g.Size {
				t.Fatalf("gang %d expected whole, found on %v", g.ID, st.Nodes)
			}
			for _, id := range st.Nodes {
				n := nodeState{Node: s.Nodes[id-1]}
				if why := n.refuses(&g, s.Now); why != "" {
					t.Fatalf("gang %d on %v, which %s", g.ID, id, why)
				}
				if free[id] = free[id].Minus(g.Each); free[id].CPU < 0 || g.Each.Memory > 0 && free[id].Memory < 0 {
					t.Fatalf("gang %d on %v: more than is free", g.ID, id)
				}
			}
		}
		held := false
		for _, w := range p.Wait {
			answers[w.Gang]++
			held = held || len(w.Held) > 0
			if w.Why == "" {
				t.Fatalf("gang %d waits without a reason", w.Gang)
			}
		}
		if len(answers) != len(s.Queue) || len(p.Start)+len(p.Wait) != len(s.Queue) {
			t.Fatalf("an answer for each of %d gangs expected, found %v", len(s.Queue), answers)
		}
		for _, w := range p.Wait {
			if g := s.Queue[w.Gang-1]; !held && s.Now >= g.NotBefore && fits(&s, free, &g) {
				t.Fatalf("gang %d waits although there is room: %s", g.ID, w.Why)
			}
		}
		r := s
		r.Nodes, r.Queue, r.Running = slices.Clone(s.Nodes), slices.Clone(s.Queue), slices.Clone(s.Running)
		slices.Reverse(r.Nodes)
		slices.Reverse(r.Queue)
		slices.Reverse(r.Running)
		if q := MakePlan(&r); !reflect.DeepEqual(p, q) {
			t.Fatalf("the same plan expected whatever the order, found\n%+v\n%+v", p, q)
		}
		for _, g := range s.Queue { // never panics, and says why or how many
			for _, e := range Explain(&s, g.ID) {
				if (e.Why == "") != (e.Room == int64(g.Size)) {
					t.Fatalf("a reason or room for all of gang %d expected, found %+v", g.ID, e)
				}
			}
		}
	})
}

func fits(s *Snapshot, free map[sys.NodeID]Resources, g *Gang) bool {
	room := int64(0)
	for _, n := range s.Nodes {
		st := nodeState{Node: n}
		if st.refuses(g, s.Now) == "" {
			room += free[n.ID].slots(g.Each)
		}
	}
	return room >= int64(g.Size)
}

// clusterSim runs gangs as planned, second by second.
type clusterSim struct {
	s       Snapshot
	started map[GangID]Time
	running []simGang
}

type simGang struct {
	gang  Gang
	nodes []sys.NodeID
	ends  Time
}

func (c *clusterSim) second(lasts func(g *Gang) Time) {
	total := Resources{}
	for i := range c.s.Nodes {
		c.s.Nodes[i].Used = Resources{}
		total = total.Plus(c.s.Nodes[i].Capacity)
	}
	c.running = slices.DeleteFunc(c.running, func(r simGang) bool { return r.ends <= c.s.Now })
	for _, r := range c.running {
		for _, id := range r.nodes {
			c.s.Nodes[id-1].Used = c.s.Nodes[id-1].Used.Plus(r.gang.Each)
		}
		c.s.Ledger.Charge(c.s.Now, r.gang.User, Share(total, r.gang.Each.Times(int64(r.gang.Size))), second)
	}
	for _, p := range MakePlan(&c.s).Start {
		i := slices.IndexFunc(c.s.Queue, func(g Gang) bool { return g.ID == p.Gang })
		g := c.s.Queue[i]
		c.s.Queue = slices.Delete(c.s.Queue, i, i+1)
		c.running = append(c.running, simGang{g, p.Nodes, c.s.Now + lasts(&g)})
		c.started[g.ID] = c.s.Now
	}
	c.s.Now += second
}

// TestNoStarvation: a gang that needs the whole cluster starts in spite of an endless stream of small ones, of its own user
// and of others, soon after its patience is over. The seed decides what the small ones are like.
func TestNoStarvation(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			c := clusterSim{s: Snapshot{Nodes: testNodes(), Ledger: &Ledger{}}, started: map[GangID]Time{}}
			const large, lastsMax = GangID(50), 40 * second
			for id := GangID(1); c.started[large] == 0; {
				for range rng.IntN(8) {
					g := Gang{ID: id, User: []string{"ann", "bob"}[rng.IntN(2)], Size: 1, Each: Resources{CPU: 500 + rng.Int64N(1500)}, Submitted: c.s.Now}
					if id == large {
						g = Gang{ID: id, User: "ann", Size: 12, Each: Resources{CPU: 1000}, Submitted: c.s.Now}
					}
					c.s.Queue = append(c.s.Queue, g)
					id++
				}
				c.second(func(*Gang) Time { return second + Time(rng.Int64N(int64(lastsMax))) })
				if c.s.Now > 600*second {
					t.Fatalf("the large gang is still waiting after %d s, %d have started", c.s.Now/second, len(c.started))
				}
			}
		})
	}
}

// TestLocality: of an array of twice as many tasks as there are places, each near
// to some nodes, nearly all run there, however long each takes, and no place
// stays empty for it. The seed decides who is near to what.
func TestLocality(t *testing.T) {
	near, all := 0, 0
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 2))
		c := clusterSim{s: Snapshot{Nodes: testNodes(), Ledger: &Ledger{}}, started: map[GangID]Time{}}
		const tasks, places = 24, 12
		for id := GangID(1); id <= tasks; id++ {
			far := sys.NodeID(1 + rng.IntN(3))
			g := Gang{ID: id, User: "ann", Size: 1, Each: Resources{CPU: 1000}, Near: map[sys.NodeID]int64{}}
			for n := sys.NodeID(1); n <= 3; n++ {
				if n != far {
					g.Near[n] = 1 << 20
				}
			}
			c.s.Queue = append(c.s.Queue, g)
		}
		for len(c.started) < tasks {
			before := len(c.started)
			c.second(func(*Gang) Time { return second + Time(rng.Int64N(int64(60*second))) })
			for _, r := range c.running[len(c.running)-(len(c.started)-before):] {
				if all++; r.gang.Near[r.nodes[0]] > 0 {
					near++
				}
			}
			if len(c.running) < min(places, tasks) && len(c.s.Queue) > 0 {
				t.Fatalf("seed %d: all places taken expected, found %d of %d with %d waiting", seed, len(c.running), places, len(c.s.Queue))
			}
		}
	}
	t.Logf("%d of %d near", near, all)
	if near*100 < all*95 {
		t.Errorf("at least 95%% of the tasks near to their bytes expected, found %d of %d", near, all)
	}
}

// TestFairness: users who always have something waiting get the cluster in proportion to their weights, however many
// gangs each has and however large they are.
func TestFairness(t *testing.T) {
	c := clusterSim{s: Snapshot{Nodes: testNodes(), Ledger: &Ledger{Weights: map[string]uint64{"cem": 2}}}, started: map[GangID]Time{}}
	shape := map[string]Gang{"ann": {Size: 1, Each: Resources{CPU: 1000}}, "bob": {Size: 2, Each: Resources{CPU: 1500}}, "cem": {Size: 1, Each: Resources{CPU: 500}}}
	users := []string{"ann", "bob", "cem"}
	used := map[string]int64{}
	id := GangID(0)
	for c.s.Now < 2000*second {
		for _, u := range users {
			for waiting := countOf(c.s.Queue, u); waiting < map[string]int{"ann": 200, "bob": 10, "cem": 20}[u]; waiting++ {
				id++
				g := shape[u]
				g.ID, g.User, g.Submitted = id, u, c.s.Now
				c.s.Queue = append(c.s.Queue, g)
			}
		}
		c.second(func(g *Gang) Time { return 5*second + Time(g.ID%7)*second })
		for _, r := range c.running {
			used[r.gang.User] += r.gang.Each.CPU * int64(r.gang.Size)
		}
	}
	total := used["ann"] + used["bob"] + used["cem"]
	for u, want := range map[string]int64{"ann": 25, "bob": 25, "cem": 50} {
		if got := used[u] * 100 / total; got < want-4 || got > want+4 {
			t.Errorf("%s: about %d%% of what was used expected, found %d%%", u, want, got)
		}
	}
	if busy := total / 2000; busy < 11000 {
		t.Errorf("at least 11 of 12 CPUs expected to be busy, found %.1f", float64(busy)/1000)
	}
}

func countOf(queue []Gang, user string) (n int) {
	for _, g := range queue {
		if g.User == user {
			n++
		}
	}
	return n
}

// TestLedger: what was used halves in a half life, however often somebody looks.
func TestLedger(t *testing.T) {
	for _, step := range []Time{second, 7 * second, 900 * second} {
		l := Ledger{}
		l.Charge(0, "ann", billion/2, 1000*second)
		if l.Use["ann"] != 500*billion {
			t.Fatalf("500 cluster seconds expected, found %d", l.Use["ann"])
		}
		for now := Time(0); now <= 900*second; now += step {
			l.Advance(now)
		}
		if got := l.Use["ann"] / billion; got < 245 || got > 255 {
			t.Errorf("step %d s: about 250 cluster seconds expected after a half life, found %d", step/second, got)
		}
	}
	if got := Share(Resources{4000, 100}, Resources{1000, 75}); got != 750_000_000 {
		t.Errorf("the larger share expected, found %d", got)
	}
}

// BenchmarkPlan is a plan for 10,000 queued gangs on 100 nodes, of which 400 can start.
func BenchmarkPlan(b *testing.B) {
	s := Snapshot{DepthMax: 10000}
	for i := range 100 {
		s.Nodes = append(s.Nodes, Node{ID: sys.NodeID(i + 1), Capacity: Resources{CPU: 4000}})
	}
	for i := range 10000 {
		g := gang(GangID(i+1), 1, 1000)
		g.User = fmt.Sprint("user", i%10)
		s.Queue = append(s.Queue, g)
	}
	b.ReportAllocs()
	for b.Loop() {
		if p := MakePlan(&s); len(p.Start) != 400 || len(p.Wait) != 9600 {
			b.Fatalf("400 starts expected, found %d", len(p.Start))
		}
	}
}
