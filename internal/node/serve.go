package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/block/disk"
	"github.com/koinon/koinon/internal/block/spread"
	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/kv"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/embedded"
	"github.com/koinon/koinon/internal/meta/mysql"
	"github.com/koinon/koinon/internal/meta/remote"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// server is a running node: its parts, in the order in which they are made.
type server struct {
	cfg     *config.Node
	log     *slog.Logger
	clock   env.Clock
	started time.Time
	version string

	creds     *auth.Credentials
	ca        *auth.CA        // nil without tls.ca_key
	peers     *cluster.Client // to the other nodes, on this node's own account
	transport *replica.WireTransport
	wire      *wire.Server
	metrics   net.Listener           // nil: not asked for
	homes     map[string]fs.FileInfo // the node's directories when it was opened
	host      *replica.Host
	group     *replica.Group
	database  *mysql.Engine // nil: the tree is in the replica's state
	tree      *remote.Server
	kv        *kv.Server
	procs     *proc.Server
	processes *processes   // nil: this node runs none
	redis     *redisBlocks // nil: the nodes keep the blocks, by the four below
	blocks    *disk.Store
	spread    *spread.Store // this node's own use of all blocks
	healer    *spread.Healer
	scrubber  *spread.Scrubber
	settled   atomic.Bool         // everybody is answered
	followed  [2]uint64           // what the log's peers are of: epoch of the map, meetings; of duties alone
	meetings  uint64              // changes of friends
	acquaints chan struct{}       // has a token when friends have changed; wakes duties
	meetMu    sync.Mutex          // guards the next ones, once the node is open
	noted     []string            // addresses in peersFile
	heard     map[sys.NodeID]bool // who has spoken to this node and was no peer of its log
	friends   map[sys.NodeID]bool // with whom this node has met since it started, and is of one history
	apart     map[string]bool     // who has told of another history
	returnTo  *clusterpb.Map      // of those from whom this node returns, once it has given its replica up
}

// Serve runs a node until ctx is done or the node cannot go on, and stops it
// in order. It returns nil after an orderly stop, also that of a node that is
// removed from its cluster meanwhile; one that was before it started is an
// error, which says how the machine comes back. When the node's directory was removed or replaced it
// returns at once and leaves everything as it is, as a crash would: the caller
// then ends the process. A node whose replica turns out to be an old copy begins
// anew without it.
func Serve(ctx context.Context, cfg *config.Node, version string, log *slog.Logger) error {
	var members *clusterpb.Map
	for {
		s := &server{cfg: cfg, log: log, clock: env.System{}, started: time.Now(), version: version,
			heard: map[sys.NodeID]bool{}, friends: map[sys.NodeID]bool{}, apart: map[string]bool{}, acquaints: make(chan struct{}, 1)}
		err := s.serve(ctx, members)
		if ctx.Err() != nil || !errors.Is(err, replica.ErrOld) {
			return err
		}
		members = s.returnTo
		log.Warn("the node begins anew, without the old copy")
	}
}

// serve is Serve, once. members is the map that the node goes by until it knows
// one by its replica; nil: it asks.
func (s *server) serve(ctx context.Context, members *clusterpb.Map) (err error) {
	cfg := s.cfg
	if s.creds, err = auth.LoadCredentials(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key); err != nil {
		return err
	}
	if id := s.creds.Identity(); id.Cluster != cfg.Cluster || id.Node != cfg.ID {
		return sys.E(sys.Op("node.Serve"), sys.Invalid, sys.Subject(cfg.TLS.Cert),
			fmt.Sprintf("the certificate is that of %v of cluster %q, the configuration that of %v of %q", id.Node, id.Cluster, cfg.ID, cfg.Cluster))
	}
	if cfg.TLS.CAKey != "" {
		if s.ca, err = auth.LoadCAFiles(cfg.TLS.CA, cfg.TLS.CAKey); err != nil {
			return err
		}
	}
	listener, err := wire.Listen(cfg.Listen)
	if err != nil {
		return cannotListen("listen", cfg.Listen, err)
	}
	defer func() {
		if !errors.Is(err, errHomeless) {
			err = errors.Join(err, s.close(listener))
		}
	}()
	if cfg.Metrics != "" {
		if s.metrics, err = listen("metrics", cfg.Metrics); err != nil {
			return err
		}
	}
	if err := s.open(ctx, members); err != nil {
		return err
	}
	if err := s.noteHomes(); err != nil {
		return err
	}
	return s.run(ctx, listener)
}

