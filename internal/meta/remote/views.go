package remote

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote/remotepb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// viewsMax bounds how many views are open at once: each keeps deleted data.
const viewsMax = 8

// views are those that clients hold open at this leader. They are named by
// numbers that no other leader gives out.
type views struct {
	clock env.Clock

	mu   sync.Mutex
	open map[uint64]*heldView
}

type heldView struct {
	pinned pinned
	used   time.Duration // Boot time of the last query
	users  int           // queries under way
	gone   bool          // to be closed by the last user
}

func newViews(clock env.Clock) views { return views{clock: clock, open: map[uint64]*heldView{}} }

// add names a view, which belongs to v from then on.
func (v *views) add(p pinned) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.open) >= viewsMax {
		err := sys.E(sys.Op("meta.View"), sys.Busy, fmt.Sprintf("%d checks of the tree are under way: wait for them to end", viewsMax))
		if cerr := p.Close(); cerr != nil {
			return 0, cerr
		}
		return 0, err
	}
	id := rand.Uint64() | 1
	v.open[id] = &heldView{pinned: p, used: v.clock.Boot()}
	return id, nil
}

// take gives a view to a query, nil when there is none. give takes it back.
func (v *views) take(id uint64) *heldView {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.open[id]
	if h != nil {
		h.users++
	}
	return h
}

func (v *views) give(h *heldView) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	h.users--
	h.used = v.clock.Boot()
	return h.release()
}

// release closes a view that is gone and that nobody uses.
func (h *heldView) release() error {
	if h.gone && h.users == 0 {
		return h.pinned.Close()
	}
	return nil
}

// drop ends the views for which which is true. It returns how many are left.
func (v *views) drop(which func(id uint64, h *heldView) bool) (left int, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, h := range v.open {
		if which(id, h) {
			delete(v.open, id)
			h.gone = true
			if cerr := h.release(); err == nil {
				err = cerr
			}
		}
	}
	return len(v.open), err
}

// follow ends all views, with the leadership.
func (v *views) follow() {
	// Views close without error unless iterators leak, which Read rules out.
	_, _ = v.drop(func(uint64, *heldView) bool { return true })
}

// Viewed says whether somebody holds a view of the tree open, so that no block
// may be deleted. It ends those that were forgotten, so it must be called now
// and then.
func (s *Server) Viewed() (bool, error) {
	now := s.views.clock.Boot()
	left, err := s.views.drop(func(_ uint64, h *heldView) bool {
		return h.users == 0 && now-h.used > meta.ViewLife || !h.pinned.Good()
	})
	return left > 0, err
}

func (s *Server) serveView(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("meta.View")
	var r remotepb.ViewRequest
	if err := pb.Unmarshal(req.Header, &r); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	if r.Close != 0 {
		_, err := s.views.drop(func(id uint64, _ *heldView) bool { return id == r.Close })
		return respond(&remotepb.ViewReply{}, nil), err
	}
	pinned, err := s.rows.pin(ctx)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	id, err := s.views.add(pinned)
	return respond(&remotepb.ViewReply{View: id}, nil), err
}

// queryView answers from a view. What a view shows is old, so no lease matters.
func (s *Server) queryView(ctx context.Context, id uint64, q *metapb.Query) (_ wire.Response, err error) {
	const op = sys.Op("meta.Query")
	gone := sys.E(op, sys.Stale, meta.ErrViewGone)
	h := s.views.take(id)
	if h == nil {
		return wire.Response{}, gone
	}
	defer func() {
		if gerr := s.views.give(h); err == nil && gerr != nil {
			err = sys.E(op, gerr)
		}
	}()
	a, err := h.pinned.Query(ctx, q)
	if err != nil {
		return wire.Response{}, err
	}
	if !h.pinned.Good() {
		return wire.Response{}, gone
	}
	raw := pb.Marshal(a)
	return respond(&remotepb.QueryReply{}, raw), nil
}

// view is a view as its client has it.
type view struct {
	c  *Client
	id uint64
}

var _ meta.View = (*view)(nil)

// View opens a view of the tree as it is at one point between call and return.
func (c *Client) View(ctx context.Context) (meta.View, error) {
	r, err := c.callView(ctx, &remotepb.ViewRequest{})
	if err != nil {
		return nil, err
	}
	return &view{c, r.View}, nil
}

func (c *Client) callView(ctx context.Context, req *remotepb.ViewRequest) (*remotepb.ViewReply, error) {
	header := pb.Marshal(req)
	reply, err := c.opts.Cluster.CallLeader(ctx, MethodView, header, nil)
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	r := &remotepb.ViewReply{}
	if err := pb.Unmarshal(reply.Header, r); err != nil {
		return nil, sys.E(sys.Op("meta.View"), sys.Corrupt, err)
	}
	return r, nil
}

// Query implements meta.View.
func (v *view) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	raw := pb.Marshal(q)
	header := pb.Marshal(&remotepb.QueryRequest{View: v.id})
	reply, err := v.c.opts.Cluster.CallLeader(ctx, MethodQuery, header, raw)
	if sys.Is(err, sys.Stale) { // a refusal of the rules comes in the answer
		return nil, sys.E(sys.Op("meta.Query"), sys.Stale, meta.ErrViewGone)
	}
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	a := &metapb.Answer{}
	if err := unmarshalBoth(reply, &remotepb.QueryReply{}, a); err != nil {
		return nil, err
	}
	if a.Failure != nil {
		return nil, a.Failure.Err()
	}
	return a, nil
}

// Close implements meta.View.
func (v *view) Close(ctx context.Context) error {
	_, err := v.c.callView(ctx, &remotepb.ViewRequest{Close: v.id})
	return err
}
