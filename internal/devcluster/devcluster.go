//go:build linux

// Package devcluster runs a whole cluster on one machine: each node and the
// mount a process of its own, of this same binary, with their state in one
// directory that survives a stop.
//
// What lies in the directory:
//
//	dev.toml             what this cluster is; it marks the directory as ours
//	lock, watch          held by whoever changes or watches the cluster
//	ca/                  the cluster's CA
//	client.toml, client.crt, client.key
//	n1/, n2/, ...        node.toml, node.crt, node.key, log, pid, data/
//	mount/               log, pid
//	mnt/                 the mount point, unless another was asked for
//
// The processes are found again by their PID files, so every command works
// from any terminal, and nothing but a process that was started from here is
// ever signalled.
package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// DefaultNodes is how many nodes a new cluster has.
	DefaultNodes = 3
	// MaxNodes bounds what one machine is asked to run.
	MaxNodes = 9
	// formatVersion is that of dev.toml.
	formatVersion = 1
)

// Options tell which cluster and how to run it.
type Options struct {
	// Dir holds the state. DefaultDir gives the usual one.
	Dir string
	// Nodes is how many; 0 means as many as the directory has, DefaultNodes
	// for a new one.
	Nodes int
	// Mount is the mount point; "" means the one the directory has, Dir/mnt
	// for a new one.
	Mount string
	// Meta is where a new cluster keeps its metadata; "" means with the nodes.
	Meta engine.Ref
	// Blocks is where a new cluster keeps its blocks; the zero value means
	// with the nodes.
	Blocks config.Blocks
	// Probe tries the engines from outside, before a new cluster is made on
	// them. May be nil.
	Probe func(ctx context.Context) error
	// NoMount leaves the tree unmounted.
	NoMount bool
	// Binary is the koinon program to run.
	Binary string
	// Connect speaks to the cluster.
	Connect Connector
	// Progress receives one line for each step, without a newline. May be nil.
	Progress func(line string)
	// ReadyTimeout is how long to wait for a leader and for the mount; 0
	// means DefaultReadyTimeout.
	ReadyTimeout time.Duration
	// Grace is how long a process may take to stop before it is killed; 0
	// means DefaultGrace.
	Grace time.Duration
}

// The defaults of Options.
const (
	DefaultReadyTimeout = 30 * time.Second
	DefaultGrace        = 15 * time.Second
)

// Connector opens a connection to the cluster that a client configuration
// names.
type Connector func(ctx context.Context, c *config.Client) (Prober, error)

// Prober asks the cluster about its nodes.
type Prober interface {
	// Answers returns what each node that answers says of itself. A cluster
	// without a leader answers with followers only, or with an error.
	Answers(ctx context.Context) (map[sys.NodeID]Answer, error)
	Close() error
}

// Answer is what a node says of itself.
type Answer struct {
	Role Role
	// Trouble is what a person should look at, and what to do; mostly "".
	Trouble string
}

// Role is what a node is in the root group.
type Role string

// The roles.
const (
	RoleLeader   Role = "leader"
	RoleFollower Role = "follower"
	RoleLearner  Role = "learner" // has the log, and no vote
	RoleNone     Role = ""        // of a node that does not answer
)

// Meta is where the cluster keeps its metadata, as its first node has it.
func (c *Cluster) Meta() config.Engine { return c.nodes[0].meta }

// Blocks is where the cluster keeps its blocks, as its first node has it.
func (c *Cluster) Blocks() config.Blocks { return c.nodes[0].blocks }

// DefaultDir is where a cluster lives when the user names no directory:
// $XDG_STATE_HOME/koinon/dev or ~/.local/state/koinon/dev. It does not depend
// on the working directory, so every terminal finds the same cluster.
func DefaultDir() (string, error) {
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "koinon", "dev"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", sys.E(sys.Op("dev"), sys.Invalid, "the home directory is not known: give --dir DIR, or set HOME")
	}
	return filepath.Join(home, ".local", "state", "koinon", "dev"), nil
}

