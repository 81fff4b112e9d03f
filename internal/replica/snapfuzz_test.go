package replica

import (
	"bytes"
	"context"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// silence is a transport on which nothing arrives.
type silence struct{}

func (silence) Send(sys.NodeID, Lane, []byte) {}
func (silence) Call(context.Context, sys.NodeID, []byte) ([]byte, error) {
	return nil, sys.E(sys.Unavailable, "nobody is there")
}
func (silence) SetPeers([]Peer) {}
func (silence) Handle(Handler)  {}

// snapBytes reads requests from fuzzed bytes.
type snapBytes struct{ b []byte }

func (s *snapBytes) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return v
}

func (s *snapBytes) bytes(most int) []byte {
	k := min(int(s.byte())%(most+1), len(s.b))
	v := s.b[:k]
	s.b = s.b[k:]
	return v
}

func (s *snapBytes) offer() *replicapb.SnapshotOffer {
	head := snapHead{stream: uint64(s.byte() % 4), applied: appliedRow{slot: uint64(s.byte()), timeNs: 1, digest: 2}, history: paxos.Initial([]paxos.NodeID{1, 2, 3})}
	o := head.offer()
	if s.byte()%8 == 1 {
		o.Members = s.bytes(40)
		o.Crc = checksumOffer(o)
	}
	if s.byte()%8 == 1 {
		o.Applied = nil
	}
	return o
}

func (s *snapBytes) chunk() *replicapb.SnapshotChunk {
	c := &replicapb.SnapshotChunk{Stream: uint64(s.byte() % 4), Number: uint64(s.byte() % 8), Total: uint64(s.byte()), Last: s.byte()%4 == 1}
	crc := uint32(0)
	for range s.byte() % 8 {
		r := &replicapb.Row{Key: s.bytes(20), Value: s.bytes(60)}
		crc = checksumRow(crc, r.Key, r.Value)
		c.Rows = append(c.Rows, r)
	}
	c.Crc = checksumChunk(crc, c) + uint32(s.byte()%8)/7
	return c
}

// receiver follows what a host takes in of a snapshot.
type receiver struct {
	t    *testing.T
	h    *Host
	from sys.NodeID
	slot uint64
	next uint64
	rows []*replicapb.Row
}

// call gives the host a request, and returns nil when it did not take it.
func (r *receiver) call(from sys.NodeID, req []byte) *replicapb.Reply {
	out, err := r.h.Call(r.t.Context(), from, req)
	reply := &replicapb.Reply{}
	if err != nil {
		return nil
	}
	if err := pb.Unmarshal(out, reply); err != nil {
		r.t.Fatalf("an answer that cannot be read: %v", err)
	}
	if reply.Refused {
		return nil
	}
	return reply
}

func (r *receiver) request(from sys.NodeID, req *replicapb.Request) {
	b := pb.Marshal(req)
	reply := r.call(from, b)
	if reply == nil {
		return
	}
	if o := req.GetOffer(); o != nil && reply.Next == 0 {
		r.from, r.slot, r.next, r.rows = from, o.Applied.Slot, 0, nil
		return
	}
	c := req.GetChunk()
	if c == nil || c.Number != r.next {
		return // again
	}
	r.next++
	r.rows = append(r.rows, c.Rows...)
	if c.Last {
		r.whole()
	}
}

