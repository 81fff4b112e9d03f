//go:build linux

package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
	"github.com/koinon/koinon/internal/wire"
)

// awhile bounds what must happen soon.
const awhile = 30 * time.Second

// The test binary is the supervisor when its first argument says so.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "supervise" {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		if err := executor.Supervise(ctx, os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const (
	agentNode  = 2
	leadership = 5
)

// world is a leader that is played by the test with a real coordinator, and the
// agent of another node.
type world struct {
	t      *testing.T
	dir    string
	ca     *auth.CA
	server *wire.Server    // the leader's
	peers  *cluster.Client // the agent's
	fs     *vfs.FS
	log    *slog.Logger

	agent *Agent
	node  *wire.Server // the agent's
	conn  *wire.Client // to it
	stop  func()

	mu       sync.Mutex
	table    commit.Table
	coord    *commit.Coordinator
	parts    map[commit.Tx]*procpb.Reservation
	outcomes map[commit.Tx]commit.Outcome
	mute     bool // commits, aborts and answers to votes are lost
	silent   bool // heartbeats are not answered
	deaf     bool // ends are not taken
	fence    uint64
	lease    time.Duration
	began    []*procpb.Report
	ended    []*procpb.Report
	beat     *procpb.Heartbeat // the last one
	changed  chan struct{}
	capacity *procpb.Resources
	mounts   []string
	boot     string // of the agent's machine
	fsDown   bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), ca: must(auth.NewCA("test")), log: slog.New(slog.NewTextHandler(io.Discard, nil)), lease: time.Hour, boot: "first",
		parts: map[commit.Tx]*procpb.Reservation{}, outcomes: map[commit.Tx]commit.Outcome{}, changed: make(chan struct{}),
		capacity: &procpb.Resources{CpuMilli: 4000, Memory: 1 << 30}}
	if testing.Verbose() {
		w.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.fs = vfs.New(meta.NewMemory(), block.NewMemory(), vfs.Options{Logger: w.log})
	w.newCoordinator()
	w.server = w.newServer(1)
	w.server.Handle(proc.MethodHeartbeat, w.serveHeartbeat)
	w.server.Handle(proc.MethodVotes, w.serveVotes)
	w.server.Handle(proc.MethodBegan, w.serveBegan)
	w.server.Handle(proc.MethodEnded, w.serveEnded)
	seed, served := w.serve(w.server)
	ctx, cancel := context.WithCancel(context.Background())
	var ticking sync.WaitGroup
	ticking.Go(func() { w.tick(ctx) })
	w.peers = cluster.New(cluster.Config{Cluster: "test", Seeds: []string{seed}, TLS: must(w.ca.IssueNode(agentNode, []string{"127.0.0.1"})).ClientTLS(), Logger: w.log})
	t.Cleanup(func() {
		cancel()
		ticking.Wait()
		w.down()
		w.noneLeft()
		for _, err := range []error{w.peers.Close(), w.server.Close(), <-served, w.fs.Close(context.Background())} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return w
}

// noneLeft ends the supervisor with whatever runs.
func (w *world) noneLeft() {
	dir := filepath.Join(w.dir, "proc", "executor")
	x := must(executor.Open(context.Background(), dir, executor.Options{Command: []string{os.Args[0], "supervise", dir}}))
	ctx, cancel := context.WithTimeout(context.Background(), awhile)
	defer cancel()
	if err := x.Shutdown(ctx); err != nil {
		w.t.Error(err)
	}
	if err := x.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) newServer(id sys.NodeID) *wire.Server {
	return wire.NewServer(wire.ServerConfig{TLS: must(w.ca.IssueNode(id, []string{"127.0.0.1"})).ServerTLS(), Logger: w.log, CloseGrace: -1,
		Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
			id, err := auth.PeerIdentity(cs)
			return wire.Identity(id), err
		}})
}

// serve returns the server's address; served tells when it has been closed.
func (w *world) serve(s *wire.Server) (addr string, served chan error) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	served = make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	return l.Addr().String(), served
}

