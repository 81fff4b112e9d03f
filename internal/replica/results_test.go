package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// alone is the transport of a host that has no peers.
type alone struct{}

func (alone) Send(sys.NodeID, Lane, []byte) {}
func (alone) Handle(Handler)                {}
func (alone) SetPeers([]Peer)               {}
func (alone) Call(context.Context, sys.NodeID, []byte) ([]byte, error) {
	return nil, sys.E(sys.Unavailable)
}

const nsNumbers rsm.Namespace = 9

// numbers answers every command with how many it has run.
type numbers struct{ n *uint64 }

func (m numbers) Apply(rsm.Tx, rsm.Stamp, []byte) ([]byte, any) {
	*m.n++
	return binary.AppendUvarint(nil, *m.n), nil
}

// openAlone opens a host of one replica and waits until it leads.
func openAlone(t *testing.T, fs vfs.FS, clock env.Clock, ran *uint64) (*Host, *Group) {
	t.Helper()
	h, err := Open(Config{Dir: "r", FS: fs, Clock: clock, Self: 1, Voters: []Peer{{ID: 1}}, Transport: alone{},
		SegmentBytes: 1 << 20}, map[rsm.Namespace]rsm.Machine{nsNumbers: numbers{ran}})
	if err != nil {
		t.Fatal(err)
	}
	g := h.Group(0)
	leads := make(chan struct{}, 1)
	stop := g.Watch(func(st rsm.Status) {
		if st.Role == rsm.Leader {
			signal(leads)
		}
	})
	defer stop()
	<-leads
	return h, g
}

// resultRows counts the rows of results.
func resultRows(t *testing.T, g *Group) (n int) {
	t.Helper()
	err := g.ReadLocal(rsm.NSSession, func(r rsm.Reader) error {
		return r.Scan([]byte{keyResults}, []byte{keyResults + 1}, func(_, _ []byte) bool { n++; return true })
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestResultsOfOneEntryShareARow(t *testing.T) {
	var ran uint64
	fs := vfs.NewMem()
	h, g := openAlone(t, fs, env.System{}, &ran)
	session, err := g.OpenSession(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	const n = 10
	waiters := make([]*waiter, n)
	queued := make(chan struct{})
	g.call(func(paxos.Time) { // in one turn, so in one entry
		defer close(queued)
		for i := range waiters {
			waiters[i] = &waiter{done: make(chan struct{})}
			if err := g.enqueue(&rsm.Command{Session: session, Seq: uint64(i + 1), NS: nsNumbers}, waiters[i]); err != nil {
				waiters[i].out.err = err
				close(waiters[i].done)
			}
		}
	})
	propose := func(seq, ack uint64) []byte {
		t.Helper()
		out, _, err := g.Propose(t.Context(), rsm.Command{Session: session, Seq: seq, Ack: ack, NS: nsNumbers})
		if err != nil {
			t.Fatalf("seq %d: %v", seq, err)
		}
		return out
	}
	rows := func(want int, when string) {
		t.Helper()
		if got := resultRows(t, g); got != want {
			t.Fatalf("%s: %d rows of results expected, found %d", when, want, got)
		}
	}
	<-queued
	for i, w := range waiters {
		<-w.done
		if w.out.err != nil || !bytes.Equal(w.out.result, binary.AppendUvarint(nil, uint64(i+1))) {
			t.Fatalf("command %d: result %d expected, found %x, %v", i+1, i+1, w.out.result, w.out.err)
		}
	}
	propose(n+1, 0)
	rows(2, "after two entries")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h, g = openAlone(t, fs, env.System{}, &ran)
	for seq := uint64(1); seq <= n+1; seq++ {
		if out := propose(seq, 0); !bytes.Equal(out, binary.AppendUvarint(nil, seq)) {
			t.Fatalf("seq %d tried again after a restart: its first result expected, found %x", seq, out)
		}
	}
	if ran != n+1 {
		t.Fatalf("%d commands run expected, found %d", n+1, ran)
	}
	propose(n+2, n/2)
	rows(3, "with half of an entry acknowledged")
	propose(n+3, n+2)
	rows(1, "with all acknowledged")
	if err := g.EndSession(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	rows(0, "after the session")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRowsOfResults(t *testing.T) {
	for _, tc := range []struct {
		name  string
		kind  byte
		value []byte
		ok    bool
		ack   uint64
		want  map[uint64]string
		last  uint64
	}{
		{"one command, of an earlier build", keyResult, []byte("\x03result"), true, 3, map[uint64]string{7: "result"}, 7},
		{"several", keyResults, []byte("\x03\x05\x02ab\x04\x00"), true, 3, map[uint64]string{5: "ab", 4: ""}, 5},
		{"no ack", keyResults, nil, false, 0, nil, 0},
		{"no length", keyResults, []byte("\x03\x05"), false, 0, nil, 0},
		{"too long", keyResults, []byte("\x03\x05\x03ab"), false, 0, nil, 0},
		{"longer than can be", keyResults, append([]byte("\x03\x05"), binary.AppendUvarint(nil, 1<<63)...), false, 0, nil, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &session{results: map[uint64][]byte{}}
			if ok := s.loadResults(resultRow{kind: tc.kind, n: 7}, tc.value); ok != tc.ok {
				t.Fatalf("%v expected, found %v", tc.ok, ok)
			}
			if !tc.ok {
				return
			}
			if s.ack != tc.ack || len(s.rows) != 1 || s.rows[0].last != tc.last || len(s.results) != len(tc.want) {
				t.Fatalf("found %+v", s)
			}
			for seq, want := range tc.want {
				if got, ok := s.results[seq]; !ok || string(got) != want {
					t.Errorf("seq %d: %q expected, found %q", seq, want, got)
				}
			}
		})
	}
}