// listen opens an address that the configuration gives under a key.
func listen(key, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, cannotListen(key, addr, err)
	}
	return l, nil
}

// cannotListen explains why an address cannot be opened.
func cannotListen(key, addr string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return sys.E(sys.Op("node.Serve"), sys.Busy, sys.Subject(addr), "the port is in use: end the process that has it (ss -ltnp shows it), or set another `"+key+"` address")
	}
	return sys.E(sys.Op("node.Serve"), sys.Invalid, sys.Subject(addr), err)
}

// open makes the parts. What was made is closed by close, also after a failure.
func (s *server) open(ctx context.Context, members *clusterpb.Map) (err error) {
	seeds := slices.Clone(s.cfg.Seeds)
	for _, v := range s.cfg.Voters {
		seeds = append(seeds, v.Addr)
	}
	s.noted = s.notedPeers()
	seeds = append(seeds, s.noted...)
	s.peers = cluster.New(cluster.Config{Cluster: s.cfg.Cluster, Seeds: seeds, TLS: s.creds.ClientTLS(), Logger: s.log, Own: s.recorded})
	s.peers.Moved(&clusterpb.Place{Node: uint64(s.cfg.ID), Addr: s.cfg.Advertise}, true)
	if members != nil {
		if err := s.peers.Install(members); err != nil {
			return err
		}
	}
	s.wire = wire.NewServer(wire.ServerConfig{TLS: s.creds.JoinServerTLS(), Logger: s.log, Identify: identify, Allow: s.allow})
	if err := checkSpace(s.cfg.Dir, int64(s.cfg.Limits.MinFree)/2); err != nil {
		return err
	}
	if err := s.openDatabase(ctx); err != nil {
		return err
	}
	if err := s.openReplica(); err != nil {
		return err
	}
	(&cluster.Service{Group: s.group, Status: s.status, Known: s.known, Meet: s.met}).Register(s.wire)
	(&cluster.Admission{Client: s.peers, CA: s.ca, CAPEM: s.creds.CAPEM(), Logger: s.log}).Register(s.wire)
	if err := s.openBlocks(ctx); err != nil {
		return err
	}
	s.processes = s.openProcesses(ctx)
	if err := s.followMap(); err != nil || s.peers.Map() != nil {
		return err
	}
	var first []replica.Peer // there is no history yet
	for _, v := range s.cfg.Voters {
		s.acquaint(v.ID, true)
		first = append(first, replica.Peer{ID: v.ID, Addr: v.Addr})
	}
	s.host.SetPeers(first)
	return nil
}

// openOwnBlocks makes the parts of a node that keeps blocks itself.
func (s *server) openOwnBlocks() (err error) {
	s.blocks, err = disk.Open(disk.Options{Dir: filepath.Join(s.cfg.Dir, "blocks"), Logger: s.log, ReserveBytes: uint64(s.cfg.Limits.MinFree)})
	if err != nil {
		return err
	}
	server := spread.NewServer(spread.ServerConfig{Self: s.cfg.ID, Engine: s.blocks, Cluster: s.peers, Logger: s.log})
	server.Register(s.wire)
	s.healer = spread.NewHealer(spread.HealerConfig{Every: healEvery, Self: s.cfg.ID, Engine: s.blocks, Cluster: s.peers, Logger: s.log})
	s.scrubber = spread.NewScrubber(spread.ScrubberConfig{Self: s.cfg.ID, Engine: s.blocks, Cluster: s.peers, Logger: s.log})
	s.spread = spread.New(spread.Options{Cluster: s.peers, Prefer: s.cfg.ID, Local: server, Logger: s.log})
	return nil
}

