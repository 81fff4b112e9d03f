package spread

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/block/disk"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	ctx   = context.Background()
	quiet = slog.New(slog.DiscardHandler)
)

// world is a cluster of nodes in this process, over real connections.
type world struct {
	t     testing.TB
	ca    *auth.CA
	table atomic.Pointer[placement.Table]
	nodes []*testNode // n1 first
	opt   worldOptions
}

type worldOptions struct {
	nodes, replicas, pgs int
	// fs returns the disk of a node; a MemFS when nil.
	fs      func(i int) (envfs.FS, string)
	noHeal  bool
	segment int64
	// engine wraps the disk of a node.
	engine func(i int, d *disk.Store) Engine
}

// testNode is one node of a world.
type testNode struct {
	w    *world
	id   sys.NodeID
	fs   envfs.FS
	dir  string
	addr string
	// listener is the node's own until its first start.
	listener net.Listener
	view     *view
	disk     *disk.Store
	engine   Engine
	wire     *wire.Server
	served   chan error
	server   *Server
	healer   *Healer
}

// view is the cluster as one member sees it. It follows the world's table only
// when it is refreshed.
type view struct {
	w     *world
	creds *auth.Credentials
	table atomic.Pointer[placement.Table]
	mu    sync.Mutex
	conns map[sys.NodeID]*wire.Client
}

var _ Cluster = (*view)(nil)

func (v *view) Table() *placement.Table { return v.table.Load() }

func (v *view) Refresh(context.Context) error {
	v.table.Store(v.w.table.Load())
	return nil
}

func (v *view) Conn(id sys.NodeID) *wire.Client {
	v.mu.Lock()
	defer v.mu.Unlock()
	if int(id) > len(v.w.nodes) || id == 0 {
		return nil
	}
	if v.conns[id] == nil {
		v.conns[id] = wire.NewClient(v.w.nodes[id-1].addr, wire.ClientConfig{
			TLS: v.creds.ClientTLS(), Class: wire.ClassBulk, Logger: quiet, KeepAlive: 5 * time.Second})
	}
	return v.conns[id]
}

func (v *view) close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	for _, c := range v.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t testing.TB, opt worldOptions) *world {
	t.Helper()
	if opt.pgs == 0 {
		opt.pgs = 16
	}
	if opt.replicas == 0 {
		opt.replicas = 3
	}
	w := &world{t: t, opt: opt, ca: must[*auth.CA](t)(auth.NewCA("test"))}
	var members []placement.Node
	for i := range opt.nodes {
		members = append(members, placement.Node{ID: sys.NodeID(i + 1), Weight: 100})
	}
	w.table.Store(must[*placement.Table](t)(placement.Assign(members, opt.pgs, opt.replicas)))
	for i := range opt.nodes {
		w.addNode(i)
	}
	for _, n := range w.nodes {
		n.start()
	}
	return w
}

// addNode makes a node that is not started yet.
func (w *world) addNode(i int) *testNode {
	n := &testNode{w: w, id: sys.NodeID(i + 1), fs: vfs.NewMem(), dir: "blocks"}
	if w.opt.fs != nil {
		n.fs, n.dir = w.opt.fs(i)
	}
	l := must[net.Listener](w.t)(net.Listen("tcp", "127.0.0.1:0"))
	// Kept until the node starts, so that nobody else gets the port.
	n.addr, n.listener = l.Addr().String(), l
	w.nodes = append(w.nodes, n)
	w.t.Cleanup(n.stop)
	return n
}

// view returns the cluster as a member with these credentials sees it.
func (w *world) view(creds *auth.Credentials) *view {
	v := &view{w: w, creds: creds, conns: make(map[sys.NodeID]*wire.Client)}
	v.table.Store(w.table.Load())
	return v
}

func (n *testNode) start() {
	t := n.w.t
	t.Helper()
	l := n.listener
	if n.listener = nil; l == nil {
		l = must[net.Listener](t)(net.Listen("tcp", n.addr))
	}
	creds := must[*auth.Credentials](t)(n.w.ca.IssueNode(n.id, []string{"127.0.0.1"}))
	n.view = n.w.view(creds)
	n.disk = must[*disk.Store](t)(disk.Open(disk.Options{Dir: n.dir, FS: n.fs, Logger: quiet, SegmentBytes: n.w.opt.segment, ReserveBytes: 1 << 20}))
	n.engine = n.disk
	if n.w.opt.engine != nil {
		n.engine = n.w.opt.engine(int(n.id)-1, n.disk)
	}
	n.server = NewServer(ServerConfig{Self: n.id, Engine: n.engine, Cluster: n.view, Logger: quiet})
	n.wire = wire.NewServer(wire.ServerConfig{TLS: creds.ServerTLS(), Logger: quiet, CloseGrace: -1,
		Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
			id, err := auth.PeerIdentity(cs)
			return wire.Identity(id), err
		}})
	n.server.Register(n.wire)
	n.served = make(chan error, 1)
	go func() { n.served <- n.wire.Serve(l) }()
	if !n.w.opt.noHeal {
		n.healer = NewHealer(HealerConfig{Self: n.id, Engine: n.disk, Cluster: n.view, Logger: quiet,
			RetryEvery: 50 * time.Millisecond, TableEvery: 10 * time.Millisecond})
	}
}

// stop ends a node, as after SIGTERM. It may be started again.
func (n *testNode) stop() {
	t := n.w.t
	t.Helper()
	if n.listener != nil { // never started
		if err := n.listener.Close(); err != nil {
			t.Error(err)
		}
		n.listener = nil
	}
	if n.disk == nil {
		return
	}
	if n.healer != nil {
		if err := n.healer.Close(); err != nil {
			t.Error(err)
		}
	}
	err := n.wire.Close()
	if serr := <-n.served; !sys.Is(serr, sys.Unavailable) { // closed before it served
		err = errors.Join(err, serr)
	}
	if err := errors.Join(err, n.view.close(), n.disk.Close()); err != nil {
		t.Errorf("stopping %v: %v", n.id, err)
	}
	n.disk, n.healer = nil, nil
}

// client returns a store as a client of the cluster; edit may change its
// options.
func (w *world) client(edit func(*Options)) *Store {
	w.t.Helper()
	v := w.view(must[*auth.Credentials](w.t)(w.ca.IssueClient("test")))
	opt := Options{Cluster: v, Logger: quiet, RepairEvery: 20 * time.Millisecond}
	if edit != nil {
		edit(&opt)
	}
	s := New(opt)
	w.t.Cleanup(func() {
		if err := errors.Join(s.Close(), v.close()); err != nil {
			w.t.Error(err)
		}
	})
	return s
}

// waitFor waits until ok, for what happens in the background.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
