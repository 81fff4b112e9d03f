package paxos

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// membersMax bounds a configuration, so that the members of an old one and a new one fit a mask of 64 bits.
const membersMax = 31

// configVersion is the first byte of an encoded configuration or history.
const configVersion = 1

// Configuration says who is in a group. A majority of the voters decides; learners receive everything and never vote.
type Configuration struct {
	Voters   []NodeID // ascending
	Learners []NodeID // ascending, none of them a voter
}

// Validate reports what is wrong with a configuration, or nil.
func (c Configuration) Validate() error {
	all := slices.Concat(c.Voters, c.Learners)
	slices.Sort(all)
	switch {
	case len(c.Voters) == 0:
		return errors.New("paxos: a configuration needs at least one voter")
	case len(all) > membersMax:
		return fmt.Errorf("paxos: a configuration has at most %d members, found %d", membersMax, len(all))
	case all[0] == 0 || len(slices.Compact(slices.Clone(all))) != len(all):
		return fmt.Errorf("paxos: the members of a configuration must be distinct and not 0, found voters %v and learners %v", c.Voters, c.Learners)
	}
	return nil
}

// Equal reports whether both name the same voters and the same learners.
func (c Configuration) Equal(o Configuration) bool {
	return slices.Equal(c.Voters, o.Voters) && slices.Equal(c.Learners, o.Learners)
}

// Member reports whether a node is a voter or a learner.
func (c Configuration) Member(id NodeID) bool {
	return slices.Contains(c.Voters, id) || slices.Contains(c.Learners, id)
}

// String names the voters and, if there are any, the learners.
func (c Configuration) String() string {
	if len(c.Learners) == 0 {
		return fmt.Sprintf("%v", c.Voters)
	}
	return fmt.Sprintf("%v learners %v", c.Voters, c.Learners)
}

// sorted returns a copy in ascending order.
func (c Configuration) sorted() Configuration {
	c = Configuration{Voters: slices.Clone(c.Voters), Learners: slices.Clone(c.Learners)}
	slices.Sort(c.Voters)
	slices.Sort(c.Learners)
	return c
}

// ConfigAt is a configuration and the first slot that it governs.
type ConfigAt struct {
	From Slot
	Configuration
}

// String names the first slot and the members.
func (c ConfigAt) String() string { return fmt.Sprintf("{%d %v}", c.From, c.Configuration) }

// History are the configurations that a state at some slot knows: the one that governs the next slot, and after it those
// that have been chosen but govern only later ones. The driver keeps it with the state that its entries were applied
// to, durably and atomically; snapshots carry it. The zero value belongs to a node that knows nothing of its group.
type History []ConfigAt

// Initial is the history of a group in which nothing has been chosen yet.
func Initial(voters []NodeID) History {
	return History{{From: 1, Configuration: Configuration{Voters: voters}.sorted()}}
}

// Apply returns the history after an entry has been applied: one longer for a Configure, and without what no longer
// governs any slot. It is called for every entry, and does not change h. It panics for data that no node has proposed.
func (h History) Apply(e *Entry) History {
	if e.Kind == Configure {
		h = append(slices.Clip(h), configOf(e))
	}
	for len(h) > 1 && h[1].From <= e.Slot+1 {
		h = h[1:]
	}
	return h
}

// Equal reports whether both say the same.
func (h History) Equal(o History) bool {
	return slices.EqualFunc(h, o, func(a, b ConfigAt) bool { return a.From == b.From && a.Configuration.Equal(b.Configuration) })
}

// Encode returns the history as bytes; see DecodeHistory.
func (h History) Encode() []byte {
	b := binary.AppendUvarint([]byte{configVersion}, uint64(len(h)))
	for _, c := range h {
		b = binary.AppendUvarint(b, uint64(c.From))
		b = appendConfiguration(b, c.Configuration)
	}
	return b
}

// DecodeHistory reads what Encode has written, and nothing else.
func DecodeHistory(b []byte) (History, error) {
	r := reader{b: b}
	r.version()
	var h History
	for count := r.count(); count > 0; count-- {
		c := ConfigAt{From: Slot(r.uint())}
		c.Configuration = r.configuration()
		if r.bad || len(h) > 0 && c.From <= h[len(h)-1].From || c.Validate() != nil {
			return nil, errConfiguration
		}
		h = append(h, c)
	}
	if r.bad || len(r.b) > 0 || !bytes.Equal(h.Encode(), b) {
		return nil, errConfiguration
	}
	return h, nil
}

var errConfiguration = errors.New("paxos: not an encoded configuration")

// encodeConfigure is the data of a Configure entry: the configuration, and the Alpha by which its slot is told.
func encodeConfigure(c Configuration, alpha int) []byte {
	return appendConfiguration(binary.AppendUvarint([]byte{configVersion}, uint64(alpha)), c)
}

// decodeConfigure reads the data of a Configure entry.
func decodeConfigure(b []byte) (c Configuration, alpha Slot, err error) {
	r := reader{b: b}
	r.version()
	alpha = Slot(r.uint())
	c = r.configuration()
	if r.bad || len(r.b) > 0 || alpha < 2 || alpha > alphaMax || c.Validate() != nil || !bytes.Equal(encodeConfigure(c, int(alpha)), b) {
		return Configuration{}, 0, errConfiguration
	}
	return c, alpha, nil
}

func appendConfiguration(b []byte, c Configuration) []byte {
	for _, ids := range [][]NodeID{c.Voters, c.Learners} {
		b = binary.AppendUvarint(b, uint64(len(ids)))
		before := NodeID(0)
		for _, id := range ids {
			b = binary.AppendUvarint(b, uint64(id-before)) // never 0, as they ascend
			before = id
		}
	}
	return b
}

// reader takes numbers from bytes. After the first one that is not there everything is bad and zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || r.bad {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) version() { r.bad = r.uint() != configVersion || r.bad }

// count is a number of things that take at least a byte each.
func (r *reader) count() int {
	v := r.uint()
	if v > uint64(len(r.b)) {
		r.bad = true
		return 0
	}
	return int(v)
}

func (r *reader) configuration() (c Configuration) {
	c.Voters = r.ids()
	c.Learners = r.ids()
	return c
}

func (r *reader) ids() []NodeID {
	var ids []NodeID
	before := NodeID(0)
	for count := r.count(); count > 0 && !r.bad; count-- {
		id := before + NodeID(r.uint())
		r.bad = r.bad || id <= before
		ids = append(ids, id)
		before = id
	}
	return ids
}
