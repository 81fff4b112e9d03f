package proc

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// Client reaches the process table at the leader, and the nodes for what their
// processes read and write. Its methods may be called concurrently. They wait
// for a leader as long as the cluster.Client does.
type Client struct{ cluster *cluster.Client }

// NewClient returns a client; the cluster.Client stays the caller's.
func NewClient(c *cluster.Client) *Client { return &Client{cluster: c} }

// Submit makes a job, once, and returns its ID. What can never run is refused
// with sys.Invalid, or sys.NotExist for an unknown node or job; the error names
// what there is. Whether there is a job may be open after an error; that says so.
func (c *Client) Submit(ctx context.Context, spec *procpb.Spec) (uint64, error) {
	req := &procpb.Submit{Request: make([]byte, 16), Spec: spec}
	if _, err := rand.Read(req.Request); err != nil {
		return 0, sys.E(sys.Op("proc.Submit"), err)
	}
	r, open, err := c.cluster.CallLeaderCounted(ctx, MethodSubmit, nil, pb.Marshal(req))
	if err != nil && open {
		err = mayBeSubmitted(err)
	}
	if err != nil {
		return 0, err
	}
	reply := &procpb.SubmitReply{}
	err = take(r, reply)
	return reply.Job, err
}

// mayBeSubmitted adds to an error what is open after it.
func mayBeSubmitted(err error) error {
	const open = "the job may have been submitted all the same, and runs then when the cluster can: look with `koinon ps -a` before you try again"
	e, ok := err.(*sys.Error)
	if !ok || e.Err == nil {
		return fmt.Errorf("%w; %s", err, open)
	}
	also := *e
	also.Err = fmt.Errorf("%w; %s", e.Err, open)
	return &also
}

// List lists jobs, the newest first.
func (c *Client) List(ctx context.Context, req *procpb.ListRequest) (*procpb.ListReply, error) {
	reply := &procpb.ListReply{}
	return reply, c.leader(ctx, MethodList, req, nil, reply)
}

// Wait waits for news of a job, for at most req.WaitNs, which the leader
// bounds to some seconds: call it again with the version it gave. sys.NotExist:
// no such job.
func (c *Client) Wait(ctx context.Context, req *procpb.WaitRequest) (*procpb.WaitReply, error) {
	reply := &procpb.WaitReply{}
	req.WaitNs = min(req.WaitNs, int64(c.cluster.Timeout()/2)) // after all of it, the leader is taken for dead
	return reply, c.leader(ctx, MethodWait, req, nil, reply)
}

// Inspect tells everything about a job.
func (c *Client) Inspect(ctx context.Context, req *procpb.InspectRequest) (*procpb.InspectReply, error) {
	reply := &procpb.InspectReply{}
	return reply, c.leader(ctx, MethodInspect, req, nil, reply)
}

// Kill signals tasks of a job. 15 and 9 end them for good, also those that wait;
// other signals are passed on to what runs. It returns how many tasks it
// concerned.
func (c *Client) Kill(ctx context.Context, req *procpb.KillRequest) (int, error) {
	reply := &procpb.Result{}
	err := c.leader(ctx, MethodKill, req, nil, reply)
	return int(reply.Count), err
}

// Nodes lists the nodes with what they have and what is reserved there.
func (c *Client) Nodes(ctx context.Context) (*procpb.NodesReply, error) {
	reply := &procpb.NodesReply{}
	return reply, c.leader(ctx, MethodNodes, nil, nil, reply)
}

// Drain says whether a node takes new processes. What runs there goes on.
func (c *Client) Drain(ctx context.Context, node sys.NodeID, on bool) error {
	return c.leader(ctx, MethodDrain, &procpb.DrainRequest{Node: uint64(node), On: on}, nil, &procpb.Result{})
}

// Output reads what a process has written from its node. sys.Unavailable: the
// node cannot be reached.
func (c *Client) Output(ctx context.Context, node sys.NodeID, req *procpb.OutputRequest) (*procpb.OutputReply, error) {
	reply := &procpb.OutputReply{}
	return reply, c.node(ctx, node, MethodOutput, req, nil, reply)
}

// Stdin writes to a process's standard input; req.Offset is where data begins.
func (c *Client) Stdin(ctx context.Context, node sys.NodeID, req *procpb.StdinRequest, data []byte) (*procpb.StdinReply, error) {
	reply := &procpb.StdinReply{}
	return reply, c.node(ctx, node, MethodStdin, req, data, reply)
}

// leader has the leader answer a request: its header, payload and reply, the
// first two of which may be nil.
func (c *Client) leader(ctx context.Context, m wire.Method, header, payload, reply pb.Message) error {
	r, err := c.cluster.CallLeader(ctx, m, encoded(header), encoded(payload))
	if err != nil {
		return err
	}
	return take(r, reply)
}

// nodeTimeout bounds a request to a node beyond what it asks the node to wait.
const nodeTimeout = 10 * time.Second

// node has a node answer a request.
func (c *Client) node(ctx context.Context, id sys.NodeID, m wire.Method, header pb.Message, payload []byte, reply pb.Message) error {
	conn := c.cluster.OpenConn(id)
	if conn == nil && c.cluster.Map() == nil {
		if err := c.cluster.Refresh(ctx); err != nil {
			return err
		}
		conn = c.cluster.OpenConn(id)
	}
	if conn == nil {
		return sys.E(sys.Op("proc.node"), sys.Unavailable, sys.Subject(id.String()), "the cluster has no such node (any more)")
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	r, err := conn.Call(ctx, m, encoded(header), payload)
	if err != nil {
		return err
	}
	return take(r, reply)
}

// encoded is the encoding of a message that may be left out.
func encoded(m pb.Message) []byte {
	if m == nil {
		return nil
	}
	return pb.Marshal(m)
}

// take reads an answer and releases it.
func take(r *wire.Reply, m pb.Message) error {
	defer r.Release()
	if err := pb.Unmarshal(r.Payload, m); err != nil {
		return sys.E(sys.Op("proc.call"), sys.Corrupt, err)
	}
	return nil
}
