package paxos

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// noLog is a log that nothing can be read from.
type noLog struct{}

func (noLog) Entries(Slot, Slot, int) ([]Entry, error) { return nil, errors.New("nothing here") }

func testConfig(id NodeID, voters ...NodeID) Config {
	return Config{ID: id, Voters: voters, Rand: rand.New(rand.NewPCG(1, uint64(id))), Log: noLog{}}
}

func TestConfigValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // part of the error; empty: none
	}{
		{"defaults", func(*Config) {}, ""},
		{"no id", func(c *Config) { c.ID = 0 }, "ID must not be 0"},
		{"no voters", func(c *Config) { c.Voters = nil }, ""},
		{"not a voter", func(c *Config) { c.ID = 9 }, "must include this node"},
		{"twice", func(c *Config) { c.Voters = []NodeID{1, 2, 2} }, "distinct"},
		{"alpha", func(c *Config) { c.Alpha = 1 }, "Alpha"},
		{"cache", func(c *Config) { c.CacheBytes = -1 }, "CacheBytes"},
		{"heartbeat", func(c *Config) { c.Heartbeat = 400e6 }, "Heartbeat"},
		{"lease", func(c *Config) { c.Lease = 501e6 }, "Lease"},
		{"drift", func(c *Config) { c.MaxDriftPPM = 1e6 }, "MaxDriftPPM"},
		{"rand", func(c *Config) { c.Rand = nil }, "Rand"},
		{"log", func(c *Config) { c.Log = nil }, "Log"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(1, 1, 2, 3)
			c.change(&cfg)
			err := cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("error with %q expected, found %v", c.want, err)
			}
		})
	}
}

// TestLeaseOfLeader: whatever two clocks within the allowed drift show, the leader's lease ends first.
func TestLeaseOfLeader(t *testing.T) {
	for _, ppm := range []int{1, 1000, 50_000, 200_000} {
		for _, lease := range []Time{1e6, 400e6, 10e9} {
			cfg := Config{Lease: lease, MaxDriftPPM: ppm}
			d := float64(ppm) / 1e6
			leaderReal := float64(cfg.leaseOfLeader()) / (1 - d) // a slow clock counts it
			followerReal := float64(lease) / (1 + d)             // a fast clock counts it
			if leaderReal >= followerReal {
				t.Errorf("lease %d at %d ppm: the leader believes in it for %f, it is granted for %f", lease, ppm, leaderReal, followerReal)
			}
			if got := cfg.leaseOfLeader(); got < lease/2 {
				t.Errorf("lease %d at %d ppm: at least half expected, found %d", lease, ppm, got)
			}
		}
	}
}

