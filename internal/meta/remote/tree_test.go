package remote

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// TestReadingOnFullDisks: who lost his session and gets no other one, since the
// leader's disk is full, can still read the same tree.
func TestReadingOnFullDisks(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	group := oneVoter(t, l.Addr().String())
	s := NewServer(ServerOptions{Group: group, Clock: env.System{}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	cc := serveNode(t, l, group, map[wire.Method]wire.HandlerFunc{MethodQuery: s.serveQuery})
	full := false
	c := &Client{opts: Options{Cluster: cc, Logger: slog.New(slog.DiscardHandler)}, cache: newCache(env.System{})}
	c.session = cluster.NewSession(cc, "test", func(context.Context) error {
		if full {
			return sys.E(sys.NoSpace, "as the leader says")
		}
		return nil
	}, nil)
	if err := c.session.Open(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	c.learnTree(t.Context())
	if err := group.EndSession(t.Context(), c.Session()); err != nil {
		t.Fatal(err)
	}
	full = true
	stat := &metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: uint64(sys.RootIno)}}}
	if a, err := c.Query(t.Context(), stat); err != nil || a.Attr == nil {
		t.Errorf("found %v, %v", a, err)
	}
	c.tree.Add(1)
	if _, err := c.Query(t.Context(), stat); !sys.Is(err, sys.Stale) {
		t.Errorf("in another tree: %v", err)
	}
}

// loadStep runs a step of a load, which is not refused.
func loadStep(t *testing.T, group *replica.Group, l *metapb.Load) {
	t.Helper()
	raw, err := proposeLoad(t.Context(), group, l)
	if err == nil {
		_, err = decodeResult(raw)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestAnotherTree: a client whose session ended while it was away goes on in the
// same tree. In one that was loaded meanwhile its inodes are other files: it
// neither reads nor changes anything there, while new clients do.
func TestAnotherTree(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	group := oneVoter(t, l.Addr().String())
	s := NewServer(ServerOptions{Group: group, Clock: env.System{}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	cc := serveNode(t, l, group, map[wire.Method]wire.HandlerFunc{MethodRenew: s.serveRenew, MethodQuery: s.serveQuery, MethodDo: s.serveDo})
	open := func() *Client {
		c := must(NewClient(t.Context(), Options{Cluster: cc, Name: "test"}))
		t.Cleanup(func() { _ = c.Close(context.Background()) }) // its session may be gone
		c.learnTree(t.Context())
		return c
	}
	mkdir := func(c *Client, name string) error {
		_, err := c.Do(t.Context(), &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
			Parent: uint64(sys.RootIno), Name: []byte(name), Type: uint32(sys.TypeDir)}}})
		return err
	}
	list := func(c *Client) (*metapb.Answer, error) {
		return c.Query(t.Context(), &metapb.Query{Op: &metapb.Query_ReadDir{ReadDir: &metapb.ReadDir{Ino: uint64(sys.RootIno), Limit: 10}}})
	}
	reader, writer := open(), open()
	sessionsEnd := func() {
		t.Helper()
		for _, i := range must(group.Sessions()) {
			if err := group.EndSession(t.Context(), i.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	sessionsEnd()
	if err := mkdir(writer, "before"); err != nil {
		t.Fatalf("in the same tree: %v", err)
	}
	if a, err := list(reader); err != nil || len(a.Entries) != 1 {
		t.Fatalf("in the same tree: %v, %v", a, err)
	}

	// What a load does, in short: the tree is missing, then it is another one.
	root := must(reader.query(t.Context(), 0, treeState)).Attr
	loadStep(t, group, &metapb.Load{Step: &metapb.Load_Away{Away: &metapb.LoadAway{Moves: 1}}})
	sessionsEnd()
	if err := mkdir(writer, "meanwhile"); !sys.Is(err, sys.Busy) {
		t.Errorf("while there is no tree: %v", err)
	}
	loadStep(t, group, &metapb.Load{Id: 9, Step: &metapb.Load_Begin{Begin: &metapb.LoadBegin{}}})
	loadStep(t, group, &metapb.Load{Id: 9, Step: &metapb.Load_End{End: &metapb.LoadEnd{Root: root, Moves: 2}}})
	for range 2 {
		if err := mkdir(writer, "after"); !sys.Is(err, sys.Stale) {
			t.Errorf("a change of another tree: %v", err)
		}
		if _, err := list(reader); !sys.Is(err, sys.Stale) {
			t.Errorf("a look at another tree: %v", err)
		}
	}
	if err := mkdir(open(), "after"); err != nil {
		t.Errorf("a new client: %v", err)
	}
}
