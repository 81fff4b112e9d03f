package sim

import (
	"errors"

	"github.com/koinon/koinon/paxos"
)

// write is one Ready's durable part on its way to the disk.
type write struct {
	seq      uint64
	hard     bool
	promised paxos.Ballot
	chosen   paxos.Slot
	accept   []paxos.Entry
	after    []paxos.Message
}

// disk is what survives a crash: a log and the state machine's last checkpoint.
type disk struct {
	promised   paxos.Ballot
	chosen     paxos.Slot
	truncated  paxos.Slot
	entries    []paxos.Entry // of slot truncated+1+i; Kind zero where there is none
	state      state
	damaged    bool
	noteChosen bool // write chosen with everything, not only with promises
}

var errGone = errors.New("sim: not in the log")

// put stores an accepted entry.
func (d *disk) put(e paxos.Entry) {
	if e.Slot <= d.truncated {
		return
	}
	k := int(e.Slot - d.truncated - 1)
	for len(d.entries) <= k {
		d.entries = append(d.entries, paxos.Entry{})
	}
	d.entries[k] = e
}

// get returns the accepted entry of a slot, or nil.
func (d *disk) get(s paxos.Slot) *paxos.Entry {
	if s <= d.truncated || s > d.truncated+paxos.Slot(len(d.entries)) {
		return nil
	}
	if e := &d.entries[s-d.truncated-1]; e.Kind != 0 {
		return e
	}
	return nil
}

// cut drops the log up to a slot.
func (d *disk) cut(upTo paxos.Slot) {
	if upTo <= d.truncated {
		return
	}
	drop := min(len(d.entries), int(upTo-d.truncated))
	d.entries = append([]paxos.Entry(nil), d.entries[drop:]...)
	d.truncated = upTo
}

// commit makes a write durable.
func (d *disk) commit(wr *write) {
	if wr.hard {
		d.promised = wr.promised
	}
	if wr.hard || d.noteChosen {
		d.chosen = wr.chosen
	}
	for _, e := range wr.accept {
		d.put(e)
	}
}

// read returns what the log holds from slot lo on.
func (d *disk) read(lo, hi paxos.Slot, maxBytes int) ([]paxos.Entry, error) {
	var out []paxos.Entry
	size := 0
	for s := lo; s < hi && (size < maxBytes || len(out) == 0); s++ {
		e := d.get(s)
		if e == nil {
			break
		}
		size += len(e.Data)
		out = append(out, *e)
	}
	if len(out) == 0 {
		return nil, errGone
	}
	return out, nil
}

// recovered is what a node starts from.
func (d *disk) recovered() paxos.Recovered {
	rec := paxos.Recovered{Promised: d.promised, Chosen: d.chosen, Truncated: d.truncated, Applied: d.state.applied, Configs: d.state.configs, Damaged: d.damaged}
	for i := range d.entries {
		if e := d.entries[i]; e.Kind != 0 {
			rec.Entries = append(rec.Entries, e)
		}
	}
	return rec
}

// state is the replicated state machine: a digest of everything applied so far.
type state struct {
	applied paxos.Slot
	digest  uint64
	configs paxos.History
}