// DirOf returns the directory of the dev cluster to which a client
// configuration belongs, free of symbolic links; "" when it belongs to none.
func DirOf(clientConfig string) string {
	path, err := filepath.EvalSymlinks(clientConfig)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil || filepath.Base(path) != "client.toml" {
		return "" // no such file, as after a reset
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(filepath.Join(dir, "dev.toml")); err != nil {
		return ""
	}
	return dir
}

// Cluster is a cluster that has been created, running or not. Its methods may
// be called from several processes at once, but from one goroutine of each.
type Cluster struct {
	opts  Options
	dir   string // absolute
	saved saved
	nodes []*node
}

// saved is dev.toml.
type saved struct {
	Format  int    `toml:"format"`
	Cluster string `toml:"cluster"`
	Nodes   int    `toml:"nodes"`
	Mount   string `toml:"mount"`
	// MountMade says that the mount point was made by us, so it is closed while
	// it is not in use.
	MountMade bool `toml:"mount_made,omitempty"`
	// Numbers are those of the nodes; empty: 1 to Nodes.
	Numbers []int `toml:"numbers,omitempty"`
}

// node is one of the nodes, with its directory.
type node struct {
	process
	number int
	id     sys.NodeID
	addr   string
	meta   config.Engine
	blocks config.Blocks
	bad    error // why node.toml cannot be used; nothing but the process is known then
}

// supervisor is what runs the node's processes (docs/formats/supervisor.md).
func (n *node) supervisor() *process {
	return &process{name: "the processes of " + n.name, dir: filepath.Join(n.dir, "data", "proc", "executor")}
}

// Open reads the cluster in opts.Dir. The error is a NoClusterError where there
// is none.
func Open(opts Options) (*Cluster, error) {
	const op = sys.Op("dev")
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, sys.E(op, sys.Subject(opts.Dir), err)
	}
	c := &Cluster{opts: opts.withDefaults(), dir: dir}
	err = config.DecodeFile(c.path("dev.toml"), &c.saved)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, NoClusterError{dir}
	} else if err != nil {
		return nil, err
	}
	if c.saved.Format != formatVersion {
		return nil, sys.E(op, sys.NotSupported, sys.Subject(dir),
			fmt.Sprintf("the directory has format %d, this koinon knows %d: use the koinon that made it", c.saved.Format, formatVersion))
	}
	if c.saved.Nodes < 1 || c.saved.Nodes > MaxNodes {
		return nil, sys.E(op, sys.Invalid, sys.Subject(c.path("dev.toml")),
			fmt.Sprintf("%q is %d: it must be 1 to %d", "nodes", c.saved.Nodes, MaxNodes))
	}
	c.loadNodes()
	return c, nil
}

// NoClusterError says that a directory holds no cluster.
type NoClusterError struct{ Dir string }

// Error implements error.
func (e NoClusterError) Error() string {
	return fmt.Sprintf("there is no dev cluster in %s; start one with `koinon dev up`", e.Dir)
}

// loadNodes reads the nodes' files. What is wrong with one keeps nobody from
// stopping the nodes, so usable tells it to those who need more.
func (c *Cluster) loadNodes() {
	for _, i := range c.saved.numbers() {
		n := &node{process: process{name: fmt.Sprintf("node %d", i), dir: c.path(fmt.Sprintf("n%d", i))}, number: i}
		if cfg, err := config.LoadNode(filepath.Join(n.dir, "node.toml")); err != nil {
			n.bad = err
		} else {
			n.id, n.addr, n.meta, n.blocks = cfg.ID, cfg.Listen, cfg.Meta, cfg.Blocks
		}
		c.nodes = append(c.nodes, n)
	}
}

// usable returns what is wrong with the files of nodes.
func usable(nodes []*node) error {
	var errs []error
	for _, n := range nodes {
		if errors.Is(n.bad, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%w: put the directory of node %d back, or take the node out with `koinon dev rm %[2]d` while a majority of the others runs: `koinon dev start` with their numbers",
				n.bad, n.number))
		} else {
			errs = append(errs, n.bad)
		}
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.ReadyTimeout == 0 {
		o.ReadyTimeout = DefaultReadyTimeout
	}
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// Dir returns the cluster's directory, absolute.
func (c *Cluster) Dir() string { return c.dir }

// Mount returns the mount point, absolute.
func (c *Cluster) Mount() string { return c.saved.Mount }

// ClientConfig returns the path of the client's configuration.
func (c *Cluster) ClientConfig() string { return c.path("client.toml") }

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *Cluster) say(format string, args ...any) { c.opts.Progress(fmt.Sprintf(format, args...)) }

// mountProcess is the process that serves the mount.
func (c *Cluster) mountProcess() *process {
	return &process{name: "the mount", dir: c.path("mount")}
}

// pick returns the nodes with the given numbers, all different.
func (c *Cluster) pick(numbers []int) ([]*node, error) {
	var picked []*node
	seen := make(map[int]bool, len(numbers))
	for _, n := range numbers {
		i := slices.IndexFunc(c.nodes, func(o *node) bool { return o.number == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no node %d; this cluster has %s: %s", n, count(len(c.nodes), "node"), strings.Trim(fmt.Sprint(c.saved.numbers()), "[]"))
		}
		if !seen[n] {
			seen[n] = true
			picked = append(picked, c.nodes[i])
		}
	}
	return picked, nil
}
