package replica_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// join opens a new node, which knows nothing, and returns its ID.
func (c *cluster) join() sys.NodeID {
	c.t.Helper()
	id := sys.NodeID(c.n.Add(1))
	c.fs[id] = vfs.NewCrashableMem()
	c.net.Endpoint(id)
	c.open(id)
	return id
}

func ids(list ...sys.NodeID) []sys.NodeID { return list }

// without returns a list without one.
func without(list []sys.NodeID, id sys.NodeID) []sys.NodeID {
	return slices.DeleteFunc(slices.Clone(list), func(o sys.NodeID) bool { return o == id })
}

// tryChange asks whoever leads for a change, as often as it takes.
func (c *cluster) tryChange(ctx context.Context, voters, learners []sys.NodeID) error {
	for {
		err := sys.E(sys.Unavailable)
		if h := c.host(c.leader()); h != nil { // else it has been crashed since
			err = h.Group(0).Reconfigure(ctx, voters, learners)
		}
		if err == nil || !sys.Is(err, sys.NotLeader) && !sys.Is(err, sys.Unavailable) && !sys.Is(err, sys.Busy) || ctx.Err() != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *cluster) change(voters, learners []sys.NodeID) {
	c.t.Helper()
	if err := c.tryChange(c.ctx(), voters, learners); err != nil {
		c.t.Fatalf("change to %v, learners %v: %v", voters, learners, err)
	}
}

// awaitMembers waits until nodes say who is in the group.
func (c *cluster) awaitMembers(nodes, voters, learners []sys.NodeID) {
	c.t.Helper()
	for _, id := range nodes {
		c.await(fmt.Sprintf("%v to have members %v, %v", id, voters, learners), func() bool {
			s := c.group(id).Status()
			return slices.Equal(s.Voters, voters) && slices.Equal(s.Learners, learners) && len(s.NextVoters) == 0 &&
				s.Voter == slices.Contains(voters, id)
		})
	}
}

func (c *cluster) awaitRemoved(id sys.NodeID) {
	c.t.Helper()
	c.await(fmt.Sprintf("%v to say that it has been removed", id), func() bool { return c.group(id).Status().Removed })
}

func (c *cluster) agreeOn(nodes []sys.NodeID, want uint64) {
	c.t.Helper()
	for _, id := range nodes {
		c.await(fmt.Sprintf("%v to count %d", id, want), func() bool { return c.count(id, "x") == want })
	}
}

// TestMembersChangeUnderLoad goes from three nodes to three others, one after
// another, the leader at last: no command fails, and each counts once.
func TestMembersChangeUnderLoad(t *testing.T) {
	c := newCluster(t, 3, nil)
	voters := ids(1, 2, 3)
	first := c.leader()
	order := append(without(voters, first), first)
	stop := c.load(6)
	for _, gone := range order {
		id := c.join()
		c.change(voters, ids(id))
		before := voters
		voters = append(without(voters, gone), id)
		c.change(voters, nil)
		c.awaitMembers(voters, voters, nil)
		c.awaitRemoved(gone)
		if s := c.group(gone).Status(); s.Voter || slices.Contains(s.Voters, gone) {
			t.Fatalf("%v was removed from %v: no voter expected, found %+v", gone, before, s)
		}
		base := c.count(id, "x")
		c.await("commands to go on", func() bool { return c.count(id, "x") > base })
		c.close(gone)
	}
	n := stop()
	c.agreeOn(voters, n)
	if s := c.group(c.leader()).Status(); len(s.Peers) != 2 || !s.Peers[0].Voter || !s.Peers[0].Reachable {
		t.Fatalf("two voters that answer expected, found %+v", s.Peers)
	}
	t.Logf("%d commands", n)
}

// TestFiveAtOnce: any number of members may come and go in one change.
func TestFiveAtOnce(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.must(add("x"))
	all := ids(1, c.join(), c.join(), c.join(), c.join())
	c.change(ids(1), all[1:])
	c.change(all, nil)
	c.awaitMembers(all, all, nil)
	c.change(all[2:], all[1:2])
	c.awaitMembers(all[1:], all[2:], all[1:2])
	c.awaitRemoved(1)
	if got := number(c.must(add("x"))); got != 2 {
		t.Fatalf("counter: 2 expected, found %d", got)
	}
	c.agreeOn(all[1:], 2)
}

// TestLostNodeReturnsUnderANewID: the log is cut already, so the newcomer needs
// a snapshot; then it takes the place of the one that is lost for good.
func TestLostNodeReturnsUnderANewID(t *testing.T) {
	c := newCluster(t, 3, nil)
	lost := c.follower()
	c.close(lost)
	value := strings.Repeat("v", 60<<10)
	for i := 0; i < 60 || c.group(c.leader()).Status().Truncated < 40; i++ {
		c.must(set(fmt.Sprintf("big%03d", i%100), value))
	}
	fresh := c.join()
	c.change(ids(1, 2, 3), ids(fresh))
	c.await("the snapshot", func() bool { return c.group(fresh).Status().Installs > 0 })
	voters := append(without(ids(1, 2, 3), lost), fresh)
	c.change(voters, nil)
	c.awaitMembers(voters, voters, nil)
	// It knows who it is after a crash, and counts: another one may go.
	c.crash(fresh)
	c.open(fresh)
	c.awaitMembers(ids(fresh), voters, nil)
	other := without(without(ids(1, 2, 3), lost), c.leader())
	c.close(other[0])
	c.must(add("x"))
	c.agreeOn(ids(fresh), 1)
	if c.local(fresh, "big050") != value {
		t.Fatal("the newcomer's state is not the group's")
	}
}

// TestRestartsDuringChanges crashes nodes while members change.
func TestRestartsDuringChanges(t *testing.T) {
	c := newCluster(t, 3, nil)
	fourth := c.join()
	stop := c.load(4)
	c.change(ids(1, 2, 3), ids(fourth))
	want, all := ids(1, 2, 3), ids(1, 2, 3, fourth)
	for round := range 8 {
		out := all[round%4]
		want = without(all, out)
		done := make(chan error, 1)
		ctx := c.ctx()
		go func() { done <- c.tryChange(ctx, want, ids(out)) }()
		for range 3 {
			id := all[c.rng.IntN(4)]
			c.crash(id)
			c.open(id)
		}
		if err := <-done; err != nil {
			t.Fatalf("change to %v: %v", want, err)
		}
	}
	// All at once, in the middle of one more.
	done := make(chan error, 1)
	ctx := c.ctx()
	go func() { done <- c.tryChange(ctx, all, nil) }()
	for _, id := range all {
		c.crash(id)
	}
	for _, id := range all {
		c.open(id)
	}
	if err := <-done; err != nil {
		t.Fatalf("change to %v: %v", all, err)
	}
	n := stop()
	c.awaitMembers(all, all, nil)
	c.agreeOn(all, n)
	t.Logf("%d commands", n)
}

// calm has the leader stay for long without hearing anybody.
func calm(cfg *replica.Config) {
	cfg.ElectionTimeout, cfg.Lease = 3*time.Second, 2*time.Second
}

func TestOneChangeAtATime(t *testing.T) {
	c := newCluster(t, 3, calm)
	c.must(add("x"))
	l := c.leader()
	g := c.group(l)
	fourth := c.join()
	c.net.Isolate(l, true)
	start := func() chan error {
		done := make(chan error, 1)
		ctx := c.ctx()
		go func() { done <- g.Reconfigure(ctx, ids(3, 2, 1), ids(fourth)) }()
		return done
	}
	first := start()
	c.await("the change to be proposed", func() bool { return slices.Equal(g.Status().NextLearners, ids(fourth)) })
	err := g.Reconfigure(c.ctx(), ids(1, 2), nil)
	if !sys.Is(err, sys.Busy) || !strings.Contains(err.Error(), "another change") {
		t.Fatalf("sys.Busy expected, found %v", err)
	}
	again := start()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = g.Reconfigure(ctx, ids(1, 2, 3), ids(fourth))
	if !sys.Is(err, sys.Interrupted) || !strings.Contains(err.Error(), "may yet take effect") {
		t.Fatalf("sys.Interrupted expected, found %v", err)
	}
	c.net.Isolate(l, false)
	if err := errors.Join(<-first, <-again); err != nil {
		t.Fatalf("the change, asked for twice: %v", err)
	}
	if err := g.Reconfigure(c.ctx(), ids(1, 2, 3), ids(fourth)); err != nil {
		t.Fatalf("the members as they are: %v", err)
	}
	c.awaitMembers(ids(1, 2, 3, fourth), ids(1, 2, 3), ids(fourth))
}

func TestChangesThatAreRefused(t *testing.T) {
	c := newCluster(t, 3, nil)
	l := c.leader()
	c.must(add("x"))
	f := l%3 + 1
	refused := func(at sys.NodeID, voters, learners []sys.NodeID, kind sys.Kind, text string) {
		t.Helper()
		err := c.group(at).Reconfigure(c.ctx(), voters, learners)
		if !sys.Is(err, kind) || !strings.Contains(err.Error(), text) {
			t.Fatalf("%v with %q expected, found %v", kind, text, err)
		}
	}
	refused(l, nil, ids(1), sys.Invalid, "at least one voter")
	refused(l, ids(1, 2), ids(2), sys.Invalid, "distinct")
	refused(l, ids(1, 2, 3, 4), nil, sys.Unavailable, "must have been a learner")
	c.await("the follower to know", func() bool { return c.group(f).Status().Leader == l })
	err := c.group(f).Reconfigure(c.ctx(), ids(1, 2), nil)
	if id, ok := rsm.LeaderOf(err); !sys.Is(err, sys.NotLeader) || !ok || id != l {
		t.Fatalf("NotLeader that names %v expected, found %v", l, err)
	}
	// A learner that is far behind.
	fourth := c.join()
	c.change(ids(1, 2, 3), ids(fourth))
	c.net.Isolate(fourth, true)
	for range 100 {
		c.must(add("x"))
	}
	l = c.leader()
	refused(l, ids(1, 2, 3, 4), nil, sys.Unavailable, "caught up")
	c.net.Isolate(fourth, false)
	// Two voters, one of which is away.
	f = l%3 + 1
	c.close(f)
	c.await("the leader to miss it", func() bool {
		return slices.ContainsFunc(c.group(l).Status().Peers, func(p rsm.PeerStatus) bool { return p.ID == f && !p.Reachable })
	})
	refused(l, ids(l, f), nil, sys.Unavailable, "no majority of the new voters answers")
	c.must(add("x"))
	c.awaitMembers(ids(l), ids(1, 2, 3), ids(fourth))
}

// TestLeadershipLostDuringAChange: the outcome is not known then, and asking
// again finds out.
func TestLeadershipLostDuringAChange(t *testing.T) {
	c := newCluster(t, 3, nil)
	l := c.leader()
	c.net.Isolate(l, true)
	err := c.group(l).Reconfigure(c.ctx(), ids(1, 2, 3), ids(7))
	le, ok := errors.AsType[*rsm.LeaderError](err)
	if !sys.Is(err, sys.Unavailable) && !sys.Is(err, sys.NotLeader) || !ok || sys.Is(err, sys.Unavailable) != le.Proposed {
		t.Fatalf("an error that says whether it was proposed expected, found %v", err)
	}
	c.net.Isolate(l, false)
	c.change(ids(1, 2, 3), ids(7))
	c.awaitMembers(ids(1, 2, 3), ids(1, 2, 3), ids(7))
}

// TestJoinerWaits: a node that joins leads nothing, however often it starts and
// whatever its configuration says later.
func TestJoinerWaits(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.must(add("x"))
	id := c.join()
	c.crash(id)
	c.open(id)
	c.close(id)
	cfg := c.config(id)
	cfg.Voters = []replica.Peer{{ID: id}}
	h, err := replica.Open(cfg, machines())
	if err != nil {
		t.Fatal(err)
	}
	c.setHost(id, h)
	_, _, err = c.group(id).Propose(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")})
	if s := c.group(id).Status(); !sys.Is(err, sys.NotLeader) || len(s.Voters) != 0 || s.Voter || s.Removed {
		t.Fatalf("a node that waits expected, found %+v, %v", s, err)
	}
	c.change(ids(1), ids(id))
	c.agreeOn(ids(id), 1)
	c.awaitMembers(ids(id), ids(1), ids(id))
	c.change(ids(1), nil)
	c.awaitRemoved(id)
	// It still knows after a crash, and its directory can be used once more.
	c.crash(id)
	c.open(id)
	c.awaitRemoved(id)
	c.change(ids(1), ids(id))
	c.must(add("x"))
	c.agreeOn(ids(id), 2)
	c.await("the node to be a member again", func() bool { return !c.group(id).Status().Removed })
}

// TestMissedRemoval: a member that was down while the others removed it hears
// of it from them, though its own log does not say so.
func TestMissedRemoval(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.must(add("x"))
	gone := c.follower()
	c.close(gone)
	rest := without(ids(1, 2, 3), gone)
	c.change(rest, nil)
	c.awaitMembers(rest, rest, nil)
	c.open(gone)
	c.awaitRemoved(gone)
}

// TestDirectoryWithoutMembers: one of an older koinon takes its voters from the
// configuration, once.
func TestDirectoryWithoutMembers(t *testing.T) {
	c := newCluster(t, 3, nil)
	for range 50 {
		c.must(add("x"))
	}
	c.agree(50)
	for id := sys.NodeID(1); id <= 3; id++ {
		c.close(id)
		db, err := pebble.Open("/data/state", &pebble.Options{FS: c.fs[id], DisableWAL: true, FormatMajorVersion: pebble.FormatNewest})
		if err != nil {
			t.Fatal(err)
		}
		row := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0xff, 'm'}
		if _, closer, err := db.Get(row); err != nil || closer.Close() != nil {
			t.Fatalf("a row that says who is in the group expected, found %v", err)
		}
		if err := errors.Join(db.Delete(row, pebble.NoSync), db.Flush(), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	cfg := c.config(1)
	cfg.Voters = nil
	if _, err := replica.Open(cfg, machines()); !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), "with its voters") {
		t.Fatalf("sys.Invalid with advice expected, found %v", err)
	}
	for id := sys.NodeID(1); id <= 3; id++ {
		c.open(id)
	}
	c.must(add("x"))
	c.voters = 0 // from now on nobody says who votes
	c.crash(1)
	c.open(1)
	c.awaitMembers(ids(1, 2, 3), ids(1, 2, 3), nil)
	c.must(add("x"))
	c.agreeOn(ids(1, 2, 3), 52)
}

// TestWipedReplicaAsksTheMembersOfToday: it has to know every promise that may
// have been its own, and those who were members once are gone.
func TestWipedReplicaAsksTheMembersOfToday(t *testing.T) {
	rejoin := sys.NodeID(0)
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Rejoin = cfg.Self == rejoin })
	l := c.leader()
	gone := l%3 + 1
	rejoin = gone%3 + 1
	fourth := c.join()
	c.change(ids(1, 2, 3), ids(fourth))
	voters := append(without(ids(1, 2, 3), gone), fourth)
	c.change(voters, nil)
	c.close(gone)
	c.must(add("x"))
	c.close(rejoin)
	c.fs[rejoin] = vfs.NewCrashableMem()
	c.open(rejoin)
	c.await("the replica to return", func() bool {
		return c.count(rejoin, "x") == 1 && c.group(rejoin).Status().Damaged == ""
	})
	c.awaitMembers(ids(rejoin), voters, nil)
}

