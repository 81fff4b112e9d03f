package spread

import (
	"context"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blockpb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// The methods of a node that holds blocks.
const (
	MethodPut    wire.Method = 300
	MethodGet    wire.Method = 301
	MethodDelete wire.Method = 302
	MethodSync   wire.Method = 303
	MethodList   wire.Method = 304
	MethodDigest wire.Method = 305
	MethodRepair wire.Method = 306
	MethodUsage  wire.Method = 307
)

// keysMax is how many keys one request carries at most.
const keysMax = 8192

// Cluster is what the package needs to know of the cluster. Methods may be
// called concurrently.
type Cluster interface {
	// Table returns the placement table as last heard, nil before any.
	Table() *placement.Table
	// Refresh fetches the newest table. Afterwards Table returns one that is
	// not older than the authority's when Refresh was called.
	Refresh(ctx context.Context) error
	// Conn returns the connection for bulk data to a node, nil when the node
	// is not known. It belongs to the cluster.
	Conn(id sys.NodeID) *wire.Client
}

// Engine is what a node keeps its blocks in. disk.Store is one, and says what
// the methods mean.
type Engine interface {
	PutSums(ctx context.Context, key sys.BlockKey, data []byte, sums block.Sums) error
	Replace(ctx context.Context, key sys.BlockKey, data []byte, sums block.Sums) error
	GetProof(ctx context.Context, key sys.BlockKey, off int, dst []byte, p *block.Proof) (int, error)
	GetUnchecked(ctx context.Context, key sys.BlockKey, off int, dst []byte, p *block.Proof) (int, error)
	Size(key sys.BlockKey) (int, error)
	Delete(ctx context.Context, keys []sys.BlockKey) error
	Sync(ctx context.Context, slices []sys.SliceID) error
	Knows(pg sys.PG, after sys.BlockKey, limit int) ([]block.Known, error)
	Digests(pg sys.PG, bounds []sys.BlockKey) ([]block.Digest, error)
	Groups() []sys.PG
	Usage(ctx context.Context) (block.Usage, error)
}

// packKeys writes keys column by column.
func packKeys(keys []sys.BlockKey) *blockpb.Keys {
	p := &blockpb.Keys{Slices: make([]uint64, len(keys)), Indexes: make([]uint32, len(keys))}
	for i, k := range keys {
		p.Slices[i], p.Indexes[i] = uint64(k.Slice), k.Index
	}
	return p
}

// unpackKeys reads keys; columns of different lengths are Invalid.
func unpackKeys(p *blockpb.Keys) ([]sys.BlockKey, error) {
	if len(p.GetSlices()) != len(p.GetIndexes()) {
		return nil, sys.E(sys.Op("spread.unpackKeys"), sys.Invalid, "columns of keys differ in length")
	}
	keys := make([]sys.BlockKey, len(p.GetSlices()))
	for i := range keys {
		keys[i] = sys.BlockKey{Slice: sys.SliceID(p.GetSlices()[i]), Index: p.GetIndexes()[i]}
	}
	return keys, nil
}

// nodeSubject names a node in an error.
func nodeSubject(id sys.NodeID) sys.Subject { return sys.Subject("node " + id.String()) }