// up starts the agent, with what it left behind.
func (w *world) up() *Agent {
	w.t.Helper()
	a, err := New(w.t.Context(), Options{
		Node: agentNode, Cluster: w.peers, ID: "test", Dir: filepath.Join(w.dir, "proc"), Boot: w.boot, Name: "here", Capacity: w.capacity,
		Labels: map[string]string{"gpu": "none"}, Logger: w.log, Executor: executor.Options{Command: []string{os.Args[0], "supervise"}, SpoolMax: 8 << 20},
		Mounts: func() ([]string, error) { return w.mounts, nil },
		FS: func(context.Context) (*vfs.FS, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.fsDown {
				return nil, sys.E(sys.Unavailable, "no majority")
			}
			return w.fs, nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.agent, w.node = a, w.newServer(agentNode)
	a.Register(w.node)
	addr, served := w.serve(w.node)
	conn := wire.NewClient(addr, wire.ClientConfig{TLS: must(w.ca.IssueNode(1, []string{"127.0.0.1"})).ClientTLS(), Logger: w.log})
	w.set(func() { w.conn = conn })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
		for _, err := range []error{w.conn.Close(), w.node.Close(), <-served} {
			if err != nil {
				w.t.Error(err)
			}
		}
	}
	w.await("a heartbeat", func() bool { return w.beat != nil && w.beat.Node.Fence == a.fenceNow() })
	return a
}

// down ends the agent in order.
func (w *world) down() {
	if w.stop == nil {
		return
	}
	w.stop()
	w.stop = nil
	if err := w.agent.Close(); err != nil {
		w.t.Errorf("Close: %v", err)
	}
}

// restart is down and up; of the agent, what was going on is cut off as by a
// crash: all that counts is on its disk.
func (w *world) restart() *Agent {
	w.t.Helper()
	w.down()
	w.mu.Lock()
	w.beat = nil
	w.mu.Unlock()
	return w.up()
}

// set changes how the leader behaves.
func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// change tells those who await something. The caller holds w.mu.
func (w *world) change() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// await waits until ok, which is asked again whenever the leader has heard
// something.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	timeout := time.After(awhile)
	for {
		w.mu.Lock()
		done, changed := ok(), w.changed
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// newCoordinator takes over, as after a change of leader.
func (w *world) newCoordinator() {
	w.table.Apply(commit.Record{Kind: commit.RecordOpen})
	w.coord = commit.NewCoordinator(commit.Config{PrepareTimeout: commit.Time(5 * time.Second)}, w.table.Epoch, w.table.Commits, commit.Time(env.System{}.Boot()))
}

func (w *world) tick(ctx context.Context) {
	for pause(ctx, 10*time.Millisecond) == nil {
		w.mu.Lock()
		w.coord.Tick(commit.Time(env.System{}.Boot()))
		out := w.settle()
		w.mu.Unlock()
		w.send(out)
	}
}

// settle does what the coordinator wants, and returns what is to be sent. The
// caller holds w.mu.
func (w *world) settle() []commit.Message {
	var out []commit.Message
	for w.coord.HasReady() {
		r := w.coord.Ready()
		for _, k := range r.Agree {
			w.coord.Agreed(commit.Time(env.System{}.Boot()), k, w.table.Apply(k))
		}
		for _, o := range r.Outcomes {
			w.outcomes[o.Tx] = o
			w.change()
		}
		for _, m := range r.Send {
			if !w.mute || m.Kind == commit.MsgPrepare {
				out = append(out, m)
			}
		}
	}
	return out
}

// send brings messages to the agent, and its answers to the coordinator.
func (w *world) send(ms []commit.Message) {
	w.mu.Lock()
	conn := w.conn
	w.mu.Unlock()
	for len(ms) > 0 && conn != nil {
		req := &procpb.Messages{}
		for _, m := range ms {
			req.Messages = append(req.Messages, toWire(m))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		reply, err := conn.Call(ctx, proc.MethodParty, nil, pb.Marshal(req))
		cancel()
		if err != nil {
			return // it is down; they are sent again
		}
		answers := &procpb.Messages{}
		if err := pb.Unmarshal(reply.Payload, answers); err != nil {
			w.t.Error(err)
		}
		reply.Release()
		ms = w.step(answers)
	}
}

func (w *world) step(answers *procpb.Messages) []commit.Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range answers.Messages {
		if err := w.coord.Step(commit.Time(env.System{}.Boot()), fromWire(m)); err != nil {
			w.t.Error(err)
		}
	}
	return w.settle()
}

func (w *world) serveVotes(_ context.Context, req *wire.Request) (wire.Response, error) {
	ms := &procpb.Messages{}
	if err := pb.Unmarshal(req.Payload, ms); err != nil {
		return wire.Response{}, err
	}
	out := w.step(ms)
	go w.send(out)
	return wire.Response{}, nil
}

func (w *world) serveHeartbeat(_ context.Context, req *wire.Request) (wire.Response, error) {
	hb := &procpb.Heartbeat{}
	if err := pb.Unmarshal(req.Payload, hb); err != nil {
		return wire.Response{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent {
		return wire.Response{}, sys.E(sys.Unavailable, "not now")
	}
	w.beat = hb
	w.change()
	reply := &procpb.HeartbeatReply{Fence: w.fence, Leadership: leadership, Mark: hb.Mark + 1}
	if hb.Node.Fence == w.fence {
		reply.LeaseNs = int64(w.lease)
	}
	return respond(reply, nil)
}

func (w *world) serveBegan(_ context.Context, req *wire.Request) (wire.Response, error) {
	b := &procpb.Began{}
	if err := pb.Unmarshal(req.Payload, b); err != nil {
		return wire.Response{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = append(w.began, b.Reports...)
	w.change()
	return respond(&procpb.Result{}, nil)
}

func (w *world) serveEnded(_ context.Context, req *wire.Request) (wire.Response, error) {
	e := &procpb.Ended{}
	if err := pb.Unmarshal(req.Payload, e); err != nil {
		return wire.Response{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf {
		return wire.Response{}, sys.E(sys.Unavailable, "not now")
	}
	w.ended = append(w.ended, e.Reports...)
	w.change()
	return respond(&procpb.Result{}, nil)
}

// reservation is one rank of a job that runs a shell script.
func (w *world) reservation(job uint64, script string, edit ...func(*procpb.Reservation)) *procpb.Reservation {
	res := &procpb.Reservation{Job: job, Epoch: 1, Fence: w.fence, Ranks: []uint32{0}, Nodes: []uint64{agentNode}, Names: []string{"here"}, Hosts: []string{"10.0.0.7"},
		Spec: &procpb.Spec{Argv: []string{"sh", "-c", script}, Size: 1, Each: &procpb.Resources{CpuMilli: 100, Memory: 64 << 20},
			User: &procpb.User{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid()), Name: "tester"}}}
	for _, e := range edit {
		e(res)
	}
	return res
}

// ask begins a transaction.
func (w *world) ask(res *procpb.Reservation) commit.Tx {
	w.t.Helper()
	w.mu.Lock()
	tx, err := w.coord.Begin(commit.Time(env.System{}.Boot()), []commit.Part{{Party: proc.PartyOf(agentNode, w.fence), Payload: pb.Marshal(res)}})
	out := w.settle()
	w.mu.Unlock()
	if err != nil {
		w.t.Fatal(err)
	}
	w.send(out)
	return tx
}

// decided waits for a transaction's outcome.
func (w *world) decided(tx commit.Tx) commit.Outcome {
	w.t.Helper()
	w.await("the outcome", func() bool { return w.outcomes[tx] != (commit.Outcome{}) })
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outcomes[tx]
}

// start has a reservation committed.
func (w *world) start(res *procpb.Reservation) {
	w.t.Helper()
	if o := w.decided(w.ask(res)); !o.Committed {
		w.t.Fatalf("a commit expected, found: %s", o.Reason)
	}
}

// end waits for the end of rank 0 of a job.
func (w *world) end(job uint64) *procpb.Report {
	w.t.Helper()
	var found *procpb.Report
	w.await(fmt.Sprintf("the end of %d", job), func() bool {
		for _, r := range w.ended {
			if r.Job == job {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// free waits until the node says, from now on, that nothing is reserved.
func (w *world) free() {
	w.t.Helper()
	w.set(func() { w.beat = nil })
	w.await("free resources", func() bool { return w.beat != nil && w.beat.Used.CpuMilli == 0 && w.beat.Used.Memory == 0 })
}

// file reads a file of the tree, "" when there is none.
func (w *world) file(path string) string {
	ctx := context.Background()
	attr, err := w.fs.Resolve(ctx, vfs.Root(), path, false)
	if err != nil {
		return ""
	}
	f, err := w.fs.Open(ctx, vfs.Root(), sys.Ino(attr.GetIno()), os.O_RDONLY)
	if err != nil {
		return ""
	}
	defer f.Release()
	b := make([]byte, f.Attr().GetSize())
	n, _ := f.ReadAt(ctx, b, 0)
	return string(b[:n])
}

// poll waits for what has no event of its own.
func (w *world) poll(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(awhile); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// lines counts the lines of a file on disk.
func lines(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return strings.Count(string(b), "\n")
}