// TestLastOfTheFirstVoters: all others that a wiped replica's file names have left, and answer no more.
func TestLastOfTheFirstVoters(t *testing.T) {
	rejoin := sys.NodeID(0)
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Rejoin = cfg.Self == rejoin })
	fourth, fifth := c.join(), c.join()
	c.change(ids(1, 2, 3), ids(fourth, fifth))
	c.change(ids(3, fourth, fifth), nil)
	c.must(add("x"))
	c.close(1)
	c.close(2)
	rejoin = 3
	c.close(rejoin)
	c.fs[rejoin] = vfs.NewCrashableMem()
	c.open(rejoin)
	c.await("the replica to return", func() bool {
		return c.count(rejoin, "x") == 1 && c.group(rejoin).Status().Damaged == ""
	})
}

// TestFirstToldOldMembers: who is first to tell a wiped replica who votes is behind, and knows only of those who have left, or
// of itself alone. The others are still asked.
func TestFirstToldOldMembers(t *testing.T) {
	rejoin := sys.NodeID(0)
	c := newCluster(t, 1, func(cfg *replica.Config) { cfg.Others, cfg.Rejoin = true, cfg.Self == rejoin })
	second, third, behind := c.join(), c.join(), c.join()
	c.change(ids(1), ids(second, third, behind))
	c.must(add("x"))
	c.await("the fourth to learn", func() bool { return c.count(behind, "x") == 1 })
	c.close(behind)
	c.change(ids(1, second, third), ids(behind))
	c.must(add("x"))
	for _, id := range ids(second, third) {
		c.await("the new voters to know", func() bool { return c.count(id, "x") == 2 })
		c.close(id)
	}
	c.close(1)
	rejoin = 1
	c.fs[rejoin] = vfs.NewCrashableMem()
	c.open(behind)
	c.open(rejoin)
	c.await("the old news", func() bool {
		return strings.Contains(c.group(rejoin).Status().Damaged, "there is no majority without them")
	})
	c.open(second)
	c.open(third)
	c.await("the replica to return", func() bool {
		return c.count(rejoin, "x") == 2 && c.group(rejoin).Status().Damaged == ""
	})
}