func TestStepRefusesNonsense(t *testing.T) {
	b := Ballot{Round: 3, Node: 2}
	ok := func(s Slot) Entry { return Entry{Slot: s, Ballot: b, Kind: Command} }
	for _, c := range []struct {
		name string
		m    Message
		want error
	}{
		{"from nobody", Message{Kind: MsgHeartbeat, To: 1, Ballot: Ballot{3, 0}}, ErrUnknownPeer},
		{"answer of a stranger", Message{Kind: MsgAccepted, From: 7, To: 1, Ballot: Ballot{3, 1}}, ErrUnknownPeer},
		{"round without a next one", Message{Kind: MsgHeartbeat, From: 2, To: 1, Ballot: Ballot{1 << 62, 2}}, ErrBadMessage},
		{"no configuration", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: b, Entries: []Entry{{Slot: 1, Ballot: b, Kind: Configure, Data: []byte{1}}}}, ErrBadMessage},
		{"another alpha", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: b,
			Entries: []Entry{{Slot: 1, Ballot: b, Kind: Configure, Data: encodeConfigure(Configuration{Voters: []NodeID{1}}, 77)}}}, ErrAlpha},
		{"from itself", Message{Kind: MsgHeartbeat, From: 1, To: 1, Ballot: Ballot{3, 1}}, ErrUnknownPeer},
		{"to another", Message{Kind: MsgHeartbeat, From: 2, To: 3, Ballot: b}, ErrUnknownPeer},
		{"no kind", Message{From: 2, To: 1, Ballot: b}, ErrBadMessage},
		{"unknown kind", Message{Kind: MsgRepairReply + 1, From: 2, To: 1, Ballot: b}, ErrBadMessage},
		{"another's ballot", Message{Kind: MsgHeartbeat, From: 2, To: 1, Ballot: Ballot{3, 3}}, ErrBadMessage},
		{"answer to another's ballot", Message{Kind: MsgAccepted, From: 2, To: 1, Ballot: Ballot{3, 3}}, ErrBadMessage},
		{"mute without a refusal", Message{Kind: MsgPromise, From: 2, To: 1, Ballot: Ballot{3, 1}, Mute: true}, ErrBadMessage},
		{"mute that tells", Message{Kind: MsgPromise, From: 2, To: 1, Ballot: Ballot{3, 1}, Slot: 1, Reject: true, Mute: true, Entries: []Entry{ok(1)}}, ErrBadMessage},
		{"mute acceptance", Message{Kind: MsgAccepted, From: 2, To: 1, Ballot: Ballot{3, 1}, Reject: true, Mute: true}, ErrBadMessage},
		{"gap", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: b, Entries: []Entry{ok(1), ok(3)}}, ErrBadMessage},
		{"falling", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: b, Entries: []Entry{ok(2), ok(1)}}, ErrBadMessage},
		{"slot zero", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: b, Entries: []Entry{ok(0)}}, ErrBadMessage},
		{"entry without kind", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: b, Entries: []Entry{{Slot: 1, Ballot: b}}}, ErrBadMessage},
		{"entry of another ballot", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: Ballot{4, 2}, Entries: []Entry{ok(1)}}, ErrBadMessage},
		{"promise outside its page", Message{Kind: MsgPromise, From: 2, To: 1, Ballot: Ballot{9, 1}, Slot: 4, Entries: []Entry{ok(3)}}, ErrBadMessage},
		{"page that ends before it begins", Message{Kind: MsgPromise, From: 2, To: 1, Ballot: Ballot{9, 1}, Slot: 4, Next: 4}, ErrBadMessage},
		{"sound", Message{Kind: MsgAccept, From: 2, To: 1, Ballot: b, Entries: []Entry{ok(1), ok(2)}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := New(testConfig(1, 1, 2, 3), Recovered{}, 0)
			if err := n.Step(1, c.m); !errors.Is(err, c.want) {
				t.Fatalf("%v expected, found %v", c.want, err)
			}
		})
	}
}

// TestSoleVoterWaitsForALease: whoever votes alone leads at once after a
// restart, unless a leader that has left may still hold a lease it granted.
func TestSoleVoterWaitsForALease(t *testing.T) {
	for _, c := range []struct {
		promised Ballot
		wait     bool
	}{
		{Ballot{}, false},
		{Ballot{Round: 3, Node: 1}, false},
		{Ballot{Round: 3, Node: 2}, true},
	} {
		cfg := testConfig(1, 1)
		cfg.Lease, cfg.ElectionTimeout = 100, 200
		n := New(cfg, Recovered{Promised: c.promised}, 1000)
		for now := Time(1000); now < 1100; now++ {
			n.Tick(now)
			if campaigns := n.role != Follower; campaigns == c.wait {
				t.Fatalf("promised %v, %d after the start: campaigns %v expected, found %v", c.promised, now-1000, !c.wait, campaigns)
			}
		}
		if n.Tick(1100); n.role == Follower {
			t.Fatalf("promised %v: a campaign expected when the lease is over, found none", c.promised)
		}
	}
}

