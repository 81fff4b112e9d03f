package replica

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/paxos"
	"google.golang.org/protobuf/proto"
)

// randomMessage fills every field, or leaves it zero.
func randomMessage(rng *rand.Rand) groupMessage {
	u := func() uint64 {
		if rng.IntN(3) == 0 {
			return 0
		}
		return rng.Uint64() >> rng.IntN(64)
	}
	ballot := func() paxos.Ballot { return paxos.Ballot{Round: u(), Node: paxos.NodeID(u())} }
	g := groupMessage{msg: paxos.Message{
		Kind: paxos.MessageKind(rng.IntN(15)), From: paxos.NodeID(u()), To: paxos.NodeID(u()),
		Ballot: ballot(), Promised: ballot(), Released: ballot(),
		Slot: paxos.Slot(u()), Next: paxos.Slot(u()), Chosen: paxos.Slot(u()), Truncated: paxos.Slot(u()),
		Seq: u(), At: paxos.Time(u()), Reject: rng.IntN(2) == 0, Mute: rng.IntN(2) == 0,
	}}
	for range rng.IntN(4) {
		g.msg.Entries = append(g.msg.Entries, paxos.Entry{Slot: paxos.Slot(u()), Ballot: ballot(),
			Kind: paxos.EntryKind(rng.IntN(4)), Data: bytes.Repeat([]byte{7}, 1+rng.IntN(300))})
	}
	if rng.IntN(4) == 0 {
		g.digest = digestAt{slot: 1 + u(), sum: u()}
	}
	g.full = rng.IntN(2) == 0
	return g
}

func ballotPB(b paxos.Ballot) *replicapb.Ballot {
	if b.IsZero() {
		return nil
	}
	return &replicapb.Ballot{Round: b.Round, Node: uint64(b.Node)}
}

// TestFrameIsTheProtobuf compares the encoding by hand with protobuf's own,
// in both directions.
func TestFrameIsTheProtobuf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		g := randomMessage(rng)
		m := g.msg
		pb := &replicapb.Message{Group: uint64(g.group), Kind: uint32(m.Kind), From: uint64(m.From), To: uint64(m.To),
			Ballot: ballotPB(m.Ballot), Promised: ballotPB(m.Promised), Released: ballotPB(m.Released),
			Slot: uint64(m.Slot), Next: uint64(m.Next), Chosen: uint64(m.Chosen), Truncated: uint64(m.Truncated),
			Seq: m.Seq, At: int64(m.At), Reject: m.Reject, Mute: m.Mute, Full: g.full}
		for _, e := range m.Entries {
			pb.Entries = append(pb.Entries, &replicapb.Entry{Slot: uint64(e.Slot), Round: e.Ballot.Round,
				Node: uint64(e.Ballot.Node), Kind: uint32(e.Kind), Data: e.Data})
		}
		if g.digest.slot != 0 {
			pb.Digest = &replicapb.Digest{Slot: g.digest.slot, Sum: g.digest.sum}
		}
		byHand, _ := appendMessage(nil, &g, nil)
		var back replicapb.Frame
		if err := proto.Unmarshal(byHand, &back); err != nil {
			t.Fatal(err)
		}
		if len(back.Messages) != 1 || !proto.Equal(back.Messages[0], pb) {
			t.Fatalf("expected %v\nfound %v", pb, &back)
		}
		byProto, err := proto.Marshal(&replicapb.Frame{Messages: []*replicapb.Message{pb, pb}})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		err = decodeFrame(byProto, func(got groupMessage) {
			n++
			if !reflect.DeepEqual(got, g) {
				t.Fatalf("expected %+v\nfound %+v", g, got)
			}
		})
		if err != nil || n != 2 {
			t.Fatalf("2 messages expected, found %d, %v", n, err)
		}
	}
}

func TestEntryBatchIsTheProtobuf(t *testing.T) {
	cmds := []rsm.Command{{NS: rsm.NSMeta, Body: []byte("one")}, {Session: 1 << 40, Seq: 3, Ack: 2, NS: rsm.NSSession}}
	p := newProposals(1, 0)
	size := len(p.buf)
	for i := range cmds {
		p.buf = appendCommand(p.buf, &cmds[i])
		size += sizeCommand(&cmds[i])
	}
	if size != len(p.buf) {
		t.Fatalf("size %d expected, found %d", len(p.buf), size)
	}
	data := appendUint(p.buf, 2, 12345)
	var pb replicapb.EntryBatch
	if err := proto.Unmarshal(data, &pb); err != nil {
		t.Fatal(err)
	}
	if pb.Origin != p.origin || pb.TimeNs != 12345 || len(pb.Commands) != 2 || string(pb.Commands[0].Body) != "one" ||
		pb.Commands[1].Session != 1<<40 || pb.Commands[1].Ack != 2 {
		t.Fatalf("found %v", &pb)
	}
	var back entryBatch
	if err := back.decode(data); err != nil || !reflect.DeepEqual(back.commands, cmds) || back.timeNs != 12345 {
		t.Fatalf("expected %v, found %v, %v", cmds, back, err)
	}
}

