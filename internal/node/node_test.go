package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/fsck"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// lab is a cluster of one node in this process.
type lab struct {
	t      *testing.T
	node   config.Node
	client config.Client
	stop   func()
}

// newLab makes the files of a cluster and starts its node.
func newLab(t *testing.T, change func(*config.Node)) *lab {
	t.Helper()
	dir := t.TempDir()
	ca, err := auth.NewCA("lab")
	must(t, err)
	cred, err := ca.IssueNode(1, nil)
	must(t, err)
	must(t, cred.Save(dir, "node"))
	cred, err = ca.IssueClient("tester")
	must(t, err)
	must(t, cred.Save(dir, "client"))
	addr := freeAddr(t)
	tls := func(who string) config.TLS {
		return config.TLS{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, who+".crt"), Key: filepath.Join(dir, who+".key")}
	}
	l := &lab{t: t,
		node: config.Node{Cluster: "lab", ID: 1, Dir: filepath.Join(dir, "data"), Listen: addr, TLS: tls("node"),
			Limits: config.Limits{MinFree: 1}, Voters: []config.Voter{{ID: 1, Addr: addr}}},
		client: config.Client{Cluster: "lab", Nodes: []string{addr}, TLS: tls("client")},
	}
	must(t, os.Mkdir(l.node.Dir, 0o700))
	l.node.SetDefaults()
	l.client.SetDefaults()
	if change != nil {
		change(&l.node)
	}
	l.start()
	t.Cleanup(func() { l.stop() })
	return l
}

// start runs the node until stop is called.
func (l *lab) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, &l.node, "test", slog.New(slog.DiscardHandler)) }()
	l.stop = func() {
		cancel()
		must(l.t, <-done)
		l.stop = func() {}
	}
}

func (l *lab) connect() *Client {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	c, err := Connect(ctx, &l.client, slog.New(slog.DiscardHandler))
	must(l.t, err)
	return c
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
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
	l := newLab(t, func(n *config.Node) { n.Retention = config.Duration(3 * time.Second) })
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
	l := newLab(t, nil)
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
	view, err := c.tree.View(ctx)
	must(t, err)
	create("b")
	must(t, c.FS().Unlink(ctx, vfs.Root(), sys.RootIno, []byte("a")))
	if got := names(view); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the view shows %q", got)
	}
	if got := names(c.Tree()); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the tree shows %q", got)
	}
	second, err := c.tree.View(ctx)
	must(t, err)
	must(t, view.Close(ctx))
	stat := &metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}}
	if _, err := view.Query(ctx, stat); !errors.Is(err, meta.ErrViewGone) {
		t.Errorf("a view that was closed: %v", err)
	}
	if got := names(second); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the second view shows %q", got)
	}
	l.stop()
	l.start()
	if _, err := second.Query(ctx, stat); !errors.Is(err, meta.ErrViewGone) {
		t.Errorf("a view of an earlier leadership: %v", err)
	}
	must(t, second.Close(ctx))
}

// TestFsckWhileTreeIsUsed: a check of a tree that changes all the time, with
// the collector at work, finds nothing wrong in one walk.
func TestFsckWhileTreeIsUsed(t *testing.T) {
	l := newLab(t, func(n *config.Node) { n.Retention = config.Duration(time.Millisecond) })
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
