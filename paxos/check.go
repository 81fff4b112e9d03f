package paxos

// This file is what a message must be like before anything is done with it.

// roundLimit bounds the rounds of ballots, so that there is always a higher one.
const roundLimit = 1 << 62

// isAnswer reports whether a message answers what this node has asked a member.
func isAnswer(k MessageKind) bool {
	return k == MsgPreVoteReply || k == MsgPromise || k == MsgAccepted || k == MsgHeartbeatReply
}

// checkMessage checks what every later step relies on.
func (n *Node) checkMessage(m *Message) error {
	if m.Kind == 0 || m.Kind > MsgRepairReply {
		return ErrBadMessage
	}
	owner := NodeID(0) // whose ballot the message must carry
	switch m.Kind {
	case MsgPreVote, MsgPrepare, MsgAccept, MsgHeartbeat, MsgTimeoutNow, MsgRepairReply:
		owner = m.From
	case MsgPreVoteReply, MsgPromise, MsgAccepted, MsgHeartbeatReply:
		owner = m.To
	}
	switch {
	case owner != 0 && m.Ballot.Node != owner,
		m.Mute && (!m.Reject || len(m.Entries) > 0 || m.Kind != MsgPreVoteReply && m.Kind != MsgPromise),
		m.Ballot.Round >= roundLimit || m.Promised.Round >= roundLimit || m.Released.Round >= roundLimit,
		(m.Kind == MsgPromise || m.Kind == MsgAccepted) && m.Next != 0 && m.Next <= m.Slot:
		return ErrBadMessage
	}
	return n.checkEntries(m)
}

func (n *Node) checkEntries(m *Message) error {
	dense := m.Kind == MsgAccept || m.Kind == MsgLearn
	for i := range m.Entries {
		e := &m.Entries[i]
		switch {
		case e.Slot == 0, e.Ballot.IsZero(), e.Ballot.Round >= roundLimit:
			return ErrBadMessage
		case i > 0 && (e.Slot <= m.Entries[i-1].Slot || dense && e.Slot != m.Entries[i-1].Slot+1):
			return ErrBadMessage
		case m.Kind == MsgAccept && e.Ballot != m.Ballot:
			return ErrBadMessage
		case m.Kind == MsgPromise && (e.Slot < m.Slot || m.Next != 0 && e.Slot >= m.Next || m.Ballot.Less(e.Ballot)):
			return ErrBadMessage
		}
		if err := n.checkEntry(e); err != nil {
			return err
		}
	}
	return nil
}

// checkEntry checks what an entry holds.
func (n *Node) checkEntry(e *Entry) error {
	switch e.Kind {
	case Command, Noop:
		return nil
	case Configure:
		_, alpha, err := decodeConfigure(e.Data)
		if err == nil && alpha != Slot(n.cfg.Alpha) {
			return ErrAlpha
		}
		if err == nil {
			return nil
		}
	}
	return ErrBadMessage
}
