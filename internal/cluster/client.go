package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// DefaultTimeout is how long an operation waits for a leader before it fails.
const DefaultTimeout = 30 * time.Second

// Config says how to reach a cluster.
type Config struct {
	Cluster string        // the cluster's ID; a node of another cluster is refused
	Seeds   []string      // addresses of some nodes
	TLS     *tls.Config   // of auth.Credentials.ClientTLS
	Timeout time.Duration // 0 is DefaultTimeout
	Logger  *slog.Logger  // is told, once until a leader answers, who lets operations wait
	// Passes keeps what spares later clients the handshake with nodes of this
	// machine. nil: nobody is spared.
	Passes wire.Passes
	// Own returns the map in a node's own replica, nil while it has none: a map of
	// another history is refused (Forked), also where that one is right, since the
	// replica has to go first. nil: there is no replica.
	Own func() *clusterpb.Map
	// Led is called, before the answer is returned, when another node than before
	// has answered as the leader, with its address: once at a time. nil: nobody is
	// told.
	Led func(addr string)
}

// Client keeps connections to the nodes of a cluster, knows its map, and sends
// requests to whichever node leads. Its methods may be called concurrently.
type Client struct {
	cfg    Config
	leader atomic.Uint64          // sys.NodeID last known to lead; 0 for none
	led    atomic.Pointer[string] // address of who last answered as the leader; written under ledMu
	ledMu  sync.Mutex             // held while Config.Led is told
	closed atomic.Bool
	waits  atomic.Bool // it has been told that operations wait
	roster atomic.Pointer[roster]

	mu      sync.Mutex
	conns   map[connKey]*wire.Client
	m       *clusterpb.Map
	table   *placement.Table
	places  map[sys.NodeID]string // of members that are elsewhere than in the map
	changed chan struct{}         // closed and replaced when the map changes
	seed    int

	stop context.CancelFunc // of work; nil without
	work sync.WaitGroup
}

// connKey: bulk traffic has its own connection, so that small requests never
// wait behind a block.
type connKey struct {
	addr string
	bulk bool
}

// Dial learns the map from any seed. It tries until ctx is done.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if len(cfg.Seeds) == 0 {
		return nil, errNoSeeds("cluster.Dial")
	}
	c := New(cfg)
	if err := c.Refresh(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.start()
	return c, nil
}

// Reach is Dial for those who soon ask the leader for something, and may be gone
// soon after: it waits for nobody, and learns the map when it is needed, or after
// a while. Until then there is none. That no node can be reached is the error of
// the first request.
func Reach(cfg Config) (*Client, error) {
	if len(cfg.Seeds) == 0 {
		return nil, errNoSeeds("cluster.Reach")
	}
	c := New(cfg)
	c.conn(cfg.Seeds[0], false).Connect()
	c.start()
	return c, nil
}

func errNoSeeds(op sys.Op) error {
	return sys.E(op, sys.Invalid, "no node address is given: add `nodes` to the client configuration")
}

// start follows the map until Close.
func (c *Client) start() {
	following, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.work.Go(func() { c.follow(following) })
}

// followEvery is how often a client looks for a newer map: the nodes that it
// knows may all be replaced while it has nothing to ask of them.
const followEvery = time.Second

// follow keeps the map of a client new. That nobody answers is told to whoever
// asks for something.
func (c *Client) follow(ctx context.Context) {
	tick := env.NewTicker(env.System{}, followEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n == 0 {
			continue // it may come at once (env.NewTicker), and many a client is gone before the next
		}
		addrs := c.Addrs()
		asking, cancel := context.WithTimeout(ctx, followEvery)
		if err := c.Learn(asking, addrs[n%len(addrs)]); err != nil {
			c.cfg.Logger.Debug("the map is not learned", "err", err)
		}
		cancel()
	}
}

// New returns a client that knows no map yet.
func New(cfg Config) *Client {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, conns: map[connKey]*wire.Client{}, places: map[sys.NodeID]string{}, changed: make(chan struct{})}
}

// errClosed is of whoever asks for something after Close.
var errClosed = sys.E(sys.Op("cluster.Client"), sys.Interrupted, fs.ErrClosed)

// Close closes every connection. Requests under way fail, and so do all later ones,
// with fs.ErrClosed.
func (c *Client) Close() error {
	c.closed.Store(true)
	if c.stop != nil {
		c.stop()
	}
	c.work.Wait()
	c.mu.Lock()
	conns := c.conns
	c.conns = map[connKey]*wire.Client{}
	c.mu.Unlock()
	var errs []error
	for _, w := range conns {
		errs = append(errs, w.Close())
	}
	return errors.Join(errs...)
}

