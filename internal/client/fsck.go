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
		return fsck.Run(ctx, c.tree, inRedis{c.redis}, opts)
	}
	return fsck.Run(ctx, c.tree, c.spread, opts)
}

// inRedis are blocks of which Redis itself keeps as many copies as it likes.
type inRedis struct {
	*redis.Store
}

func (inRedis) Groups() int { return 1 }

func (inRedis) Nodes(sys.PG) []sys.NodeID { return []sys.NodeID{0} }

// EachOn implements fsck.Replicas. SCAN tells some blocks twice.
func (r inRedis) EachOn(ctx context.Context, _ sys.NodeID, _ sys.PG, fn func(block.Info)) error {
	seen := make(map[sys.BlockKey]struct{})
	return r.WalkWhole(ctx, func(infos []block.Info) error {
		for _, i := range infos {
			if _, ok := seen[i.Key]; !ok {
				seen[i.Key] = struct{}{}
				fn(i)
			}
		}
		return nil
	})
}

func (r inRedis) HasOn(ctx context.Context, _ sys.NodeID, key sys.BlockKey) (bool, error) {
	return r.Has(ctx, key)
}
