//go:build !client

package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/dump"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/remote"
	"github.com/koinon/koinon/internal/sys"
)

// viewCloseMax bounds letting go of a view, which ends by itself as well.
const viewCloseMax = 5 * time.Second

// Dump writes the tree's metadata to w as it is at one point, whatever is
// changed meanwhile. When the leader changes it fails with meta.ErrViewGone, and
// what was written is no dump. progress is told how many rows have been written.
func (c *Client) Dump(ctx context.Context, w io.Writer, version string, progress func(rows uint64)) (_ *dump.Summary, err error) {
	view, err := c.tree.View(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), viewCloseMax)
		defer cancel()
		_ = view.Close(ctx) // it ends by itself where this fails
	}()
	m := c.cluster.Map()
	h := &metapb.DumpHeader{Cluster: m.GetCluster(), Version: version, CreatedNs: time.Now().UnixNano(), Pgs: uint32(len(c.cluster.Table().PGs))}
	buf := bufio.NewWriterSize(w, 1<<20)
	sum, err := dump.Write(ctx, view, h, buf, progress)
	if err == nil {
		err = buf.Flush()
	}
	// The last answer counts only if the view was whole to its end.
	if err == nil {
		_, err = view.Query(ctx, &metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}})
	}
	return sum, err
}

// IsViewGone says that a dump has to start again: see meta.ErrViewGone.
func IsViewGone(err error) bool { return errors.Is(err, meta.ErrViewGone) }

// LoadDump fills this cluster's tree, which must be new or missing, from a dump.
// The cluster must have as many placement groups as the dumped one.
func (a *Admin) LoadDump(ctx context.Context, r io.Reader) (*dump.Summary, error) {
	check := func(h *metapb.DumpHeader) error {
		if pgs := len(a.cluster.Table().PGs); int(h.Pgs) != pgs {
			return sys.E(sys.Op("dump.Load"), sys.Invalid, fmt.Sprintf(
				"the dump is of a cluster with %d placement groups, this one has %d: its blocks would not be found; nothing was changed", h.Pgs, pgs))
		}
		return nil
	}
	return dump.Load(ctx, bufio.NewReaderSize(r, 1<<20), loadTarget{a}, dump.Options{Check: check, Now: time.Now().UnixNano()})
}

// loadTarget is the leader as a dump.Target.
type loadTarget struct{ *Admin }

// Load implements dump.Target.
func (t loadTarget) Load(ctx context.Context, l *metapb.Load) (*metapb.Result, error) {
	return remote.Load(ctx, t.cluster, l)
}
