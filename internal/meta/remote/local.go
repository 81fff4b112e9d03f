package remote

import (
	"context"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

var _ meta.Client = (*Server)(nil)

// Do runs a command of the leader's own, such as the collector's. It is not
// retried, and fails with NotLeader elsewhere.
func (s *Server) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	body := pb.Marshal(cmd)
	raw, local, err := s.rows.propose(ctx, rsm.Command{NS: rsm.NSMeta, Body: body, Reserve: true})
	if err != nil {
		return nil, err
	}
	if o, ok := local.(*meta.Outcome); ok && len(o.Inos) > 0 {
		if err := s.leases.barrier(ctx, s.group.Leading(), o.Inos...); err != nil {
			return nil, err
		}
	}
	return decodeResult(raw)
}

// Query reads the tree on the leader.
func (s *Server) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	a, _, err := s.rows.read(ctx, q)
	if err != nil {
		return nil, err
	}
	if a.Failure != nil {
		return nil, a.Failure.Err()
	}
	return a, nil
}

// Barrier waits until no session can still see inodes as they were before
// changes that this leader has applied, with none given of any: for changes
// that did not come by Do.
func (s *Server) Barrier(ctx context.Context, inos ...sys.Ino) error {
	return s.leases.barrier(ctx, s.group.Leading(), inos...)
}
