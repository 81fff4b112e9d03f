package cluster

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// Service answers for one node: the map, its status, and sessions when it
// leads.
type Service struct {
	Group  *replica.Group
	Status func() *clusterpb.StatusReply
}

// Register adds the service's methods to a server.
func (s *Service) Register(srv *wire.Server) {
	srv.Handle(MethodMap, s.serveMap)
	srv.Handle(MethodStatus, s.serveStatus)
	srv.Handle(MethodOpenSession, s.serveOpenSession)
	srv.Handle(MethodCloseSession, s.serveCloseSession)
	srv.Handle(MethodAnnounce, s.serveAnnounce)
}

func (s *Service) serveMap(context.Context, *wire.Request) (wire.Response, error) {
	var m *clusterpb.Map
	err := s.Group.ReadLocal(replica.NSCluster, func(r replica.Reader) (err error) {
		m, err = ReadMap(r)
		return err
	})
	if err != nil {
		return wire.Response{}, err
	}
	if m == nil {
		return wire.Response{}, sys.E(sys.Op("cluster.Map"), sys.Unavailable, "the cluster has not come up yet: a majority of its nodes must run")
	}
	return wire.Response{Header: mustMarshal(m)}, nil
}

func (s *Service) serveStatus(context.Context, *wire.Request) (wire.Response, error) {
	return wire.Response{Header: mustMarshal(s.Status())}, nil
}

func (s *Service) serveOpenSession(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var r clusterpb.OpenSessionRequest
	if err := proto.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(sys.Op("cluster.OpenSession"), sys.Invalid, err)
	}
	id, err := s.Group.OpenSession(ctx, r.Name)
	if err != nil {
		return LeaderHint(err)
	}
	return wire.Response{Header: mustMarshal(&clusterpb.OpenSessionReply{Session: uint64(id)})}, nil
}

func (s *Service) serveCloseSession(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var r clusterpb.OpenSessionReply
	if err := proto.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(sys.Op("cluster.CloseSession"), sys.Invalid, err)
	}
	if err := s.Group.EndSession(ctx, sys.SessionID(r.Session)); err != nil && !sys.Is(err, sys.SessionGone) {
		return LeaderHint(err)
	}
	return wire.Response{}, nil
}

// serveAnnounce puts a node's new address into the map. Only the node itself may
// say where it is.
func (s *Service) serveAnnounce(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("cluster.Announce")
	var r clusterpb.AnnounceRequest
	if err := proto.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	for {
		var m *clusterpb.Map
		err := s.Group.Read(ctx, replica.NSCluster, func(rd replica.Reader) (err error) {
			m, err = ReadMap(rd)
			return err
		})
		if err != nil {
			return LeaderHint(err)
		}
		next, err := moved(m, req.Peer.Node, r.Addr)
		if err != nil {
			return wire.Response{}, err
		}
		if next == nil { // that is where the map has it
			return wire.Response{Header: mustMarshal(&clusterpb.Result{Epoch: m.Epoch})}, nil
		}
		out, _, err := s.Group.Propose(ctx, replica.Command{NS: replica.NSCluster, Body: mustMarshal(&clusterpb.Command{Expect: m.Epoch, Map: next})})
		if err != nil {
			return LeaderHint(err)
		}
		var res clusterpb.Result
		if err := proto.Unmarshal(out, &res); err != nil {
			return wire.Response{}, sys.E(op, sys.Corrupt, err)
		}
		if res.Done { // else another change came first
			return wire.Response{Header: out}, nil
		}
	}
}

// moved returns the map with a member at another address, nil when it is there
// already. The placement's epoch rises too, so that clients that still look for
// the member at its old address ask for the map.
func moved(m *clusterpb.Map, id sys.NodeID, addr string) (*clusterpb.Map, error) {
	const op = sys.Op("cluster.Announce")
	next := proto.CloneOf(m)
	var member *clusterpb.Member
	for _, o := range next.GetMembers() {
		switch {
		case sys.NodeID(o.Id) == id:
			member = o
		case o.Addr == addr:
			return nil, sys.E(op, sys.Invalid, sys.Subject(id.String()), fmt.Sprintf(
				"%v is at %s in this cluster: give each node an address of its own", sys.NodeID(o.Id), addr))
		}
	}
	if member == nil {
		return nil, sys.E(op, sys.Permission, sys.Subject(id.String()), "it is no member of this cluster")
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, sys.E(op, sys.Invalid, sys.Subject(addr), err)
	}
	if member.Addr == addr {
		return nil, nil
	}
	member.Addr = addr
	table, err := placement.Unmarshal(next.Table)
	if err != nil {
		return nil, sys.E(op, err)
	}
	table.Epoch++
	next.Table = table.Marshal()
	return next, nil
}

// LeaderHint is what a handler returns for an error of package replica: the
// caller's Client reads from it where the leader is.
func LeaderHint(err error) (wire.Response, error) {
	id, ok := replica.LeaderOf(err)
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
