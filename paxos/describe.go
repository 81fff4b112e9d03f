package paxos

import (
	"fmt"
	"strings"
)

// String is "slot@ballot kind" and the beginning of the data.
func (e Entry) String() string {
	switch e.Kind {
	case Noop:
		return fmt.Sprintf("%d@%v noop", e.Slot, e.Ballot)
	case Configure:
		c, _, err := decodeConfigure(e.Data)
		if err == nil {
			return fmt.Sprintf("%d@%v configure %v", e.Slot, e.Ballot, c)
		}
	}
	const shown = 16
	if len(e.Data) > shown {
		return fmt.Sprintf("%d@%v %q...", e.Slot, e.Ballot, e.Data[:shown])
	}
	return fmt.Sprintf("%d@%v %q", e.Slot, e.Ballot, e.Data)
}

// String describes a message on one line; fields that are zero are left out.
func (m Message) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d->%d %v %v", m.From, m.To, m.Kind, m.Ballot)
	if m.Reject {
		b.WriteString(" reject")
	}
	if m.Mute {
		b.WriteString(" mute")
	}
	for _, f := range []struct {
		name   string
		ballot Ballot
	}{{"promised", m.Promised}, {"released", m.Released}} {
		if !f.ballot.IsZero() {
			fmt.Fprintf(&b, " %s=%v", f.name, f.ballot)
		}
	}
	for _, f := range []struct {
		name  string
		value uint64
	}{{"slot", uint64(m.Slot)}, {"next", uint64(m.Next)}, {"chosen", uint64(m.Chosen)}, {"truncated", uint64(m.Truncated)}, {"seq", m.Seq}} {
		if f.value != 0 {
			fmt.Fprintf(&b, " %s=%d", f.name, f.value)
		}
	}
	if len(m.Entries) > 0 {
		fmt.Fprintf(&b, " %v", m.Entries)
	}
	return b.String()
}
