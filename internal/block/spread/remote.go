package spread

import (
	"context"
	"fmt"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blockpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// remote calls the block methods of one node.
type remote struct {
	id   sys.NodeID
	conn *wire.Client
}

// remoteTo returns the node; it is Unavailable when the cluster does not know
// it.
func remoteTo(c Cluster, id sys.NodeID) (remote, error) {
	conn := c.Conn(id)
	if conn == nil {
		return remote{}, sys.E(sys.Op("spread.Conn"), sys.Unavailable, nodeSubject(id), "is not in the cluster map")
	}
	return remote{id: id, conn: conn}, nil
}

func (r remote) put(ctx context.Context, epoch uint64, key sys.BlockKey, data []byte, sums block.Sums) error {
	header := pb.Marshal(&blockpb.PutRequest{Slice: uint64(key.Slice), Index: key.Index, Epoch: epoch, Sums: sums})
	reply, err := r.conn.Call(ctx, MethodPut, header, data)
	if err != nil {
		return err
	}
	reply.Release()
	return nil
}

// read is the answer to a get: bytes that were checked.
type read struct {
	reply *wire.Reply
	size  int // of the whole block
}

// get reads up to n bytes from off on and checks them against the writer's
// sums.
func (r remote) get(ctx context.Context, key sys.BlockKey, off, n int) (read, error) {
	const op = sys.Op("spread.Get")
	header := pb.Marshal(&blockpb.GetRequest{Slice: uint64(key.Slice), Index: key.Index, Offset: uint32(off), Length: uint32(n)})
	reply, err := r.conn.Call(ctx, MethodGet, header, nil)
	if err != nil {
		return read{}, err
	}
	var m blockpb.GetReply
	if err := pb.Unmarshal(reply.Header, &m); err != nil {
		reply.Release()
		return read{}, sys.E(op, sys.Corrupt, nodeSubject(r.id), err)
	}
	p := block.Proof{Size: int(m.GetSize()), Sums: m.GetSums(), Before: m.GetBefore(), After: m.GetAfter()}
	if p.Size < 1 || p.Size > sys.BlockSize || len(reply.Payload) != min(n, max(0, p.Size-off)) || !p.Check(off, reply.Payload) {
		reply.Release()
		return read{}, sys.E(op, sys.Corrupt, nodeSubject(r.id), "sent bytes that do not match the writer's checksums")
	}
	return read{reply: reply, size: p.Size}, nil
}

func (r remote) delete(ctx context.Context, epoch uint64, keys []sys.BlockKey) error {
	return wire.Invoke(ctx, r.conn, MethodDelete, &blockpb.DeleteRequest{Epoch: epoch, Keys: packKeys(keys)}, &blockpb.DeleteReply{})
}

func (r remote) sync(ctx context.Context, epoch uint64, slices []sys.SliceID) ([]sys.BlockKey, error) {
	req := &blockpb.SyncRequest{Epoch: epoch, Slices: make([]uint64, len(slices))}
	for i, id := range slices {
		req.Slices[i] = uint64(id)
	}
	var m blockpb.SyncReply
	if err := wire.Invoke(ctx, r.conn, MethodSync, req, &m); err != nil {
		return nil, err
	}
	return unpackKeys(m.GetHeld())
}

func (r remote) list(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]block.Known, error) {
	req := &blockpb.ListRequest{Pg: uint32(pg), After: &blockpb.Key{Slice: uint64(after.Slice), Index: after.Index}, Limit: uint32(limit)}
	var m blockpb.ListReply
	if err := wire.Invoke(ctx, r.conn, MethodList, req, &m); err != nil {
		return nil, err
	}
	keys, err := unpackKeys(m.GetKeys())
	if err != nil || len(keys) != len(m.GetSizes()) {
		return nil, sys.E(sys.Op("spread.List"), sys.Corrupt, nodeSubject(r.id), "sent a list that cannot be read")
	}
	known := make([]block.Known, len(keys))
	for i, key := range keys {
		if !after.Less(key) || m.GetSizes()[i] > sys.BlockSize {
			return nil, sys.E(sys.Op("spread.List"), sys.Corrupt, nodeSubject(r.id), fmt.Sprintf("listed %v after %v", key, after))
		}
		after = key
		known[i] = block.Known{Key: key, Size: int(m.GetSizes()[i])}
	}
	return known, nil
}

func (r remote) digests(ctx context.Context, pg sys.PG, bounds []sys.BlockKey) ([]block.Digest, uint64, error) {
	var m blockpb.DigestReply
	if err := wire.Invoke(ctx, r.conn, MethodDigest, &blockpb.DigestRequest{Pg: uint32(pg), Bounds: packKeys(bounds)}, &m); err != nil {
		return nil, 0, err
	}
	if len(m.GetCounts()) != len(bounds)+1 || len(m.GetHashes()) != len(bounds)+1 {
		return nil, 0, sys.E(sys.Op("spread.Digests"), sys.Corrupt, nodeSubject(r.id), "sent digests that cannot be read")
	}
	digests := make([]block.Digest, len(bounds)+1)
	for i := range digests {
		digests[i] = block.Digest{Count: m.GetCounts()[i], Hash: m.GetHashes()[i]}
	}
	return digests, m.GetEpoch(), nil
}

func (r remote) repair(ctx context.Context, keys []sys.BlockKey) (failed []sys.BlockKey, err error) {
	var m blockpb.RepairReply
	if err := wire.Invoke(ctx, r.conn, MethodRepair, &blockpb.RepairRequest{Keys: packKeys(keys)}, &m); err != nil {
		return nil, err
	}
	return unpackKeys(m.GetFailed())
}

func (r remote) usage(ctx context.Context) (block.Usage, error) {
	var m blockpb.UsageReply
	if err := wire.Invoke(ctx, r.conn, MethodUsage, &blockpb.UsageRequest{}, &m); err != nil {
		return block.Usage{}, err
	}
	return block.Usage{Total: m.GetTotal(), Free: m.GetFree(), Used: m.GetUsed(), Dead: m.GetDead(),
		Blocks: m.GetBlocks(), Deleted: m.GetDeleted()}, nil
}
