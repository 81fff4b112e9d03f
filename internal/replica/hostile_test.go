package replica_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// trouble makes the disk of one node answer with errors. The zero value leaves
// all disks alone.
type trouble struct {
	node atomic.Uint64
	err  func(op errorfs.Op) error
}

// over has the disk of a configuration's node pass through the trouble.
func (x *trouble) over(cfg *replica.Config) {
	id := uint64(cfg.Self)
	cfg.FS = errorfs.Wrap(cfg.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if x.node.Load() != id {
			return nil
		}
		return x.err(op)
	}))
}

// TestFailedSyncStopsTheNode: the leader's disk fails in the middle of its work.
// The node stops, what it acknowledged holds, and the others go on.
func TestFailedSyncStopsTheNode(t *testing.T) {
	x := &trouble{err: func(op errorfs.Op) error {
		if (op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSync) && strings.Contains(op.Path, "/log/") {
			return syscall.EIO
		}
		return nil
	}}
	c := newCluster(t, 3, x.over)
	stop := c.load(6)
	victim := c.leader()
	h := c.host(victim)
	x.node.Store(uint64(victim))
	<-h.Failed()
	if !strings.Contains(h.Err().Error(), "input/output error") {
		t.Errorf("the disk's error expected, found %v", h.Err())
	}
	if _, _, err := h.Group(0).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("y")}); !sys.Is(err, sys.Unavailable) && !sys.Is(err, sys.NotLeader) {
		t.Errorf("a node that has failed: sys.Unavailable or sys.NotLeader expected, found %v", err)
	}
	syncs := h.Group(0).Status().LogSyncs
	other := victim%3 + 1
	base := c.count(other, "x")
	c.await("the others to go on", func() bool { return c.count(other, "x") > base+20 })
	if n := h.Group(0).Status().LogSyncs; n != syncs {
		t.Errorf("nothing made durable after the failure expected, found %d writes", n-syncs)
	}
	x.node.Store(0)
	c.setHost(victim, nil)
	if err := h.Close(); err != nil {
		t.Logf("close: %v", err)
	}
	c.open(victim)
	c.agree(stop())
}

// TestFollowerWithAFullDisk: it says so, the others go on without it, and it
// comes back by itself.
func TestFollowerWithAFullDisk(t *testing.T) {
	var tries atomic.Int64
	x := &trouble{err: func(op errorfs.Op) error {
		// What has its place on the disk already can be written.
		if op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpFileWrite {
			tries.Add(1)
			return syscall.ENOSPC
		}
		return nil
	}}
	c := newCluster(t, 3, x.over)
	c.must(add("x"))
	l := c.leader()
	f := l%3 + 1
	x.node.Store(uint64(f))
	began := time.Now()
	value := strings.Repeat("v", 30<<10)
	lag := func() uint64 {
		for _, p := range c.group(c.leader()).Status().Peers {
			if p.ID == f {
				return p.Lag
			}
		}
		return 0 // the leader has just changed
	}
	for i := 0; lag() < 20; i++ {
		c.must(set(fmt.Sprint("key", i%20), value))
	}
	c.await("the follower to say so", func() bool { return c.group(f).Status().NoSpace })
	if s := c.group(c.leader()).Status(); s.Self == f || s.NoSpace {
		t.Fatalf("a leader with space expected, found %+v", s)
	}
	c.must(add("x"))
	// Pebble tries again at once: the disk is what keeps it from taking a CPU.
	if n, most := tries.Load(), 100+int64(time.Since(began)/(5*time.Millisecond)); n > most {
		t.Errorf("the state was tried to be written %d times, at most %d expected", n, most)
	}
	x.node.Store(0)
	c.agree(2)
	c.await("space", func() bool { return !c.group(f).Status().NoSpace })
	// It counts again: with the third one away the group goes on.
	c.close(f%3 + 1)
	c.must(add("x"))
}