// TestBrokenInvariants: what would lose data stops the node.
func TestBrokenInvariants(t *testing.T) {
	b2, b3 := Ballot{3, 2}, Ballot{4, 3}
	accept := func(n *Node, b Ballot, data string, chosen Slot) {
		m := Message{Kind: MsgAccept, From: b.Node, To: 1, Ballot: b, Chosen: chosen, Entries: []Entry{{Slot: 1, Ballot: b, Kind: Command, Data: []byte(data)}}}
		if err := n.Step(1, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, want string
		do         func(n *Node)
	}{
		{"two values at one ballot", "one value per slot and ballot", func(n *Node) { accept(n, b2, "a", 0); accept(n, b2, "b", 0) }},
		{"chosen value changed", "a chosen value never changes", func(n *Node) { accept(n, b2, "a", 1); accept(n, b3, "b", 0) }},
		{"applied too far", "applied", func(n *Node) { n.Applied(1) }},
		{"truncated too far", "truncate", func(n *Node) { n.Truncate(1) }},
		{"persisted too far", "persisted", func(n *Node) { n.Persisted(1) }},
		{"campaign in spite of a lease", "no lease granted to another leader", func(n *Node) { accept(n, b2, "a", 0); n.campaign(Ballot{}) }},
		{"recovered beyond the promise", "accepted <= promised", func(*Node) {
			New(testConfig(1, 1, 2, 3), Recovered{Promised: b2, Entries: []Entry{{Slot: 1, Ballot: b3, Kind: Noop}}}, 0)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if p, _ := recover().(string); !strings.Contains(p, c.want) {
					t.Fatalf("a panic with %q expected, found %q", c.want, p)
				}
			}()
			c.do(New(testConfig(1, 1, 2, 3), Recovered{}, 0))
		})
	}
}

// TestOldProposalsBeforeNewer: what a deposed leader had proposed must come before what the newer leader brings for the
// same slots, for in a log the later entry wins.
func TestOldProposalsBeforeNewer(t *testing.T) {
	g := newBenchGroup(t, 3)
	n := g.nodes[0]
	if _, _, err := n.Propose(g.now, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	newer := Ballot{Round: n.ballot.Round + 1, Node: 2}
	if err := n.Step(g.now, Message{Kind: MsgAccept, From: 2, To: 1, Ballot: newer, Entries: []Entry{{Slot: 1, Ballot: newer, Kind: Command, Data: []byte("theirs")}}}); err != nil {
		t.Fatal(err)
	}
	r := n.Ready()
	if len(r.Accept) != 2 || string(r.Accept[0].Data) != "mine" || string(r.Accept[1].Data) != "theirs" {
		t.Fatalf("mine, then theirs expected, found %v", r.Accept)
	}
}

// TestMemoryIsBounded: a follower that applies nothing takes in only so much, and a leader that applies nothing
// proposes only so much.
func TestMemoryIsBounded(t *testing.T) {
	cfg := testConfig(1, 1)
	cfg.Alpha, cfg.CacheBytes = 1<<20, 1<<20
	n := New(cfg, Recovered{}, 0)
	data := make([]byte, 1000)
	var err error
	n.Tick(0)
	for k := 0; k < 1e5 && err == nil; k++ {
		for n.HasReady() {
			n.Persisted(n.Ready().Seq)
		}
		_, _, err = n.Propose(0, data)
	}
	if !errors.Is(err, ErrBusy) || n.window.bytes > 3<<20 {
		t.Fatalf("ErrBusy within 3 MiB expected, found %v at %d bytes", err, n.window.bytes)
	}
}

func TestRolesRefuse(t *testing.T) {
	n := New(testConfig(1, 1, 2, 3), Recovered{}, 0)
	if _, _, err := n.Propose(0, nil); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Propose: ErrNotLeader expected, found %v", err)
	}
	if err := n.ReadIndex(0, 1); !errors.Is(err, ErrNotLeader) {
		t.Errorf("ReadIndex: ErrNotLeader expected, found %v", err)
	}
	if err := n.Transfer(0, 2); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Transfer: ErrNotLeader expected, found %v", err)
	}
	if until := n.LeaseUntil(); until != 0 {
		t.Errorf("LeaseUntil: 0 expected, found %d", until)
	}
	leader := newBenchGroup(t, 3).nodes[0]
	if err := leader.Transfer(0, 9); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("Transfer: ErrUnknownPeer expected, found %v", err)
	}
	if err := leader.Transfer(leader.now+10e9, 2); !errors.Is(err, ErrUnreachable) {
		t.Errorf("Transfer: ErrUnreachable expected, found %v", err)
	}
}

