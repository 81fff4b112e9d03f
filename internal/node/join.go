package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

const (
	opJoin = sys.Op("node.Join")
	// DefaultJoinTimeout is how long a machine tries to join.
	DefaultJoinTimeout = 30 * time.Second
	// nodeFile, nodeFiles: what Join keeps in the directory, beside "data".
	nodeFile  = "node.toml"
	nodeFiles = "node"
)

// JoinOptions say how a machine joins a cluster. Dir, Seeds, Token and Listen
// are required the first time; a directory that has joined needs Dir only.
type JoinOptions struct {
	Dir       string
	Seeds     []string // host:port of some nodes of the cluster
	Token     string   // as `koinon node token` printed it
	Listen    string
	Advertise string // empty: Listen, on the interface that leads to the seed
	Zone      string
	CAKey     string // ca_key of the node's configuration, where it is to sign for others; relative to Dir
	Version   string
	Meta      config.Engine // as the other nodes have it
	Blocks    config.Blocks // as the other nodes have it
	Timeout   time.Duration // for how long to try; 0 means DefaultJoinTimeout
}

// Join makes Dir that of a node of a cluster that runs, and returns the path of
// its configuration. A directory that is a node's already stays that node's:
// only a changed address or zone is noted, and seeds that it did not know. What a crash cut short goes on where
// it was, with the same key and so under the same ID.
func Join(ctx context.Context, o JoinOptions, log *slog.Logger) (path string, err error) {
	path = filepath.Join(o.Dir, nodeFile)
	if HasJoined(o.Dir) {
		return path, o.again(ctx, path, log)
	}
	var lacks []string
	for flag, given := range map[string]bool{"--join HOST:PORT of a node": len(o.Seeds) > 0, "--token TOKEN, as `koinon node token` prints one": o.Token != "", "--listen HOST:PORT": o.Listen != ""} {
		if !given {
			lacks = append(lacks, flag)
		}
	}
	if len(lacks) > 0 {
		slices.Sort(lacks)
		return "", sys.E(opJoin, sys.Invalid, sys.Subject(o.Dir), "the directory has joined no cluster yet: give "+strings.Join(lacks, ", and "))
	}
	for _, seed := range o.Seeds {
		if _, _, err := splitAddr("--join", seed); err != nil {
			return "", err
		}
	}
	token, err := auth.ParseToken(o.Token)
	if err != nil {
		return "", err
	}
	if err := checkFresh(o.Dir, nodeFiles+".key", nodeFiles+".crt", auth.CACertFile); err != nil {
		return "", err
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultJoinTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	key, err := auth.LoadJoinKey(o.Dir, nodeFiles)
	if err != nil {
		return "", err
	}
	// The address is taken before the token is: an error costs nothing yet.
	stop, err := answer(o.Listen, key)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if o.Advertise, err = o.advertise(ctx, o.Seeds); err != nil {
		return "", err
	}
	j, err := cluster.Join(ctx, o.Seeds, cluster.JoinRequest{Token: token, Key: key, Addr: o.Advertise, Zone: o.Zone, Weight: capacity(o.Dir), Version: o.Version}, log)
	if err != nil {
		return "", err
	}
	if _, err := key.Save(o.Dir, nodeFiles, token, j.CAPEM, j.Cert); err != nil {
		return "", err
	}
	n := config.Node{Cluster: token.Cluster, ID: j.Node, Dir: "data", Listen: o.Listen, Advertise: o.Advertise, Zone: o.Zone, Seeds: j.Seeds, Meta: o.Meta, Blocks: o.Blocks,
		TLS: config.TLS{CA: auth.CACertFile, Cert: nodeFiles + ".crt", Key: nodeFiles + ".key", CAKey: o.CAKey}}
	if err := n.Save(path); err != nil {
		return "", err
	}
	log.Info("joined", "cluster", n.Cluster, "node", n.ID, "seed", j.SeedConnected, "advertise", n.Advertise)
	if j.Warning != "" {
		log.Warn(j.Warning)
	}
	return path, nil
}

// HasJoined reports whether a directory is that of a node, with its
// configuration in it.
func HasJoined(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, nodeFile))
	return err == nil // any other trouble with it, checkFresh meets again
}

// again is Join of a directory that is a node's.
func (o *JoinOptions) again(ctx context.Context, path string, log *slog.Logger) error {
	var n config.Node
	if err := config.DecodeFile(path, &n); err != nil {
		return err
	}
	if token, err := auth.ParseToken(o.Token); err == nil && token.Cluster != n.Cluster {
		return sys.E(opJoin, sys.Invalid, sys.Subject(o.Dir), fmt.Sprintf(
			"the directory is that of node %v of cluster %q and the token is for cluster %q: give another directory, or move this one away if that node is not needed any more", n.ID, n.Cluster, token.Cluster))
	}
	log.Info("has joined already", "cluster", n.Cluster, "node", n.ID)
	if !n.Joined() {
		return nil // it made the cluster; its file says where it is
	}
	was := n
	for _, seed := range o.Seeds {
		if _, _, err := splitAddr("--join", seed); err != nil {
			return err
		}
	}
	n.Seeds = slices.Concat(o.Seeds, slices.DeleteFunc(slices.Clone(n.Seeds), func(s string) bool { return slices.Contains(o.Seeds, s) }))
	if o.Listen != "" && o.Listen != n.Listen || o.Advertise != "" && o.Advertise != n.Advertise {
		n.Listen = cmp.Or(o.Listen, n.Listen)
		o.Listen = n.Listen
		var err error
		if n.Advertise, err = o.advertise(ctx, slices.Concat(o.Seeds, n.Seeds)); err != nil {
			return err
		}
	}
	n.Zone = cmp.Or(o.Zone, n.Zone)
	if n.Listen == was.Listen && n.Advertise == was.Advertise && n.Zone == was.Zone && slices.Equal(n.Seeds, was.Seeds) {
		return nil
	}
	return n.Save(path)
}

