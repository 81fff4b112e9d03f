package node_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/node"
	"github.com/koinon/koinon/internal/ports"
	"github.com/koinon/koinon/internal/sys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is a cluster of nodes in this process.
type town struct {
	t      *testing.T
	dir    string
	ca     *auth.CA
	nodes  []*config.Node
	client *config.Client
	creds  *auth.Credentials // the client's
	runs   []*resident       // of nodes
}

// resident is a node that runs.
type resident struct {
	log  bytes.Buffer
	mu   sync.Mutex
	stop context.CancelFunc
	done chan struct{} // closed when it has ended, with err
	err  error
}

// ended waits for the end.
func (r *resident) ended(t *testing.T) error {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the node goes on")
	}
	return r.err
}

func (r *resident) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

func (r *resident) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	free, err := ports.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports.Loopback(free[0])
}

// newTown makes and starts a cluster. signer has the CA's key, 0: nobody.
func newTown(t *testing.T, size, signer int) *town {
	t.Helper()
	w := &town{t: t, dir: t.TempDir()}
	var err error
	w.ca, err = auth.NewCA("lab")
	check(t, err)
	check(t, w.ca.Save(w.dir))
	var voters []config.Voter
	for i := range size {
		voters = append(voters, config.Voter{ID: sys.NodeID(i + 1), Addr: freePort(t)})
	}
	tls := func(who string) config.TLS {
		return config.TLS{CA: filepath.Join(w.dir, "ca.crt"), Cert: filepath.Join(w.dir, who+".crt"), Key: filepath.Join(w.dir, who+".key")}
	}
	w.creds, err = w.ca.IssueClient("tester")
	check(t, err)
	check(t, w.creds.Save(w.dir, "client"))
	w.client = &config.Client{Cluster: "lab", TLS: tls("client")}
	for i, v := range voters {
		name := fmt.Sprintf("n%d", i+1)
		cred, err := w.ca.IssueNode(v.ID, nil)
		check(t, err)
		check(t, cred.Save(w.dir, name))
		n := &config.Node{Cluster: "lab", ID: v.ID, Dir: filepath.Join(w.dir, name), Listen: v.Addr, TLS: tls(name), Voters: voters, Limits: config.Limits{MinFree: 1}}
		if i+1 == signer {
			n.TLS.CAKey = filepath.Join(w.dir, "ca.key")
		}
		n.SetDefaults()
		w.nodes = append(w.nodes, n)
		w.client.Nodes = append(w.client.Nodes, v.Addr)
		w.runs = append(w.runs, w.run(n))
	}
	w.client.SetDefaults()
	return w
}

// run serves a node until the test ends.
func (w *town) run(n *config.Node) *resident {
	ctx, cancel := context.WithCancel(context.Background())
	r := &resident{stop: cancel, done: make(chan struct{})}
	log := slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelInfo}))
	go func() {
		defer close(r.done)
		r.err = node.Serve(ctx, n, "test", log)
	}()
	w.t.Cleanup(func() {
		cancel()
		if w.t.Failed() {
			w.t.Logf("node %v:\n%s", n.ID, r.logged())
		}
		if err := r.ended(w.t); err != nil {
			w.t.Errorf("node %v: %v", n.ID, err)
		}
	})
	return r
}

// end stops a node and waits for it.
func (w *town) end(r *resident) {
	w.t.Helper()
	r.stop()
	check(w.t, r.ended(w.t))
}

