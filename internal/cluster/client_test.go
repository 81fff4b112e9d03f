package cluster

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

const (
	methodWho   wire.Method = 900 // nothing -> nothing; from the leader
	methodFails wire.Method = 901 // the leader is Unavailable
	methodHangs wire.Method = 902 // the leader does not answer
)

// nodes are some that know the map and who leads, and count who connects.
type nodes struct {
	t         *testing.T
	seeds     []string
	client    *auth.Credentials
	connected atomic.Int64
	trouble   string // that the leader tells of
}

func startNodes(t *testing.T, n int, leader uint64) *nodes {
	t.Helper()
	ca, err := auth.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	ns := &nodes{t: t}
	if ns.client, err = ca.IssueClient("test"); err != nil {
		t.Fatal(err)
	}
	var listeners []net.Listener
	var members []*clusterpb.Member
	for id := 1; id <= n; id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		ns.seeds = append(ns.seeds, l.Addr().String())
		members = append(members, &clusterpb.Member{Id: uint64(id), Addr: l.Addr().String(), Weight: 1})
	}
	m, err := First("test", members, 16, 3)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range listeners {
		creds, err := ca.IssueNode(sys.NodeID(i+1), []string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		srv := wire.NewServer(wire.ServerConfig{TLS: creds.ServerTLS(), Logger: slog.New(slog.DiscardHandler), CloseGrace: -1,
			Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
				ns.connected.Add(1)
				id, err := auth.PeerIdentity(cs)
				return wire.Identity(id), err
			}})
		srv.Handle(MethodMap, func(context.Context, *wire.Request) (wire.Response, error) {
			return wire.Response{Header: pb.Marshal(m)}, nil
		})
		leads := func(err error) wire.HandlerFunc {
			return func(context.Context, *wire.Request) (wire.Response, error) {
				if uint64(i+1) == leader {
					return wire.Response{}, err
				}
				return wire.Response{Payload: binary.LittleEndian.AppendUint64(nil, leader)}, sys.E(sys.NotLeader, "another node leads")
			}
		}
		srv.Handle(methodWho, leads(nil))
		srv.Handle(methodFails, leads(sys.E(sys.Unavailable, "in trouble")))
		srv.Handle(methodHangs, hangs(uint64(i+1) == leader, leads(nil)))
		srv.Handle(MethodStatus, func(context.Context, *wire.Request) (wire.Response, error) {
			r := &clusterpb.StatusReply{Node: uint64(i + 1)}
			if r.Node == leader {
				r.Trouble, r.Role = ns.trouble, "leader"
			}
			return wire.Response{Header: pb.Marshal(r)}, nil
		})
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		t.Cleanup(func() {
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
			<-served
		})
	}
	return ns
}

// hangs answers as then does, the leader with an error when nobody waits any more.
func hangs(leader bool, then wire.HandlerFunc) wire.HandlerFunc {
	return func(ctx context.Context, req *wire.Request) (wire.Response, error) {
		if leader {
			<-ctx.Done()
			return wire.Response{}, ctx.Err()
		}
		return then(ctx, req)
	}
}

