package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

const (
	// meetEvery is how often a node meets with members from whom it hears nothing.
	meetEvery = 250 * time.Millisecond
	// meetTimeout is how long it waits for their answer.
	meetTimeout = time.Second
	// settleMin is how long a node that starts listens for others: they find that
	// it is gone, elect a leader, and connect, ten tries in a second.
	settleMin = time.Second
	// settleMax is how long it waits for a member that speaks to it, and does not
	// answer; and after how long it tells that it still waits.
	settleMax = 5 * time.Second
)

// meet tells members who the members are: any node those that it has not met yet, a
// leader those that do not answer it, a node without a leader all. One with an old copy of its directory, from when
// nobody else voted, would go on alone: it knows of nobody whom it could ask, and
// drops what others send it. And one that was away while all that it knew were
// replaced knows of nobody who is left.
//
// A node exchanges nothing of the log with a member before they have met, since
// either may have an old copy: what one of two histories has decided is nothing in
// the other, and their voters may have members in common.
func (s *server) meet(ctx context.Context) {
	tick := env.NewTicker(env.System{}, meetEvery)
	defer tick.Stop()
	for {
		st := s.group.Status()
		with, _ := s.unmet(s.peers.Map())
		if st.Role == rsm.Leader {
			for _, p := range st.Peers {
				if !p.Reachable {
					with[p.ID] = true
				}
			}
		}
		if st.Leader == 0 {
			s.meetAll(ctx, s.elsewhere())
		} else {
			s.meetAll(ctx, s.places(with))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// places are the addresses of members.
func (s *server) places(ids map[sys.NodeID]bool) []string {
	var addrs []string
	for id := range ids {
		if addr := s.peers.Addr(id); addr != "" {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// unmet returns the members of a map with whom this node may exchange nothing of the
// log yet, and how often who those are has changed.
func (s *server) unmet(m *clusterpb.Map) (ids map[sys.NodeID]bool, meetings uint64) {
	s.meetMu.Lock()
	defer s.meetMu.Unlock()
	ids = map[sys.NodeID]bool{}
	for _, x := range m.GetMembers() {
		if id := sys.NodeID(x.Id); id != s.cfg.ID && !s.friends[id] {
			ids[id] = true
		}
	}
	return ids, s.meetings
}

// acquaint notes whether a node that this one has met is of its history.
func (s *server) acquaint(id sys.NodeID, one bool) {
	s.meetMu.Lock()
	defer s.meetMu.Unlock()
	if id == 0 || s.friends[id] == one {
		return
	}
	s.friends[id] = one
	s.meetings++
	select {
	case s.acquaints <- struct{}{}:
	default:
	}
}

// settle waits until this node may answer others, and reports whether it goes on.
//
// One that takes itself for the only voter, as it may by an old copy of its
// directory, meets those whom it knows of, and listens for a while. Where the
// others go on without it, they speak to it, and meet with it. It needs no answer:
// where it is right, nobody speaks that the cluster never had by what it knows.
func (s *server) settle(ctx context.Context) (goesOn bool) {
	if s.settled.Load() {
		return true
	}
	defer func() { s.settled.Store(goesOn) }()
	tick := env.NewTicker(env.System{}, meetEvery)
	defer tick.Stop()
	began, told := s.clock.Boot(), false
	for {
		complete := s.catchUp(ctx)
		s.meetAll(ctx, s.elsewhere())
		waited := s.clock.Boot() - began
		away, stranger := s.awaited()
		switch {
		case !s.group.Alone(), stranger == 0 && (waited >= settleMin || complete && len(s.peers.Map().GetMembers()) > 1 && away == 0):
			return s.host.Err() == nil
		case waited >= settleMax && s.peers.Addr(stranger) != "":
			s.log.Warn("a member speaks to this node, and does not answer it: going on", "node", stranger)
			return true
		case waited >= settleMax && !told:
			s.log.Warn("a node speaks to this one that the cluster never had, by what is known here: waiting to hear from it who the members are", "node", stranger)
			told = true
		}
		select {
		case <-ctx.Done():
			return false
		case <-s.host.Failed():
			return false
		case <-tick.C:
		}
	}
}

// catchUp takes over the map with all that has been chosen, which may be in the log
// only when the node starts. It reports whether the map is that.
func (s *server) catchUp(ctx context.Context) (complete bool) {
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	defer cancel()
	err := s.group.Read(ctx, rsm.NSCluster, func(rsm.Reader) error { return nil })
	if err == nil {
		err = s.followMap()
	}
	if err != nil {
		s.log.Debug("the own map is not known yet", "err", err)
	}
	return err == nil
}

// awaited returns how many members this node has not met yet, and a node that has
// spoken to it and that it has not met, 0 for none: one that it does not know as a
// member first.
func (s *server) awaited() (away int, stranger sys.NodeID) {
	unmet, _ := s.unmet(s.peers.Map())
	s.meetMu.Lock()
	defer s.meetMu.Unlock()
	for id := range s.heard {
		switch member := s.peers.Addr(id) != ""; {
		case member && !unmet[id] || s.peers.Removed(id):
		case stranger == 0 || !member:
			stranger = id
		}
	}
	return len(unmet), stranger
}

// hearStranger notes that a node has spoken to this one that is no peer of its
// log.
func (s *server) hearStranger(id sys.NodeID) {
	s.meetMu.Lock()
	defer s.meetMu.Unlock()
	if !s.heard[id] && s.peers.Addr(id) == "" {
		s.log.Info("a node speaks to this one that it does not know as a member: that one is new, was removed, or the members have changed while this one was away", "node", id)
	}
	s.heard[id] = true
}

// elsewhere are the addresses of other nodes that this one knows of.
func (s *server) elsewhere() []string {
	return slices.DeleteFunc(s.peers.Addrs(), func(a string) bool { return a == s.cfg.Advertise || a == s.cfg.Listen })
}

// meetAll meets with those at some addresses, as far as they answer.
func (s *server) meetAll(ctx context.Context, addrs []string) {
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, addr := range addrs {
		wg.Go(func() {
			told, by, err := s.peers.Meet(ctx, addr, s.meeting())
			if sys.Is(err, sys.NotSupported) { // it runs an older koinon
				told, by, err = &clusterpb.Meeting{}, s.peers.IDOf(addr), nil
				if s.group.Leader() == 0 {
					err = s.peers.Learn(ctx, addr)
				}
			}
			if err == nil {
				s.find(by, told)
				err = s.learn(ctx, by, addr, told)
			}
			if err != nil {
				s.log.Debug("not met", "addr", addr, "err", err)
			}
		})
	}
	wg.Wait()
}

// meeting is what this node tells of the cluster.
func (s *server) meeting() *clusterpb.Meeting {
	v := s.group.View()
	return &clusterpb.Meeting{Map: s.ownMap(), Members: v.Members, Chosen: v.Chosen, Slot: v.Slot, Sum: v.Sum, Leader: uint64(s.group.Leader()), Places: s.peers.Places()}
}

// find takes in where a node, and others by what it has heard, are reached.
func (s *server) find(by sys.NodeID, told *clusterpb.Meeting) {
	if by == 0 {
		return
	}
	for _, at := range told.Places {
		if id := sys.NodeID(at.Node); id != s.cfg.ID {
			s.peers.Moved(at, id == by)
		}
	}
}

// recorded is the map in this node's replica, nil while there is none.
func (s *server) recorded() *clusterpb.Map {
	if s.group == nil {
		return nil
	}
	m, err := cluster.LocalMap(s.group)
	if err != nil {
		s.log.Error("the map in the own replica cannot be read", "err", err)
	}
	return m
}

// ownMap is the map in this node's replica: a newer one may be that of an old copy
// that goes on alone. Without one it is that by which this node goes.
func (s *server) ownMap() *clusterpb.Map {
	if m := s.recorded(); m != nil {
		return m
	}
	return s.peers.Map()
}

// met answers another node that tells of the cluster.
func (s *server) met(ctx context.Context, from wire.Identity, told *clusterpb.Meeting) (*clusterpb.Meeting, error) {
	id := from.Node
	if s.peers.Refusal(from) != nil {
		id = 0 // it has the number of another
	}
	s.find(id, told)
	if err := s.learn(ctx, id, from.Node.String(), told); err != nil {
		return nil, err
	}
	return s.meeting(), nil
}

// learn takes in what a node tells; id is 0 where it is not known for sure. It gives up
// this node's replica when that has forgotten what the other knows. A node without
// a leader takes over the map.
func (s *server) learn(ctx context.Context, id sys.NodeID, name string, told *clusterpb.Meeting) error {
	view := replica.View{Members: told.Members, Chosen: told.Chosen, Slot: told.Slot, Sum: told.Sum}
	s.log.Debug("told of the cluster", "by", name, "chosen", told.Chosen, "slot", told.Slot, "epoch", told.Map.GetEpoch(), "leader", s.group.Leader())
	if forked, first := cluster.Forked(s.ownMap(), told.Map); forked {
		s.acquaint(id, false)
		return s.meetApart(name, told, first)
	}
	forgot, err := s.group.Forgot(ctx, view)
	if err == nil && !forgot && s.group.Leader() == s.cfg.ID && cluster.Parted(s.recorded(), told.Map) {
		parted, why := s.parted(ctx, told.Map)
		switch {
		case s.group.Alone():
			forgot, err = parted, why
		case parted:
			return s.undecided(id, name)
		}
	}
	if err == nil && !forgot {
		differs, why := s.group.Differs(ctx, view)
		if differs {
			return s.undecided(id, name)
		}
		err = why
	}
	switch {
	case err != nil:
		return err
	case forgot:
		return s.giveUp(name, told.Map, view)
	case told.Map != nil && s.group.Leader() == 0:
		err = s.peers.Install(told.Map)
	}
	if err == nil {
		s.acquaint(id, true)
	}
	return err
}

// parted reports whether another node's map can only come from a cluster that has
// gone on without this one, by which nobody else votes: nothing was decided without
// it. By the read it knows all that it had a part in when the other spoke.
func (s *server) parted(ctx context.Context, told *clusterpb.Map) (parted bool, err error) {
	err = s.group.Read(ctx, rsm.NSCluster, func(r rsm.Reader) error {
		own, err := cluster.ReadMap(r)
		parted = err == nil && own != nil && cluster.Parted(own, told)
		return err
	})
	if sys.Is(err, sys.NotLeader) {
		return false, nil
	}
	return parted, err
}

// giveUp stops this node's replica, whose directory is an old copy. It returns from
// those who vote by what it was told; where there are none, a person has to say
// which one is to go on.
func (s *server) giveUp(name string, told *clusterpb.Map, view replica.View) error {
	why := fmt.Sprintf("%s told of what was chosen by this node, which does not know of it", name)
	switch err := s.notePeers(told); { // durably, before: they are whom the next start asks
	case !view.Beside(s.cfg.ID):
		s.host.Disown("the directory is an old copy: "+why+". It is the only voter, and nobody can give it back what it has forgotten: put the newer directory in its place. To go on with the old "+
			"one, and lose what came after it, first stop the other nodes and move their directories away, and let them join anew", false)
	case err != nil:
		s.host.Disown(fmt.Sprintf("the directory is an old copy: %s. Before it can return from the others it has to note their addresses: %v", why, err), false)
	default:
		s.meetMu.Lock()
		s.returnTo = told
		s.meetMu.Unlock()
		s.host.Disown(why, true)
	}
	return s.host.Err()
}