// TestFollowerWhoseDiskFails: the node stops, the others go on, and it returns
// with a disk that works.
func TestFollowerWhoseDiskFails(t *testing.T) {
	x := &trouble{err: func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.EIO
		}
		return nil
	}}
	c := newCluster(t, 3, x.over)
	c.must(add("x"))
	f := c.follower()
	h := c.host(f)
	x.node.Store(uint64(f))
	c.must(add("x"))
	<-h.Failed()
	c.must(add("x"))
	x.node.Store(0)
	c.setHost(f, nil)
	if err := h.Close(); err != nil {
		t.Logf("close: %v", err)
	}
	c.open(f)
	c.agree(3)
}

func frame(t *testing.T, msgs ...*replicapb.Message) []byte {
	t.Helper()
	b := pb.Marshal(&replicapb.Frame{Messages: msgs})
	return b
}

// TestPeerThatSendsNonsense: what cannot be is dropped, whatever it is.
func TestPeerThatSendsNonsense(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.must(add("x"))
	l := c.leader()
	f := l%3 + 1
	h := c.host(l)
	elections := c.group(l).Status().Elections
	entry := &replicapb.Entry{Slot: 5, Round: 1 << 63, Node: uint64(f), Kind: 1, Data: []byte("no batch")}
	ballot := &replicapb.Ballot{Round: 1 << 62, Node: uint64(f)}
	for kind := range uint32(20) {
		for _, m := range []*replicapb.Message{
			{Kind: kind},
			{Kind: kind, From: uint64(f), To: uint64(l), Ballot: ballot, Entries: []*replicapb.Entry{entry}},
			{Kind: kind, From: uint64(f), To: uint64(f), Ballot: ballot},
			{Kind: kind, From: 99, To: uint64(l), Ballot: &replicapb.Ballot{Round: 5, Node: 99}},
			{Kind: kind, From: uint64(f), To: uint64(l), Group: 77},
			{Kind: kind, From: uint64(f), To: uint64(l), Slot: 1 << 62, Next: 1, Chosen: 1 << 63},
			{Kind: kind, From: uint64(f), To: uint64(l), Digest: &replicapb.Digest{Slot: 1 << 63, Sum: 1}},
		} {
			h.Message(f, frame(t, m))
		}
	}
	h.Message(f, bytes.Repeat([]byte{0xff}, 1000))
	h.Message(f, nil)
	for _, req := range []*replicapb.Request{
		{},
		{Group: 77, Op: &replicapb.Request_Promise{Promise: &replicapb.PromiseQuery{}}},
		{Op: &replicapb.Request_Offer{Offer: &replicapb.SnapshotOffer{Stream: 1, Members: []byte{9}}}},
		{Op: &replicapb.Request_Chunk{Chunk: &replicapb.SnapshotChunk{}}},
		{Op: &replicapb.Request_Chunk{Chunk: &replicapb.SnapshotChunk{Stream: 5, Number: 1 << 63, Last: true}}},
	} {
		b := pb.Marshal(req)
		if out, err := h.Call(t.Context(), f, b); err == nil {
			var reply replicapb.Reply
			if err := pb.Unmarshal(out, &reply); err != nil || !reply.Refused {
				t.Errorf("%v: an error or a refusal expected, found %v, %v", req, &reply, err)
			}
		}
	}
	if _, err := h.Call(t.Context(), f, []byte{0xff}); !sys.Is(err, sys.Invalid) {
		t.Errorf("sys.Invalid expected, found %v", err)
	}
	if got := number(c.must(add("x"))); got != 2 {
		t.Fatalf("counter: 2 expected, found %d", got)
	}
	if s := c.group(l).Status(); s.Role != rsm.Leader || s.Elections != elections {
		t.Fatalf("the same leader expected, found %+v", s)
	}
}

