package spread

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blockpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// ServerConfig configures a Server. All but Logger are required.
type ServerConfig struct {
	Self    sys.NodeID
	Engine  Engine
	Cluster Cluster
	Logger  *slog.Logger
}

// Server answers the block methods of one node. Safe for concurrent use.
type Server struct {
	self    sys.NodeID
	engine  Engine
	cluster Cluster
	fetch   *fetcher
	buffers buffers
}

// NewServer returns a server; Register makes it answer.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Server{self: cfg.Self, engine: cfg.Engine, cluster: cfg.Cluster, fetch: newFetcher(cfg.Self, cfg.Engine, cfg.Cluster)}
}

// Register makes w answer the block methods. Call it before w serves.
func (s *Server) Register(w *wire.Server) {
	w.Handle(MethodPut, s.handlePut)
	w.Handle(MethodGet, s.handleGet)
	wire.HandleProto(w, MethodDelete, s.handleDelete)
	wire.HandleProto(w, MethodSync, s.handleSync)
	wire.HandleProto(w, MethodList, s.handleList)
	wire.HandleProto(w, MethodDigest, s.handleDigest)
	wire.HandleProto(w, MethodRepair, s.handleRepair)
	wire.HandleProto(w, MethodUsage, s.handleUsage)
}

// check refuses a change that was sent by another table than ours: a node that
// is no replica any more must not count towards a quorum. When the sender has
// the newer table, ours is renewed first.
func (s *Server) check(ctx context.Context, op sys.Op, epoch uint64, groups ...sys.PG) error {
	t := s.cluster.Table()
	if t == nil || t.Epoch < epoch {
		if err := s.cluster.Refresh(ctx); err != nil {
			return sys.E(op, sys.Unavailable, nodeSubject(s.self), fmt.Errorf("fetching the placement table: %w", err))
		}
		t = s.cluster.Table()
	}
	if t == nil {
		return sys.E(op, sys.Unavailable, nodeSubject(s.self), "has no placement table yet")
	}
	if t.Epoch != epoch {
		return sys.E(op, sys.StaleEpoch, nodeSubject(s.self), fmt.Sprintf("follows table %d, the request table %d", t.Epoch, epoch))
	}
	for _, pg := range groups {
		if !t.Holds(pg, s.self) {
			return sys.E(op, sys.Invalid, nodeSubject(s.self), fmt.Sprintf("does not hold placement group %d", pg))
		}
	}
	return nil
}

func (s *Server) handlePut(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var m blockpb.PutRequest
	if err := pb.Unmarshal(req.Header, &m); err != nil {
		return wire.Response{}, sys.E(sys.Op("block.Put"), sys.Invalid, err)
	}
	key := sys.BlockKey{Slice: sys.SliceID(m.GetSlice()), Index: m.GetIndex()}
	return wire.Response{}, s.put(ctx, m.GetEpoch(), key, req.Payload, m.GetSums())
}

func (s *Server) put(ctx context.Context, epoch uint64, key sys.BlockKey, data []byte, sums block.Sums) error {
	if err := s.check(ctx, "block.Put", epoch, key.Slice.PG()); err != nil {
		return err
	}
	return s.engine.PutSums(ctx, key, data, sums)
}

func (s *Server) handleGet(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var m blockpb.GetRequest
	const op = sys.Op("block.Get")
	if err := pb.Unmarshal(req.Header, &m); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	if m.GetLength() > sys.BlockSize || m.GetOffset() > sys.BlockSize {
		return wire.Response{}, sys.E(op, sys.Invalid, fmt.Sprintf("bytes %d+%d of a block", m.GetOffset(), m.GetLength()))
	}
	key := sys.BlockKey{Slice: sys.SliceID(m.GetSlice()), Index: m.GetIndex()}
	buf, release := s.buffers.get(int(m.GetLength()))
	var p block.Proof
	// Whoever asked checks what arrives, and would have to even if we did.
	n, err := s.engine.GetUnchecked(ctx, key, int(m.GetOffset()), buf, &p)
	if err != nil {
		release()
		return wire.Response{}, err
	}
	header := pb.Marshal(&blockpb.GetReply{Size: uint32(p.Size), Sums: p.Sums, Before: p.Before, After: p.After})
	return wire.Response{Header: header, Payload: buf[:n], Release: release}, nil
}

// read reads up to n bytes for a reader in this process, and checks them.
func (s *Server) read(ctx context.Context, key sys.BlockKey, off, n int) (block.Buffer, error) {
	buf, release := s.buffers.get(n)
	var p block.Proof
	n, err := s.engine.GetProof(ctx, key, off, buf, &p)
	if err != nil {
		release()
		return block.Buffer{}, err
	}
	return block.Buffer{Data: buf[:n], Memory: cap(buf), Free: release}, nil
}

func (s *Server) handleDelete(ctx context.Context, _ wire.Identity, m *blockpb.DeleteRequest) (*blockpb.DeleteReply, error) {
	keys, err := unpackKeys(m.GetKeys())
	if err != nil {
		return nil, err
	}
	return &blockpb.DeleteReply{}, s.delete(ctx, m.GetEpoch(), keys)
}