// Timeout is how long an operation waits for a leader before it fails.
func (c *Client) Timeout() time.Duration { return c.cfg.Timeout }

func (c *Client) conn(addr string, bulk bool) *wire.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := connKey{addr, bulk}
	w := c.conns[k]
	if w == nil {
		class := wire.ClassControl
		if bulk {
			class = wire.ClassBulk
		}
		w = wire.NewClient(addr, wire.ClientConfig{TLS: c.cfg.TLS, Identify: c.Identify, Passes: c.cfg.Passes, Logger: c.cfg.Logger, Class: class})
		c.conns[k] = w
	}
	return w
}

// Conn returns the bulk connection to a node, nil when the map has no such
// node. The client owns it.
func (c *Client) Conn(id sys.NodeID) *wire.Client {
	if addr := c.addrOf(id); addr != "" {
		return c.conn(addr, true)
	}
	return nil
}

// OpenConn is Conn for those who ask for little, and for whom a connection that
// is there already is better than one that need not be shared. It needs no map
// to find that.
func (c *Client) OpenConn(id sys.NodeID) *wire.Client {
	if w := c.connectedTo(id); w != nil {
		return w
	}
	return c.Conn(id)
}

// connectedTo returns the connection to a node, by its certificate, that is there
// and need not carry much, or nil.
func (c *Client) connectedTo(id sys.NodeID) *wire.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, w := range c.conns {
		if peer, ok := w.Peer(); ok && !k.bulk && peer.Node == id {
			return w
		}
	}
	return nil
}

// Identify names the peer of a connection by its certificate.
func Identify(state tls.ConnectionState) (wire.Identity, error) {
	id, err := auth.PeerIdentity(state)
	return wire.Identity(id), err
}

// Identify is the function Identify, and sys.Unavailable for who has the number of
// another.
func (c *Client) Identify(state tls.ConnectionState) (wire.Identity, error) {
	id, err := Identify(state)
	if err != nil {
		return id, err
	}
	if err = c.another(id); err != nil {
		err = sys.E(sys.Unavailable, err) // the right one may answer elsewhere
	}
	return id, err
}

// answered notes who has answered as the leader.
func (c *Client) answered(addr string) {
	if c.waits.Load() {
		c.waits.Store(false)
	}
	same := func() bool { was := c.led.Load(); return was != nil && *was == addr }
	if same() {
		return
	}
	c.ledMu.Lock()
	defer c.ledMu.Unlock()
	if same() {
		return
	}
	c.led.Store(&addr)
	if c.cfg.Led != nil {
		c.cfg.Led(addr)
	}
}

// Addr is where a member is reached, empty when the map has no such node.
func (c *Client) Addr(id sys.NodeID) string { return c.addrOf(id) }

func (c *Client) addrOf(id sys.NodeID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.m.GetMembers() {
		if sys.NodeID(m.Id) == id {
			return c.placeOf(m)
		}
	}
	return ""
}

// Map returns the newest map known. It must not be changed.
func (c *Client) Map() *clusterpb.Map {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m
}

// Table returns the placement of the newest map known. It must not be changed.
func (c *Client) Table() *placement.Table {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table
}

