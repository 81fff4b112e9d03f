// Package config reads and writes Koinon's TOML files: one for a node, one
// for a client of a cluster.
//
// Reading is strict. A key that is not known is an error that names the
// nearest known one, so a slip of the pen never passes for a default.
// Relative paths in a file are taken from the directory that holds the file,
// so a directory with its configuration can be moved as a whole.
package config

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

// Node is the configuration of one `koinon serve`.
type Node struct {
	// Cluster names the cluster: 1 to 64 letters, digits, '.', '_' or '-'.
	Cluster string `toml:"cluster"`
	// ID is this node's number in the cluster, from 1 up, never reused.
	ID sys.NodeID `toml:"id"`
	// Dir holds everything the node keeps. One live process uses it at a time.
	Dir string `toml:"dir"`
	// Listen is the address to accept connections on, host:port; an empty
	// host is every interface.
	Listen string `toml:"listen"`
	// Advertise is the address under which the others reach this node. Empty
	// means the address that [[voters]] gives for ID, else Listen.
	Advertise string `toml:"advertise,omitempty"`
	// Replicas is how many nodes keep each block; with fewer nodes, all of them
	// do. It counts when the cluster is made. 0 means three.
	Replicas int `toml:"replicas,omitzero"`
	// Zone is the failure domain of the node (a rack, a room): copies of a
	// block go to different zones where there are enough. Empty means that
	// the node is a zone of its own.
	Zone string `toml:"zone,omitempty"`
	// Retention is how long unlinked data stays in quarantine before its
	// bytes are freed. It counts when the cluster is made. Default
	// DefaultRetention, at least LeastRetention.
	Retention Duration `toml:"retention,omitzero"`

	// Metrics is the address, host:port, at which Prometheus may read numbers
	// about this node, over plain HTTP. Empty: nobody may.
	Metrics string `toml:"metrics,omitempty"`

	// Rejoin says that this node has voted before and lost its directory. With
	// an empty directory it then does not vote until it has learned from the
	// others what it may have promised. It does nothing once there is data.
	Rejoin bool `toml:"rejoin,omitempty"`

	// Meta is where the tree's metadata is, the same on all nodes.
	Meta Engine `toml:"meta,omitempty"`
	// Blocks is where the blocks are, the same on all nodes. It counts when
	// the cluster is made.
	Blocks Blocks `toml:"blocks,omitempty"`

	TLS    TLS    `toml:"tls"`
	Log    Log    `toml:"log,omitempty"`
	Limits Limits `toml:"limits,omitempty"`
	// Proc is what the node gives to processes.
	Proc Proc `toml:"proc,omitempty"`
	// Voters are the nodes that make a new cluster, on those nodes. A node
	// that has joined has Seeds in their place.
	Voters []Voter `toml:"voters,omitempty"`
	// Seeds are addresses, host:port, of some nodes of the cluster that this
	// one has joined: any one that answers leads to the others.
	Seeds []string `toml:"seeds,omitempty"`
}

// Engine is one from outside.
type Engine struct {
	// URL leads to it, as mysql://user:password@host:port/database does, or is
	// @FILE or env:NAME of one. Empty: Koinon's own is used.
	URL engine.Ref `toml:"url,omitempty"`
}

// Blocks is an engine from outside that keeps blocks.
type Blocks struct {
	// URL is that of an Engine: redis://:password@host:port/0.
	URL engine.Ref `toml:"url,omitempty"`
	// AcceptVolatile says that the engine may lose blocks.
	AcceptVolatile bool `toml:"accept_volatile,omitempty"`
}

// Joined reports whether the node came to a cluster that ran already.
func (n *Node) Joined() bool { return len(n.Voters) == 0 }

// Voter is one of the nodes that choose the log.
type Voter struct {
	ID   sys.NodeID `toml:"id"`
	Addr string     `toml:"addr"` // host:port under which the others reach it
}

// TLS names the PEM files that prove who a process is.
type TLS struct {
	CA   string `toml:"ca"`   // certificate of the cluster's CA
	Cert string `toml:"cert"` // own certificate
	Key  string `toml:"key"`  // own private key, mode 0600
	// CAKey is the CA's private key, mode 0600, on the nodes that sign the
	// certificates of nodes that join. At least one must have it for that.
	CAKey string `toml:"ca_key,omitempty"`
}

// Log tells what is logged and where.
type Log struct {
	// Level is debug, info, warn or error. Empty means info.
	Level string `toml:"level,omitempty"`
	// File receives the log; it is rotated. Empty means standard error.
	File string `toml:"file,omitempty"`
}