// delete also serves groups that this node holds no more: what it still has of
// them must go as well.
func (s *Server) delete(ctx context.Context, epoch uint64, keys []sys.BlockKey) error {
	if err := s.check(ctx, "block.Delete", epoch); err != nil {
		return err
	}
	return s.engine.Delete(ctx, keys)
}

func (s *Server) handleSync(ctx context.Context, _ wire.Identity, m *blockpb.SyncRequest) (*blockpb.SyncReply, error) {
	slices := make([]sys.SliceID, len(m.GetSlices()))
	for i, id := range m.GetSlices() {
		slices[i] = sys.SliceID(id)
	}
	held, err := s.sync(ctx, m.GetEpoch(), slices)
	if err != nil {
		return nil, err
	}
	return &blockpb.SyncReply{Held: packKeys(held)}, nil
}

// sync returns which blocks of the slices this node holds, once they are on
// its stable storage.
func (s *Server) sync(ctx context.Context, epoch uint64, slices []sys.SliceID) ([]sys.BlockKey, error) {
	if err := s.check(ctx, "block.Sync", epoch); err != nil {
		return nil, err
	}
	var held []sys.BlockKey
	for _, id := range slices {
		after := sys.BlockKey{Slice: id}
		if _, err := s.engine.Size(after); err == nil {
			held = append(held, after)
		}
		for done := false; !done; {
			page, err := s.engine.Knows(id.PG(), after, 32)
			if err != nil {
				return nil, err
			}
			done = len(page) < 32
			for _, k := range page {
				if after = k.Key; k.Key.Slice != id {
					done = true
					break
				}
				if !k.Deleted() {
					held = append(held, k.Key)
				}
			}
		}
	}
	return held, s.engine.Sync(ctx, slices)
}

func (s *Server) handleList(_ context.Context, _ wire.Identity, m *blockpb.ListRequest) (*blockpb.ListReply, error) {
	after := sys.BlockKey{Slice: sys.SliceID(m.GetAfter().GetSlice()), Index: m.GetAfter().GetIndex()}
	known, err := s.engine.Knows(sys.PG(m.GetPg()), after, int(m.GetLimit()))
	if err != nil {
		return nil, err
	}
	r := &blockpb.ListReply{Keys: &blockpb.Keys{}}
	for _, k := range known {
		r.Keys.Slices = append(r.Keys.Slices, uint64(k.Key.Slice))
		r.Keys.Indexes = append(r.Keys.Indexes, k.Key.Index)
		r.Sizes = append(r.Sizes, uint32(k.Size))
	}
	return r, nil
}

func (s *Server) handleDigest(_ context.Context, _ wire.Identity, m *blockpb.DigestRequest) (*blockpb.DigestReply, error) {
	bounds, err := unpackKeys(m.GetBounds())
	if err != nil {
		return nil, err
	}
	digests, err := s.engine.Digests(sys.PG(m.GetPg()), bounds)
	if err != nil {
		return nil, err
	}
	r := &blockpb.DigestReply{}
	if t := s.cluster.Table(); t != nil {
		r.Epoch = t.Epoch
	}
	for _, d := range digests {
		r.Counts = append(r.Counts, d.Count)
		r.Hashes = append(r.Hashes, d.Hash)
	}
	return r, nil
}

func (s *Server) handleRepair(ctx context.Context, _ wire.Identity, m *blockpb.RepairRequest) (*blockpb.RepairReply, error) {
	keys, err := unpackKeys(m.GetKeys())
	if err != nil {
		return nil, err
	}
	failed, why := s.repair(ctx, keys)
	r := &blockpb.RepairReply{Failed: packKeys(failed)}
	if why != nil {
		r.Why = why.Error()
	}
	return r, nil
}

// repair fetches blocks that are missing or damaged here from other nodes.
func (s *Server) repair(ctx context.Context, keys []sys.BlockKey) (failed []sys.BlockKey, why error) {
	t := s.cluster.Table()
	for _, key := range keys {
		if t == nil || !t.Holds(key.Slice.PG(), s.self) {
			continue
		}
		if err := s.fetch.repair(ctx, t, key); err != nil {
			failed, why = append(failed, key), err
		}
	}
	return failed, why
}

func (s *Server) handleUsage(ctx context.Context, _ wire.Identity, _ *blockpb.UsageRequest) (*blockpb.UsageReply, error) {
	u, err := s.engine.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return &blockpb.UsageReply{Total: u.Total, Free: u.Free, Used: u.Used, Dead: u.Dead, Blocks: u.Blocks, Deleted: u.Deleted}, nil
}

// buffers lends buffers of a few sizes.
type buffers struct{ pools [len(bufferSizes)]sync.Pool }

var bufferSizes = [...]int{4 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20, sys.BlockSize}

// get returns a buffer of n bytes, at most sys.BlockSize, and what gives it
// back.
func (b *buffers) get(n int) ([]byte, func()) {
	for i, size := range bufferSizes {
		if n <= size {
			buf, ok := b.pools[i].Get().(*[]byte)
			if !ok {
				fresh := make([]byte, size)
				buf = &fresh
			}
			return (*buf)[:n], func() { b.pools[i].Put(buf) }
		}
	}
	panic(fmt.Sprintf("spread: expected a buffer of at most %d bytes to be asked for, found %d", sys.BlockSize, n))
}
