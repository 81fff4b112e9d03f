package node

import (
	"context"
	"fmt"
	"slices"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
)

// An old copy of a node's directory, from when nobody else voted, may go on alone
// while the others do not reach it, and let machines join: under numbers that the
// others have. A member is therefore known by its number and its key (noteKeys): who
// has the number of another is answered by nobody (server.allow), and talked to by
// nobody (cluster.Client.Identify). And when the two histories meet, that in which
// members joined first goes on (meetApart).

// noteKeys has the map say which key each member's certificate is for, as far as
// that is known: by the token with which it joined, or by its connection. It
// replaces the map, so that nodes that do not know of keys keep them all the same.
func (s *server) noteKeys(ctx context.Context, m *clusterpb.Map) (noted bool, err error) {
	if !slices.ContainsFunc(m.Members, func(x *clusterpb.Member) bool { return len(x.Key) == 0 }) {
		return false, nil
	}
	keys, err := cluster.JoinKeys(s.group)
	if err != nil {
		return false, err
	}
	m = m.CloneVT()
	for _, x := range m.Members {
		if len(x.Key) > 0 {
			continue
		}
		id := sys.NodeID(x.Id)
		x.Key = keys[id]
		if id == s.cfg.ID {
			x.Key = s.creds.Key()
		} else if who, ok := s.transport.Peer(id); ok && len(x.Key) == 0 {
			x.Key = []byte(who.Key)
		}
		noted = noted || len(x.Key) > 0
	}
	if noted {
		_, err = cluster.Propose(ctx, s.group, &clusterpb.Command{Expect: m.Epoch, Map: m})
	}
	return noted, err
}

// noteReign has the map say who votes, which tells two histories apart: each that
// can go on by itself has changed its voters.
func (s *server) noteReign(ctx context.Context, m *clusterpb.Map, voters []sys.NodeID) (noted bool, err error) {
	m = m.CloneVT()
	if noted = cluster.Reigning(m, slices.Sorted(slices.Values(voters)), s.clock.Wall()); noted {
		_, err = cluster.Propose(ctx, s.group, &clusterpb.Command{Expect: m.Epoch, Map: m})
	}
	return noted, err
}

// meetApart takes in that a node tells of another history of this cluster. first
// says that members joined earlier in the own one, which is right then.
//
// Else this node ends, once there is a leader over there. Who is a member here and
// there returns from the others, as with any old copy; who is not has joined
// through that, and nobody there knows it.
func (s *server) meetApart(name string, told *clusterpb.Meeting, first bool) error {
	both := cluster.SameMember(s.ownMap(), told.Map, s.cfg.ID)
	switch {
	case first:
		s.tellApart(name, "members joined later in it, so that it began from an old copy of a node's directory: stop its nodes, and let them join anew")
		return nil
	case s.recorded() == nil: // nothing of the wrong one is here
		return s.peers.Install(told.Map)
	case !s.group.Alone() && (told.Leader == 0 || both && sys.NodeID(told.Leader) == s.cfg.ID):
		return nil // they may not be able to go on without this node
	case both:
		return s.giveUp(name, told.Map, replica.View{Members: told.Members})
	}
	s.host.Disown(fmt.Sprintf("node %v of cluster %q is another machine, or none, by what %s tells: this one has joined through an old copy of a node's directory. "+
		"It does not come back under this number: start it with an empty directory and a new token (`koinon node token`), then it joins as a new node. What was written through it and not through the others is in its directory alone. "+
		"(Should the others have gone on from an old copy, though their members joined earlier by their clocks: stop those, and start this node again.)", s.cfg.ID, s.cfg.Cluster, name), false)
	return s.host.Err()
}

// undecided takes in that a node tells of another history, where nothing says which
// of the two is right.
func (s *server) undecided(id sys.NodeID, name string) error {
	s.acquaint(id, false)
	s.tellApart(name, "which of the two is right is not told by when members joined: stop the nodes of the wrong one, and let them join anew")
	return nil
}

// tellApart logs once for each node that it tells of another history, which is not
// followed.
func (s *server) tellApart(name, what string) {
	s.meetMu.Lock()
	told := s.apart[name]
	s.apart[name] = true
	s.meetMu.Unlock()
	if !told {
		s.log.Error("a node tells of another history of this cluster, which is not followed: "+what, "by", name)
	}
}