// SlogLevel returns the level for log/slog. A Log that passed validation has
// one of the four; anything else counts as info.
func (l Log) SlogLevel() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// Limits bounds what a node takes of its machine. Zero means the default.
type Limits struct {
	// StateCache is the memory for the state's page cache, default
	// DefaultStateCache.
	StateCache Size `toml:"state_cache,omitzero"`
	// MinFree is the disk space to leave free: with less, writes of blocks
	// are refused with "no space left". Default DefaultMinFree.
	MinFree Size `toml:"min_free,omitzero"`
}

// Proc is what a node gives to processes of the cluster's users.
type Proc struct {
	// Off keeps processes away from the node.
	Off bool `toml:"off,omitempty"`
	// CPUs is how many, like 1.5; 0 is all that the machine has.
	CPUs float64 `toml:"cpus,omitzero"`
	// Memory is how much; 0 is three quarters of the machine's.
	Memory Size `toml:"memory,omitzero"`
	// Labels tell what the node has beside, for those who want it, as in
	// `koinon run --on gpu=a100`. arch and os are there by themselves.
	Labels map[string]string `toml:"labels,omitempty"`
	// Supervisor is the command that calls executor.Supervise with the directory
	// that is appended to it. It is not in the file: without it the node runs no
	// processes.
	Supervisor []string `toml:"-"`
}

// Client is the configuration of a mount or of any other command that speaks
// to a cluster.
type Client struct {
	// Cluster names the cluster, as in Node.
	Cluster string `toml:"cluster"`
	// Nodes are addresses, host:port, of some or all nodes: any one that
	// answers leads to the others.
	Nodes []string `toml:"nodes"`
	// Mount is the directory where this client usually mounts the tree. May
	// be empty.
	Mount string `toml:"mount,omitempty"`
	// Timeout is how long an operation waits for a majority before it fails.
	// Default DefaultTimeout.
	Timeout Duration `toml:"timeout,omitzero"`

	TLS    TLS          `toml:"tls"`
	Log    Log          `toml:"log,omitempty"`
	Limits ClientLimits `toml:"limits,omitempty"`
	// Blocks is where the blocks are, for a cluster whose nodes do not keep
	// them.
	Blocks Engine `toml:"blocks,omitempty"`
}

// ClientLimits bounds what a client takes of its machine. Zero means the
// default.
type ClientLimits struct {
	// ReadCache is the memory for blocks that were read, default
	// DefaultReadCache.
	ReadCache Size `toml:"read_cache,omitzero"`
	// WriteBuffer is the memory for bytes that were written and not yet
	// stored, default DefaultWriteBuffer. Writers wait when it is full.
	WriteBuffer Size `toml:"write_buffer,omitzero"`
}

// The defaults, filled in by LoadNode and LoadClient where the file says
// nothing.
const (
	DefaultRetention   = Duration(10 * time.Minute)
	LeastRetention     = Duration(10 * time.Second)
	DefaultReplicas    = 3
	DefaultTimeout     = Duration(time.Minute)
	DefaultStateCache  = 64 * MiB
	DefaultMinFree     = 256 * MiB
	DefaultReadCache   = 128 * MiB
	DefaultWriteBuffer = 128 * MiB
)

// SetDefaults fills in what is left empty. LoadNode does it by itself.
func (n *Node) SetDefaults() {
	if n.Advertise == "" {
		n.Advertise = cmp.Or(n.voterAddr(n.ID), n.Listen)
	}
	if n.Replicas == 0 {
		n.Replicas = DefaultReplicas
	}
	if n.Retention == 0 {
		n.Retention = DefaultRetention
	}
	if n.Log.Level == "" {
		n.Log.Level = "info"
	}
	if n.Limits.StateCache == 0 {
		n.Limits.StateCache = DefaultStateCache
	}
	if n.Limits.MinFree == 0 {
		n.Limits.MinFree = DefaultMinFree
	}
}

// SetDefaults fills in what is left empty. LoadClient does it by itself.
func (c *Client) SetDefaults() {
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Log.Level == "" {
		c.Log.Level = "info"
	}
	if c.Limits.ReadCache == 0 {
		c.Limits.ReadCache = DefaultReadCache
	}
	if c.Limits.WriteBuffer == 0 {
		c.Limits.WriteBuffer = DefaultWriteBuffer
	}
}

// voterAddr returns the address of voter id, "" when it is none.
func (n *Node) voterAddr(id sys.NodeID) string {
	for _, v := range n.Voters {
		if v.ID == id {
			return v.Addr
		}
	}
	return ""
}
