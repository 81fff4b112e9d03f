package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// meetEvery is how often a leader meets with members from whom it hears nothing.
	meetEvery = 250 * time.Millisecond
	// meetTimeout is how long it waits for their answer.
	meetTimeout = time.Second
	// settleMin is how long a node that starts listens for others: they find that
	// it is gone, elect a leader, and connect, ten tries in a second.
	settleMin = time.Second
	// settleMax is how long it waits for a leader to meet with it, where it was
	// spoken to: longer than an election takes, and wire.Client's pause.
	settleMax = 5 * time.Second
)

// meet tells members that do not answer the leader who the members are. One with
// an old copy of its directory, from when nobody else voted, would go on alone:
// it knows of nobody whom it could ask, and drops what others send it.
func (s *server) meet(ctx context.Context) {
	tick := env.NewTicker(env.System{}, meetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		st := s.group.Status()
		if st.Role != rsm.Leader || !st.Ready {
			continue
		}
		var silent []string
		for _, p := range st.Peers {
			if addr := s.peers.Addr(p.ID); !p.Reachable && addr != "" {
				silent = append(silent, addr)
			}
		}
		s.meetAll(ctx, silent)
	}
}

// settle waits until this node may answer others, and reports whether it goes on.
//
// One that takes itself for the only voter, as it may by an old copy of its
// directory, asks whom it has noted, and listens for a while. Where the others go
// on without it, they speak to it, and then their leader meets with it. It waits
// for no answer: where it is right, it needs none. But it exchanges nothing of the
// log with a member before they have met, since by an old copy it could take
// itself for the leader of those who have gone on.
func (s *server) settle(ctx context.Context) (goesOn bool) {
	if s.settled.Load() {
		return true
	}
	defer func() { s.settled.Store(goesOn) }()
	began := s.clock.Boot()
	s.meetMu.Lock()
	for _, x := range s.peers.Map().Members {
		s.unmet[sys.NodeID(x.Id)] = true
	}
	delete(s.unmet, s.cfg.ID)
	s.meetMu.Unlock()
	s.meetAll(ctx, slices.DeleteFunc(s.peers.Addrs(), func(a string) bool { return a == s.cfg.Advertise || a == s.cfg.Listen }))
	tick := env.NewTicker(env.System{}, settleMin/20)
	defer tick.Stop()
	for {
		waited := s.clock.Boot() - began
		id := sys.NodeID(s.stranger.Load())
		switch {
		case id == 0 && waited >= settleMin:
			return true
		case waited >= settleMax:
			s.log.Warn("a node speaks to this one that it does not know as a member, but tells of no others that go on: this one goes on", "node", id)
			return true
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

// hearStranger notes that a node has spoken to this one that is no peer of it.
func (s *server) hearStranger(id sys.NodeID) {
	if !s.peers.Removed(id) {
		s.stranger.Store(uint64(id))
	}
}

// meetAll meets with those at some addresses, as far as they answer.
func (s *server) meetAll(ctx context.Context, addrs []string) {
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, addr := range addrs {
		wg.Go(func() {
			id := s.peers.IDOf(addr)
			told, err := s.peers.Meet(ctx, addr, s.meeting())
			if sys.Is(err, sys.NotSupported) { // it runs an older koinon
				told, err = &clusterpb.Meeting{}, nil
			}
			if err == nil {
				err = s.learn(ctx, id, told)
			}
			if err != nil {
				s.log.Debug("not met", "node", id, "addr", addr, "err", err)
			}
		})
	}
	wg.Wait()
}

// meeting is what this node tells of the cluster.
func (s *server) meeting() *clusterpb.Meeting {
	return &clusterpb.Meeting{Map: s.peers.Map(), Members: s.group.Members()}
}

// met answers another node that tells of the cluster.
func (s *server) met(ctx context.Context, from sys.NodeID, told *clusterpb.Meeting) (*clusterpb.Meeting, error) {
	if err := s.learn(ctx, from, told); err != nil {
		return nil, err
	}
	return s.meeting(), nil
}

// learn takes in what a node tells, by the map here 0 when it has none of that
// address, and gives this node's replica up when that knows of a change of members
// that this one has forgotten.
func (s *server) learn(ctx context.Context, from sys.NodeID, told *clusterpb.Meeting) error {
	forgot, err := s.group.Forgot(ctx, told.Members)
	if err != nil {
		return err
	}
	if forgot {
		s.notePeers(told.Map) // durably, before: they are whom the next start asks
		s.host.Disown(fmt.Sprintf("%v told of a change of members that was this node's to decide, which does not know of it", from))
		return s.host.Err()
	}
	s.meetMu.Lock()
	defer s.meetMu.Unlock()
	delete(s.unmet, from)
	return nil
}