func TestWindow(t *testing.T) {
	w := newWindow(5)
	for s := Slot(5); s < 300; s++ {
		if s%3 != 0 {
			w.put(Entry{Slot: s, Kind: Command, Data: make([]byte, 10)}, uint64(s))
		}
	}
	entries, next := w.entries(nil, 6, w.hi, 1<<20, 4)
	if len(entries) != 4 || entries[0].Slot != 7 || next != 13 {
		t.Errorf("slots 7, 8, 10, 11 and then 13 expected, found %v and then %d", entries, next)
	}
	w.dropTo(290)
	if w.lo != 291 || w.at(290) != nil || w.last() != 299 {
		t.Errorf("window [291, 300) expected, found [%d, %d) with last %d", w.lo, w.hi, w.last())
	}
	w.dropTo(1000)
	if w.lo != 1001 || w.hi != 1001 || w.bytes != 0 {
		t.Errorf("an empty window at 1001 expected, found [%d, %d) with %d bytes", w.lo, w.hi, w.bytes)
	}
}

// TestReluctantNodeLetsOthersGoFirst: a node that is a poor leader campaigns
// only when everybody else had time to, and takes no leadership handed to it.
func TestReluctantNodeLetsOthersGoFirst(t *testing.T) {
	const timeout = 100
	n := New(Config{ID: 1, Voters: []NodeID{1, 2, 3}, ElectionTimeout: timeout, Heartbeat: 10, Lease: 50,
		Rand: rand.New(rand.NewPCG(1, 1)), Log: noLog{}}, Recovered{}, 0)
	n.SetReluctant(true)
	hb := Message{Kind: MsgHeartbeat, From: 2, To: 1, Ballot: Ballot{Round: 1, Node: 2}, Seq: 1}
	if err := n.Step(1, hb); err != nil {
		t.Fatal(err)
	}
	if err := n.Step(2, Message{Kind: MsgTimeoutNow, From: 2, To: 1, Ballot: hb.Ballot}); err != nil {
		t.Fatal(err)
	}
	for now := Time(3); now <= 3*timeout; now++ {
		n.Tick(now)
		if n.role != Follower {
			t.Fatalf("follower expected at %d, found %v", now, n.role)
		}
	}
	for now := Time(3 * timeout); now <= 5*timeout; now++ {
		n.Tick(now)
	}
	if n.role != PreCandidate {
		t.Fatalf("pre-candidate expected when nobody else led, found %v", n.role)
	}
}

