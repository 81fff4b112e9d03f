package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/redis"
	"github.com/koinon/koinon/internal/block/spread"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/kv"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// Client is a connection to a cluster: the tree, the blocks, and the file
// system made of them. Its methods may be called concurrently.
type Client struct {
	cluster *cluster.Client
	tree    *remote.Client
	spread  *spread.Store // one of the two
	redis   *redis.Store
	fs      *vfs.FS
	revoke  atomic.Pointer[func([]sys.Ino)]
}

// Connect reaches the cluster through any of the configured nodes, and opens a
// session at its leader. Close ends both.
func Connect(ctx context.Context, cfg *config.Client, log *slog.Logger) (*Client, error) {
	cc, err := dial(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	c := &Client{cluster: cc}
	if c.redis, err = redisOf(ctx, cc, cfg); err != nil {
		return nil, errors.Join(err, cc.Close())
	}
	c.tree, err = remote.NewClient(ctx, remote.Options{Cluster: cc, Logger: log, Name: sessionName(), OnRevoke: c.revoked})
	if err != nil {
		return nil, errors.Join(err, c.closeBlocks(), cc.Close())
	}
	keep, inline, err := Terms(ctx, c.tree)
	if err != nil {
		return nil, errors.Join(err, c.tree.Close(context.WithoutCancel(ctx)), c.closeBlocks(), cc.Close())
	}
	copies := 1
	if c.redis == nil {
		copies = cc.Table().Replicas
		c.spread = spread.New(spread.Options{Cluster: cc, Logger: log})
	}
	c.fs = vfs.New(c.tree, block.Retried(c.Blocks(), time.Duration(cfg.Timeout)), vfs.Options{
		WriteBuffer: int64(cfg.Limits.WriteBuffer), CacheBytes: int64(cfg.Limits.ReadCache),
		PGs: len(cc.Table().PGs), Copies: copies, Session: c.tree.Session(), Timeout: time.Duration(cfg.Timeout),
		Retention: keep, InlineMax: inline, Logger: log, Vacant: c.tree.Vacant,
	})
	return c, nil
}

// GiveTree makes a user the owner of the tree's root, where root owns it, as in
// a new tree. It is for clusters that belong to one user.
func (c *Client) GiveTree(ctx context.Context, uid, gid uint32) error {
	root := &metapb.Cred{}
	attr, err := c.fs.GetAttr(ctx, root, sys.RootIno)
	if err != nil || attr.GetUid() != 0 || uid == 0 {
		return err
	}
	_, err = c.fs.SetAttr(ctx, root, &metapb.SetAttr{Ino: uint64(sys.RootIno), Uid: &uid, Gid: &gid})
	return err
}

// A client asks for its open files to be kept, three times in the time that it
// asks for: the tree's retention, within these bounds. Retention below the
// least is refused in the configuration.
const (
	keepMost  = 2 * time.Minute
	keepLeast = time.Second
)

// Terms are what a tree asks of its clients: for how long they ask for their open
// files to be kept, and up to which size they send a file's bytes inside a
// Commit; 0 is their own default.
func Terms(ctx context.Context, tree meta.Client) (keep time.Duration, inlineMax int64, err error) {
	a, err := tree.Query(ctx, &metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}})
	if err != nil {
		return 0, 0, err
	}
	return min(max(time.Duration(a.RetentionNs), keepLeast), keepMost), int64(a.InlineMax), nil
}

// dial loads the credentials and learns the cluster's map.
func dial(ctx context.Context, cfg *config.Client, log *slog.Logger) (*cluster.Client, error) {
	c, err := clusterConfig(cfg, log)
	if err != nil {
		return nil, err
	}
	return cluster.Dial(ctx, c)
}

// clusterConfig loads the credentials and says how to reach the cluster.
func clusterConfig(cfg *config.Client, log *slog.Logger) (cluster.Config, error) {
	files, err := auth.ReadFiles(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		return cluster.Config{}, err
	}
	last := lastLeader(cfg.Cluster)
	c := cluster.Config{Cluster: cfg.Cluster, Seeds: leaderFirst(last, cfg.Nodes), TLS: files.ClientTLS(),
		Timeout: time.Duration(cfg.Timeout), Logger: log, Led: noteLeader(cfg.Cluster, last)}
	passes, err := newPasses(cfg.Cluster, files)
	if err == nil { // else there is no place to keep them
		c.Passes = passes
	}
	if err == nil && passes.any(c.Seeds) {
		return c, nil
	}
	creds, err := files.Credentials() // they will be asked for: what is wrong with them is told here
	if err == nil && creds.Identity().Cluster != cfg.Cluster {
		err = sys.E(sys.Op("client.connect"), sys.Invalid, fmt.Sprintf("the configuration is of cluster %q and the certificate that it names, %s, of cluster %q: give files that belong together",
			cfg.Cluster, cfg.TLS.Cert, creds.Identity().Cluster))
	}
	return c, err
}

// Keys is a connection to a cluster for its coordination service alone.
type Keys struct {
	*kv.Client
	cluster *cluster.Client
}

// ConnectKeys reaches the cluster through any of the configured nodes. Close
// ends the connection.
func ConnectKeys(ctx context.Context, cfg *config.Client, log *slog.Logger) (*Keys, error) {
	cc, err := dial(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s, process %d", sessionName(), os.Getpid())
	return &Keys{Client: kv.NewClient(kv.Options{Cluster: cc, Logger: log, Name: name}), cluster: cc}, nil
}

// Close ends the client's session and the connections.
func (k *Keys) Close(ctx context.Context) error {
	return errors.Join(k.Client.Close(ctx), k.cluster.Close())
}

func sessionName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return host
}

func (c *Client) revoked(inos []sys.Ino) {
	if f := c.revoke.Load(); f != nil {
		(*f)(inos)
	}
}

// OnRevoke sets who is told which inodes must not be taken as known any more
// (nil for all). It must not block and must not use the Client.
func (c *Client) OnRevoke(f func(inos []sys.Ino)) { c.revoke.Store(&f) }

// PromiseFiles lets the file system make files when they are closed, where
// nobody else can see them before. It is called once, before the first file.
func (c *Client) PromiseFiles() { c.tree.SetPromises(c.fs) }

// LeaseLeft is how long what was last read of the tree may still be taken as
// true; 0 when for no moment.
func (c *Client) LeaseLeft() time.Duration { return c.tree.LeaseLeft() }

// FS is the file system. Close closes it.
func (c *Client) FS() *vfs.FS { return c.fs }

// Tree is the metadata, for those who look after it.
func (c *Client) Tree() meta.Client { return c.tree }

// Blocks is the block store, for those who look after it.
func (c *Client) Blocks() block.Store {
	if c.redis != nil {
		return c.redis
	}
	return c.spread
}

func (c *Client) closeBlocks() error {
	switch {
	case c.redis != nil:
		return c.redis.Close()
	case c.spread != nil:
		return c.spread.Close()
	}
	return nil
}

// Close writes out what is buffered, ends the session and the connections.
func (c *Client) Close(ctx context.Context) error {
	return errors.Join(c.fs.Close(ctx), c.closeBlocks(), c.tree.Close(ctx), c.cluster.Close())
}