// whole checks that the state is what the chunks had in them.
func (r *receiver) whole() {
	if s := r.h.Group(0).Status(); s.Applied != r.slot {
		r.t.Fatalf("the state of slot %d expected, found %d", r.slot, s.Applied)
	}
	n := 0
	for ns := range int(nsLocal) {
		err := r.h.Group(0).ReadLocal(rsm.Namespace(ns), func(rd rsm.Reader) error {
			return rd.Scan(nil, nil, func(key, value []byte) bool {
				want := r.rows[n]
				if rsm.Namespace(want.Key[0]) != rsm.Namespace(ns) || !bytes.Equal(want.Key[1:], key) || !bytes.Equal(want.Value, value) {
					r.t.Fatalf("row %d: %x=%x expected, found %x=%x of namespace %d", n, want.Key, want.Value, key, value, ns)
				}
				n++
				return true
			})
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if n != len(r.rows) {
		r.t.Fatalf("%d rows expected, found %d", len(r.rows), n)
	}
}

// feed gives the host requests made of bytes.
func (r *receiver) feed(in []byte) {
	src := &snapBytes{in}
	for len(src.b) > 0 && r.h.Err() == nil {
		from := sys.NodeID(2 + len(src.b)%16/15)
		switch src.byte() % 3 {
		case 0:
			r.call(from, src.bytes(255))
		case 1:
			r.request(from, &replicapb.Request{Op: &replicapb.Request_Offer{Offer: src.offer()}})
		case 2:
			r.request(from, &replicapb.Request{Op: &replicapb.Request_Chunk{Chunk: src.chunk()}})
		}
	}
}

// openReceiver opens a host of three voters that hears nobody.
func openReceiver(t *testing.T) *receiver {
	h, err := Open(Config{Dir: "/data", FS: vfs.NewMem(), Clock: env.System{}, Cluster: "test", Self: 1, Voters: []Peer{{ID: 1}, {ID: 2}, {ID: 3}},
		Transport: silence{}, Seed: 1, SegmentBytes: 256 << 10, BlockCacheBytes: 1 << 20, MemTableBytes: 256 << 10}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil && h.Err() == nil {
			t.Error(err)
		}
	})
	return &receiver{t: t, h: h}
}

// wholeSnapshot is an offer of slot 9, a chunk with a row, the last one with
// another row.
var wholeSnapshot = []byte{1, 1, 9, 0, 0, 2, 1, 0, 0, 0, 1, 2, 7, 'a', 1, 'x', 0, 2, 1, 1, 2, 1, 1, 2, 7, 'b', 1, 'y', 0}

// emptySnapshot is one of slot 12 without rows.
var emptySnapshot = []byte{1, 2, 12, 0, 0, 2, 2, 0, 0, 1, 0, 0}

// rowCount counts the rows of namespace 7.
func rowCount(t *testing.T, r rsm.Reader) (n int) {
	t.Helper()
	if err := r.Scan(nil, nil, func(_, _ []byte) bool { n++; return true }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestViewsWhileTheStateIsReplaced: a view that is held, by who sends a snapshot
// or a reader, is of one state as a whole when another is put in its place.
func TestViewsWhileTheStateIsReplaced(t *testing.T) {
	r := openReceiver(t)
	g := r.h.Group(0)
	r.feed(wholeSnapshot)
	out, err := g.outSnap.acquire(g, 9)
	if err != nil {
		t.Fatal(err)
	}
	runs, before, after := 0, 0, 0
	err = g.ReadLocal(7, func(v rsm.Reader) error {
		runs++
		before = rowCount(t, v)
		if runs == 1 {
			r.feed(emptySnapshot)
		}
		after = rowCount(t, v)
		return nil
	})
	if err != nil || runs != 2 || before != 0 || after != 0 {
		t.Errorf("a reader: a second run that sees no rows expected, found %d runs, %d and %d rows, %v", runs, before, after, err)
	}
	if n := rowCount(t, &view{reader: out.snap, prefix: namespacePrefix(0, 7)}); n != 2 || out.applied.slot != 9 {
		t.Errorf("what is sent: 2 rows of slot 9 expected, found %d of slot %d", n, out.applied.slot)
	}
	if err := g.outSnap.release(out, 0, false); err != nil {
		t.Error(err)
	}
}

// TestLeaderTakesNoSnapshot: commands that it has not applied one by one would
// be missed by those who follow them.
func TestLeaderTakesNoSnapshot(t *testing.T) {
	var ran uint64
	h, g := openAlone(t, vfs.NewMem(), env.System{}, &ran)
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	head := snapHead{stream: 1, applied: appliedRow{slot: 1 << 20}, history: paxos.Initial([]paxos.NodeID{1})}
	reply, err := g.receiveOffer(t.Context(), 2, head.offer())
	if err != nil || !reply.Refused || reply.Reason != leads {
		t.Errorf("an offer: a refusal expected, found %v, %v", reply, err)
	}
	placed := newAnswer[error]()
	g.applier.do(func() error {
		_, err := g.applier.replace(nil, head)
		placed.give(err)
		return nil
	})
	if <-placed.done; !sys.Is(placed.v, sys.Unavailable) {
		t.Errorf("one that was offered before: a refusal expected, found %v", placed.v)
	}
}

// FuzzSnapshot gives a node arbitrary pieces of snapshots, most of them with
// right checksums: no panic, memory bounded by the bytes, and a snapshot that is
// taken as whole is what was sent.
func FuzzSnapshot(f *testing.F) {
	whole := wholeSnapshot
	f.Add(whole)
	f.Add(append(bytes.Clone(whole), emptySnapshot...))
	f.Add(append([]byte{0, 60}, whole...))
	f.Add(append([]byte{1, 1, 8, 0, 0}, whole...)) // another snapshot of the same name before
	f.Add([]byte{1, 1, 9, 1, 3, 9, 9, 9, 0, 2, 1, 0, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<12 {
			return
		}
		r := openReceiver(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r.feed(in)
		runtime.ReadMemStats(&after)
		// A table, a memtable and a segment for each request at most.
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(16<<20+len(in)<<16); got > most {
			t.Fatalf("at most %d bytes allocated expected, found %d", most, got)
		}
	})
}
