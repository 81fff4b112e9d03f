package node

import (
	"context"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/electorate"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// governEvery is how often the leader looks whether the cluster is as it
	// should be.
	governEvery = 500 * time.Millisecond
	// governTimeout bounds one step.
	governTimeout = 10 * time.Second
	// lostAfter is how long a node may be silent before others vote and keep
	// blocks in its place.
	lostAfter = 5 * time.Minute
	// silentAfter is how long a node that is to go may be silent before nobody
	// waits for what it holds.
	silentAfter = 10 * time.Second
	// fitLag is how many slots a learner may be behind to become a voter; the
	// log takes it below 64.
	fitLag = 32
)

// govern is the leader's care for the cluster: members of the map become
// learners and voters of the log and get their share of the blocks, and those
// that are to go are relieved of both and leave the map.
func (s *server) govern(ctx context.Context) {
	tick := env.NewTicker(env.System{}, governEvery)
	defer tick.Stop()
	var led time.Time // since when this node leads; zero when it does not
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		st := s.group.Status()
		if st.Role != rsm.Leader || !st.Ready {
			led = time.Time{}
			continue
		}
		if led.IsZero() {
			led = time.Now()
		}
		step, cancel := context.WithTimeout(ctx, governTimeout)
		err := s.governOnce(step, &st, time.Since(led))
		cancel()
		if err != nil && ctx.Err() == nil {
			s.log.Info("the cluster is not as it should be yet", "err", err)
		}
	}
}

// governOnce does what is due now.
func (s *server) governOnce(ctx context.Context, st *rsm.Status, led time.Duration) error {
	m, err := cluster.LocalMap(s.group)
	if err != nil || m == nil {
		return err
	}
	if noted, err := s.noteKeys(ctx, m); noted || err != nil {
		return err // before a new one hears of the log
	}
	if noted, err := s.noteReign(ctx, m, st.Voters); noted || err != nil {
		return err
	}
	c := &census{self: s.cfg.ID, m: m, st: st, led: led}
	if voters, learners, change := c.electorate(); change {
		if err := s.group.Reconfigure(ctx, voters, learners); err != nil {
			return err
		}
		s.log.Info("members of the log", "voters", voters, "learners", learners)
		return nil // the next step sees it in force
	}
	for _, x := range m.Members {
		if x.State == clusterpb.State_JOINING && c.fit(sys.NodeID(x.Id)) {
			_, err := cluster.Propose(ctx, s.group, &clusterpb.Command{Op: &clusterpb.Command_SetState{
				SetState: &clusterpb.SetState{Id: x.Id, State: clusterpb.State_UP}}})
			return err
		}
	}
	return s.place(ctx, c)
}

// place brings the placement of blocks nearer to what it should be.
func (s *server) place(ctx context.Context, c *census) error {
	table, err := placement.Unmarshal(c.m.Table)
	if err != nil {
		return err
	}
	next := table
	if c.m.Blocks == nil {
		if next, err = placement.Reassign(table, c.shares()); err != nil {
			return err
		}
	}
	next = c.forget(next)
	if next.Epoch == table.Epoch {
		next = s.drained(ctx, table, c)
	}
	if next.Epoch != table.Epoch {
		m := c.m.CloneVT()
		m.Table = next.Marshal()
		if _, err := cluster.Propose(ctx, s.group, &clusterpb.Command{Expect: c.m.Epoch, Map: m}); err != nil {
			return err
		}
		s.log.Info("placement of blocks", "epoch", next.Epoch)
		return nil
	}
	for _, x := range c.m.Members {
		id := sys.NodeID(x.Id)
		if x.State != clusterpb.State_DRAINING || slices.Contains(c.st.Voters, id) || slices.Contains(table.Members(), id) {
			continue
		}
		if _, err := cluster.Propose(ctx, s.group, &clusterpb.Command{Op: &clusterpb.Command_RemoveMember{
			RemoveMember: &clusterpb.RemoveMember{Id: x.Id}}}); err != nil {
			return err
		}
		s.log.Info("a node has left the cluster", "node", id)
	}
	return nil
}

// drained returns the table without the sources that have nothing which the
// nodes of their groups still lack.
func (s *server) drained(ctx context.Context, t *placement.Table, c *census) *placement.Table {
	if !slices.ContainsFunc(t.From, func(list []sys.NodeID) bool { return len(list) > 0 }) {
		return t
	}
	var told []*clusterpb.StatusReply
	for _, x := range c.m.Members {
		r := s.status()
		if sys.NodeID(x.Id) != s.cfg.ID {
			var err error
			if r, err = s.peers.NodeStatus(ctx, x.Addr); err != nil {
				continue // its groups wait for it, while it is not silent for long
			}
		}
		told = append(told, r)
	}
	return c.drained(t, told)
}

