package replica

import (
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"
)

// Pinned is a view of a namespace that stays as it is. Close it: until then the
// host cannot close, and the space of what is deleted meanwhile is not freed.
type Pinned struct {
	group  *Group
	ns     Namespace
	ballot uint64
	snap   *pebble.Snapshot
}

// Pin returns a view that holds everything that was acknowledged before Pin was
// called. As Read it is the leader's to give.
func (g *Group) Pin(ctx context.Context, ns Namespace) (*Pinned, error) {
	round := g.Leading()
	if err := g.Read(ctx, ns, func(Reader) error { return nil }); err != nil {
		return nil, err
	}
	if !g.host.use() {
		return nil, g.host.stopped("replica.Pin")
	}
	p := &Pinned{group: g, ns: ns, ballot: round, snap: g.host.db.NewSnapshot()}
	if !p.Good() {
		return nil, errors.Join(g.NotLeader("replica.Pin"), p.Close())
	}
	return p, nil
}

// Good says that the view is what it was: that the leadership under which it was
// made has not ended. Ask after reading: a replica that follows may be given
// another state as a whole.
func (p *Pinned) Good() bool { return p.ballot != 0 && p.group.Leading() == p.ballot }

// Read runs fn on the view. It may run concurrently.
func (p *Pinned) Read(fn func(r Reader) error) error {
	return fn(&view{reader: p.snap, prefix: namespacePrefix(p.group.id, p.ns)})
}

// Close lets go of the view. No Read may be under way.
func (p *Pinned) Close() error {
	defer p.group.host.unuse()
	return p.snap.Close()
}
