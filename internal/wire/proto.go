package wire

import (
	"context"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// split places a marshalled message: in the header while it is small, in the
// payload, which is never copied into a frame, when it is large.
func split(b []byte) (header, payload []byte) {
	if len(b) <= smallMessage {
		return b, nil
	}
	return nil, b
}

// typed undoes split.
func typed(header, payload []byte) []byte {
	if len(payload) > 0 {
		return payload
	}
	return header
}

// Invoke calls m with req and decodes the answer into resp. Errors are those
// of Caller.Call; req over MaxPayload is sys.Invalid.
func Invoke(ctx context.Context, c Caller, m Method, req, resp pb.Message) error {
	b := pb.Marshal(req)
	header, payload := split(b)
	r, err := c.Call(ctx, m, header, payload)
	if err != nil {
		return err
	}
	defer r.Release()
	if err := pb.Unmarshal(typed(r.Header, r.Payload), resp); err != nil {
		return sys.E(sys.Op("wire.Invoke"), sys.Corrupt, err)
	}
	return nil
}

// HandleProto registers a typed handler for m: what Invoke calls. The request
// belongs to the handler and stays valid after it returns.
func HandleProto[Q, R any, PQ interface {
	*Q
	pb.Message
}, PR interface {
	*R
	pb.Message
}](s *Server, m Method, h func(ctx context.Context, peer Identity, req PQ) (PR, error)) {
	s.Handle(m, func(ctx context.Context, req *Request) (Response, error) {
		q := PQ(new(Q))
		if err := pb.Unmarshal(typed(req.Header, req.Payload), q); err != nil {
			return Response{}, sys.E(sys.Op("wire.HandleProto"), sys.Invalid, err)
		}
		r, err := h(ctx, req.Peer, q)
		if err != nil {
			return Response{}, err
		}
		b := pb.Marshal(r)
		header, payload := split(b)
		return Response{Header: header, Payload: payload}, nil
	})
}
