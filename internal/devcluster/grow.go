//go:build linux

package devcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/ports"
	"github.com/koinon/koinon/internal/sys"
)

// joining is the directory of a node that has no number yet.
const joining = "joining"

// CAKey is where a node's directory finds the key of the CA, so that whoever of
// the nodes runs signs for new ones.
const CAKey = "../ca/ca.key"

// numbers are those of the cluster's nodes, ascending.
func (s *saved) numbers() []int {
	if len(s.Numbers) > 0 {
		return s.Numbers
	}
	all := make([]int, s.Nodes)
	for i := range all {
		all[i] = i + 1
	}
	return all
}

// Numbers returns the numbers of the nodes, ascending.
func (c *Cluster) Numbers() []int { return slices.Clone(c.saved.numbers()) }

// setNumbers is numbers' reverse.
func (s *saved) setNumbers(all []int) {
	s.Nodes, s.Numbers = len(all), slices.Sorted(slices.Values(all))
}

// Add lets one more node join the running cluster, starts it and returns its
// number when it answers. join makes the directory dir that of a new node that
// listens at an address, see node.Join. What was cut short goes on.
func (c *Cluster) Add(ctx context.Context, join func(ctx context.Context, dir, listen string) error) (number int, err error) {
	const op = sys.Op("dev add")
	lock, err := lockDir(ctx, c.dir, c.opts)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	if err := errors.Join(c.reload(), usable(c.nodes)); err != nil {
		return 0, err
	}
	if len(c.nodes) >= MaxNodes {
		return 0, sys.E(op, sys.Invalid, sys.Subject(c.dir), fmt.Sprintf("the cluster has %s, the most for one machine", count(len(c.nodes), "node")))
	}
	free, err := ports.Free(1)
	if err != nil {
		return 0, err
	}
	dir := c.path(joining)
	if err := join(ctx, dir, ports.Loopback(free[0])); err != nil {
		return 0, err
	}
	cfg, err := config.LoadNode(filepath.Join(dir, "node.toml"))
	if err != nil {
		return 0, err
	}
	number = int(cfg.ID)
	if err := os.Rename(dir, c.path(fmt.Sprintf("n%d", number))); err != nil {
		return 0, err
	}
	if err := c.setMembers(append(c.saved.numbers(), number)); err != nil {
		return 0, err
	}
	c.say("node %d has joined at %s", number, cfg.Listen)
	n := c.nodes[len(c.nodes)-1]
	if err := c.startNode(n); err != nil {
		return number, err
	}
	return number, c.awaitAnswers(ctx, []*node{n})
}

// Remove forgets a node that has left the cluster: it is stopped if it still
// runs, and its directory goes, if it is there.
func (c *Cluster) Remove(ctx context.Context, number int) (err error) {
	lock, err := lockDir(ctx, c.dir, c.opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.unlock()) }()
	if err := c.reload(); err != nil {
		return err
	}
	nodes, err := c.pick([]int{number})
	if err != nil {
		return err
	}
	if _, err := nodes[0].stop(ctx, c.opts.Grace); err != nil {
		return err
	}
	if err := c.setMembers(slices.DeleteFunc(slices.Clone(c.saved.numbers()), func(n int) bool { return n == number })); err != nil {
		return err
	}
	if err := os.RemoveAll(nodes[0].dir); err != nil {
		return err
	}
	c.say("node %d is gone", number)
	return nil
}

// reload reads again what another command may have changed before this one
// got the lock.
func (c *Cluster) reload() error {
	now, err := Open(c.opts)
	if err != nil {
		return err
	}
	c.saved, c.nodes = now.saved, now.nodes
	return nil
}

// setMembers writes down which nodes there are, and where clients find them.
func (c *Cluster) setMembers(numbers []int) error {
	c.saved.setNumbers(numbers)
	c.nodes = nil
	c.loadNodes()
	if err := saveState(c.dir, c.saved); err != nil {
		return err
	}
	return c.editClient(func(client *config.Client) {
		client.Nodes = nil
		for _, n := range c.nodes {
			if n.bad == nil {
				client.Nodes = append(client.Nodes, n.addr)
			}
		}
	})
}

// editClient changes the clients' configuration as it is written: its paths stay relative to the directory, which may be moved.
func (c *Cluster) editClient(change func(*config.Client)) error {
	if _, err := config.LoadClient(c.ClientConfig()); err != nil { // which says what is wrong with it
		return err
	}
	var client config.Client
	if err := config.DecodeFile(c.ClientConfig(), &client); err != nil {
		return err
	}
	change(&client)
	return client.Save(c.ClientConfig())
}
