package commit

import (
	"fmt"
	"strings"
)

// String names the vote.
func (v Vote) String() string { return name("Vote", uint8(v), "", "yes", "no", "read-only") }

// String names the state.
func (s State) String() string {
	return name("State", uint8(s), "", "prepared", "committed", "aborted", "read", "gone")
}

// String names the kind.
func (k MessageKind) String() string {
	return name("MessageKind", uint8(k), "", "Prepare", "Vote", "Commit", "Abort", "Unknown", "Ack")
}

// String names the kind.
func (k RecordKind) String() string {
	return name("RecordKind", uint8(k), "", "open", "commit", "forget")
}

func name(kind string, k uint8, names ...string) string {
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("%s(%d)", kind, k)
	}
	return names[k]
}

// String is the kind, the transaction and, of a commit, the parties.
func (r Record) String() string {
	switch r.Kind {
	case RecordOpen:
		return "open"
	case RecordCommit:
		return fmt.Sprintf("commit %v %v", r.Tx, r.Parties)
	}
	return fmt.Sprintf("%v %v", r.Kind, r.Tx)
}

// String describes a message on one line. The coordinator is "c", with its epoch when it speaks.
func (m Message) String() string {
	var b strings.Builder
	if m.Kind == MsgVote || m.Kind == MsgAck {
		fmt.Fprintf(&b, "%d->c %v %v", m.Party, m.Kind, m.Tx)
	} else {
		fmt.Fprintf(&b, "c%d->%d %v %v low=%d", m.Epoch, m.Party, m.Kind, m.Tx, m.Low)
	}
	if m.Vote != 0 {
		fmt.Fprintf(&b, " %v", m.Vote)
	}
	if len(m.Payload) > 0 {
		const shown = 16
		fmt.Fprintf(&b, " %q", m.Payload[:min(len(m.Payload), shown)])
	}
	if m.Reason != "" {
		fmt.Fprintf(&b, " (%s)", m.Reason)
	}
	return b.String()
}
