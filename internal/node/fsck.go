package node

import (
	"context"

	"github.com/koinon/koinon/internal/fsck"
)

// Fsck tests whether the tree is sound, with every block on every replica.
func (c *Client) Fsck(ctx context.Context, opts fsck.Options) (*fsck.Report, error) {
	return fsck.Run(ctx, c.tree, c.store, opts)
}
