package node

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/meta/remote"
	"github.com/koinon/koinon/internal/proc/agent"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
	"github.com/koinon/koinon/internal/wire"
)

// processes is what runs this node's share of the cluster's processes. A nil
// one runs none.
type processes struct {
	agent *agent.Agent
	tree  *processTree
	log   *slog.Logger
	why   atomic.Pointer[string] // that none run; nil: they do
}

// trouble says in words why the node runs no processes; empty when it does, or is not to.
func (p *processes) trouble() string {
	if p == nil {
		return ""
	}
	if why := p.why.Load(); why != nil {
		return "it runs no processes: " + *why
	}
	if why := p.agent.Trouble(); why != "" {
		return "its processes cannot be reached: " + why
	}
	return ""
}

// fails notes why the node runs no processes.
func (p *processes) fails(when string, err error) {
	p.log.Error("this node runs no "+when, "err", err)
	why := err.Error()
	p.why.Store(&why)
}

// openProcesses makes the agent of the processes and registers what it answers.
// A node that cannot run processes still keeps files.
func (s *server) openProcesses(ctx context.Context) *processes {
	if s.cfg.Proc.Off || len(s.cfg.Proc.Supervisor) == 0 {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = s.cfg.ID.String()
	}
	p := &processes{tree: &processTree{server: s}, log: s.log}
	p.agent, err = agent.New(ctx, agent.Options{
		Node: s.cfg.ID, Cluster: s.peers, ID: s.cfg.Cluster, Dir: filepath.Join(s.cfg.Dir, "proc"), Name: host,
		Capacity: &procpb.Resources{CpuMilli: int64(math.Round(s.cfg.Proc.CPUs * 1000)), Memory: int64(s.cfg.Proc.Memory)},
		Labels:   s.cfg.Proc.Labels, FS: p.tree.open, Clock: s.clock, Logger: s.log,
		Executor: executor.Options{Command: s.cfg.Proc.Supervisor},
		Leader: func(ctx context.Context, m wire.Method, payload []byte) ([]byte, bool) {
			return s.procs.Answer(ctx, s.cfg.ID, m, payload)
		},
	})
	if err != nil {
		p.fails("processes", err)
		return p
	}
	p.agent.Register(s.wire)
	s.procs.Own(s.cfg.ID, p.agent.Party)
	return p
}

// run works until ctx is done.
func (p *processes) run(ctx context.Context) {
	if p == nil || p.agent == nil {
		return
	}
	if err := p.agent.Run(ctx); err != nil {
		p.fails("more processes until it is started again", err)
	}
}

func (p *processes) close() error {
	if p == nil || p.agent == nil {
		return nil
	}
	return errors.Join(p.agent.Close(), p.tree.close())
}

const (
	// processTimeout bounds a change of the tree for a process's output: it is
	// tried again.
	processTimeout = 5 * time.Second
	// processBuffer is the memory for output on its way, in bytes.
	processBuffer = 16 << 20
)

// processTree is the tree as it takes the output of processes. It is opened
// when there is some.
type processTree struct {
	server *server

	mu   sync.Mutex
	tree *remote.Client
	fs   *vfs.FS
}

func (t *processTree) open(ctx context.Context) (*vfs.FS, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fs != nil {
		return t.fs, nil
	}
	s := t.server
	table := s.peers.Table()
	if table == nil {
		return nil, sys.E(sys.Op("node.processes"), sys.Unavailable, "the map of the cluster is not known yet")
	}
	ctx, cancel := context.WithTimeout(ctx, processTimeout)
	defer cancel()
	tree, err := remote.NewClient(ctx, remote.Options{Cluster: s.peers, Clock: s.clock, Logger: s.log, Name: "processes of " + s.cfg.ID.String()})
	if err != nil {
		return nil, err
	}
	keep, inline, err := client.Terms(ctx, tree)
	if err != nil {
		return nil, errors.Join(err, tree.Close(ctx))
	}
	t.tree = tree
	t.fs = vfs.New(tree, block.Retried(s.store(), processTimeout), vfs.Options{
		WriteBuffer: processBuffer, CacheBytes: processBuffer, PGs: len(table.PGs), Copies: table.Replicas, Session: tree.Session(),
		Timeout: processTimeout, Retention: keep, InlineMax: inline, Clock: s.clock, Logger: s.log,
	})
	return t.fs, nil
}

// close writes out what is buffered, when there is somebody to take it.
func (t *processTree) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fs == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), processTimeout)
	defer cancel()
	err := t.fs.Close(ctx)
	if cerr := t.tree.Close(ctx); cerr != nil { // the session ends by itself
		t.server.log.Debug("the session of the processes' output was not closed", "err", cerr)
	}
	return err
}
