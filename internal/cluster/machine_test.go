package cluster_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicatest"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// late is a clock whose time of day is moved by hand.
type late struct {
	env.System
	off atomic.Int64
}

func (c *late) Wall() time.Time { return time.Now().Add(time.Duration(c.off.Load())) }

// state is a replicated state of one replica.
type state struct {
	t     *testing.T
	clock *late
	group *replica.Group
}

func newState(t *testing.T) *state {
	t.Helper()
	network := replicatest.NewNetwork(1)
	t.Cleanup(network.Close)
	s := &state{t: t, clock: &late{}}
	h, err := replica.Open(replica.Config{Dir: "data", FS: vfs.NewMem(), Clock: s.clock, Cluster: "lab", Self: 1, Voters: []replica.Peer{{ID: 1}},
		Transport: network.Endpoint(1), SegmentBytes: 1 << 20, ReserveBytes: -1, Seed: 1},
		map[rsm.Namespace]rsm.Machine{rsm.NSCluster: cluster.Machine{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	s.group = h.Group(0)
	return s
}

// do runs a command and returns its result, which says why it was refused.
func (s *state) do(cmd *clusterpb.Command) *clusterpb.Result {
	s.t.Helper()
	body := pb.Marshal(cmd)
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for {
		raw, _, err := s.group.Propose(ctx, rsm.Command{NS: rsm.NSCluster, Body: body})
		if sys.Is(err, sys.NotLeader) && ctx.Err() == nil {
			continue // the election is under way
		}
		if err != nil {
			s.t.Fatal(err)
		}
		res := &clusterpb.Result{}
		if err := pb.Unmarshal(raw, res); err != nil {
			s.t.Fatal(err)
		}
		if res.Done != (res.Refusal == clusterpb.Refusal_NONE) {
			s.t.Errorf("the result says %v", res)
		}
		return res
	}
}

func (s *state) expect(cmd *clusterpb.Command, want clusterpb.Refusal) *clusterpb.Result {
	s.t.Helper()
	res := s.do(cmd)
	if res.Refusal != want {
		s.t.Errorf("%v: %v, expected %v", cmd.Op, res.Refusal, want)
	}
	return res
}

func (s *state) readMap() *clusterpb.Map {
	s.t.Helper()
	m, err := cluster.LocalMap(s.group)
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// found makes the map, of nodes 1 to 3.
func (s *state) found() *clusterpb.Map {
	s.t.Helper()
	var members []*clusterpb.Member
	for i := range uint64(3) {
		members = append(members, &clusterpb.Member{Id: i + 1, Addr: fmt.Sprintf("10.0.0.%d:7400", i+1), Weight: 1})
	}
	m, err := cluster.First("lab", members, 16, 3)
	if err != nil {
		s.t.Fatal(err)
	}
	s.expect(&clusterpb.Command{Map: m}, clusterpb.Refusal_NONE)
	return s.readMap()
}

func addToken(id, secret string, life time.Duration) *clusterpb.Command {
	return &clusterpb.Command{Op: &clusterpb.Command_AddToken{AddToken: &clusterpb.AddToken{Id: id, SecretHash: []byte(secret), LifeNs: int64(life), Zone: "west"}}}
}

func admit(id, secret, key, addr string) *clusterpb.Command {
	return &clusterpb.Command{Op: &clusterpb.Command_Admit{Admit: &clusterpb.Admit{Token: id, SecretHash: []byte(secret), KeyHash: []byte(key), Addr: addr, Weight: 7}}}
}

func setAddr(id uint64, addr string) *clusterpb.Command {
	return &clusterpb.Command{Op: &clusterpb.Command_SetAddr{SetAddr: &clusterpb.SetAddr{Id: id, Addr: addr}}}
}

func remove(id uint64) *clusterpb.Command {
	return &clusterpb.Command{Op: &clusterpb.Command_RemoveMember{RemoveMember: &clusterpb.RemoveMember{Id: id}}}
}

func TestTokenLetsInOneMachineOnce(t *testing.T) {
	s := newState(t)
	s.expect(addToken("a", "s", time.Hour), clusterpb.Refusal_NO_CLUSTER)
	epoch := s.found().Epoch
	s.expect(addToken("a", "s", time.Hour), clusterpb.Refusal_NONE)
	s.expect(addToken("a", "s", time.Hour), clusterpb.Refusal_NONE) // sent again
	s.expect(addToken("a", "other", time.Hour), clusterpb.Refusal_TOKEN_EXISTS)
	s.expect(admit("b", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_TOKEN_UNKNOWN)
	s.expect(admit("a", "s", "k", "10.0.0.3:7400"), clusterpb.Refusal_ADDR_TAKEN)
	if s.readMap().Epoch != epoch {
		t.Error("a refused command changed the map")
	}
	if res := s.expect(admit("a", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_NONE); res.Node != 4 || res.Epoch != epoch+1 {
		t.Errorf("admitted as %v", res)
	}
	// The answer was lost: the same machine asks again, another may not.
	if res := s.expect(admit("a", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_NONE); res.Node != 4 || res.Epoch != epoch+1 {
		t.Errorf("admitted again as %v", res)
	}
	if res := s.expect(admit("a", "s", "k2", "10.0.0.5:7400"), clusterpb.Refusal_TOKEN_USED); res.Node != 4 {
		t.Errorf("used by %v", res)
	}
	m := s.readMap()
	got := m.Members[len(m.Members)-1]
	if got.State != clusterpb.State_JOINING || got.Zone != "west" || got.Weight != 7 || got.JoinedNs == 0 || m.NextId != 5 || len(m.Members) != 4 {
		t.Errorf("the map is %v", m)
	}
	s.clock.off.Store(int64(2 * time.Hour)) // the token's time is over, and the same machine may still ask
	s.expect(admit("a", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_NONE)
}

func TestTokenExpiresAndVoids(t *testing.T) {
	s := newState(t)
	s.found()
	s.expect(addToken("short", "s", time.Minute), clusterpb.Refusal_NONE)
	s.expect(addToken("tried", "s", time.Hour), clusterpb.Refusal_NONE)
	for range 10 {
		s.expect(admit("tried", "guess", "k", "10.0.0.4:7400"), clusterpb.Refusal_TOKEN_WRONG)
	}
	s.expect(admit("tried", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_TOKEN_VOID)
	s.clock.off.Store(int64(time.Minute + time.Second))
	s.expect(admit("short", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_TOKEN_EXPIRED)
	s.expect(addToken("gone", "s", time.Hour), clusterpb.Refusal_NONE)
	removeToken := &clusterpb.Command{Op: &clusterpb.Command_RemoveToken{RemoveToken: &clusterpb.RemoveToken{Id: "gone"}}}
	s.expect(removeToken, clusterpb.Refusal_NONE)
	s.expect(removeToken, clusterpb.Refusal_TOKEN_UNKNOWN)
	s.expect(admit("gone", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_TOKEN_UNKNOWN)
	// Long after, the rows of tokens that are of no use any more go away.
	s.clock.off.Store(int64(30 * 24 * time.Hour))
	s.expect(addToken("new", "s", time.Minute), clusterpb.Refusal_NONE)
	s.expect(admit("tried", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_TOKEN_UNKNOWN)
	s.expect(admit("short", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_TOKEN_UNKNOWN)
}

func TestMembersComeAndGo(t *testing.T) {
	s := newState(t)
	s.found()
	s.expect(addToken("a", "s", time.Hour), clusterpb.Refusal_NONE)
	s.expect(admit("a", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_NONE)
	epoch := s.readMap().Epoch
	s.expect(setAddr(4, "10.0.0.4:7400"), clusterpb.Refusal_NONE)
	if s.readMap().Epoch != epoch {
		t.Error("an address that is known raised the epoch")
	}
	s.expect(setAddr(4, "10.0.0.44:7400"), clusterpb.Refusal_NONE)
	s.expect(setAddr(4, "10.0.0.1:7400"), clusterpb.Refusal_ADDR_TAKEN)
	s.expect(setAddr(9, "10.0.0.9:7400"), clusterpb.Refusal_MEMBER_UNKNOWN)
	s.expect(&clusterpb.Command{Op: &clusterpb.Command_SetState{SetState: &clusterpb.SetState{Id: 4, State: clusterpb.State_UP}}}, clusterpb.Refusal_NONE)
	if m := s.readMap().Members[3]; m.Addr != "10.0.0.44:7400" || m.Zone != "west" || m.Weight != 7 || m.State != clusterpb.State_UP {
		t.Errorf("the member is %v", m)
	}
	s.expect(remove(1), clusterpb.Refusal_MEMBER_HOLDS)
	joined := s.readMap().Members[3].JoinedNs
	s.expect(remove(4), clusterpb.Refusal_NONE)
	s.expect(remove(4), clusterpb.Refusal_MEMBER_REMOVED)
	if gone := s.readMap().Gone; joined == 0 || len(gone) != 1 || gone[0].Id != 4 || gone[0].JoinedNs != joined {
		t.Errorf("the map says that %v are gone", gone)
	}
	s.expect(setAddr(4, "10.0.0.4:7400"), clusterpb.Refusal_MEMBER_REMOVED)
	s.expect(admit("a", "s", "k", "10.0.0.4:7400"), clusterpb.Refusal_MEMBER_REMOVED)
	// IDs are not used again, not even when the whole map is replaced by one
	// that does not know of them.
	m := s.readMap()
	m.NextId = 0
	s.expect(&clusterpb.Command{Expect: m.Epoch - 1, Map: m}, clusterpb.Refusal_STALE)
	s.expect(&clusterpb.Command{Expect: m.Epoch, Map: m}, clusterpb.Refusal_NONE)
	s.expect(addToken("b", "s", time.Hour), clusterpb.Refusal_NONE)
	if res := s.expect(admit("b", "s", "k5", "10.0.0.4:7400"), clusterpb.Refusal_NONE); res.Node != 5 {
		t.Errorf("the next member is %v", res.Node)
	}
}

// TestOldMap: a map written before IDs were counted, and members had states.
func TestOldMap(t *testing.T) {
	s := newState(t)
	table, err := placement.Assign([]placement.Node{{ID: 2, Weight: 1}, {ID: 7, Weight: 1}}, 16, 2)
	if err != nil {
		t.Fatal(err)
	}
	s.expect(&clusterpb.Command{Map: &clusterpb.Map{Cluster: "lab", Table: table.Marshal(),
		Members: []*clusterpb.Member{{Id: 2, Addr: "a:1", Weight: 1}, {Id: 7, Addr: "b:1", Weight: 1}}}}, clusterpb.Refusal_NONE)
	m := s.readMap()
	if m.NextId != 8 || slices.ContainsFunc(m.Members, func(x *clusterpb.Member) bool { return x.State != clusterpb.State_UP }) {
		t.Errorf("the map is read as %v", m)
	}
	c := cluster.New(cluster.Config{Cluster: "lab"})
	m.NextId = 0 // as an older node sends it
	if err := c.Install(m); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[sys.NodeID]bool{1: true, 2: false, 6: true, 7: false, 8: false, 100: false} {
		if got := c.Removed(id); got != want {
			t.Errorf("node %v removed: %v, expected %v", id, got, want)
		}
	}
}
