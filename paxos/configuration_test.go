package paxos

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestConfigurationValidate(t *testing.T) {
	many := make([]NodeID, membersMax+1)
	for i := range many {
		many[i] = NodeID(i + 1)
	}
	for _, c := range []struct {
		name string
		c    Configuration
		want string // part of the error; empty: none
	}{
		{"one", Configuration{Voters: []NodeID{7}}, ""},
		{"with learners", Configuration{Voters: []NodeID{1, 2, 3}, Learners: []NodeID{9, 4}}, ""},
		{"empty", Configuration{}, "at least one voter"},
		{"learners only", Configuration{Learners: []NodeID{1}}, "at least one voter"},
		{"nobody", Configuration{Voters: []NodeID{0, 1}}, "not 0"},
		{"voter and learner", Configuration{Voters: []NodeID{1, 2}, Learners: []NodeID{2}}, "distinct"},
		{"too many", Configuration{Voters: many[:3], Learners: many[3:]}, "at most 31"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.c.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("error with %q expected, found %v", c.want, err)
			}
		})
	}
}

// TestHistoryApply: a configuration governs from Alpha slots after its entry on, and the one before it until then.
func TestHistoryApply(t *testing.T) {
	h := Initial([]NodeID{3, 1, 2})
	change := Configuration{Voters: []NodeID{1, 2}, Learners: []NodeID{5}}
	for s := Slot(1); s <= 10; s++ {
		e := Entry{Slot: s, Kind: Command}
		if s == 4 {
			e.Kind, e.Data = Configure, encodeConfigure(change, 3)
		}
		before := h.Encode()
		after := h.Apply(&e)
		if !bytes.Equal(before, h.Encode()) {
			t.Fatalf("slot %d: Apply has changed what it was called on", s)
		}
		h = after
		want := "[{1 [1 2 3]}]"
		switch {
		case s >= 6:
			want = "[{7 [1 2] learners [5]}]"
		case s >= 4:
			want = "[{1 [1 2 3]} {7 [1 2] learners [5]}]"
		}
		if got := fmt.Sprint(h); got != want {
			t.Fatalf("after slot %d: %s expected, found %s", s, want, got)
		}
	}
}

func TestProposeConfigRefusesNonsense(t *testing.T) {
	n := newBenchGroup(t, 3).nodes[0]
	before := n.history()
	if _, err := n.ProposeConfig(n.now, Configuration{}); err == nil || !strings.Contains(err.Error(), "at least one voter") {
		t.Errorf("an error about voters expected, found %v", err)
	}
	if _, err := n.ProposeConfig(n.now, Configuration{Voters: []NodeID{1, 2, 3}, Learners: []NodeID{3}}); err == nil {
		t.Error("an error about a node that is both expected, found none")
	}
	follower := New(testConfig(1, 1, 2, 3), Recovered{}, 0)
	if _, err := follower.ProposeConfig(0, Configuration{Voters: []NodeID{1}}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("ErrNotLeader expected, found %v", err)
	}
	if n.HasReady() || !before.Equal(n.history()) || n.changing() {
		t.Error("a refused change must change nothing")
	}
}

// TestJoiningNodeIsQuiet: who knows nothing of its group waits to be spoken to, and then asks for the state.
func TestJoiningNodeIsQuiet(t *testing.T) {
	n := New(testConfig(4), Recovered{}, 0)
	for now := Time(0); now < 10e9; now += 100e6 {
		if n.Tick(now); n.HasReady() {
			t.Fatalf("nothing to do expected, found %+v", n.Ready())
		}
	}
	b := Ballot{Round: 7, Node: 2}
	m := Message{Kind: MsgAccept, From: 2, To: 4, Ballot: b, Chosen: 1, Entries: []Entry{{Slot: 1, Ballot: b, Kind: Noop}}}
	if err := n.Step(10e9, m); err != nil {
		t.Fatal(err)
	}
	r := n.Ready()
	if n.chosen != 0 || len(r.Send) != 1 || r.Send[0].Kind != MsgCatchUp || r.Send[0].Slot != 0 {
		t.Fatalf("nothing chosen and a question for a snapshot expected, found chosen %d and %v", n.chosen, r.Send)
	}
	n.Persisted(r.Seq)
	n.InstalledSnapshot(3, History{{From: 2, Configuration: Configuration{Voters: []NodeID{1, 2}, Learners: []NodeID{4}}}})
	if s := n.Status(); s.Chosen != 3 || s.Voter || len(s.Configs) != 1 {
		t.Fatalf("a learner at slot 3 expected, found %+v", s)
	}
}

// FuzzHistory: what is read is what was written, and nothing else is read.
func FuzzHistory(f *testing.F) {
	f.Add(Initial([]NodeID{1, 2, 3}).Encode())
	f.Add(Initial([]NodeID{1, 2, 3}).Apply(&Entry{Slot: 9, Kind: Configure, Data: encodeConfigure(Configuration{Voters: []NodeID{1}, Learners: []NodeID{1 << 40}}, 64)}).Encode())
	f.Add(encodeConfigure(Configuration{Voters: []NodeID{1, 5}}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHistory(b); err == nil && !bytes.Equal(h.Encode(), b) {
			t.Errorf("%x expected to be encoded again as it was, found %x", b, h.Encode())
		}
		if c, alpha, err := decodeConfigure(b); err == nil && !bytes.Equal(encodeConfigure(c, int(alpha)), b) {
			t.Errorf("%x expected to be encoded again as it was, found %v", b, c)
		}
	})
}