// TestMembersInForceAreDurable: who has been told that it votes knows so after a crash, and the only voter of before is not needed
// any more, also where nothing was written since.
func TestMembersInForceAreDurable(t *testing.T) {
	rejoin := sys.NodeID(0)
	c := newCluster(t, 1, func(cfg *replica.Config) { cfg.Others, cfg.Rejoin, cfg.Mark = true, cfg.Self == rejoin, "/served" })
	second, third := c.join(), c.join()
	c.change(ids(1), ids(second, third))
	c.change(ids(1, second, third), nil)
	for _, id := range ids(second, third) {
		c.await("the new voters to be told", func() bool { return len(c.group(id).Status().Voters) == 3 })
	}
	for _, id := range ids(second, third) {
		c.await("that to be durable", func() bool {
			return strings.Contains(c.mark(id), fmt.Sprintf("members 0 %d\n", c.group(id).Status().Chosen+1))
		})
	}
	for _, id := range ids(second, third, 1) {
		c.net.Isolate(id, true)
	}
	for _, id := range ids(second, third, 1) {
		c.crash(id)
	}
	c.open(second)
	c.open(third)
	c.must(add("x"))
	rejoin = 1
	c.fs[rejoin] = vfs.NewCrashableMem()
	c.open(rejoin)
	c.await("the first voter to return", func() bool {
		return c.count(rejoin, "x") == 1 && c.group(rejoin).Status().Damaged == ""
	})
}