func (w *town) admin() *client.Admin {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	for {
		a, err := client.ConnectAdmin(ctx, w.client, slog.New(slog.DiscardHandler))
		if err == nil {
			w.t.Cleanup(func() { check(w.t, a.Close()) })
			return a
		}
		if ctx.Err() != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *town) token(a *client.Admin, life time.Duration) string {
	w.t.Helper()
	t, err := a.NewToken(w.t.Context(), life, "")
	check(w.t, err)
	return t.Token
}

// join runs the first half of `serve --join`.
func (w *town) join(dir, token string, change func(*node.JoinOptions)) (*config.Node, string, error) {
	w.t.Helper()
	o := node.JoinOptions{Dir: filepath.Join(w.dir, dir), Seeds: []string{w.nodes[0].Listen}, Token: token, Listen: freePort(w.t), Version: "test"}
	if change != nil {
		change(&o)
	}
	var log bytes.Buffer
	path, err := node.Join(w.t.Context(), o, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		return nil, log.String(), err
	}
	n, err := config.LoadNode(path)
	check(w.t, err)
	n.Limits.MinFree = 1
	return n, log.String(), nil
}

// members returns a client of the cluster that knows its map.
func (w *town) members() *cluster.Client {
	w.t.Helper()
	c := cluster.New(cluster.Config{Cluster: "lab", Seeds: w.client.Nodes, TLS: w.creds.ClientTLS()})
	w.t.Cleanup(func() { check(w.t, c.Close()) })
	check(w.t, c.Refresh(w.t.Context()))
	return c
}

func (w *town) refused(err error, kind sys.Kind, words ...string) {
	w.t.Helper()
	for _, word := range words {
		if !sys.Is(err, kind) || !strings.Contains(err.Error(), word) {
			w.t.Errorf("error is %v (%v), expected %v that says %q", err, sys.KindOf(err), kind, word)
		}
	}
}

// await tries until ok, at most half a minute.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not after 30 s: %s", what)
		}
	}
}

// TestJoin is the life of a node that comes later: it joins at a node that
// cannot sign, serves, is started again, moves, is removed and told so.
func TestJoin(t *testing.T) {
	w := newTown(t, 3, 2)
	a := w.admin()
	token := w.token(a, time.Hour)
	n, log, err := w.join("n4", token, func(o *node.JoinOptions) { o.Zone = "rack-b" })
	check(t, err)
	if n.ID != 4 || n.Cluster != "lab" || n.Zone != "rack-b" || n.Seeds[0] != w.nodes[0].Listen || !n.Joined() || strings.Contains(strings.ReplaceAll(log, `WARN msg="no answer yet`, ""), "WARN") {
		t.Errorf("joined as %+v\n%s", n, log)
	}
	for _, file := range []string{"node.toml", "node.key"} {
		if st, err := os.Stat(filepath.Join(w.dir, "n4", file)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, st.Mode(), err)
		}
	}
	r := w.run(n)
	c := w.members()
	status := w.awaitMember(c, n)
	if status.Cluster != "lab" || status.Role != "learner" || status.Epoch == 0 {
		t.Errorf("it tells of itself %+v", status)
	}
	m := memberOf(c, 4)
	if m.Zone != "rack-b" || m.Addr != n.Listen || m.JoinedNs == 0 || m.Weight == 0 {
		t.Errorf("the map has %+v", m)
	}
	// A client that knows this node only finds the leader through it.
	only := *w.client
	only.Nodes = []string{n.Listen}
	cl, err := client.Connect(t.Context(), &only, slog.New(slog.DiscardHandler))
	check(t, err)
	check(t, cl.Close(t.Context()))

	// The same command line again, with another address.
	w.end(r)
	moved := freePort(t)
	n2, _, err := w.join("n4", token, func(o *node.JoinOptions) { o.Listen, o.Seeds = moved, nil })
	check(t, err)
	if n2.ID != 4 || n2.Listen != moved || n2.Advertise != moved {
		t.Errorf("started again as %+v", n2)
	}
	r = w.run(n2)
	await(t, "the map has the new address", func() bool {
		check(t, c.Refresh(t.Context()))
		return memberOf(c, 4).Addr == moved
	})

	check(t, a.Remove(t.Context(), 4, nil))
	if err, log := r.ended(t), r.logged(); err != nil || strings.Count(log, "this node was removed from the cluster") != 1 || !strings.Contains(log, "new token") {
		t.Errorf("the end was %v\n%s", err, log)
	}
	// When it comes back later it cannot serve, and its number is not used again.
	n4, _, err := w.join("n4", token, func(o *node.JoinOptions) { o.Listen = moved })
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := node.Serve(ctx, n4, "test", slog.New(slog.DiscardHandler)); !cluster.IsRemoved(err) || !strings.Contains(err.Error(), "new token") {
		t.Errorf("the end was %v", err)
	}
	n5, _, err := w.join("n5", w.token(a, time.Hour), nil)
	check(t, err)
	if n5.ID != 5 {
		t.Errorf("the next node is %v, expected n5", n5.ID)
	}
	w.checkTokens(a)
}

