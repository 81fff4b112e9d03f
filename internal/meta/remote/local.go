package remote

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/embedded"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
)

var _ meta.Client = (*Server)(nil)

// Do runs a command of the leader's own, such as the collector's. It is not
// retried, and fails with NotLeader elsewhere.
func (s *Server) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	body, err := proto.Marshal(cmd)
	if err != nil {
		return nil, sys.E(sys.Op("meta.Do"), sys.Invalid, err)
	}
	raw, local, err := s.group.Propose(ctx, replica.Command{NS: replica.NSMeta, Body: body, Reserve: true})
	if err != nil {
		return nil, err
	}
	if o, ok := local.(*embedded.Outcome); ok && len(o.Inos) > 0 {
		if err := s.leases.barrier(ctx, s.group.Leading(), o.Inos...); err != nil {
			return nil, err
		}
	}
	res := &metapb.Result{}
	if err := proto.Unmarshal(raw, res); err != nil {
		return nil, sys.E(sys.Op("meta.Do"), sys.Corrupt, err)
	}
	if res.Failure != nil {
		return nil, res.Failure.Err()
	}
	return res, nil
}

// Query reads the tree on the leader.
func (s *Server) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	var a *metapb.Answer
	err := s.group.Read(ctx, replica.NSMeta, func(v replica.Reader) (err error) {
		a, err = embedded.Read(v, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	if a.Failure != nil {
		return nil, a.Failure.Err()
	}
	return a, nil
}