// Changed returns a channel that is closed when the map changes.
func (c *Client) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Install takes over a map if it is newer than the one known, or of a history in
// which members joined earlier (Forked). One in which they joined later, or of
// another history than that of Config.Own, is sys.Invalid.
func (c *Client) Install(m *clusterpb.Map) error {
	if m.GetCluster() != c.cfg.Cluster {
		return sys.E(sys.Op("cluster.Install"), sys.Invalid, fmt.Sprintf("the node belongs to cluster %q, not to %q: check the addresses in the configuration", m.GetCluster(), c.cfg.Cluster))
	}
	table, err := placement.Unmarshal(m.Table)
	if err != nil {
		return sys.E(sys.Op("cluster.Install"), err)
	}
	fixed := false
	if c.cfg.Own != nil {
		fixed, _ = Forked(c.cfg.Own(), m)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch forked, first := Forked(c.m, m); {
	case fixed || first:
		return sys.E(sys.Op("cluster.Install"), sys.Invalid, "the node's map is of another history of the cluster: nodes have joined through an old copy of a node's directory")
	case !forked && c.m != nil && c.m.Epoch >= m.Epoch:
		return nil
	}
	c.settlePlaces(m)
	c.m, c.table = m, table
	c.roster.Store(newRoster(m))
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// Refresh fetches the map from any node that answers. It tries until ctx is
// done or the client's timeout is over.
func (c *Client) Refresh(ctx context.Context) error {
	return c.retry(ctx, "cluster.Refresh", time.Now(), nil, func(ctx context.Context, addr string) (sys.NodeID, error) {
		return 0, c.Learn(ctx, addr)
	})
}

// Learn fetches the map from one node.
func (c *Client) Learn(ctx context.Context, addr string) error {
	reply, err := c.conn(addr, false).Call(ctx, MethodMap, pb.Marshal(&clusterpb.MapRequest{}), nil)
	if err != nil {
		return err
	}
	defer reply.Release()
	m := &clusterpb.Map{}
	if err := pb.Unmarshal(reply.Header, m); err != nil {
		return sys.E(sys.Corrupt, err)
	}
	return c.Install(m)
}

// CallLeader sends a request to the leader, wherever it is. It tries again
// after a change of leader or a broken connection, so the request may be
// executed more than once unless the method guards against it; it gives up
// after the client's timeout with an error that names the nodes that did not
// answer. The caller releases the reply.
func (c *Client) CallLeader(ctx context.Context, m wire.Method, header, payload []byte) (*wire.Reply, error) {
	reply, _, err := c.CallLeaderCounted(ctx, m, header, payload)
	return reply, err
}

// CallLeaderCounted is CallLeader; open says that some try may have been
// executed although it was not answered: the outcome of an error is open then.
func (c *Client) CallLeaderCounted(ctx context.Context, m wire.Method, header, payload []byte) (reply *wire.Reply, open bool, err error) {
	if c.closed.Load() {
		return nil, false, errClosed
	}
	began, failed, caller := time.Now(), map[string]error(nil), ctx
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout) // of all tries together: a leader may never answer
	defer cancel()
	if addr := c.addrOf(sys.NodeID(c.leader.Load())); addr != "" { // the common case
		reply, err = c.conn(addr, false).Call(ctx, m, header, payload)
		open = unanswered(err)
		if err == nil {
			c.answered(addr)
		}
		if err == nil || !transient(err) || caller.Err() != nil {
			return reply, open, err
		}
		c.noteLeader(err)
		failed = map[string]error{addr: err}
	}
	err = c.retry(ctx, "cluster.CallLeader", began, failed, func(ctx context.Context, addr string) (sys.NodeID, error) {
		var err error
		reply, err = c.conn(addr, false).Call(ctx, m, header, payload)
		if err == nil {
			c.leader.Store(uint64(c.IDOf(addr)))
			c.answered(addr)
			return 0, nil
		}
		open = open || unanswered(err)
		return c.noteLeader(err), err
	})
	return reply, open, err
}

// CallAny sends a request to the nodes, one after the other, until one answers.
// The caller releases the reply.
func (c *Client) CallAny(ctx context.Context, m wire.Method, header, payload []byte) (reply *wire.Reply, err error) {
	err = c.retry(ctx, "cluster.CallAny", time.Now(), nil, func(ctx context.Context, addr string) (_ sys.NodeID, err error) {
		reply, err = c.conn(addr, false).Call(ctx, m, header, payload)
		return 0, err
	})
	return reply, err
}

// unanswered says that a call failed without an answer that settles it: it may
// have been executed.
func unanswered(err error) bool {
	if err == nil || wire.IsUnsent(err) {
		return false
	}
	switch sys.KindOf(err) {
	case sys.Unavailable, sys.Interrupted, sys.Other, sys.Corrupt:
		return true
	}
	return false
}

// noteLeader remembers the leader that an error names, and returns it.
func (c *Client) noteLeader(err error) sys.NodeID {
	if err == nil {
		return 0
	}
	var id sys.NodeID
	if detail, ok := wire.DetailOf(err); ok && transient(err) {
		id = decodeLeader(detail)
	}
	c.leader.Store(uint64(id))
	return id
}

// IDOf returns the member with an address, 0 when the map has none.
func (c *Client) IDOf(addr string) sys.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.m.GetMembers() {
		if c.placeOf(m) == addr {
			return sys.NodeID(m.Id)
		}
	}
	return 0
}