// Who only asks something of the leader connects to it and to no third node,
// whoever leads: setting up a connection is most of what a short command takes.
func TestFewConnections(t *testing.T) {
	for leader := uint64(1); leader <= 3; leader++ {
		ns := startNodes(t, 3, leader)
		c, err := Dial(t.Context(), Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			r, err := c.CallLeader(t.Context(), methodWho, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Release()
		}
		if n := ns.connected.Load(); n > 2 {
			t.Errorf("n%d leads: %d connections, expected at most 2", leader, n)
		}
		// What little is asked of the leader itself needs no further one.
		r, err := c.OpenConn(sys.NodeID(leader)).Call(t.Context(), MethodMap, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
		if n := ns.connected.Load(); n > 2 {
			t.Errorf("n%d leads: %d connections with that of OpenConn, expected at most 2", leader, n)
		}
		if c.OpenConn(9) != nil {
			t.Error("there is a connection to a node that is none")
		}
		bare := New(Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: 10 * time.Second})
		if r, err = bare.CallLeader(t.Context(), methodWho, nil, nil); err != nil {
			t.Fatal(err)
		}
		r.Release()
		if w := bare.OpenConn(sys.NodeID(leader)); leader == 1 && bare.Map() != nil || w == nil || w.Addr() != ns.seeds[leader-1] || bare.OpenConn(9) != nil {
			t.Errorf("n%d leads: expected the connection to it, without a map, found %v", leader, w)
		}
		if err := bare.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTrouble: a leader that cannot serve for want of something else is why an
// operation fails, and not that nobody leads.
func TestTrouble(t *testing.T) {
	for _, c := range []struct{ trouble, want, not string }{
		{"the database does not answer", "n2 at ADDR: the database does not answer; when that is mended", "no node leads"},
		{"", "no node leads after 1s although all answer", "mended"},
	} {
		ns := startNodes(t, 3, 2)
		ns.trouble = c.trouble
		client, err := Dial(t.Context(), Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.CallLeader(t.Context(), methodFails, nil, nil)
		if want := strings.Replace(c.want, "ADDR", ns.seeds[1], 1); !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), c.not) {
			t.Errorf("expected %q, found %v", want, err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestWaitIsTold: who waits long for an answer hears once for whom.
func TestWaitIsTold(t *testing.T) {
	for _, x := range []struct {
		method wire.Method
		leader uint64
		dead   string
		want   string
	}{
		{methodWho, 0, "127.0.0.1:1", "for a majority of the nodes: no answer from 127.0.0.1:1"},
		{methodWho, 0, "", "for a node that leads"},
		{methodFails, 2, "", "for n2 at ADDR: in trouble"},
		{methodWho, 2, "127.0.0.1:1", ""},
	} {
		t.Run(x.want, func(t *testing.T) {
			t.Parallel()
			ns, told := startNodes(t, 3, x.leader), &strings.Builder{}
			seeds := ns.seeds
			if x.dead != "" {
				seeds = append([]string{x.dead}, seeds...)
			}
			c, err := Dial(t.Context(), Config{Cluster: "test", Seeds: seeds, TLS: ns.client.ClientTLS(), Timeout: time.Minute,
				Logger: slog.New(slog.NewTextHandler(told, nil))})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), tellWaitAfter+300*time.Millisecond) // for many more tries
			defer cancel()
			if r, err := c.CallLeader(ctx, x.method, nil, nil); (err == nil) != (x.want == "") {
				t.Error(err)
			} else if err == nil {
				r.Release()
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			want := strings.Replace(x.want, "ADDR", ns.seeds[1], 1)
			if n := strings.Count(told.String(), "no answer yet"); n != min(len(want), 1) || !strings.Contains(told.String(), want) {
				t.Errorf("expected %q once, found %s", want, told)
			}
		})
	}
}

// TestWaitIsToldAnew: what any node answers ends no wait for a leader, what a leader does.
func TestWaitIsToldAnew(t *testing.T) {
	ns := startNodes(t, 3, 2)
	c := New(Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: 10 * time.Second})
	c.waits.Store(true)
	if err := c.Refresh(t.Context()); err != nil || !c.waits.Load() {
		t.Errorf("the map is there: %v, told: %v", err, c.waits.Load())
	}
	r, err := c.CallLeader(t.Context(), methodWho, nil, nil)
	if err != nil || c.waits.Load() {
		t.Fatalf("the leader has answered: %v, told: %v", err, c.waits.Load())
	}
	r.Release()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestJoinTellsItsWait: so does a machine that joins.
func TestJoinTellsItsWait(t *testing.T) {
	t.Parallel()
	token, err := auth.NewToken(startNodes(t, 1, 1).client)
	if err != nil {
		t.Fatal(err)
	}
	key, err := auth.LoadJoinKey(t.TempDir(), "node")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*tellWaitAfter)
	defer cancel()
	told := &strings.Builder{}
	_, err = Join(ctx, []string{"127.0.0.1:1"}, JoinRequest{Token: token, Key: key}, slog.New(slog.NewTextHandler(told, nil)))
	if !sys.Is(err, sys.Unavailable) || strings.Count(told.String(), "no answer yet") != 1 || !strings.Contains(told.String(), "127.0.0.1:1") {
		t.Errorf("expected one word of 127.0.0.1:1, found %v and %s", err, told)
	}
}

// TestLeaderHangs: a leader that does not answer, because what it depends on does
// not, costs the stated time once, and is asked why; whoever else is missing.
func TestLeaderHangs(t *testing.T) {
	ns := startNodes(t, 3, 2)
	ns.trouble = "the database does not answer"
	seeds := append([]string{"127.0.0.1:1"}, ns.seeds...)
	client, err := Dial(t.Context(), Config{Cluster: "test", Seeds: seeds, TLS: ns.client.ClientTLS(), Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for _, known := range []bool{false, true} {
		if known { // who leads
			r, err := client.CallLeader(t.Context(), methodWho, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Release()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // else it would hang for ever
		_, err = client.CallLeader(ctx, methodHangs, nil, nil)
		cancel()
		if want := "gave up after 1s: n2 at " + ns.seeds[1] + ": the database does not answer"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q, found %v", want, err)
		}
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

// Who is told of leaders is told of one after the other, whoever asks at the same time.
func TestLedOneByOne(t *testing.T) {
	told, busy := 0, atomic.Bool{}
	c := New(Config{Led: func(string) {
		if busy.Swap(true) {
			t.Error("told of two leaders at once")
		}
		told++
		runtime.Gosched()
		busy.Store(false)
	}})
	var calls sync.WaitGroup
	for i := range 8 {
		calls.Go(func() {
			for n := range 1000 {
				c.answered(fmt.Sprint((i + n) % 3))
			}
		})
	}
	calls.Wait()
	if told < 3 {
		t.Errorf("told of %d leaders, at least 3 expected", told)
	}
}

// Who has little time gets no answer within it, and hears nothing of nodes that may
// be well.
func TestHurry(t *testing.T) {
	ns := startNodes(t, 3, 0) // nobody leads
	c, err := Dial(t.Context(), Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.CallLeader(ctx, methodWho, nil, nil)
	if !sys.Is(err, sys.Unavailable) || !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "leads") {
		t.Errorf("no answer in time expected, found %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A client that was closed asks nobody any more.
func TestClosed(t *testing.T) {
	ns := startNodes(t, 3, 2)
	c, err := Dial(t.Context(), Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	before := ns.connected.Load()
	_, leader := c.CallLeader(t.Context(), methodWho, nil, nil)
	_, anybody := c.CallAny(t.Context(), methodWho, nil, nil)
	for _, err := range []error{leader, anybody, c.Refresh(t.Context())} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("expected %v, found %v", fs.ErrClosed, err)
		}
	}
	if n := ns.connected.Load() - before; n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

// Who begins to reach a cluster waits for nobody, and asks for no map before
// it is needed: to find who leads elsewhere.
func TestReach(t *testing.T) {
	for leader := uint64(1); leader <= 3; leader++ {
		ns := startNodes(t, 3, leader)
		var led []string
		c, err := Reach(Config{Cluster: "test", Seeds: ns.seeds, TLS: ns.client.ClientTLS(), Timeout: 10 * time.Second,
			Led: func(addr string) { led = append(led, addr) }})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			r, err := c.CallLeader(t.Context(), methodWho, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Release()
		}
		if known := c.Map() != nil; known != (leader != 1) || !slices.Equal(led, ns.seeds[leader-1:leader]) {
			t.Errorf("n%d leads: the map is known: %v, told of leaders at %v", leader, known, led)
		}
		if n, want := ns.connected.Load(), min(int64(leader), 2); n != want {
			t.Errorf("n%d leads: %d connections, expected %d", leader, n, want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Reach(Config{Cluster: "test"}); !sys.Is(err, sys.Invalid) {
		t.Errorf("without an address: %v", err)
	}
}

// TestParted: a map with members that the other never had is that of a cluster that has gone on apart.
func TestParted(t *testing.T) {
	m := func(next uint64, members ...*clusterpb.Member) *clusterpb.Map {
		return &clusterpb.Map{NextId: next, Members: members}
	}
	x := func(id uint64, joined int64) *clusterpb.Member { return &clusterpb.Member{Id: id, JoinedNs: joined} }
	own := m(4, x(1, 10), x(3, 30))
	for name, c := range map[string]struct {
		told *clusterpb.Map
		want bool
	}{
		"the same":                  {own, false},
		"nothing":                   {nil, false},
		"older":                     {m(3, x(1, 10), x(2, 20)), false},
		"with who was removed":      {m(4, x(1, 10), x(2, 20), x(3, 30)), false},
		"a number not given out":    {m(5, x(1, 10), x(4, 40)), true},
		"a number given to another": {m(4, x(1, 10), x(3, 31)), true},
	} {
		if got := Parted(own, c.told); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestForked: of two histories in which one number was given out twice that is the first in which it was given out earlier, also where
// only a later number tells that.
func TestForked(t *testing.T) {
	m := func(members ...*clusterpb.Member) *clusterpb.Map { return &clusterpb.Map{Members: members} }
	x := func(id uint64, joined int64) *clusterpb.Member { return &clusterpb.Member{Id: id, JoinedNs: joined} }
	without := func(m *clusterpb.Map, id uint64, joined int64) *clusterpb.Map {
		m.Gone = append(m.Gone, &clusterpb.Gone{Id: id, JoinedNs: joined})
		return m
	}
	own := without(m(x(1, 10), x(2, 20), x(3, 20), x(4, 40)), 5, 50)
	for name, c := range map[string]struct {
		told   *clusterpb.Map
		forked bool
		first  bool
	}{
		"the same":                               {own, false, false},
		"nothing":                                {nil, false, false},
		"older":                                  {m(x(1, 10), x(2, 20)), false, false},
		"newer, and others are gone":             {without(m(x(1, 10), x(5, 50)), 2, 20), false, false},
		"who is gone here was given out earlier": {m(x(1, 10), x(5, 49)), true, false},
		"who is gone there was given out later":  {without(m(x(1, 10), x(6, 60)), 4, 41), true, true},
		"who is gone on both sides":              {without(m(x(1, 10), x(6, 60)), 5, 51), true, true},
		"who joined first is not known":          {m(x(1, 10), x(4, 0)), false, false},
		"given out later":                        {m(x(1, 10), x(4, 41)), true, true},
		"given out earlier":                      {m(x(1, 10), x(4, 39)), true, false},
		"the lowest number tells":                {m(x(1, 10), x(2, 21), x(4, 39)), true, true},
		"a higher number was given out earlier":  {m(x(1, 10), x(6, 30)), true, false},
		"a lower number is given out later here": {m(x(1, 10), x(2, 50)), true, true},
	} {
		if forked, first := Forked(own, c.told); forked != c.forked || first != c.first {
			t.Errorf("%s: %v, %v", name, forked, first)
		}
		if forked, first := Forked(c.told, own); forked != c.forked || c.forked && first == c.first {
			t.Errorf("%s, from the other side: %v, %v", name, forked, first)
		}
	}
}

// TestOneHistory: a client follows that in which members joined first, and a node that of its own replica. Neither takes one with the
// number of another for a member.
func TestOneHistory(t *testing.T) {
	m := func(epoch uint64, joined int64, key string) *clusterpb.Map {
		m, err := First("test", []*clusterpb.Member{{Id: 1, JoinedNs: 10}, {Id: 2, JoinedNs: joined, Key: []byte(key)}}, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		m.Epoch = epoch
		return m
	}
	right, wrong := m(4, 20, "right"), m(7, 30, "wrong")
	var own *clusterpb.Map
	install := func(c *Client, m *clusterpb.Map, want *clusterpb.Map) {
		t.Helper()
		if err := c.Install(m); (err == nil) != (m == want) || err != nil && !sys.Is(err, sys.Invalid) {
			t.Error(err)
		}
		if c.Map() != want {
			t.Errorf("the map is of epoch %d", c.Map().GetEpoch())
		}
		for key, refused := range map[string]bool{"right": want == wrong, "wrong": want == right, "": false} {
			if err := c.Refusal(wire.Identity{Node: 2, Key: key}); (err != nil) != refused || IsRemoved(err) {
				t.Errorf("%s at epoch %d: %v", key, c.Map().Epoch, err)
			}
		}
	}
	c := New(Config{Cluster: "test", Seeds: []string{"a:1"}})
	install(c, wrong, wrong)
	install(c, right, right)
	install(c, wrong, right)
	node := New(Config{Cluster: "test", Seeds: []string{"a:1"}, Own: func() *clusterpb.Map { return own }})
	install(node, wrong, wrong)
	own = wrong
	install(node, right, wrong)
	own = nil
	install(node, right, right)
	if err := c.Refusal(wire.Identity{Node: 1, Key: "any"}); err != nil {
		t.Errorf("whose key is not known: %v", err)
	}
	for _, c := range []*Client{c, node} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestReigns: two maps are of two histories when others came to vote, or at another time; that is the first in which the first such change
// was earlier, whatever was given out since. What one has forgotten, or not heard of yet, tells nothing.
func TestReigns(t *testing.T) {
	m := func(reigns ...int64) *clusterpb.Map {
		m := &clusterpb.Map{}
		for i, at := range reigns {
			if !Reigning(m, []sys.NodeID{1, sys.NodeID(i + 2)}, time.Unix(0, at)) {
				t.Error("a change is none")
			}
		}
		return m
	}
	own := m(10, 20, 30)
	if Reigning(own, []sys.NodeID{1, 4}, time.Unix(0, 40)) {
		t.Error("the same voters are called a change")
	}
	other := m(10, 20, 30)
	other.Reigns[1].Voters = []uint64{1, 9}
	other.Reigns[1].SinceNs = 25
	other.Members, own.Members = []*clusterpb.Member{{Id: 5, JoinedNs: 50}}, []*clusterpb.Member{{Id: 5, JoinedNs: 60}}
	late := m(10, 20, 30)
	late.Reigns, late.ReignsBefore = late.Reigns[2:], 2
	for name, c := range map[string]struct {
		told          *clusterpb.Map
		forked, first bool
	}{
		"the same":                    {m(10, 20, 30), false, false},
		"none":                        {m(), false, false},
		"older":                       {m(10, 20), false, false},
		"newer":                       {m(10, 20, 30, 40), false, false},
		"the first ones forgotten":    {late, false, false},
		"later":                       {m(10, 21, 22), true, true},
		"earlier":                     {m(10, 19, 50), true, false},
		"others, with earlier joins":  {other, true, true},
		"apart from the first change": {m(9), true, false},
	} {
		if forked, first := Forked(own, c.told); forked != c.forked || first != c.first {
			t.Errorf("%s: %v, %v", name, forked, first)
		}
	}
	for i := range int64(reignsMax + 5) {
		Reigning(own, []sys.NodeID{sys.NodeID(100 + i)}, time.Unix(0, 100+i))
	}
	if len(own.Reigns) != reignsMax || own.ReignsBefore != 8 || reign(own, 8) != own.Reigns[0] || reign(own, 8+reignsMax) != nil {
		t.Errorf("%d reigns after %d", len(own.Reigns), own.ReignsBefore)
	}
}