// openReplica makes the replica of the log, and the tree on it. That of a node
// that joins knows nothing until the leader speaks to it.
func (s *server) openReplica() (err error) {
	voters := make([]replica.Peer, 0, len(s.cfg.Voters))
	for _, v := range s.cfg.Voters {
		voters = append(voters, replica.Peer{ID: v.ID, Addr: v.Addr})
	}
	s.transport = replica.NewWireTransport(replica.WireConfig{
		Self: s.cfg.ID, Server: s.wire, Logger: s.log, Stranger: s.hearStranger,
		Client: func(p replica.Peer) wire.ClientConfig {
			return wire.ClientConfig{TLS: s.creds.ClientTLSFor(p.ID), Logger: s.log, Dial: s.dialer(p.ID), Identify: s.peers.Identify}
		},
	})
	keys, procs := kv.NewMachine(), proc.NewMachine(s.database != nil)
	s.host, err = replica.Open(replica.Config{
		Dir: filepath.Join(s.cfg.Dir, "replica"), FS: envfs.Disk, Clock: s.clock, Cluster: s.cfg.Cluster, Self: s.cfg.ID, Voters: voters, Peers: []replica.Peer{}, // whom this node has met
		Transport: s.transport, Logger: s.log, SessionTTL: remote.SessionLife, Mark: s.cfg.TLS.Key + ".served",
		Others: len(s.noted)+len(s.cfg.Seeds) > 0,
		// One of the first voters that has noted others has served, also where the mark is gone.
		Rejoin:          s.cfg.Rejoin || len(voters) > 0 && len(s.noted) > 0,
		BlockCacheBytes: int64(s.cfg.Limits.StateCache), ReserveBytes: int64(s.cfg.Limits.MinFree) / 2,
	}, map[rsm.Namespace]rsm.Machine{rsm.NSMeta: embedded.Machine{}, rsm.NSCluster: cluster.Machine{}, rsm.NSKV: keys, rsm.NSProc: procs})
	if err != nil {
		return err
	}
	s.group = s.host.Group(0)
	var database meta.Database
	if s.database != nil {
		database = s.database.Database()
	}
	s.tree = remote.NewServer(remote.ServerOptions{Group: s.group, Database: database, Clock: s.clock, Logger: s.log})
	s.tree.Register(s.wire)
	s.kv = kv.NewServer(kv.ServerOptions{Group: s.group, Machine: keys, Clock: s.clock, Logger: s.log})
	s.kv.Register(s.wire)
	s.procs = proc.NewServer(proc.ServerOptions{Group: s.group, Machine: procs, Cluster: s.peers, Tree: s.tree, Barrier: s.tree.Barrier, Clock: s.clock, Logger: s.log})
	s.procs.Register(s.wire)
	return nil
}

// startSpace is how much free space a node needs to start, in bytes: the state
// cannot be opened without writing.
const startSpace = 32 << 20

// checkSpace refuses to start on a full disk.
func checkSpace(dir string, reserve int64) error {
	u, err := envfs.Disk.GetDiskUsage(dir)
	if err != nil || u.TotalBytes == 0 {
		return nil // the directory is new, or the file system does not tell
	}
	need := uint64(min(startSpace, max(0, reserve)))
	if u.AvailBytes >= need {
		return nil
	}
	return sys.E(sys.Op("node.Serve"), sys.NoSpace, sys.Subject(dir), fmt.Sprintf(
		"the disk is too full to start on, %d MiB are left: free at least %d MiB there and start the node again; what it has stored is safe", u.AvailBytes>>20, need>>20))
}

func identify(cs tls.ConnectionState) (wire.Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return wire.Identity{}, nil // allow lets it join and nothing else
	}
	return cluster.Identify(cs)
}