// TestPromiseToAnEarlierLife: two of five lose their disks, and what one of them had promised the other is still under
// way. The candidate uses the ballot again, since nobody else knows of it, but that promise binds nobody any more.
func TestPromiseToAnEarlierLife(t *testing.T) {
	ballot := Ballot{Round: 1, Node: 2}
	candidate := func(life uint64) (*Node, uint64) {
		cfg := testConfig(2, 1, 2, 3, 4, 5)
		cfg.Rand = rand.New(rand.NewPCG(life, 2))
		n := New(cfg, Recovered{}, 0)
		n.Tick(10 * n.cfg.ElectionTimeout)
		for _, from := range []NodeID{3, 4} {
			step(t, n, Message{Kind: MsgPreVoteReply, From: from, To: 2, Ballot: ballot})
		}
		r := n.Ready()
		i := slices.IndexFunc(r.SendAfter, func(m Message) bool { return m.Kind == MsgPrepare && m.Ballot == ballot })
		if i < 0 {
			t.Fatalf("a Prepare at %v expected, found %v", ballot, r.SendAfter)
		}
		n.Persisted(r.Seq)
		return n, r.SendAfter[i].Seq
	}
	_, earlier := candidate(1)
	n, now := candidate(2)
	for _, p := range []struct {
		from NodeID
		seq  uint64
		role Role
	}{{1, earlier, Candidate}, {3, now, Candidate}, {1, now, Leader}} {
		step(t, n, Message{Kind: MsgPromise, From: p.from, To: 2, Ballot: ballot, Slot: 1, Seq: p.seq})
		if role := n.Status().Role; role != p.role {
			t.Fatalf("a promise of %d to life %d: %v expected, found %v", p.from, p.seq, p.role, role)
		}
	}
}

func step(t *testing.T, n *Node, m Message) {
	t.Helper()
	if err := n.Step(n.now, m); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotEndsLeadership: who follows what a leader applies would miss what a snapshot has brought, even when all of it
// was chosen by that leader.
func TestSnapshotEndsLeadership(t *testing.T) {
	g := newBenchGroup(t, 3)
	leader := g.nodes[0]
	if _, _, err := leader.Propose(g.now, []byte("x")); err != nil {
		t.Fatal(err)
	}
	step(t, leader, Message{Kind: MsgAccepted, From: 2, To: 1, Ballot: leader.ballot, Slot: leader.lead.next - 1, Next: leader.lead.next})
	step(t, leader, Message{Kind: MsgAccepted, From: 3, To: 1, Ballot: leader.ballot, Slot: leader.lead.next - 1, Next: leader.lead.next})
	if leader.chosen <= leader.applied {
		t.Fatalf("something chosen that its own log does not hold yet expected, found %+v", leader.Status())
	}
	leader.InstalledSnapshot(leader.chosen, leader.history())
	if s := leader.Status(); s.Role != Follower || s.Applied != s.Chosen {
		t.Fatalf("a follower that has applied all expected, found %+v", s)
	}
}

func TestConfigsAccepted(t *testing.T) {
	n := New(testConfig(2, 1, 2, 3), Recovered{}, 0)
	later := Configuration{Voters: []NodeID{2, 4, 5}}
	accept := Message{Kind: MsgAccept, From: 1, To: 2, Ballot: Ballot{Round: 1, Node: 1}, Slot: 1,
		Entries: []Entry{{Slot: 1, Kind: Configure, Ballot: Ballot{Round: 1, Node: 1}, Data: encodeConfigure(later, n.cfg.Alpha)}}}
	step(t, n, accept)
	want := History{{From: 1 + Slot(n.cfg.Alpha), Configuration: later}}
	if got := n.ConfigsAccepted(); !got.Equal(want) || len(n.Configs()) != 1 {
		t.Fatalf("%v accepted and not chosen expected, found %v and %v", want, got, n.Configs())
	}
	accept.Entries, accept.Chosen = nil, 1
	step(t, n, accept)
	if got := n.ConfigsAccepted(); len(got) != 0 || !n.Configs()[1:].Equal(want) {
		t.Fatalf("%v chosen expected, found %v and %v", want, got, n.Configs())
	}
}

// TestDamagedLogChoosesNothing: what is left of a slot may be older than what was chosen there.
func TestDamagedLogChoosesNothing(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		n := New(testConfig(1, 1, 2, 3), Recovered{Promised: Ballot{Round: 2, Node: 2}, Chosen: 1, Damaged: damaged,
			Entries: []Entry{{Slot: 1, Kind: Command, Ballot: Ballot{Round: 1, Node: 1}, Data: []byte("older")}}}, 0)
		if got := n.Status().Chosen; (got == 0) != damaged {
			t.Errorf("damaged %v: chosen up to %d", damaged, got)
		}
	}
}