// teller is a replica that answers who asks for promises.
type teller struct {
	promised uint64 // round
	history  paxos.History
	lost     bool
}

// Message implements replica.Handler.
func (teller) Message(sys.NodeID, []byte) {}

// Call implements replica.Handler.
func (a teller) Call(context.Context, sys.NodeID, []byte) ([]byte, error) {
	return pb.Marshal(&replicapb.Reply{Promised: &replicapb.Ballot{Round: a.promised, Node: 2}, Members: a.history.Encode(), Refused: a.lost}), nil
}

// TestAcceptedMembersAreAsked: the old voters may not know yet that a change was chosen, and the new ones have gone on with the
// wiped replica. Who has lost records is no witness that there is no change.
func TestAcceptedMembersAreAsked(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Rejoin = cfg.Self == 1 })
	c.closeAll()
	answer := func(id sys.NodeID, a teller) {
		e := c.net.Endpoint(id)
		e.SetPeers(c.config(1).Peers)
		e.Handle(a)
	}
	old := paxos.Initial([]paxos.NodeID{1, 2, 3})
	answer(2, teller{promised: 3, history: old, lost: true})
	answer(3, teller{promised: 3, history: old})
	c.fs[1] = vfs.NewCrashableMem()
	c.open(1)
	says := func(what string) {
		t.Helper()
		c.await(what, func() bool { return strings.Contains(c.group(1).Status().Damaged, what) })
	}
	says("[n1 n2] have lost it")
	answer(2, teller{promised: 3, history: append(old, paxos.ConfigAt{From: 70, Configuration: paxos.Configuration{Voters: []paxos.NodeID{1, 4, 5}}})})
	says("waits for n4")
	answer(4, teller{promised: 8})
	says("waits for n5")
	answer(5, teller{promised: 9})
	c.await("the highest promise", func() bool { return c.group(1).Status().BallotRound == 9 })
}