// checkFresh refuses a directory with anything in it but what is expected:
// what a join that was cut short has left.
func checkFresh(dir string, expected ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return sys.E(opJoin, sys.Subject(dir), err)
	}
	var other []string
	for _, e := range entries {
		name := e.Name()
		if !slices.Contains(expected, name) && name != "lost+found" && !strings.HasPrefix(name, ".") {
			other = append(other, name)
		}
	}
	if len(other) == 0 {
		return nil
	}
	return sys.E(opJoin, sys.NotEmpty, sys.Subject(dir), fmt.Sprintf(
		"it holds %s: give an empty directory, or, to start the node that it belongs to, that node's configuration with --config", strings.Join(other[:min(len(other), 3)], ", ")))
}

// splitAddr takes the address that a flag gives apart.
func splitAddr(flag, addr string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(addr)
	if err != nil {
		err = sys.E(opJoin, sys.Invalid, fmt.Sprintf(`%s: %q is no address: write it as HOST:PORT, like "10.0.0.4:7400"`, flag, addr))
	}
	return host, port, err
}

// advertise returns the address that others are told.
func (o *JoinOptions) advertise(ctx context.Context, seeds []string) (string, error) {
	addr := cmp.Or(o.Advertise, o.Listen)
	host, port, err := splitAddr("--listen or --advertise", addr)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return addr, nil
	}
	var errs []error
	for _, seed := range seeds {
		// This sends nothing: the kernel says by which interface it would go.
		c, err := (&net.Dialer{}).DialContext(ctx, "udp", seed)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		host, _, err := net.SplitHostPort(c.LocalAddr().String())
		return net.JoinHostPort(host, port), errors.Join(err, c.Close())
	}
	return "", sys.E(opJoin, sys.Unavailable, fmt.Errorf("there is no way to a node of the cluster: check --join, or give --advertise HOST:PORT: %w", errors.Join(errs...)))
}

// answer takes the address and proves there who it is, until stop.
func answer(listenAddr string, key *auth.JoinKey) (stop func() error, err error) {
	cfg, err := key.EchoTLS()
	if err != nil {
		return nil, err
	}
	l, err := listen("listen", listenAddr)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // stop was called; the seed's warning tells any other trouble
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				if c.SetDeadline(time.Now().Add(2*time.Second)) == nil {
					_ = tls.Server(c, cfg).Handshake() // the seed's warning says if it failed
				}
			})
		}
	})
	return func() error {
		err := l.Close()
		wg.Wait()
		return err
	}, nil
}

// capacity is the size of the disk below dir in GiB, at least 1: the weight by
// which blocks are shared out.
func capacity(dir string) uint64 {
	u, err := envfs.Disk.GetDiskUsage(dir)
	if err != nil {
		return 1
	}
	return max(1, u.TotalBytes>>30)
}

// allow says who may call what: strangers may ask to join, and nodes that were
// removed may do nothing.
func (s *server) allow(peer wire.Identity, m wire.Method) error {
	switch {
	case !s.settled.Load() && m != cluster.MethodMeet && !replica.UsesMethod(m):
		return sys.E(sys.Op("node.Serve"), sys.Unavailable, "the node has just started, and listens whether others have gone on without it")
	case m == cluster.MethodMeet && peer.Node != 0: // also of who was removed by a copy that has gone on alone
	case peer.Node != 0:
		return s.peers.Refusal(peer)
	case peer == wire.Identity{} && m != cluster.MethodJoin:
		return sys.E(sys.Op("node.Serve"), sys.Access, "only holders of a certificate of cluster "+s.cfg.Cluster+" may do this; who has none may join with a token")
	}
	return nil
}

// memberEvery is how often a node looks whether it is still a member and where
// the cluster thinks it is.
const memberEvery = time.Second

// announceTimeout bounds how long a change of address waits for a leader before
// the node looks around again.
const announceTimeout = 5 * time.Second

// member keeps this node's membership: it announces a changed address, and ends the node, by
// end, when that was removed: in order, unless it was before it started.
func (s *server) member(ctx context.Context, end context.CancelCauseFunc) {
	tick := env.NewTicker(env.System{}, memberEvery)
	defer tick.Stop()
	told, was := "", false
	for {
		announced, err := s.checkMember(ctx)
		was = was || announced || s.group.Status().Elections > 0 // a leader has spoken to it, which none does to who is no member
		switch {
		case err == nil || ctx.Err() != nil:
			told = ""
		case cluster.IsRemoved(err):
			if was {
				s.log.Warn("this node was removed from the cluster: its directory is not needed any more", "err", err)
				err = nil
			}
			end(err)
			return
		case err.Error() != told:
			told = err.Error()
			s.log.Warn("the cluster does not know yet where this node is", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// checkMember looks once. announced says that the cluster has taken in where this node is now.
func (s *server) checkMember(ctx context.Context) (announced bool, err error) {
	if s.peers.Removed(s.cfg.ID) {
		return false, cluster.RemovedError(s.cfg.Cluster, s.cfg.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	return s.peers.Announce(ctx, &clusterpb.SetAddr{Id: uint64(s.cfg.ID), Addr: s.cfg.Advertise, Zone: s.cfg.Zone, Weight: capacity(s.cfg.Dir)})
}

// known is what this node tells of the map when its own state has none. It must
// not learn from itself.
func (s *server) known(peer wire.Identity) *clusterpb.Map {
	if peer.Node == s.cfg.ID {
		return nil
	}
	return s.peers.Map()
}
