package replica

import (
	"context"
	"errors"

	"github.com/koinon/koinon/internal/rsm"
)

// pinned is a view of a namespace that stays as it is.
type pinned struct {
	group  *Group
	ns     rsm.Namespace
	ballot uint64
	snap   frozen
}

// Pin implements rsm.Group.
func (g *Group) Pin(ctx context.Context, ns rsm.Namespace) (rsm.Pinned, error) {
	round := g.Leading()
	if err := g.Read(ctx, ns, func(rsm.Reader) error { return nil }); err != nil {
		return nil, err
	}
	if !g.host.use() {
		return nil, g.host.stopped("replica.Pin")
	}
	p := &pinned{group: g, ns: ns, ballot: round, snap: g.freeze()}
	if !p.Good() {
		return nil, errors.Join(g.NotLeader("replica.Pin"), p.Close())
	}
	return p, nil
}

// Good implements rsm.Pinned.
func (p *pinned) Good() bool { return p.ballot != 0 && p.group.Leading() == p.ballot }

// Read implements rsm.Pinned.
func (p *pinned) Read(fn func(r rsm.Reader) error) error {
	return fn(&view{reader: p.snap, prefix: namespacePrefix(p.group.id, p.ns)})
}

// Close implements rsm.Pinned.
func (p *pinned) Close() error {
	defer p.group.host.unuse()
	return p.snap.Close()
}
