package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/fsck"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote"
	"github.com/koinon/koinon/internal/ports"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// lab is a cluster in this process.
type lab struct {
	t      *testing.T
	nodes  []config.Node
	client config.Client
	stops  []func() // of the nodes; nil when one does not run
}

// newLab makes the files of a cluster and starts its nodes.
func newLab(t *testing.T, nodes int, change func(*config.Node)) *lab {
	t.Helper()
	dir := t.TempDir()
	tls := func(who string) config.TLS {
		return config.TLS{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, who+".crt"), Key: filepath.Join(dir, who+".key")}
	}
	ca, err := auth.NewCA("lab")
	must(t, err)
	cred, err := ca.IssueClient("tester")
	must(t, err)
	must(t, cred.Save(dir, "client"))
	l := &lab{t: t, client: config.Client{Cluster: "lab", TLS: tls("client")}, stops: make([]func(), nodes)}
	var voters []config.Voter
	for k := range nodes {
		voters = append(voters, config.Voter{ID: sys.NodeID(k + 1), Addr: freeAddr(t)})
		l.client.Nodes = append(l.client.Nodes, voters[k].Addr)
	}
	l.client.SetDefaults()
	for k, v := range voters {
		name := fmt.Sprint("node", v.ID)
		cred, err := ca.IssueNode(v.ID, nil)
		must(t, err)
		must(t, cred.Save(dir, name))
		n := config.Node{Cluster: "lab", ID: v.ID, Dir: filepath.Join(dir, name), Listen: v.Addr, TLS: tls(name),
			Limits: config.Limits{MinFree: 1}, Voters: slices.Clone(voters)}
		must(t, os.Mkdir(n.Dir, 0o700))
		n.SetDefaults()
		if change != nil {
			change(&n)
		}
		l.nodes = append(l.nodes, n)
		l.start(k)
	}
	t.Cleanup(func() {
		for k := range l.nodes {
			l.stop(k)
		}
	})
	return l
}

// start runs a node until it is stopped.
func (l *lab) start(k int) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, &l.nodes[k], "test", slog.New(slog.DiscardHandler)) }()
	l.stops[k] = func() {
		cancel()
		must(l.t, <-done)
	}
}

func (l *lab) stop(k int) {
	if stop := l.stops[k]; stop != nil {
		l.stops[k] = nil
		stop()
	}
}

func (l *lab) connect() *client.Client {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Connect(ctx, &l.client, slog.New(slog.DiscardHandler))
	must(l.t, err)
	return c
}

func freeAddr(t *testing.T) string {
	t.Helper()
	free, err := ports.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports.Loopback(free[0])
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestShortRetention: a file that is open outlives its name by more than the
// retention, however short that is.
func TestShortRetention(t *testing.T) {
	l := newLab(t, 1, func(n *config.Node) { n.Retention = config.Duration(3 * time.Second) })
	c := l.connect()
	defer func() { must(t, c.Close(context.Background())) }()
	ctx := t.Context()
	unlinked := func(name string) *vfs.File {
		_, f, err := c.FS().Create(ctx, vfs.Root(), sys.RootIno, []byte(name), 0o600, os.O_RDWR)
		must(t, err)
		_, err = f.WriteAt(ctx, []byte(name), 0)
		must(t, err)
		must(t, f.Flush(ctx))
		must(t, c.FS().Unlink(ctx, vfs.Root(), sys.RootIno, []byte(name)))
		return f
	}
	open, closed := unlinked("open"), unlinked("closed")
	ino := closed.Ino()
	closed.Release()
	for { // what nobody has open goes, and it was removed last
		_, err := c.Tree().Query(ctx, &metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: uint64(ino)}}})
		if sys.Is(err, sys.Stale) {
			break
		}
		must(t, err)
		time.Sleep(50 * time.Millisecond)
	}
	got := make([]byte, 4)
	n, err := open.ReadAt(ctx, got, 0)
	if err != nil || string(got[:n]) != "open" {
		t.Errorf("an open file reads %q, %v", got[:n], err)
	}
	if _, err := open.WriteAt(ctx, []byte("x"), 0); err != nil {
		t.Error(err)
	}
	if err := open.Flush(ctx); err != nil {
		t.Errorf("an open file cannot be flushed: %v", err)
	}
	open.Release()
}

