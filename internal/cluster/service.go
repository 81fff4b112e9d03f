package cluster

import (
	"context"
	"encoding/binary"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// Service answers for one node: the map, its status, and, when it leads,
// sessions and changes of the cluster. Group and Status are required.
type Service struct {
	Group  rsm.Group
	Status func() *clusterpb.StatusReply
	// Known returns the map that the node has from others, for when its state
	// has none; nil when there is none, or none for this peer. May be nil.
	Known func(peer wire.Identity) *clusterpb.Map
	// Meet takes what another node tells of the cluster, and answers with what
	// this one knows. nil: it is told of nothing.
	Meet func(ctx context.Context, from wire.Identity, told *clusterpb.Meeting) (*clusterpb.Meeting, error)
}

// Register adds the service's methods to a server.
func (s *Service) Register(srv *wire.Server) {
	srv.Handle(MethodMap, s.serveMap)
	srv.Handle(MethodStatus, s.serveStatus)
	srv.Handle(MethodOpenSession, s.serveOpenSession)
	srv.Handle(MethodCloseSession, s.serveCloseSession)
	srv.Handle(MethodChange, s.serveChange)
	srv.Handle(MethodTokens, s.serveTokens)
	if s.Meet != nil {
		srv.Handle(MethodMeet, s.serveMeet)
	}
}

// LocalMap returns the map in a replica's state, nil when it has none.
func LocalMap(g rsm.Group) (m *clusterpb.Map, err error) {
	err = g.ReadLocal(rsm.NSCluster, func(r rsm.Reader) (err error) {
		m, err = ReadMap(r)
		return err
	})
	return m, err
}

func (s *Service) serveMap(_ context.Context, req *wire.Request) (wire.Response, error) {
	m, err := LocalMap(s.Group)
	if err != nil {
		return wire.Response{}, err
	}
	if m == nil && s.Known != nil {
		m = s.Known(req.Peer)
	}
	if m == nil {
		return wire.Response{}, sys.E(sys.Op("cluster.Map"), sys.Unavailable, "the cluster has not come up yet: a majority of its nodes must run")
	}
	return wire.Response{Header: pb.Marshal(m)}, nil
}

func (s *Service) serveStatus(context.Context, *wire.Request) (wire.Response, error) {
	return wire.Response{Header: pb.Marshal(s.Status())}, nil
}

func (s *Service) serveMeet(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("cluster.Meet")
	if req.Peer.Node == 0 {
		return wire.Response{}, sys.E(op, sys.Permission, sys.Subject(req.Peer.String()), "only nodes may do this")
	}
	told := &clusterpb.Meeting{}
	if err := pb.Unmarshal(req.Header, told); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	answer, err := s.Meet(ctx, req.Peer, told)
	if err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Header: pb.Marshal(answer)}, nil
}

func (s *Service) serveOpenSession(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var r clusterpb.OpenSessionRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(sys.Op("cluster.OpenSession"), sys.Invalid, err)
	}
	id, err := s.Group.OpenSession(ctx, r.Name)
	if err != nil {
		return LeaderHint(err)
	}
	return wire.Response{Header: pb.Marshal(&clusterpb.OpenSessionReply{Session: uint64(id)})}, nil
}

func (s *Service) serveCloseSession(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var r clusterpb.OpenSessionReply
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(sys.Op("cluster.CloseSession"), sys.Invalid, err)
	}
	if err := s.Group.EndSession(ctx, sys.SessionID(r.Session)); err != nil && !sys.Is(err, sys.SessionGone) {
		return LeaderHint(err)
	}
	return wire.Response{}, nil
}

// LeaderHint is what a handler returns for an error of package replica: the
// caller's Client reads from it where the leader is.
func LeaderHint(err error) (wire.Response, error) {
	id, ok := rsm.LeaderOf(err)
	if !ok {
		return wire.Response{}, err
	}
	return wire.Response{Payload: binary.LittleEndian.AppendUint64(nil, uint64(id))}, err
}

func decodeLeader(detail []byte) sys.NodeID {
	if len(detail) != 8 {
		return 0
	}
	return sys.NodeID(binary.LittleEndian.Uint64(detail))
}
