//go:build linux

package devcluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
)

// State is what is known of a node's process.
type State string

// The states.
const (
	StateUp           State = "up"           // runs and answers
	StateUnresponsive State = "unresponsive" // runs and does not answer: starting, or frozen
	StateDown         State = "down"         // died, or was killed
	StateStopped      State = "stopped"      // was stopped, or never started
)

// Status is what `koinon dev status` shows.
type Status struct {
	Cluster      string       `json:"cluster"`
	Directory    string       `json:"directory"`
	ClientConfig string       `json:"client_config"`
	Mount        string       `json:"mount"`
	Mounted      bool         `json:"mounted"`
	MountPID     int          `json:"mount_pid"`            // 0 when it does not run
	MountDead    bool         `json:"mount_dead,omitempty"` // its process died and left it mounted: programs get errors
	Nodes        []NodeStatus `json:"nodes"`
}

// NodeStatus is a node of Status.
type NodeStatus struct {
	Number    int        `json:"number"`
	ID        sys.NodeID `json:"id"`
	PID       int        `json:"pid"` // 0 when it does not run
	Address   string     `json:"address"`
	Directory string     `json:"directory"`
	Role      Role       `json:"role"`
	State     State      `json:"state"`
	Trouble   string     `json:"trouble,omitempty"` // what a person should look at, and what to do
}

// Stopped reports whether nothing runs because it was stopped.
func (s *Status) Stopped() bool {
	for _, n := range s.Nodes {
		if n.State != StateStopped {
			return false
		}
	}
	return s.MountPID == 0
}

// probeTimeout bounds one question to the nodes.
const probeTimeout = time.Second

// probe asks the nodes again and again over one connection, which it makes
// when it first can.
type probe struct {
	c      *Cluster
	prober Prober
	err    error // of the last try
}

func (c *Cluster) newProbe() *probe { return &probe{c: c} }

// answers returns what the nodes say that answer within probeTimeout.
func (p *probe) answers(ctx context.Context) map[sys.NodeID]Answer {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if p.prober == nil {
		client, err := config.LoadClient(p.c.ClientConfig())
		if err == nil {
			p.prober, err = p.c.opts.Connect(ctx, client)
		}
		if p.err = err; err != nil {
			p.prober = nil
			return nil
		}
	}
	var answers map[sys.NodeID]Answer
	answers, p.err = p.prober.Answers(ctx)
	return answers
}

// close ends the connection. It was only read from, so an error tells nothing.
func (p *probe) close() {
	if p.prober != nil {
		_ = p.prober.Close()
	}
}

// Status returns what runs and who leads. It takes at most about a second
// however many nodes do not answer.
func (c *Cluster) Status(ctx context.Context) (*Status, error) {
	p := c.newProbe()
	defer p.close()
	return c.status(ctx, p)
}

func (c *Cluster) status(ctx context.Context, p *probe) (*Status, error) {
	s := &Status{Cluster: c.saved.Cluster, Directory: c.dir, ClientConfig: c.ClientConfig(), Mount: c.saved.Mount}
	id, st, err := c.mountProcess().find()
	if err != nil {
		return nil, err
	}
	at, there, err := mountAt(c.saved.Mount)
	if err != nil {
		return nil, err
	}
	if st == running {
		s.MountPID, s.Mounted = id.PID, there
	} else {
		s.MountDead = there && at.Tree()
	}
	alive := false
	for _, n := range c.nodes {
		id, st, err := n.find()
		if err != nil {
			return nil, err
		}
		ns := NodeStatus{Number: n.number, ID: n.id, Address: n.addr, Directory: n.dir, State: StateStopped}
		switch st {
		case running:
			ns.PID, ns.State, alive = id.PID, StateUnresponsive, true
		case dead:
			ns.State = StateDown
		}
		if n.bad != nil {
			ns.Trouble = n.bad.Error()
		}
		s.Nodes = append(s.Nodes, ns)
	}
	if !alive {
		return s, nil
	}
	answers := p.answers(ctx)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if a, ok := answers[n.ID]; ok && n.PID != 0 {
			n.Role, n.State, n.Trouble = a.Role, StateUp, a.Trouble
		}
	}
	return s, nil
}

// ErrStopped says that the cluster was stopped while it was watched.
var ErrStopped = errors.New("the cluster was stopped from another terminal")

// watchEvery is how often Watch looks.
const watchEvery = 500 * time.Millisecond

// Watch calls show with the status now and then about twice a second, until
// ctx ends, which is no error, or the cluster is stopped by somebody else,
// which is ErrStopped. It is Busy when another process watches. After
// ErrStopped the directory may be gone.
func (c *Cluster) Watch(ctx context.Context, show func(*Status)) (err error) {
	lock, err := tryLock(c.path("watch"))
	if err != nil {
		return err
	}
	if lock == nil {
		return sys.E(sys.Op("dev up"), sys.Busy, sys.Subject(c.dir), "a `koinon dev up` in another terminal watches this cluster")
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	p := c.newProbe()
	defer p.close()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		s, err := c.status(ctx, p)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case s.Stopped():
			return ErrStopped
		}
		show(s)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// exists reports whether the cluster's directory still has it.
func (c *Cluster) exists() bool {
	_, err := os.Stat(filepath.Join(c.dir, "dev.toml"))
	return err == nil
}