// awaitMember waits until a node serves blocks under a map that has it.
func (w *town) awaitMember(c *cluster.Client, n *config.Node) (status *clusterpb.StatusReply) {
	w.t.Helper()
	await(w.t, "the node answers with its map", func() bool {
		check(w.t, c.Refresh(w.t.Context()))
		var err error
		status, err = c.NodeStatus(w.t.Context(), n.Advertise)
		return err == nil && c.Conn(n.ID) != nil && status.Epoch >= c.Map().Epoch && sys.NodeID(status.Node) == n.ID
	})
	reply, err := c.Conn(n.ID).Call(w.t.Context(), 307, nil, nil) // block usage
	check(w.t, err)
	reply.Release()
	return status
}

func memberOf(c *cluster.Client, id uint64) *clusterpb.Member {
	i := slices.IndexFunc(c.Map().Members, func(m *clusterpb.Member) bool { return m.Id == id })
	if i < 0 {
		return &clusterpb.Member{}
	}
	return c.Map().Members[i]
}

func (w *town) checkTokens(a *client.Admin) {
	w.t.Helper()
	tokens, err := a.Tokens(w.t.Context())
	check(w.t, err)
	if len(tokens) != 2 {
		w.t.Fatalf("tokens %+v", tokens)
	}
	for _, x := range tokens {
		if x.State != "used" || x.Node < 4 || x.Creator != "client tester" || x.Used == nil {
			w.t.Errorf("token %+v", x)
		}
	}
	check(w.t, a.RemoveToken(w.t.Context(), tokens[0].ID))
	w.refused(a.RemoveToken(w.t.Context(), tokens[0].ID), sys.Access, "knows no token "+tokens[0].ID)
}

