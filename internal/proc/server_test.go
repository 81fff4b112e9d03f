package proc

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta/embedded"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicatest"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// world is three nodes in this process, each with a replica, a Server, and a
// node's half that runs nothing but does what the test says.
type world struct {
	t     *testing.T
	ca    *auth.CA
	net   *replicatest.Network
	nodes []*fakeNode
	c     *Client
	cc    *cluster.Client

	dayTime atomic.Int64 // ns by which all clocks are wrong

	staleMu sync.Mutex
	stale   chan struct{}
}

// fakeNode votes by the real participant, and says that processes run.
type fakeNode struct {
	w      *world
	id     sys.NodeID
	host   *replica.Host
	server *Server
	wire   *wire.Server
	served chan error
	peers  *cluster.Client
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	fence    uint64
	part     *commit.Participant
	refuse   string // why it votes no; empty: it votes yes
	mute     bool   // it does not vote at all
	dead     bool   // it gives no sign of life
	reserved map[commit.Tx][]byte
	running  map[string]*procpb.Reservation
	answer   procpb.HeartbeatReply // the last one's leadership and mark
	started  map[string]int        // how often, by process and epoch
	signals  []uint32
	early    int // signals that it refuses, as of a task that it has not got yet
}

// groupTree is the tree in a group's state, without leases.
type groupTree struct{ g *replica.Group }

// Do implements meta.Client.
func (t groupTree) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	raw, _, err := t.g.Propose(ctx, rsm.Command{NS: rsm.NSMeta, Body: pb.Marshal(cmd)})
	if err != nil {
		return nil, err
	}
	res := &metapb.Result{}
	if err := pb.Unmarshal(raw, res); err != nil {
		return nil, err
	}
	if res.Failure != nil {
		return nil, res.Failure.Err()
	}
	return res, nil
}

// Query implements meta.Client.
func (t groupTree) Query(ctx context.Context, q *metapb.Query) (a *metapb.Answer, err error) {
	err = t.g.Read(ctx, rsm.NSMeta, func(r rsm.Reader) (err error) {
		a, err = embedded.Read(r, q)
		return err
	})
	if err == nil && a.Failure != nil {
		err = a.Failure.Err()
	}
	return a, err
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, ca: must(auth.NewCA("test")), net: replicatest.NewNetwork(1)}
	var listeners []net.Listener
	var members []*clusterpb.Member
	var seeds []string
	for id := sys.NodeID(1); id <= 3; id++ {
		w.net.Endpoint(id)
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		listeners = append(listeners, l)
		seeds = append(seeds, l.Addr().String())
		members = append(members, &clusterpb.Member{Id: uint64(id), Addr: l.Addr().String(), Weight: 1})
	}
	client := must(w.ca.IssueClient("test"))
	for i, l := range listeners {
		w.nodes = append(w.nodes, w.start(sys.NodeID(i+1), l, seeds))
	}
	t.Cleanup(w.close)
	g := w.leader().host.Group(0)
	if _, _, err := g.Propose(t.Context(), rsm.Command{NS: rsm.NSCluster, Body: pb.Marshal(&clusterpb.Command{Map: must(cluster.First("test", members, 16, 3))})}); err != nil {
		t.Fatal(err)
	}
	if _, err := (groupTree{g}).Do(t.Context(), &metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{RetentionNs: 1e9}}}); err != nil {
		t.Fatal(err)
	}
	w.cc = must(cluster.Dial(t.Context(), cluster.Config{Cluster: "test", Seeds: seeds, TLS: client.ClientTLS(), Timeout: 20 * time.Second, Logger: quiet}))
	w.c = NewClient(w.cc)
	for _, n := range w.nodes {
		if err := n.peers.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		n.stop = cancel
		n.done.Go(func() { n.live(ctx) })
	}
	w.await("all nodes may be asked", func() bool {
		r, err := w.c.Nodes(t.Context())
		return err == nil && len(r.Nodes) == 3 && !slices.ContainsFunc(r.Nodes, func(i *procpb.NodeInfo) bool { return !i.Alive })
	})
	return w
}