// TestPeerThatFloods: what comes faster than it is handled is dropped, and the
// group goes on.
func TestPeerThatFloods(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.must(add("x"))
	l := c.leader()
	f := l%3 + 1
	h := c.host(l)
	small := make([]*replicapb.Message, 1<<15)
	for i := range small {
		small[i] = &replicapb.Message{Kind: 4, From: uint64(f), To: uint64(l), Ballot: &replicapb.Ballot{Round: 1, Node: uint64(f)}}
	}
	frames := [][]byte{frame(t, small...), frame(t, &replicapb.Message{Kind: 5, From: uint64(f), To: uint64(l),
		Ballot:  &replicapb.Ballot{Round: 1, Node: uint64(f)},
		Entries: []*replicapb.Entry{{Slot: 1 << 40, Round: 1, Node: uint64(f), Kind: 1, Data: make([]byte, 16<<20)}}})}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				h.Message(f, frames[i%2])
			}
		})
	}
	stop := c.load(2)
	c.await("messages to be dropped", func() bool { return c.group(l).Status().Dropped > 0 })
	c.await("commands to go on", func() bool { return c.count(c.leader(), "x") > 20 })
	cancel()
	wg.Wait()
	c.agree(1 + stop())
}

// TestManyGroupsShareTheSyncs: the groups' commands that come together are made
// durable together.
func TestManyGroupsShareTheSyncs(t *testing.T) {
	const groups, commands = 16, 40
	c := newCluster(t, 3, func(cfg *replica.Config) {
		for g := range sys.GroupID(groups) {
			if g > 0 {
				cfg.Groups = append(cfg.Groups, g)
			} else {
				cfg.Groups = []sys.GroupID{0}
			}
		}
		// A disk whose syncs take about as long as those of a real one.
		cfg.FS = errorfs.Wrap(cfg.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSyncData {
				time.Sleep(2 * time.Millisecond)
			}
			return nil
		}))
	})
	add := func(g sys.GroupID) {
		c.await("the command", func() bool {
			for id := sys.NodeID(1); id <= 3; id++ {
				if _, _, err := c.host(id).Group(g).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")}); err == nil {
					return true
				}
			}
			return false
		})
	}
	var wg sync.WaitGroup
	all := func(n int) {
		for g := range sys.GroupID(groups) {
			wg.Go(func() {
				for range n {
					add(g)
				}
			})
		}
		wg.Wait()
	}
	all(1) // every group has a leader
	var before, after uint64
	for id := sys.NodeID(1); id <= 3; id++ {
		before += c.group(id).Status().LogSyncs
	}
	all(commands)
	for id := sys.NodeID(1); id <= 3; id++ {
		s := c.group(id).Status()
		after += s.LogSyncs
		if s.SyncTime.Count != s.LogSyncs || s.SyncTime.P99 < uint64(2*time.Millisecond) || s.SyncTime.Mean <= 0 {
			t.Errorf("%v: every sync counted, and most above 2 ms, expected, found %+v of %d", id, s.SyncTime, s.LogSyncs)
		}
	}
	perCommand := float64(after-before) / (groups * commands * 3)
	t.Logf("%.2f syncs per command and replica", perCommand)
	if perCommand > 0.5 {
		t.Errorf("one sync for two commands or more expected, found %.2f per command", perCommand)
	}
}

// TestStatusTellsOfTheLoad: what an operator looks at when it is slow.
func TestStatusTellsOfTheLoad(t *testing.T) {
	c := newCluster(t, 3, nil)
	stop := c.load(8)
	c.await("100 commands", func() bool { return c.count(c.leader(), "x") > 100 })
	n := stop()
	l := c.leader()
	s := c.group(l).Status()
	if s.Batch.Count != s.Entries || s.Batch.Mean < 1 || s.Batch.Max > 16 || uint64(s.Batch.Mean*float64(s.Batch.Count)+0.5) < n {
		t.Errorf("%d commands in %d entries expected, found %+v", n, s.Entries, s.Batch)
	}
	if s.Lease <= 0 || !s.Ready || s.QueueCommands != 0 || s.QueueBytes != 0 || s.InFlight != 0 || len(s.Peers) != 2 {
		t.Errorf("a leader with a lease and nothing that waits expected, found %+v", s)
	}
}