// TestJoinRefused goes through what can be wrong.
func TestJoinRefused(t *testing.T) {
	w := newTown(t, 1, 1)
	a := w.admin()
	good := w.token(a, time.Hour)
	_, _, err := w.join("x1", good[:len(good)-1]+"0", nil)
	w.refused(err, sys.Invalid, "checksum is wrong")
	_, _, err = w.join("x1", "", nil)
	w.refused(err, sys.Invalid, "give --token")

	other, err := auth.NewCA("lab")
	check(t, err)
	theirs, err := other.IssueClient("x")
	check(t, err)
	foreign, err := auth.NewToken(theirs)
	check(t, err)
	_, _, err = w.join("x1", foreign.Encode(), nil)
	w.refused(err, sys.Access, "does not know the CA that the token names")

	never, err := auth.NewToken(w.creds)
	check(t, err)
	_, _, err = w.join("x1", never.Encode(), func(o *node.JoinOptions) { o.Listen = w.nodes[0].Listen })
	w.refused(err, sys.Busy, "port is in use")
	_, _, err = w.join("x1", good, func(o *node.JoinOptions) { o.Advertise = w.nodes[0].Listen })
	w.refused(err, sys.Exist, "node n1 has the address")
	_, _, err = w.join("x1", good, func(o *node.JoinOptions) { o.Seeds = []string{w.nodes[0].Listen, "nonsense"} })
	w.refused(err, sys.Invalid, `--join: "nonsense" is no address`)
	_, _, err = w.join("x1", good, func(o *node.JoinOptions) { o.Seeds, o.Timeout = []string{freePort(t)}, time.Second })
	w.refused(err, sys.Unavailable, "connection refused")
	_, _, err = w.join("x1", good, func(o *node.JoinOptions) { o.Seeds, o.Listen = []string{"nowhere.invalid:1"}, ":"+port(o.Listen) })
	w.refused(err, sys.Unavailable, "there is no way to a node", "nowhere.invalid")

	n, log, err := w.join("x5", w.token(a, time.Hour), func(o *node.JoinOptions) { o.Listen = ":" + port(o.Listen) })
	check(t, err)
	if n.Advertise != "127.0.0.1"+n.Listen || strings.Contains(log, "WARN") {
		t.Errorf("listening everywhere, it advertises %q\n%s", n.Advertise, log)
	}
	n, log, err = w.join("x2", good, func(o *node.JoinOptions) { o.Advertise = "127.0.0.1:1" })
	check(t, err)
	if !strings.Contains(log, "node n3 is not reached at 127.0.0.1:1") {
		t.Errorf("no warning: %s", log)
	}
	_, _, err = w.join("x3", good, nil)
	w.refused(err, sys.Access, "was used already, by node n3")

	// A crash lost the answer: the same key gets the same number.
	check(t, os.Remove(filepath.Join(w.dir, "x2", "node.toml")))
	check(t, os.Remove(filepath.Join(w.dir, "x2", "ca.crt")))
	again, log, err := w.join("x2", good, nil)
	check(t, err)
	if again.ID != n.ID || strings.Contains(log, "WARN") {
		t.Errorf("the second try made node %v of %v: %s", again.ID, n.ID, log)
	}

	check(t, os.Mkdir(filepath.Join(w.dir, "x4"), 0o700))
	check(t, os.WriteFile(filepath.Join(w.dir, "x4", "precious"), nil, 0o600))
	_, _, err = w.join("x4", good, nil)
	w.refused(err, sys.NotEmpty, "precious", "empty directory")
	beta, err := auth.NewCA("beta")
	check(t, err)
	theirs, err = beta.IssueClient("x")
	check(t, err)
	foreign, err = auth.NewToken(theirs)
	check(t, err)
	_, _, err = w.join("x2", foreign.Encode(), nil)
	w.refused(err, sys.Invalid, `node n3 of cluster "lab"`, `for cluster "beta"`)
	if !strings.Contains(w.runs[0].logged(), "a machine may not join") {
		t.Error("the node's log says nothing of refused machines")
	}
}

func port(addr string) string {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	return p
}

// TestWrongTokensAreSlowed: every wrong token makes its address wait, and the
// cluster does not hear of those that wait.
func TestWrongTokensAreSlowed(t *testing.T) {
	w := newTown(t, 1, 1)
	a := w.admin()
	good := w.token(a, time.Hour)
	parsed, err := auth.ParseToken(good)
	check(t, err)
	parsed.Secret[0] ^= 1
	_, _, err = w.join("y1", parsed.Encode(), nil)
	w.refused(err, sys.Access, "secret of token "+parsed.ID+" is wrong")
	began := time.Now()
	n, _, err := w.join("y1", good, nil) // waits, and gets in
	check(t, err)
	if took := time.Since(began); n.ID != 2 || took < 500*time.Millisecond {
		t.Errorf("node %v was let in after %v", n.ID, took)
	}
	tokens, err := a.Tokens(t.Context())
	check(t, err)
	if len(tokens) != 1 || tokens[0].Wrong != 1 {
		t.Errorf("tokens %+v, expected one with one wrong secret", tokens)
	}
}

// TestOnlyNodesMeet: a client cannot tell a node that its directory is old.
func TestOnlyNodesMeet(t *testing.T) {
	w := newTown(t, 1, 1)
	w.admin()
	c := w.members()
	_, _, err := c.Meet(t.Context(), w.nodes[0].Listen, &clusterpb.Meeting{Map: c.Map()})
	w.refused(err, sys.Permission, "only nodes")
}