func TestSmallRowsAreTheProtobuf(t *testing.T) {
	st := logState{promised: paxos.Ballot{Round: 3, Node: 2}, chosen: 9, truncated: 4, placing: 3, damaged: true, lost: true}
	var pb replicapb.LogState
	if err := proto.Unmarshal(st.encode(), &pb); err != nil || pb.Promised.Round != 3 || pb.Promised.Node != 2 ||
		pb.Chosen != 9 || pb.Truncated != 4 || pb.Placing != 3 || !pb.Damaged || !pb.Lost {
		t.Fatalf("found %v, %v", &pb, err)
	}
	if back, err := decodeLogState(st.encode()); err != nil || back != st {
		t.Fatalf("expected %v, found %v, %v", st, back, err)
	}
	row := appliedRow{slot: 5, timeNs: 6, digest: 7}
	if back, err := decodeApplied(row.encode()); err != nil || back != row {
		t.Fatalf("expected %v, found %v, %v", row, back, err)
	}
}

// someHistory is one in which a change is not in force yet.
func someHistory() paxos.History {
	h := paxos.Initial([]paxos.NodeID{1, 2, 3})
	return append(h, paxos.ConfigAt{From: 100, Configuration: paxos.Configuration{Voters: []paxos.NodeID{2, 3, 300}, Learners: []paxos.NodeID{7}}})
}

func TestMembersAreTheProtobuf(t *testing.T) {
	for _, row := range []membersRow{{}, {history: someHistory()}, {history: someHistory(), joined: true, placed: 9}} {
		var pb replicapb.Members
		if err := proto.Unmarshal(row.encode(), &pb); err != nil || !bytes.Equal(pb.History, row.history.Encode()) || pb.Joined != row.joined {
			t.Fatalf("found %v, %v", &pb, err)
		}
		back, err := decodeMembers(row.encode())
		if err != nil || back.joined != row.joined || !back.history.Equal(row.history) {
			t.Fatalf("expected %v, found %v, %v", row, back, err)
		}
	}
	if _, err := decodeMembers(appendBytes(nil, 1, []byte{1, 200})); err == nil {
		t.Fatal("a history that is none: an error expected, found none")
	}
}

// TestSnapshotHeadIsChecked changes every bit of a head: none is taken for
// another one.
func TestSnapshotHeadIsChecked(t *testing.T) {
	head := snapHead{stream: 77, applied: appliedRow{slot: 50, timeNs: 60, digest: 70}, history: someHistory()}
	good, err := proto.Marshal(head.offer())
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(good) {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		var o replicapb.SnapshotOffer
		if proto.Unmarshal(b, &o) != nil {
			continue
		}
		if found, err := readOffer(&o); err == nil && !reflect.DeepEqual(found, head) {
			t.Fatalf("bit %d: the head or an error expected, found %+v", bit, found)
		}
	}
	late := head
	late.applied.slot, late.history = 50, late.history[1:]
	if _, err := readOffer(late.offer()); err == nil {
		t.Fatal("members of later slots only: an error expected, found none")
	}
}

// FuzzDecode feeds the decoders of what comes from outside.
func FuzzDecode(f *testing.F) {
	rng := rand.New(rand.NewPCG(2, 2))
	for range 10 {
		g := randomMessage(rng)
		b, _ := appendMessage(nil, &g, nil)
		f.Add(b)
	}
	f.Add(membersRow{history: someHistory(), joined: true, placed: 9}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		// Errors are fine; panics are not. What decodes must encode again.
		err := decodeFrame(b, func(g groupMessage) {
			out, _ := appendMessage(nil, &g, nil)
			err := decodeFrame(out, func(again groupMessage) {
				if !reflect.DeepEqual(normal(g), normal(again)) {
					t.Errorf("expected %+v\nfound %+v", g, again)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
		if m, merr := decodeMembers(b); merr == nil {
			again, err := decodeMembers(m.encode())
			if err != nil || again.joined != m.joined || !again.history.Equal(m.history) {
				t.Errorf("members: expected %+v, found %+v, %v", m, again, err)
			}
		}
		var e entryBatch
		if derr := e.decode(b); derr == nil && err == nil && len(e.commands) > len(b) {
			t.Error("more commands than bytes")
		}
	})
}

// normal makes messages comparable: no data and empty data are the same.
func normal(g groupMessage) groupMessage {
	for i := range g.msg.Entries {
		if len(g.msg.Entries[i].Data) == 0 {
			g.msg.Entries[i].Data = nil
		}
	}
	if g.digest.slot == 0 {
		g.digest = digestAt{}
	}
	return g
}

func TestDivergencePanicsWithBoth(t *testing.T) {
	defer func() {
		msg, _ := recover().(string)
		if !strings.Contains(msg, "diverged") || !strings.Contains(msg, "00000000000000aa") || !strings.Contains(msg, "00000000000000bb") {
			t.Fatalf("both digests expected, found %q", msg)
		}
	}()
	g := &Group{id: 3}
	g.ownDigests = []digestAt{{slot: 16, sum: 0xbb}}
	g.remoteDigest(digestAt{slot: 16, sum: 0xaa})
}