// transient says that another node, or the same one a little later, may answer.
func transient(err error) bool {
	switch sys.KindOf(err) {
	case sys.NotLeader, sys.Unavailable:
		return true
	}
	return false
}

// Addrs lists the members and the seeds, each once.
func (c *Client) Addrs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, m := range c.m.GetMembers() {
		out = append(out, c.placeOf(m))
	}
	for _, s := range c.cfg.Seeds {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// retry calls try on one node after the other, first on the node that the last
// answer named, until it succeeds or fails for good. began is when the operation
// began, and failed, which may be nil, has the nodes that were tried since.
func (c *Client) retry(ctx context.Context, op sys.Op, began time.Time, failed map[string]error, try func(ctx context.Context, addr string) (hint sys.NodeID, err error)) error {
	ctx, cancel := context.WithDeadline(ctx, began.Add(c.cfg.Timeout))
	defer cancel()
	if failed == nil {
		failed = map[string]error{}
	}
	pause := 2 * time.Millisecond
	next := c.addrOf(sys.NodeID(c.leader.Load()))
	for i := 0; ; i++ {
		if c.closed.Load() {
			return errClosed
		}
		if ctx.Err() != nil {
			return c.gaveUp(ctx, op, time.Since(began), failed)
		}
		addrs := c.Addrs()
		addr := next
		if addr == "" && i == 0 {
			addr = c.connected(addrs)
		}
		if addr == "" {
			c.mu.Lock()
			c.seed++
			addr = addrs[(c.seed-1)%len(addrs)] // the first one first
			c.mu.Unlock()
		}
		hint, err := try(ctx, addr)
		if err == nil || !transient(err) {
			return err
		}
		if ctx.Err() == nil || sys.KindOf(err) != sys.Interrupted {
			failed[addr] = err
		}
		if ctx.Err() == nil && time.Since(began) > tellWaitAfter && !c.waits.Swap(true) {
			c.tellWait(failed)
		}
		hinted := c.addrOf(hint)
		if hint != 0 && (hinted == "" || failed[hinted] != nil) && c.Learn(ctx, addr) == nil {
			hinted = c.addrOf(hint) // it is new, or it has moved
		}
		moved := hinted != "" && hinted != addr
		next = hinted
		if !moved {
			next = ""
			select {
			case <-ctx.Done():
			case <-time.After(pause):
				pause = min(pause*2, 50*time.Millisecond)
			}
		}
	}
}

// tellWaitAfter is how long an operation has waited for an answer when that is told: longer than an election takes.
const tellWaitAfter = 2 * time.Second

// tellWait tells who lets an operation wait: nodes that are not reached, or else what the others say.
func (c *Client) tellWait(failed map[string]error) {
	away, what := []string{}, "a node that leads"
	for addr, err := range failed {
		switch {
		case wire.IsUnsent(err):
			away = append(away, c.nameOf(addr))
		case sys.Is(err, sys.Unavailable):
			what = c.nameOf(addr) + ": " + cmp.Or(sys.Root(err), err).Error()
		}
	}
	if len(away) > 0 {
		slices.Sort(away)
		what = "a majority of the nodes: no answer from " + strings.Join(away, ", ")
	}
	c.cfg.Logger.Warn(fmt.Sprintf("no answer yet, waiting up to %v for %s", c.cfg.Timeout, what))
}

// nameOf is what people are told of who is at an address: its number, where that is known, and the address.
func (c *Client) nameOf(addr string) string {
	if id := c.IDOf(addr); id != 0 {
		return fmt.Sprintf("%v at %s", id, addr)
	}
	return addr
}

// connected is one of the addresses to which there is a connection already, or
// will be soon, "" for none: setting one up costs more than an answer that
// another node leads.
func (c *Client) connected(addrs []string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	soon := ""
	for _, addr := range addrs {
		w := c.conns[connKey{addr, false}]
		switch {
		case w == nil:
		case w.Connected():
			return addr
		case soon == "" && w.Connecting():
			soon = addr
		}
	}
	return soon
}

// NobodyAnswers is the advice where no node has told who the others are.
const NobodyAnswers = "start them again, or, if the cluster has other nodes by now, name one of those under `nodes` in the client configuration"

func (c *Client) gaveUp(ctx context.Context, op sys.Op, waited time.Duration, failed map[string]error) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return sys.E(op, sys.Interrupted, context.Cause(ctx))
	}
	if waited < c.cfg.Timeout/2 { // the caller's own time, which says nothing of the nodes
		return sys.E(op, sys.Unavailable, fmt.Errorf("no answer within %v: %w", waited.Round(time.Millisecond), context.DeadlineExceeded))
	}
	waited = waited.Round(time.Second)
	missing, troubles, led := c.missing(ctx, failed)
	switch {
	case len(missing) > 0 && !led:
	case len(troubles) > 0:
		return sys.E(op, sys.Unavailable, fmt.Sprintf("gave up after %v: %s; when that is mended all goes on, see `koinon status`", waited, strings.Join(troubles, "; ")))
	default:
		return sys.E(op, sys.Unavailable, fmt.Sprintf("no node leads after %v although all answer; see `koinon status`", waited))
	}
	advice := "start them again"
	if c.Map() == nil {
		advice = NobodyAnswers
	}
	return sys.E(op, sys.Unavailable, fmt.Sprintf("no majority after %v: no answer from %s; %s, see `koinon status`", waited, strings.Join(missing, ", "), advice))
}

