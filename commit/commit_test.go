package commit

import (
	"errors"
	"testing"
)

func TestBadMessages(t *testing.T) {
	var table Table
	table.Apply(Record{Kind: RecordOpen})
	c := NewCoordinator(Config{}, table.Epoch, nil, 0)
	tx, err := c.Begin(0, []Part{{Party: 1}})
	if err != nil {
		t.Fatal(err)
	}
	p := NewParticipant(Config{}, 1, Recovered{}, 0)
	for _, m := range []Message{
		{},
		{Kind: MsgPrepare, Party: 1, Tx: tx, Epoch: 1},
		{Kind: MsgVote, Party: 1, Tx: tx},
		{Kind: MsgVote, Party: 1, Tx: tx, Vote: ReadOnly + 1},
		{Kind: MsgVote, Party: 1, Vote: Yes},
		{Kind: MsgVote, Party: 2, Tx: tx, Vote: Yes},
		{Kind: MsgVote, Party: 1, Tx: Tx{1, 2}, Vote: Yes}, // not begun
		{Kind: MsgAck + 1, Party: 1, Tx: tx},
	} {
		if err := c.Step(0, m); !errors.Is(err, ErrBadMessage) {
			t.Errorf("coordinator, %v: %v", m, err)
		}
	}
	for _, m := range []Message{
		{},
		{Kind: MsgVote, Party: 1, Tx: tx, Vote: Yes, Epoch: 1},
		{Kind: MsgAck, Party: 1, Tx: tx, Epoch: 1},
		{Kind: MsgPrepare, Party: 2, Tx: tx, Epoch: 1},
		{Kind: MsgPrepare, Party: 1, Epoch: 1},
		{Kind: MsgPrepare, Party: 1, Tx: Tx{2, 1}, Epoch: 1}, // of an epoch that its sender cannot know
	} {
		if err := p.Step(0, m); !errors.Is(err, ErrBadMessage) {
			t.Errorf("participant, %v: %v", m, err)
		}
	}
	if p.HasReady() || len(c.Ready().Send) != 1 || c.HasReady() {
		t.Error("bad messages expected to change nothing")
	}
	if err := p.Vote(0, tx, Yes, ""); !errors.Is(err, ErrNotAsked) {
		t.Errorf("a vote that nobody asked for: %v", err)
	}
	if err := p.Vote(0, tx, 0, ""); !errors.Is(err, ErrBadMessage) {
		t.Errorf("a vote that is none: %v", err)
	}
}

// TestAbortWhilePreparing: the abort overtakes the driver's own answer, which then has to release what it reserved.
func TestAbortWhilePreparing(t *testing.T) {
	p := NewParticipant(Config{}, 1, Recovered{}, 0)
	tx := Tx{1, 1}
	for _, k := range []MessageKind{MsgPrepare, MsgAbort} {
		if err := p.Step(0, Message{Kind: k, Party: 1, Tx: tx, Epoch: 1, Low: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Vote(0, tx, Yes, ""); !errors.Is(err, ErrNotAsked) {
		t.Errorf("%v expected, found %v", ErrNotAsked, err)
	}
	if r := p.Ready(); len(r.Changes) != 1 || r.Changes[0].State != Aborted || len(r.SendAfter) > 0 {
		t.Errorf("a tombstone and no vote expected, found %+v", r)
	}
}

// TestBroken: a party that finds the protocol broken stops.
func TestBroken(t *testing.T) {
	tx := Tx{1, 1}
	finished := func(s State, m MessageKind) func() {
		return func() {
			p := NewParticipant(Config{}, 1, Recovered{Records: []Change{{Tx: tx, State: s}}}, 0)
			_ = p.Step(0, Message{Kind: m, Party: 1, Tx: tx, Epoch: 1}) // panics
		}
	}
	for name, do := range map[string]func(){
		"commit after abort":         finished(Aborted, MsgCommit),
		"commit after read-only":     finished(Read, MsgCommit),
		"abort after commit":         finished(Committed, MsgAbort),
		"durable before it was said": func() { NewParticipant(Config{}, 1, Recovered{}, 0).Persisted(1) },
		"commit of an epoch to come": func() { (&Table{Epoch: 1}).Apply(Record{Kind: RecordCommit, Tx: Tx{2, 1}}) },
		"two commits of one": func() {
			t := &Table{Epoch: 1}
			t.Apply(Record{Kind: RecordCommit, Tx: tx, Parties: []Party{1}})
			t.Apply(Record{Kind: RecordCommit, Tx: tx, Parties: []Party{1, 2}})
		},
		"agreed before it was proposed": func() {
			c := NewCoordinator(Config{}, 1, nil, 0)
			tx, _ := c.Begin(0, []Part{{Party: 1}, {Party: 2}})
			c.Agreed(0, Record{Kind: RecordCommit, Tx: tx}, true)
		},
		"acknowledged before it was decided": func() {
			c := NewCoordinator(Config{}, 1, nil, 0)
			tx, _ := c.Begin(0, []Part{{Party: 1}})
			_ = c.Step(0, Message{Kind: MsgAck, Party: 1, Tx: tx}) // panics
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("a panic expected")
				}
			}()
			do()
		})
	}
}

// TestBackoff: who does not answer is asked at growing intervals.
func TestBackoff(t *testing.T) {
	c := NewCoordinator(Config{}, 2, []Commit{{Tx{1, 1}, []Party{1}}}, 0)
	sent := len(c.Ready().Send)
	const second = Time(1e9)
	for now := Time(0); now < 60*second; now += second / 100 {
		c.Tick(now)
		sent += len(c.Ready().Send)
	}
	// At once, after 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 seconds, then every five.
	if sent != 7+10 {
		t.Errorf("17 commits expected in a minute, found %d", sent)
	}
}