// TestExpiredToken: a token whose time is over lets nobody in.
func TestExpiredToken(t *testing.T) {
	w := newTown(t, 1, 1)
	a := w.admin()
	late := w.token(a, cluster.TokenLifeMin)
	await(t, "the token has expired", func() bool {
		tokens, err := a.Tokens(t.Context())
		check(t, err)
		return slices.ContainsFunc(tokens, func(x client.TokenInfo) bool { return x.State == "expired" })
	})
	_, _, err := w.join("x1", late, nil)
	w.refused(err, sys.Access, "has expired", "make a new one")
}

// TestFound: a cluster of one machine that others join.
func TestFound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "first")
	o := node.FoundOptions{Cluster: "lab", Dir: dir, Listen: freePort(t), Zone: "rack-a"}
	check(t, node.Found(o))
	w := &town{t: t, dir: t.TempDir()}
	n, err := config.LoadNode(filepath.Join(dir, "node.toml"))
	check(t, err)
	n.Limits.MinFree = 1
	w.nodes = append(w.nodes, n)
	w.client, err = config.LoadClient(filepath.Join(dir, "client.toml"))
	check(t, err)
	w.runs = append(w.runs, w.run(n))
	second, _, err := w.join("second", w.token(w.admin(), time.Hour), nil)
	check(t, err)
	if second.ID != 2 || second.Cluster != "lab" {
		t.Errorf("joined as %+v", second)
	}
	w.refused(node.Found(o), sys.NotEmpty, "holds")
	for _, bad := range []node.FoundOptions{{Cluster: "no good", Dir: dir + "x", Listen: o.Listen}, {Cluster: "lab", Dir: dir + "x", Listen: ":7400"}, {Cluster: "lab", Dir: dir + "x"}} {
		if err := node.Found(bad); !sys.Is(err, sys.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := os.Stat(dir + "x"); err == nil {
		t.Error("what was refused has left files")
	}
}

// TestNobodySigns: without the CA's key no node can let anybody in, and says
// what to do.
func TestNobodySigns(t *testing.T) {
	w := newTown(t, 3, 0)
	_, _, err := w.join("z", w.token(w.admin(), time.Hour), nil)
	w.refused(err, sys.NotSupported, "no node has the key", "ca_key")
}

// TestAllRemovedAtOnce: those who remove all nodes at the same time, each
// another one, do not see each other; the last one stays all the same.
func TestAllRemovedAtOnce(t *testing.T) {
	w := newTown(t, 3, 0)
	a := w.admin()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	errs := make([]error, len(w.nodes))
	var wg sync.WaitGroup
	for i, n := range w.nodes {
		wg.Go(func() { errs[i] = a.Remove(ctx, n.ID, nil) })
	}
	wg.Wait()
	stays := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if stays < 0 {
		t.Fatal("one of the removals was to be refused")
	}
	w.refused(errs[stays], sys.Invalid, "only node")
	for i, r := range w.runs {
		if i == stays {
			continue
		}
		check(t, errs[i])
		if err := r.ended(t); err != nil || !strings.Contains(r.logged(), "was removed") {
			t.Errorf("node %d ended with %v", i+1, err)
		}
	}
	st, err := client.ReadStatus(t.Context(), w.client, slog.New(slog.DiscardHandler))
	if err != nil || !st.Majority || len(st.Nodes) != 1 || st.Nodes[0].Member != "up" {
		t.Errorf("one node that serves expected, found %+v, %v", st, err)
	}
	w.token(a, time.Hour)
}

// TestDiskTooSmall: a disk that can never have as much free as it should is said to be too small, and not to be full until it has.
func TestDiskTooSmall(t *testing.T) {
	w := newTown(t, 1, 1)
	w.admin()
	c := w.members()
	w.end(w.runs[0])
	n := *w.nodes[0]
	n.Limits.MinFree = 1 << 60
	w.run(&n)
	await(t, "the node says that its disk is too small", func() bool {
		r, err := c.NodeStatus(t.Context(), n.Listen)
		return err == nil && strings.Contains(r.Trouble, "the disk is too small")
	})
}
