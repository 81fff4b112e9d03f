package paxos

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// contradictions are the rules that a lying peer can make this node see broken: it then stops, as it must. Nothing else
// that arrives may stop it.
var contradictions = []string{
	"a chosen value never changes",
	"one value per slot and ballot",
	"accepted ballots of slot",
	"chosen at ",
	"at most 64 members",
}

// FuzzStep gives a node whatever messages the bytes describe, between ticks, proposals and syncs. It may refuse them; it
// may not come to harm, nor take in more than its bounds.
func FuzzStep(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 32 {
		b := make([]byte, 600)
		for i := range b {
			b[i] = byte(rng.IntN(8))
			if rng.IntN(30) == 0 {
				b[i] = byte(rng.Uint32())
			}
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer func() {
			if p := recover(); p != nil {
				for _, c := range contradictions {
					if strings.Contains(fmt.Sprint(p), c) {
						return
					}
				}
				panic(p)
			}
		}()
		fuzzNode(t, &source{b: b})
	})
}

func fuzzNode(t *testing.T, src *source) {
	voters := []NodeID{1, 2, 3}[:src.byte()%4]
	if len(voters) == 2 {
		voters = voters[:1]
	}
	cfg := testConfig(1, voters...)
	cfg.Alpha, cfg.CacheBytes, cfg.MaxMessageBytes = 4, 1024, 256
	n := New(cfg, Recovered{}, 0)
	now, applied := Time(0), Slot(0)
	for len(src.b) > 0 {
		now += Time(src.byte()) * 10e6
		switch src.byte() % 8 {
		case 0:
			n.Tick(now)
		case 1:
			_, _, _ = n.Propose(now, src.bytes())
		case 2:
			_, _ = n.ProposeConfig(now, src.configuration())
		case 3:
			_ = n.ReadIndex(now, 1)
		default:
			_ = n.Step(now, src.message(n))
		}
		for n.HasReady() {
			r := n.Ready()
			n.Persisted(r.Seq)
			for _, e := range r.Apply {
				applied = e.Slot
			}
			n.Applied(min(max(applied, n.applied), n.emitted))
		}
		if held := n.window.hi - n.window.lo; held > 64*Slot(cfg.Alpha) || len(n.found.entries) > 64*cfg.Alpha || len(n.window.ring) > 1024 {
			t.Fatalf("bounded memory expected, found a window of %d slots and %d reported", held, len(n.found.entries))
		}
	}
}

// source reads values from fuzzed bytes, small ones mostly.
type source struct{ b []byte }

func (s *source) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return v
}

// number is small, or anything.
func (s *source) number() uint64 {
	v := s.byte()
	if v != 255 || len(s.b) < 8 {
		return uint64(v)
	}
	x := binary.LittleEndian.Uint64(s.b)
	s.b = s.b[8:]
	return x
}

func (s *source) bytes() []byte {
	k := min(int(s.byte())%16, len(s.b))
	v := s.b[:k]
	s.b = s.b[k:]
	return v
}

func (s *source) ids() (ids []NodeID) {
	for range s.byte() % 4 {
		ids = append(ids, NodeID(s.byte()%8))
	}
	return ids
}

func (s *source) configuration() Configuration {
	return Configuration{Voters: s.ids(), Learners: s.ids()}.sorted()
}

func (s *source) ballot() Ballot {
	return Ballot{Round: s.number(), Node: NodeID(s.byte() % 5)}
}

func (s *source) message(n *Node) Message {
	m := Message{Kind: MessageKind(s.byte() % 15), From: NodeID(s.byte() % 5), To: 1, Slot: Slot(s.number()), Next: Slot(s.number()),
		Chosen: Slot(s.number()), Truncated: Slot(s.number()), Seq: s.number(), At: Time(s.number())}
	answer := s.byte()
	m.Reject, m.Mute = answer%4 == 1, answer%8 == 5
	switch s.byte() % 4 {
	case 0:
		m.Ballot, m.Promised, m.Released = s.ballot(), s.ballot(), s.ballot()
	case 1:
		m.Ballot, m.Seq = n.ballot, n.life // an answer
	default:
		m.Ballot = Ballot{Round: n.roundMax + s.number()%2, Node: m.From}
	}
	slot := Slot(s.number())
	for range s.byte() % 6 {
		e := Entry{Slot: slot, Ballot: m.Ballot, Kind: EntryKind(s.byte() % 4), Data: s.bytes()}
		if s.byte()%8 == 0 {
			e.Ballot = s.ballot()
		}
		if e.Kind == Configure && s.byte()%8 != 0 {
			e.Data = encodeConfigure(s.configuration(), 4)
		}
		m.Entries = append(m.Entries, e)
		if slot++; s.byte()%8 == 0 {
			slot += Slot(s.number())
		}
	}
	return m
}
