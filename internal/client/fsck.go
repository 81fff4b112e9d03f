package client

import (
	"context"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/redis"
	"github.com/koinon/koinon/internal/fsck"
	"github.com/koinon/koinon/internal/sys"
)

// Fsck tests whether the tree is sound, with every block on every replica.
func (c *Client) Fsck(ctx context.Context, opts fsck.Options) (*fsck.Report, error) {
	if c.redis != nil {
		return fsck.Run(ctx, c.tree, inRedis{c.redis, map[sys.BlockKey]int{}}, opts)
	}
	return fsck.Run(ctx, c.tree, c.spread, opts)
}

// inRedis are blocks of which Redis itself keeps as many copies as it likes.
type inRedis struct {
	*redis.Store
	sizes map[sys.BlockKey]int // in bytes, of what was listed; used by one goroutine, and then only read
}

func (inRedis) Groups() int { return 1 }

func (inRedis) Nodes(sys.PG) []sys.NodeID { return []sys.NodeID{0} }

// EachOn implements fsck.Replicas. SCAN tells some blocks twice.
func (r inRedis) EachOn(ctx context.Context, _ sys.NodeID, _ sys.PG, fn func(block.Info)) error {
	clear(r.sizes)
	return r.WalkWhole(ctx, func(infos []block.Info) error {
		for _, i := range infos {
			if _, ok := r.sizes[i.Key]; !ok {
				r.sizes[i.Key] = i.Size
				fn(i)
			}
		}
		return nil
	})
}

func (r inRedis) HasOn(ctx context.Context, _ sys.NodeID, key sys.BlockKey) (bool, error) {
	return r.Has(ctx, key)
}

// ReadOn implements fsck.Replicas. What came after the list is not read: nothing can have happened to it yet.
func (r inRedis) ReadOn(ctx context.Context, _ sys.NodeID, key sys.BlockKey) (int, error) {
	n := r.sizes[key]
	b, err := r.Read(ctx, key, 0, n)
	if err != nil {
		return 0, err
	}
	b.Release()
	return n, nil
}