// TestView: a view stays as it was while the tree goes on, and ends with the
// leadership.
func TestView(t *testing.T) {
	l := newLab(t, 1, nil)
	c := l.connect()
	defer func() { must(t, c.Close(context.Background())) }()
	ctx := t.Context()
	create := func(name string) {
		t.Helper()
		_, f, err := c.FS().Create(ctx, vfs.Root(), sys.RootIno, []byte(name), 0o600, os.O_RDWR)
		must(t, err)
		f.Release()
	}
	names := func(q meta.Querier) (names []string) {
		t.Helper()
		a, err := q.Query(ctx, &metapb.Query{Op: &metapb.Query_ReadDir{ReadDir: &metapb.ReadDir{Ino: uint64(sys.RootIno), Limit: 100}}})
		must(t, err)
		for _, e := range a.Entries {
			names = append(names, string(e.Name))
		}
		return names
	}
	create("a")
	view, err := c.Tree().(*remote.Client).View(ctx)
	must(t, err)
	create("b")
	must(t, c.FS().Unlink(ctx, vfs.Root(), sys.RootIno, []byte("a")))
	if got := names(view); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the view shows %q", got)
	}
	if got := names(c.Tree()); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the tree shows %q", got)
	}
	second, err := c.Tree().(*remote.Client).View(ctx)
	must(t, err)
	must(t, view.Close(ctx))
	stat := &metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}}
	if _, err := view.Query(ctx, stat); !errors.Is(err, meta.ErrViewGone) {
		t.Errorf("a view that was closed: %v", err)
	}
	if got := names(second); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the second view shows %q", got)
	}
	l.stop(0)
	l.start(0)
	if _, err := second.Query(ctx, stat); !errors.Is(err, meta.ErrViewGone) {
		t.Errorf("a view of an earlier leadership: %v", err)
	}
	must(t, second.Close(ctx))
}

// TestFsckWhileTreeIsUsed: a check of a tree that changes all the time, with
// the collector at work, finds nothing wrong in one walk.
func TestFsckWhileTreeIsUsed(t *testing.T) {
	l := newLab(t, 1, func(n *config.Node) { n.Retention = config.Duration(time.Millisecond) })
	c, other := l.connect(), l.connect()
	defer func() { must(t, errors.Join(c.Close(context.Background()), other.Close(context.Background()))) }()
	ctx, cancel := context.WithCancel(t.Context())
	var users sync.WaitGroup
	for n := range 4 {
		users.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				if err := churn(c.FS(), fmt.Sprintf("%d-%d", n, k%7), 1+k%2*200_000); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer users.Wait()
	defer cancel()
	for began, n := time.Now(), 0; time.Since(began) < 7*time.Second; n++ { // the collector runs every five
		r, err := other.Fsck(t.Context(), fsck.Options{Thorough: true})
		must(t, err)
		if !r.Sound() {
			t.Fatalf("check %d: %q", n, r.Problems)
		}
	}
}

// churn makes a file in the tree's root, renames and removes it.
func churn(fs *vfs.FS, name string, size int) error {
	ctx := context.Background()
	_, f, err := fs.Create(ctx, vfs.Root(), sys.RootIno, []byte(name), 0o600, os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(ctx, make([]byte, size), 0)
	err = errors.Join(err, f.Flush(ctx))
	f.Release()
	return errors.Join(err,
		fs.Rename(ctx, vfs.Root(), &metapb.Rename{Parent: uint64(sys.RootIno), Name: []byte(name), NewParent: uint64(sys.RootIno), NewName: []byte(name + "x")}),
		fs.Unlink(ctx, vfs.Root(), sys.RootIno, []byte(name+"x")))
}

// TestNodeMoves: a node that comes back at another address, which only its own
// configuration knows, takes part again, and clients find it there, also when
// it leads.
func TestNodeMoves(t *testing.T) {
	l := newLab(t, 3, nil)
	c := l.connect()
	defer func() { must(t, c.Close(context.Background())) }()
	ctx := t.Context()
	write := func(name string) {
		t.Helper()
		_, f, err := c.FS().Create(ctx, vfs.Root(), sys.RootIno, []byte(name), 0o600, os.O_RDWR)
		must(t, err)
		_, err = f.WriteAt(ctx, make([]byte, 200_000), 0)
		must(t, errors.Join(err, f.Fsync(ctx)))
		f.Release()
	}
	write("before")
	l.stop(1)
	n := &l.nodes[1]
	n.Listen = freeAddr(t)
	n.Voters[1].Addr, n.Advertise = n.Listen, n.Listen
	l.start(1)
	await := func(what string, ok func(s *client.Status) bool) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			s, err := c.Status(ctx)
			must(t, err)
			if ok(s) {
				return
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("not within 20 s: %s: %+v", what, s)
			}
		}
	}
	// The status is asked at the addresses of the client's own map.
	await("the client finds the node at its new address", func(s *client.Status) bool {
		i := slices.IndexFunc(s.Nodes, func(n client.NodeStatus) bool { return n.Addr == l.nodes[1].Listen })
		return i >= 0 && s.Nodes[i].ID == 2 && s.Nodes[i].Lag == 0 && s.Nodes[i].Applied > 0
	})
	// Only with the node that moved there is a majority.
	l.stop(2)
	write("after")
	r, err := c.Fsck(ctx, fsck.Options{})
	must(t, err)
	if r.Missing > 0 {
		t.Errorf("blocks are missing: %q", r.Problems)
	}
	// The first is stopped as well: the one that moved comes to lead.
	l.start(2)
	await("all are up", func(s *client.Status) bool { return s.Majority && len(s.Nodes) >= 3 && upNodes(s) == 3 })
	l.stop(0)
	write("with others")
}

func upNodes(s *client.Status) int {
	up := 0
	for _, n := range s.Nodes {
		if n.State == "up" {
			up++
		}
	}
	return up
}