// run serves until the end.
func (s *server) run(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	s.settled.Store(!s.group.Alone() || s.host.New())
	wg.Go(func() {
		if err := s.wire.Serve(listener); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	if s.metrics != nil {
		wg.Go(func() { s.serveMetrics(ctx, s.metrics) })
	}
	if s.settle(ctx) {
		wg.Go(func() { s.member(ctx, cancel) })
		wg.Go(func() { s.meet(ctx) })
		wg.Go(func() { s.duties(ctx, cancel) })
		if s.redis != nil {
			wg.Go(func() { s.redis.watch(ctx) })
		}
		wg.Go(func() { s.govern(ctx) })
		wg.Go(func() { s.processes.run(ctx) })
		s.log.Info("serving", "node", s.cfg.ID, "cluster", s.cfg.Cluster, "addr", listener.Addr().String(), "version", s.version)
	}
	select {
	case <-ctx.Done():
	case <-s.host.Failed():
		cancel(s.host.Err())
	}
	if err := s.checkHomes(); err != nil { // also when something else has asked to stop, before anybody has looked
		return err
	}
	err := context.Cause(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	s.log.Info("stopping", "err", err)
	s.kv.Close() // before wire, which lets those who wait finish
	s.procs.Close()
	closeErr := s.wire.Close()
	wg.Wait()
	return errors.Join(err, closeErr)
}

// close ends the parts in the reverse order of open.
func (s *server) close(listener net.Listener) error {
	var errs []error
	for _, l := range []net.Listener{listener, s.metrics} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, s.processes.close())
	if s.tree != nil {
		s.tree.Close()
	}
	if s.database != nil {
		errs = append(errs, s.database.Close())
	}
	if s.kv != nil {
		s.kv.Close()
	}
	if s.procs != nil {
		s.procs.Close()
	}
	if s.host != nil {
		errs = append(errs, s.host.Close())
	}
	if s.transport != nil {
		errs = append(errs, s.transport.Close())
	}
	if s.spread != nil {
		errs = append(errs, s.scrubber.Close(), s.healer.Close(), s.spread.Close())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.store.Close())
	}
	if s.blocks != nil {
		errs = append(errs, s.blocks.Close())
	}
	if s.peers != nil {
		errs = append(errs, s.peers.Close())
	}
	return errors.Join(errs...)
}

// duties does what is due now and then: taking over a newer map, and, on the
// leader, making a new cluster and collecting what nobody uses. end ends the
// node.
func (s *server) duties(ctx context.Context, end context.CancelCauseFunc) {
	collected := s.clock.Boot()
	led, since := uint64(0), collected // the leadership, and since when it is this node's
	tick := env.NewTicker(env.System{}, dutyEvery)
	defer tick.Stop()
	seen := uint64(0) // what the map was last looked for in
	for {
		if err := s.checkHomes(); err != nil {
			end(err)
			return
		}
		st := s.group.Status()
		if st.Applied != seen {
			if err := s.followMap(); err != nil {
				end(err)
				return
			}
			seen = st.Applied
		}
		s.followPeers()
		if st.Role == rsm.Leader && st.Ready {
			if err := s.found(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("the cluster is not set up yet", "err", err)
			}
			now := s.clock.Boot()
			if led != st.BallotRound {
				led, since = st.BallotRound, now
			}
			if now-collected >= collectEvery {
				s.collect(ctx, now-since)
				collected = now
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.acquaints:
		case <-tick.C:
		}
	}
}

const (
	dutyEvery    = 200 * time.Millisecond
	collectEvery = 5 * time.Second
	// healEvery is how often a node compares what it has with its peers when
	// nothing gave it reason to: a writer that ended cannot tell what it owes.
	healEvery = time.Minute
	// blockGrace is how long blocks outlive the last reference to them.
	blockGrace = time.Minute
)

// followMap takes over the map in this replica's state.
func (s *server) followMap() error {
	m, err := cluster.LocalMap(s.group)
	if err != nil || m == nil || m.Epoch <= s.peers.Map().GetEpoch() {
		return err
	}
	if err := client.CheckBlocks(m, s.cfg.Blocks.URL); err != nil {
		return err
	}
	return s.peers.Install(m)
}

// followPeers tells the log where the members are with whom this node has met.
func (s *server) followPeers() {
	m := s.peers.Map()
	unmet, meetings := s.unmet(m)
	now := [2]uint64{m.GetEpoch(), meetings}
	if m == nil || now == s.followed {
		return
	}
	s.followed = now
	peers := make([]replica.Peer, 0, len(m.Members))
	for _, x := range m.Members {
		if id := sys.NodeID(x.Id); !unmet[id] {
			peers = append(peers, replica.Peer{ID: id, Addr: x.Addr})
		}
	}
	s.host.SetPeers(peers)
	if s.group.Status().Damaged == "" { // else the map may be an old one
		_ = s.notePeers(m) // which logs it: this is for a later start
	}
}