// drained gives up a source of a group when all nodes of the group that answer,
// at least a majority of them, have told that they have what it has. Who does
// not answer is not waited for: it finds everything at the others.
func (c *census) drained(t *placement.Table, told []*clusterpb.StatusReply) *placement.Table {
	has := map[[2]uint64]map[sys.NodeID]bool{} // by group and source
	for _, r := range told {
		if r.TableEpoch != t.Epoch {
			continue
		}
		for _, d := range r.Drained {
			for _, pg := range d.Groups {
				k := [2]uint64{uint64(pg), d.Source}
				if has[k] == nil {
					has[k] = map[sys.NodeID]bool{}
				}
				has[k][sys.NodeID(r.Node)] = true
			}
		}
	}
	return t.Forget(func(pg sys.PG, id sys.NodeID) bool {
		have := 0
		for _, holder := range t.PGs[pg] {
			switch {
			case has[[2]uint64{uint64(pg), uint64(id)}][holder]:
				have++
			case c.silent(holder) < silentAfter:
				return false
			}
		}
		return have >= placement.Quorum(len(t.PGs[pg]))
	})
}

// census is what the leader knows of the members.
type census struct {
	self sys.NodeID
	m    *clusterpb.Map
	st   *rsm.Status
	led  time.Duration
}

func (c *census) peer(id sys.NodeID) (rsm.PeerStatus, bool) {
	i := slices.IndexFunc(c.st.Peers, func(p rsm.PeerStatus) bool { return p.ID == id })
	if i < 0 {
		return rsm.PeerStatus{}, false
	}
	return c.st.Peers[i], true
}

// silent is for how long a member has not answered, as far as this leader can
// know.
func (c *census) silent(id sys.NodeID) time.Duration {
	p, known := c.peer(id)
	switch {
	case id == c.self:
		return 0
	case !known || p.LastSeen < 0:
		return c.led
	}
	return p.LastSeen
}

// fit says that a member answers and has nearly all of the log.
func (c *census) fit(id sys.NodeID) bool {
	p, known := c.peer(id)
	return id == c.self || known && p.Reachable && !p.Snapshot && p.Lag < fitLag
}

// full says that a member has no room for a log.
func (c *census) full(id sys.NodeID) bool {
	p, _ := c.peer(id)
	return p.Full
}

// electorate says who should vote and learn.
func (c *census) electorate() (voters, learners []sys.NodeID, change bool) {
	nodes := make([]electorate.Node, 0, len(c.m.Members))
	for _, x := range c.m.Members {
		id := sys.NodeID(x.Id)
		nodes = append(nodes, electorate.Node{ID: id, Zone: x.Zone, Leader: id == c.self,
			Voter: slices.Contains(c.st.Voters, id), Learner: slices.Contains(c.st.Learners, id),
			Leaving: x.State == clusterpb.State_DRAINING, Fit: c.fit(id) && !c.full(id), Lost: c.silent(id) > lostAfter})
	}
	voters, learners, change = electorate.Next(nodes)
	for _, id := range slices.Concat(c.st.Voters, c.st.Learners) {
		gone := !slices.ContainsFunc(c.m.Members, func(x *clusterpb.Member) bool { return sys.NodeID(x.Id) == id })
		change = change || gone && len(voters) > 0
	}
	return voters, learners, change
}

// shares says what each member should hold of the blocks. The weight 1 is that
// of a member that has not told its capacity: it counts as the smallest other.
func (c *census) shares() []placement.Node {
	least := uint64(placement.MaxWeight)
	for _, x := range c.m.Members {
		if x.Weight > 1 {
			least = min(least, x.Weight)
		}
	}
	nodes := make([]placement.Node, 0, len(c.m.Members))
	for _, x := range c.m.Members {
		n := placement.Node{ID: sys.NodeID(x.Id), Zone: x.Zone, Weight: uint32(min(x.Weight, placement.MaxWeight))}
		if x.Weight <= 1 {
			n.Weight = uint32(least)
		}
		if x.State != clusterpb.State_UP || c.silent(n.ID) > lostAfter {
			n.Weight = 0
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// forget takes members that are to go and do not answer, or are gone, from the
// sources of groups that others hold too: nobody waits for what they have.
func (c *census) forget(t *placement.Table) *placement.Table {
	if t.Replicas < 2 {
		return t
	}
	return t.Forget(func(pg sys.PG, id sys.NodeID) bool {
		i := slices.IndexFunc(c.m.Members, func(x *clusterpb.Member) bool { return sys.NodeID(x.Id) == id })
		if i >= 0 && (c.m.Members[i].State != clusterpb.State_DRAINING || c.silent(id) < silentAfter) {
			return false
		}
		return slices.ContainsFunc(t.PGs[pg], func(o sys.NodeID) bool { return c.silent(o) < silentAfter })
	})
}