// barrier is the mounts' part: they see what has changed as soon as stale is
// closed, or at once where it is nil.
func (w *world) barrier(ctx context.Context, _ ...sys.Ino) error {
	w.staleMu.Lock()
	stale := w.stale
	w.staleMu.Unlock()
	if stale == nil {
		return nil
	}
	select {
	case <-stale:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// setStale keeps the mounts behind until the channel is closed.
func (w *world) setStale(c chan struct{}) {
	w.staleMu.Lock()
	w.stale = c
	w.staleMu.Unlock()
}

func (w *world) start(id sys.NodeID, l net.Listener, seeds []string) *fakeNode {
	creds := must(w.ca.IssueNode(id, []string{"127.0.0.1"}))
	n := &fakeNode{w: w, id: id, served: make(chan error, 1), reserved: map[commit.Tx][]byte{}, running: map[string]*procpb.Reservation{}, started: map[string]int{}}
	cfg := replica.Config{Dir: "/data", FS: vfs.NewMem(), Clock: env.System{}, Cluster: "test", Self: id,
		Transport: w.net.Endpoint(id), Seed: uint64(id), SegmentBytes: 1 << 20, ReserveBytes: -1, SessionTTL: time.Minute,
		Tick: 5 * time.Millisecond, Heartbeat: 20 * time.Millisecond, ElectionTimeout: 150 * time.Millisecond, Lease: 120 * time.Millisecond}
	for v := sys.NodeID(1); v <= 3; v++ {
		cfg.Voters = append(cfg.Voters, replica.Peer{ID: v})
	}
	machine := NewMachine(false)
	n.host = must(replica.Open(cfg, map[rsm.Namespace]rsm.Machine{rsm.NSCluster: cluster.Machine{}, rsm.NSMeta: embedded.Machine{}, rsm.NSProc: machine}))
	n.peers = cluster.New(cluster.Config{Cluster: "test", Seeds: seeds, TLS: creds.ClientTLS(), Timeout: 10 * time.Second, Logger: quiet})
	g := n.host.Group(0)
	n.server = NewServer(ServerOptions{Group: g, Machine: machine, Cluster: n.peers, Tree: groupTree{g}, LostAfter: 1500 * time.Millisecond, Clock: wrongClock{w: w},
		Barrier: w.barrier, Logger: quiet})
	n.wire = wire.NewServer(wire.ServerConfig{TLS: creds.ServerTLS(), Logger: quiet, CloseGrace: -1,
		Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
			id, err := auth.PeerIdentity(cs)
			return wire.Identity(id), err
		}})
	n.server.Register(n.wire)
	n.wire.Handle(MethodParty, n.serveParty)
	n.wire.Handle(MethodSignal, n.serveSignal)
	(&cluster.Service{Group: g, Status: func() *clusterpb.StatusReply { return &clusterpb.StatusReply{Node: uint64(id)} }}).Register(n.wire)
	go func() { n.served <- n.wire.Serve(l) }()
	return n
}

func (w *world) close() {
	w.t.Helper()
	for _, n := range w.nodes {
		n.stop()
		n.done.Wait()
	}
	errs := []error{w.cc.Close()}
	for _, n := range w.nodes {
		n.server.Close()
		errs = append(errs, n.wire.Close(), <-n.served, n.host.Close(), n.peers.Close())
	}
	w.net.Close()
	for _, err := range errs {
		if err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) leader() *fakeNode {
	for {
		for _, n := range w.nodes {
			if st := n.host.Group(0).Status(); st.Role == rsm.Leader && st.Ready {
				return n
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// depose has another node lead.
func (w *world) depose() {
	w.t.Helper()
	old := w.leader()
	w.net.Isolate(old.id, true)
	w.await("another leader", func() bool {
		for _, n := range w.nodes {
			if st := n.host.Group(0).Status(); n != old && st.Role == rsm.Leader && st.Ready {
				return true
			}
		}
		return false
	})
	w.net.Isolate(old.id, false)
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for until := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			w.t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// live is a node's signs of life.
func (n *fakeNode) live(ctx context.Context) {
	for ctx.Err() == nil {
		n.mu.Lock()
		fence := n.fence
		hb := &procpb.Heartbeat{Node: &procpb.Node{Id: uint64(n.id), Name: "host", Fence: fence, Labels: []*procpb.Label{{Key: "rack", Value: fmt.Sprint(n.id % 2)}},
			Capacity: &procpb.Resources{CpuMilli: 2000, Memory: 1 << 30}}, Leadership: n.answer.Leadership, Mark: n.answer.Mark}
		dead := n.dead
		for _, r := range n.running {
			for _, rank := range r.Ranks {
				hb.Running = append(hb.Running, &procpb.Running{Job: r.Job, Index: r.Index, Rank: rank, Epoch: r.Epoch})
			}
		}
		n.mu.Unlock()
		if !dead {
			n.beat(ctx, hb, fence)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (n *fakeNode) beat(ctx context.Context, hb *procpb.Heartbeat, fence uint64) {
	one, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	reply, err := n.peers.CallLeader(one, MethodHeartbeat, nil, pb.Marshal(hb))
	if err != nil {
		return
	}
	r := &procpb.HeartbeatReply{}
	if err := take(reply, r); err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer.Leadership, n.answer.Mark = r.Leadership, r.Mark
	if r.Fence != fence && r.Fence > n.fence {
		n.fence, n.running = r.Fence, map[string]*procpb.Reservation{}
		n.part = commit.NewParticipant(commit.Config{}, PartyOf(uint64(n.id), n.fence), commit.Recovered{}, 1)
	}
	for _, s := range r.Stop {
		delete(n.running, fmt.Sprintf("%d.%d-%d", s.Job, s.Index, s.Epoch))
	}
}

func (n *fakeNode) serveParty(_ context.Context, req *wire.Request) (wire.Response, error) {
	ms := &procpb.Messages{}
	if err := pb.Unmarshal(req.Payload, ms); err != nil {
		return wire.Response{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []commit.Message
	for _, m := range FromMessages(ms) {
		m.Payload = slices.Clone(m.Payload)
		if n.dead || n.part == nil || m.Party != PartyOf(uint64(n.id), n.fence) {
			continue
		}
		if err := n.part.Step(commit.Time(time.Now().UnixNano()), m); err != nil {
			return wire.Response{}, err
		}
		out = append(out, n.pump()...)
	}
	return respond(Messages(out))
}

// pump does what the participant asks for. The caller holds mu.
func (n *fakeNode) pump() (out []commit.Message) {
	for n.part.HasReady() {
		rd := n.part.Ready()
		for _, c := range rd.Changes {
			if c.State == commit.Prepared {
				n.reserved[c.Tx] = c.Payload
			}
			if c.State != commit.Committed {
				continue
			}
			r := &procpb.Reservation{}
			decode(n.reserved[c.Tx], r)
			k := fmt.Sprintf("%d.%d-%d", r.Job, r.Index, r.Epoch)
			n.running[k] = r
			n.started[k]++
		}
		out = append(append(out, rd.Send...), rd.SendAfter...)
		if rd.Seq != 0 {
			n.part.Persisted(rd.Seq)
		}
		for _, p := range rd.Prepare {
			vote := commit.Yes
			if n.mute {
				continue
			}
			if n.refuse != "" {
				vote = commit.No
			}
			if err := n.part.Vote(commit.Time(time.Now().UnixNano()), p.Tx, vote, n.refuse); err != nil {
				n.w.t.Errorf("vote: %v", err)
			}
		}
	}
	return out
}

func (n *fakeNode) serveSignal(_ context.Context, req *wire.Request) (wire.Response, error) {
	r := &procpb.SignalRequest{}
	if err := pb.Unmarshal(req.Header, r); err != nil {
		return wire.Response{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.early > 0 {
		n.early--
		return wire.Response{}, sys.E(sys.Op("agent.Signal"), sys.NotExist, "not yet")
	}
	n.signals = append(n.signals, r.Signal)
	return wire.Response{}, nil
}

func (n *fakeNode) set(edit func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	edit()
}

func (n *fakeNode) runs() []*procpb.Reservation {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*procpb.Reservation
	for _, r := range n.running {
		out = append(out, r)
	}
	return out
}

// end reports the end of what a node runs of a job.
func (n *fakeNode) end(job uint64, code, sig uint32) {
	n.w.t.Helper()
	e := &procpb.Ended{}
	var over []string
	for _, r := range n.runs() {
		for _, rank := range r.Ranks {
			if r.Job == job {
				e.Reports = append(e.Reports, &procpb.Report{Job: job, Index: r.Index, Rank: rank, Epoch: r.Epoch, Node: uint64(n.id),
					Process: &procpb.Process{StartedNs: 1, EndedNs: 2, ExitCode: code, Signal: sig}, Stdout: []byte("hello\n")})
			}
		}
		if r.Job == job {
			over = append(over, fmt.Sprintf("%d.%d-%d", r.Job, r.Index, r.Epoch))
		}
	}
	if len(e.Reports) == 0 {
		return
	}
	reply, err := n.peers.CallLeader(n.w.t.Context(), MethodEnded, nil, pb.Marshal(e))
	if err != nil {
		n.w.t.Fatal(err)
	}
	reply.Release()
	n.set(func() { // until now its heartbeats list it
		for _, k := range over {
			delete(n.running, k)
		}
	})
}

func (w *world) submit(s *procpb.Spec) uint64 {
	w.t.Helper()
	id, err := w.c.Submit(w.t.Context(), s)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// waitFor waits until a job is in a state.
func (w *world) waitFor(id uint64, want procpb.State) *procpb.WaitReply {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	for version := uint64(0); ; {
		r, err := w.c.Wait(ctx, &procpb.WaitRequest{Job: id, Version: version, WaitNs: int64(time.Second), Tasks: true})
		if err != nil {
			w.t.Fatalf("job %d is not %v: %v", id, want, err)
		}
		if r.Job.State == want {
			return r
		}
		version = r.Job.Version
	}
}

func (w *world) inspect(id uint64) *procpb.InspectReply {
	w.t.Helper()
	r, err := w.c.Inspect(w.t.Context(), &procpb.InspectRequest{Job: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// finish ends what runs of a job until it has succeeded.
func (w *world) finish(id uint64) {
	w.t.Helper()
	w.await("it ends", func() bool {
		for _, n := range w.nodes {
			n.end(id, 0, 0)
		}
		return w.inspect(id).Job.State == procpb.State_EXITED
	})
}

func gang(n uint32) *procpb.Spec {
	return specOf(func(s *procpb.Spec) { s.Size, s.Each = n, &procpb.Resources{CpuMilli: 1000} })
}

func TestAGangStartsAndEnds(t *testing.T) {
	w := newWorld(t)
	id := w.submit(gang(3))
	w.waitFor(id, procpb.State_RUNNING)
	w.await("three nodes run it", func() bool { return len(w.nodes[0].runs())+len(w.nodes[1].runs())+len(w.nodes[2].runs()) == 3 })
	w.finish(id)
	r := w.inspect(id)
	if len(r.Job.Request) != 16 || r.Job.Exited != 1 {
		t.Fatalf("unexpected job %v", r.Job)
	}
	l, err := w.c.List(t.Context(), &procpb.ListRequest{All: true})
	if err != nil || len(l.Jobs) != 1 || len(l.Jobs[0].Nodes) != 3 {
		t.Fatalf("expected one job on three nodes, found %v, %v", l, err)
	}
	nodes, err := w.c.Nodes(t.Context())
	if err != nil || len(nodes.Nodes) != 3 {
		t.Fatalf("nodes: %v, %v", nodes, err)
	}
	for _, n := range nodes.Nodes {
		if n.Used.CpuMilli != 0 || !n.Alive {
			t.Errorf("a reservation has leaked on %v: %v", n.Node.Id, n.Used)
		}
	}
}

func TestTheLeadersOwnNodeIsAskedDirectly(t *testing.T) {
	w := newWorld(t)
	n := w.leader()
	var asked atomic.Int32
	n.server.Own(n.id, func(ctx context.Context, ms *procpb.Messages) (*procpb.Messages, error) {
		asked.Add(1)
		r, err := n.serveParty(ctx, &wire.Request{Payload: pb.Marshal(ms)})
		back := &procpb.Messages{}
		decode(r.Payload, back)
		return back, err
	})
	id := w.submit(gang(3))
	w.waitFor(id, procpb.State_RUNNING)
	w.await("all ranks run", func() bool { return len(w.nodes[0].runs())+len(w.nodes[1].runs())+len(w.nodes[2].runs()) == 3 })
	if w.leader() == n && asked.Load() < 2 {
		t.Errorf("the leader has asked its own node %d times past the connection, expected to prepare and to commit", asked.Load())
	}
	w.finish(id)
}

// While a mount may still see the tree as it was, nobody who waits is told of the end.
func TestWhoLearnsOfAnEndSeesTheFiles(t *testing.T) {
	w := newWorld(t)
	id := w.submit(gang(1))
	w.waitFor(id, procpb.State_RUNNING)
	w.await("a node runs it", func() bool { return len(w.nodes[0].runs())+len(w.nodes[1].runs())+len(w.nodes[2].runs()) == 1 })
	stale := make(chan struct{})
	w.setStale(stale)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, n := range w.nodes {
			n.end(id, 0, 0)
		}
	}()
	w.await("it has ended", func() bool { return w.inspect(id).Job.State == procpb.State_EXITED })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if r, err := w.c.Wait(ctx, &procpb.WaitRequest{Job: id, WaitNs: int64(time.Second)}); err == nil {
		t.Errorf("Wait told of a job that is %v", r.Job.State)
	}
	close(stale)
	w.waitFor(id, procpb.State_EXITED)
	<-ended
}

// The same goes for who has learned that a part has ended.
func TestWhoAsksWhetherMountsSeeWaits(t *testing.T) {
	w := newWorld(t)
	id := w.submit(gang(1))
	w.waitFor(id, procpb.State_RUNNING)
	stale := make(chan struct{})
	w.setStale(stale)
	see := func(during time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), during)
		defer cancel()
		_, err := w.c.Wait(ctx, &procpb.WaitRequest{Job: id, Version: 1 << 40, Seen: true})
		return err
	}
	if see(300*time.Millisecond) == nil {
		t.Error("Wait was answered while a mount saw the tree as it was")
	}
	close(stale)
	if err := see(time.Minute); err != nil {
		t.Error(err)
	}
	w.finish(id)
}

func TestARefusalStartsNothingAnywhere(t *testing.T) {
	w := newWorld(t)
	w.nodes[1].set(func() { w.nodes[1].refuse = "it is Sunday" })
	id := w.submit(gang(6)) // all that the three have
	w.await("the refusal is told", func() bool {
		r := w.inspect(id)
		return len(r.Explanations) == 1 && len(r.Explanations[0].Refusals) == 1 && r.Explanations[0].Refusals[0].Reason == "it is Sunday"
	})
	for _, n := range w.nodes {
		if len(n.runs()) != 0 {
			t.Fatalf("%v runs a part of a gang that was refused", n.id)
		}
	}
	small := w.submit(gang(1)) // which the refusing node does not block
	w.finish(small)
	w.nodes[1].set(func() { w.nodes[1].refuse = "" })
	w.waitFor(id, procpb.State_RUNNING)
}

func TestWhatCanNeverRunIsRefusedAtOnce(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		spec *procpb.Spec
		says string
	}{
		"too large":        {specOf(func(s *procpb.Spec) { s.Each.CpuMilli = 3000 }), "the largest node has 2 CPUs"},
		"too many":         {gang(7), "room for 6 processes"},
		"an unknown node":  {specOf(func(s *procpb.Spec) { s.On = []uint64{9} }), "no such node"},
		"an unknown label": {specOf(func(s *procpb.Spec) { s.Want = []*procpb.Label{{Key: "gpu", Value: "a100"}} }), "has no label gpu"},
		"no such dir":      {specOf(func(s *procpb.Spec) { s.Dir = "/nowhere" }), "working directory"},
		"no place for out": {specOf(func(s *procpb.Spec) { s.Out = "/nowhere/out" }), "make it first"},
		"Koinon's own":     {specOf(func(s *procpb.Spec) { s.Env = []string{"A=1", "KOINON_RANK=5"} }), "choose another one"},
		"a nameless value": {specOf(func(s *procpb.Spec) { s.Env = []string{"=5"} }), "NAME=VALUE"},
		"no value":         {specOf(func(s *procpb.Spec) { s.Env = []string{"A"} }), "NAME=VALUE"},
		"a zero byte":      {specOf(func(s *procpb.Spec) { s.Env = []string{"A\x00B=1"} }), "zero byte"},
	} {
		if id, err := w.c.Submit(t.Context(), c.spec); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: expected an error with %q, found job %d, %v", name, c.says, id, err)
		}
	}
}

// A working directory may be anywhere in the tree, if it is one.
func TestWorkingDirectories(t *testing.T) {
	w := newWorld(t)
	tree := groupTree{w.leader().host.Group(0)}
	mknod := func(parent uint64, name string, kind sys.FileType) uint64 {
		res, err := tree.Do(t.Context(), &metapb.Command{Cred: rootCred, Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
			Parent: parent, Name: []byte(name), Type: uint32(kind), Mode: 0o755}}})
		if err != nil {
			t.Fatal(err)
		}
		return res.Attr.Ino
	}
	a := mknod(uint64(sys.RootIno), "a", sys.TypeDir)
	mknod(a, "b", sys.TypeDir)
	mknod(a, "file", sys.TypeRegular)
	for _, dir := range []string{"", "/", "/a", "/a/b"} {
		w.submit(specOf(func(s *procpb.Spec) { s.Dir = dir }))
	}
	if _, err := w.c.Submit(t.Context(), specOf(func(s *procpb.Spec) { s.Out = "/a/file/out" })); err == nil || !strings.Contains(err.Error(), "/a/file: no such file or directory: the directory in which outputs") {
		t.Errorf("outputs below a file: %v", err)
	}
	for _, dir := range []string{"/none", "/a/none", "/a/file", "/a/file/x", "/a/.", "a"} {
		if id, err := w.c.Submit(t.Context(), specOf(func(s *procpb.Spec) { s.Dir = dir })); err == nil {
			t.Errorf("job %d begins in %s", id, dir)
		}
	}
}

func TestANewLeaderGoesOn(t *testing.T) {
	w := newWorld(t)
	var ids []uint64
	for range 4 {
		ids = append(ids, w.submit(gang(2)))
	}
	w.waitFor(ids[0], procpb.State_RUNNING)
	w.depose()
	for _, id := range ids {
		w.waitFor(id, procpb.State_RUNNING)
		w.finish(id)
	}
	w.eachOnce()
}

func TestALostNodesWorkIsDoneElsewhere(t *testing.T) {
	w := newWorld(t)
	id := w.submit(specOf(func(s *procpb.Spec) { s.Retries = 1 }))
	w.waitFor(id, procpb.State_RUNNING)
	var lost *fakeNode
	w.await("a node runs it", func() bool {
		for _, n := range w.nodes {
			if len(n.runs()) == 1 {
				lost = n
			}
		}
		return lost != nil
	})
	lost.set(func() { lost.dead = true })
	w.await("another node runs it", func() bool {
		for _, n := range w.nodes {
			if rs := n.runs(); n != lost && len(rs) == 1 && rs[0].Epoch == 2 {
				return true
			}
		}
		return false
	})
	lost.set(func() { lost.dead = false })
	w.await("the old process is ended, and the node is back", func() bool {
		nodes, err := w.c.Nodes(t.Context())
		return len(lost.runs()) == 0 && err == nil && slices.ContainsFunc(nodes.Nodes, func(n *procpb.NodeInfo) bool {
			return n.Node.Id == uint64(lost.id) && n.Alive && n.Node.Fence == 2
		})
	})
	w.finish(id)
}

func TestWhatItsNodeForgetsIsLost(t *testing.T) {
	w := newWorld(t)
	id := w.submit(specOf(func(s *procpb.Spec) { s.Retries = 1 }))
	w.waitFor(id, procpb.State_RUNNING)
	ran := func(epoch uint32) (on *fakeNode) {
		w.await(fmt.Sprintf("a node runs try %d", epoch), func() bool {
			for _, n := range w.nodes {
				if rs := n.runs(); len(rs) == 1 && rs[0].Epoch == epoch {
					on = n
				}
			}
			return on != nil
		})
		return on
	}
	for epoch := uint32(1); epoch <= 2; epoch++ {
		n := ran(epoch)
		n.set(func() { clear(n.running) })
	}
	task := w.waitFor(id, procpb.State_LOST).Tasks[0]
	if task.Lost != 2 || task.ExitCode != ExitTrouble || !strings.Contains(task.Why, "has forgotten it") {
		t.Errorf("two tries that their nodes have forgotten expected, found %v", task)
	}
	nodes := must(w.c.Nodes(t.Context()))
	for _, n := range nodes.Nodes {
		if n.Used.CpuMilli != 0 || !n.Alive || n.Node.Fence != 1 {
			t.Errorf("a node that lives on with nothing reserved expected, found %v", n)
		}
	}
}

func TestANodeThatHasLostItsDirectoryIsAnotherParty(t *testing.T) {
	w := newWorld(t)
	id := w.submit(specOf(func(s *procpb.Spec) { s.Retries = 1 }))
	w.waitFor(id, procpb.State_RUNNING)
	var n *fakeNode
	w.await("a node runs it", func() bool {
		for _, x := range w.nodes {
			if len(x.runs()) == 1 {
				n = x
			}
		}
		return n != nil
	})
	forget := func() { n.fence, n.part, n.running = 0, nil, map[string]*procpb.Reservation{} }
	n.set(forget)
	fence := func() (f uint64) {
		n.set(func() { f = n.fence })
		return f
	}
	w.await("it is back under another name", func() bool { return fence() >= 2 })
	w.finish(id)
	if r := w.inspect(id); r.Tasks[0].Lost != 1 || r.Tasks[0].Epoch != 2 {
		t.Fatalf("expected one try that was lost, found %v", r.Tasks[0])
	}
	was := fence()
	w.await("the table knows that", func() bool {
		nodes, err := w.c.Nodes(t.Context())
		return err == nil && slices.ContainsFunc(nodes.Nodes, func(i *procpb.NodeInfo) bool { return i.Node.Id == uint64(n.id) && i.Alive })
	})
	n.set(forget)
	w.await("and again, though it ran nothing", func() bool { return fence() > was })
}

func TestAnArrayRunsAtMostSoManyAtOnce(t *testing.T) {
	w := newWorld(t)
	id := w.submit(specOf(func(s *procpb.Spec) { s.Array, s.Last, s.AtOnce = true, 19, 3 }))
	most := 0
	w.await("all have run", func() bool {
		at := 0
		for _, n := range w.nodes {
			at += len(n.runs())
		}
		most = max(most, at)
		for _, n := range w.nodes {
			n.end(id, 0, 0)
		}
		return w.inspect(id).Job.State == procpb.State_EXITED
	})
	if most == 0 || most > 3 {
		t.Fatalf("expected at most 3 at once, found %d", most)
	}
}
