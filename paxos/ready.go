package paxos

// This file is how work leaves the core.

// HasReady reports whether Ready has anything to say.
func (n *Node) HasReady() bool {
	o := &n.out
	return o.hard || len(o.accept) > 0 || len(o.proposals) > 0 || len(o.send) > 0 || len(o.after) > 0 ||
		len(o.reads) > 0 || len(o.snapshots) > 0 || o.configs || n.role == Leader && n.lead.wantRound || n.mayApply() ||
		o.viewed != n.view()
}

func (n *Node) view() view {
	return view{leader: n.leader, role: n.role, damaged: n.repair.damaged}
}

// Ready returns what the driver has to do next. It must be called only to do it: what it returns is not returned again.
func (n *Node) Ready() Ready {
	o := &n.out
	n.sendProposals()
	if n.role == Leader && n.lead.wantRound {
		n.sendRound() // after the proposals, so that followers do not miss what is on its way
	}
	r := Ready{Promised: n.promised, HardChanged: o.hard, Accept: o.accept, Send: o.send, Reads: o.reads, SnapshotTo: o.snapshots}
	switch {
	case len(r.Accept) == 0:
		r.Accept = o.proposals
	case len(o.proposals) > 0:
		r.Accept = append(r.Accept, o.proposals...)
	}
	stored := o.hard || len(r.Accept) > 0
	if stored || len(o.after) > 0 && o.durable < o.seq {
		o.seq++
		r.Seq = o.seq
		r.SendAfter = o.after
	} else if len(o.after) > 0 {
		r.Send = append(r.Send, o.after...) // all of it is durable already
	}
	if len(o.proposals) > 0 {
		o.sizeHint = min(len(o.proposals), n.cfg.Alpha)
	}
	r.Apply = n.takeApply()
	if o.configs {
		r.Configs, o.configs = n.history(), false
	}
	o.viewed = n.view()
	r.Leader, r.Role, r.Damaged, r.Chosen = n.leader, n.role, n.repair.damaged, n.chosen
	o.hard, o.accept, o.proposals, o.send, o.after, o.reads, o.snapshots = false, nil, nil, nil, nil, nil, nil
	return r
}

// sendProposals queues the new proposals for every peer. All share the entries.
func (n *Node) sendProposals() {
	entries := n.out.proposals
	if len(entries) == 0 {
		return
	}
	if n.role != Leader {
		broken("proposals of a leader expected, found those of a %v", n.role)
	}
	if n.out.send == nil {
		n.out.send = make([]Message, 0, 2*len(n.peers))
	}
	for len(entries) > 0 {
		count, size := 0, 0
		for count < len(entries) && count < n.cfg.Alpha {
			size += len(entries[count].Data) + entryOverhead
			if count > 0 && size > n.cfg.MaxMessageBytes {
				break
			}
			count++
		}
		for i := range n.peers {
			if id := n.peers[i].id; i != self && id != 0 && n.reachable(i) && !n.peers[i].snapshot {
				n.send(Message{Kind: MsgAccept, To: id, Ballot: n.ballot, Chosen: n.chosen, Entries: entries[:count:count]})
			}
		}
		entries = entries[count:]
	}
	n.lead.announced = n.chosen
}

// mayApply reports whether the next slot can be given out: it is chosen, its entry is durable here, and not too much
// waits already. That applied state never gets ahead of the log is what lets a restarted node trust the log up to there.
func (n *Node) mayApply() bool {
	next := n.emitted + 1
	if next > n.chosen || next > n.applied+4*Slot(n.cfg.Alpha) {
		return false
	}
	st := n.window.at(next)
	if !st.held() {
		broken("a chosen entry not yet applied expected in memory at slot %d, found none", next)
	}
	return st.seq <= n.out.durable
}

// takeApply gives out what can be applied, up to a few messages' worth of bytes.
func (n *Node) takeApply() []Entry {
	if !n.mayApply() {
		return nil
	}
	end, size := n.emitted+1, 0
	for end <= n.chosen && end <= n.applied+4*Slot(n.cfg.Alpha) && size < 4*n.cfg.MaxMessageBytes {
		st := n.window.at(end)
		if st == nil || st.seq > n.out.durable {
			break
		}
		size += len(st.entry.Data) + entryOverhead
		end++
	}
	entries := make([]Entry, 0, end-n.emitted-1)
	for n.emitted+1 < end {
		n.emitted++
		entries = append(entries, n.window.at(n.emitted).entry)
	}
	return entries
}