// askMissing is how long a node may take to say that it is there: a second, in
// which it asks the database that it depends on, and a little more.
const askMissing = 1500 * time.Millisecond

// missing tells which nodes do not answer, and of what trouble the others know,
// both in order, and whether the leader knows of one: that is why, whoever else is
// missing. One that failed us may have done so because the others were
// missing: it is asked whether it is there itself.
func (c *Client) missing(ctx context.Context, failed map[string]error) (missing, troubles []string, led bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askMissing)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for addr, err := range failed {
		if !sys.Is(err, sys.Unavailable) {
			continue
		}
		wg.Go(func() {
			r, err := c.NodeStatus(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				missing = append(missing, c.nameOf(addr))
			case r.Trouble != "":
				troubles = append(troubles, c.nameOf(addr)+": "+r.Trouble)
				led = led || r.Role == "leader"
			}
		})
	}
	wg.Wait()
	slices.Sort(missing)
	slices.Sort(troubles)
	return missing, troubles, led
}

// OpenSession opens a session at the leader; name tells people whose it is.
func (c *Client) OpenSession(ctx context.Context, name string) (sys.SessionID, error) {
	reply, err := c.CallLeader(ctx, MethodOpenSession, pb.Marshal(&clusterpb.OpenSessionRequest{Name: name}), nil)
	if err != nil {
		return 0, err
	}
	defer reply.Release()
	var r clusterpb.OpenSessionReply
	if err := pb.Unmarshal(reply.Header, &r); err != nil {
		return 0, sys.E(sys.Op("cluster.OpenSession"), sys.Corrupt, err)
	}
	return sys.SessionID(r.Session), nil
}

// CloseSession ends a session; what it held is released at once.
func (c *Client) CloseSession(ctx context.Context, id sys.SessionID) error {
	reply, err := c.CallLeader(ctx, MethodCloseSession, pb.Marshal(&clusterpb.OpenSessionReply{Session: uint64(id)}), nil)
	if err != nil {
		return err
	}
	reply.Release()
	return nil
}

// NodeStatus asks one member about itself. The call ends with ctx.
func (c *Client) NodeStatus(ctx context.Context, addr string) (*clusterpb.StatusReply, error) {
	reply, err := c.conn(addr, false).Call(ctx, MethodStatus, pb.Marshal(&clusterpb.StatusRequest{}), nil)
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	r := &clusterpb.StatusReply{}
	if err := pb.Unmarshal(reply.Header, r); err != nil {
		return nil, sys.E(sys.Op("cluster.NodeStatus"), sys.Corrupt, err)
	}
	return r, nil
}

// Meet tells one node what this one knows of the cluster, and returns what that
// one knows, and who it is, 0 when the connection has ended since. The call ends
// with ctx.
func (c *Client) Meet(ctx context.Context, addr string, tell *clusterpb.Meeting) (told *clusterpb.Meeting, by sys.NodeID, err error) {
	conn := c.conn(addr, false)
	reply, err := conn.Call(ctx, MethodMeet, pb.Marshal(tell), nil)
	if err != nil {
		return nil, 0, err
	}
	defer reply.Release()
	told = &clusterpb.Meeting{}
	if err := pb.Unmarshal(reply.Header, told); err != nil {
		return nil, 0, sys.E(sys.Op("cluster.Meet"), sys.Corrupt, err)
	}
	peer, _ := conn.Peer()
	return told, peer.Node, nil
}
