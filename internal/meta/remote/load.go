package remote

import (
	"context"
	"fmt"
	"strings"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/meta/embedded"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

const opLoad = sys.Op("meta.Load")

// serveLoad runs a step of a load: the payload is a metapb.Load. What only the
// server knows it fills in.
func (s *Server) serveLoad(ctx context.Context, req *wire.Request) (wire.Response, error) {
	l := &metapb.Load{}
	if err := pb.Unmarshal(req.Payload, l); err != nil || l.Step == nil || l.GetAway() != nil {
		return wire.Response{}, sys.E(opLoad, sys.Invalid, fmt.Sprintf("not a step this node knows (%v): are all nodes of one version?", err))
	}
	if _, err := s.lead(ctx, opLoad); err != nil {
		return cluster.LeaderHint(err)
	}
	if l.GetBegin() != nil {
		if err := s.unused(); err != nil {
			return wire.Response{}, err
		}
	}
	raw, err := s.rows.load(ctx, l)
	if err != nil {
		return cluster.LeaderHint(err)
	}
	res, err := decodeResult(raw)
	if err != nil {
		return wire.Response{}, err
	}
	if l.GetBegin() != nil || l.GetEnd() != nil {
		s.log.Info("a load of the tree", "id", l.Id, "ended", l.GetEnd() != nil)
	}
	return respond(res, nil), nil
}

// unused refuses while clients are connected: what they have cached and
// reserved would be that of another tree.
func (s *Server) unused() error {
	infos, err := s.group.Sessions()
	if err != nil || len(infos) == 0 {
		return err
	}
	names := make([]string, 0, len(infos))
	for _, i := range infos {
		names = append(names, i.Name)
	}
	return sys.E(opLoad, sys.Busy, fmt.Sprintf("clients are connected (%s): unmount the tree and end what holds locks; "+
		"a client that was killed goes after %v; nothing was changed", strings.Join(names, ", "), SessionLife))
}

// Load runs a step of a load at the leader.
func Load(ctx context.Context, c *cluster.Client, l *metapb.Load) (*metapb.Result, error) {
	raw := pb.Marshal(l)
	reply, err := c.CallLeader(ctx, MethodLoad, nil, raw)
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	res := &metapb.Result{}
	if err := pb.Unmarshal(reply.Header, res); err != nil {
		return nil, sys.E(opLoad, sys.Corrupt, err)
	}
	return res, nil
}

// Trouble says in words why the leader cannot serve the tree, "" when it can or
// when this node does not lead. founded says that the cluster has had a tree.
func (s *Server) Trouble(ctx context.Context, founded bool) string {
	if s.group.Leading() == 0 {
		return ""
	}
	a, err := s.rows.present(ctx)
	if err == nil {
		err = whole(a, founded)
	}
	if err == nil || sys.Is(err, sys.NotLeader) {
		return ""
	}
	return err.Error()
}

var treeState = &metapb.Query{Op: &metapb.Query_TreeState{TreeState: &metapb.TreeState{}}}

// whole fails when a state shows no tree, unless none was ever made.
func whole(a *metapb.Answer, founded bool) error {
	switch {
	case a.Attr != nil || a.Load == 0 && a.Moves == 0 && !founded:
		return nil
	case a.Load != 0 && a.Moves != 0: // after a load that was interrupted the nodes may have gone on with the database
		return sys.E(opLoad, sys.Busy, "the tree is missing: it is in a database, then start the nodes with --meta; "+
			"or a load of it is under way, or was interrupted, then run `koinon meta load FILE` again")
	case a.Load != 0:
		return sys.E(opLoad, sys.Busy, "the tree is missing: a load of it is under way, or was interrupted: run `koinon meta load FILE` again")
	case a.Moves == 0:
		return sys.E(opLoad, sys.Busy, "there is no tree here: start the nodes with the --meta, or without, with which the tree was made, or bring it here with `koinon meta load FILE`")
	}
	return sys.E(opLoad, sys.Busy, "the tree is in a database: start the nodes with --meta, or bring it back with `koinon meta load FILE`")
}

// logState is the tree's state as the log has it.
func logState(ctx context.Context, g rsm.Group) (a *metapb.Answer, err error) {
	err = g.Read(ctx, rsm.NSMeta, func(r rsm.Reader) (err error) {
		a, err = embedded.Read(r, treeState)
		return err
	})
	return a, err
}

func (l inLog) present(ctx context.Context) (*metapb.Answer, error) { return logState(ctx, l.group) }

func (l inLog) load(ctx context.Context, step *metapb.Load) ([]byte, error) {
	if end := step.GetEnd(); end != nil {
		a, err := logState(ctx, l.group)
		if err != nil {
			return nil, err
		}
		end.Moves = a.Moves + 1
	}
	return proposeLoad(ctx, l.group, step)
}

// proposeLoad runs a step on the rows in the log.
func proposeLoad(ctx context.Context, g rsm.Group, step *metapb.Load) ([]byte, error) {
	body := pb.Marshal(&metapb.Command{Op: &metapb.Command_Load{Load: step}})
	raw, _, err := g.Propose(ctx, rsm.Command{NS: rsm.NSMeta, Body: body})
	return raw, err
}

// The log says whether a database is the one that has the tree: then there is no
// root in the log, and both have counted the same number of loads.

func (d *inDatabase) present(ctx context.Context) (*metapb.Answer, error) {
	if _, err := d.office(ctx, opLoad); err != nil {
		return nil, err
	}
	a, err := d.db.Query(ctx, treeState)
	if err != nil {
		return nil, err
	}
	if err := d.elsewhere(); err != nil {
		if a.Attr == nil && a.Load != 0 {
			return nil, sys.E(opLoad, sys.Busy, "the tree is in the cluster's own log, and a load of it into the database is under way, or was interrupted: "+
				"run `koinon meta load FILE` again, or start the nodes without --meta")
		}
		return nil, err
	}
	return a, nil
}

// compare returns why the database does not have the cluster's tree, nil when
// it does or when nobody has one. Where it does, a load into the log that was
// interrupted will not be gone on with, and the log forgets it.
func (d *inDatabase) compare(ctx context.Context) (away, trouble error) {
	ours, err := logState(ctx, d.group)
	if err != nil {
		return nil, err
	}
	theirs, err := d.db.Query(ctx, treeState)
	if err != nil {
		return nil, err
	}
	switch {
	case ours.Attr != nil:
		return sys.E(opLoad, sys.Busy, "the tree is in the cluster's own log, not in the database: start the nodes without --meta, "+
			"or move it as docs/operating/engines.md describes"), nil
	case theirs.Attr != nil && theirs.Moves != ours.Moves:
		return sys.E(opLoad, sys.Busy, fmt.Sprintf("the database holds an old state of the tree, of move %d, and the cluster is at move %d: "+
			"start the nodes with the engine that has the tree", theirs.Moves, ours.Moves)), nil
	case theirs.Attr != nil && ours.Load != 0:
		return nil, d.leave(ctx, ours.Moves)
	}
	return nil, nil
}

// leave has the log say that the tree is not in it, after this many moves.
func (d *inDatabase) leave(ctx context.Context, moves int64) error {
	raw, err := proposeLoad(ctx, d.group, &metapb.Load{Step: &metapb.Load_Away{Away: &metapb.LoadAway{Moves: moves}}})
	if err != nil {
		return err
	}
	_, err = decodeResult(raw)
	return err
}

func (d *inDatabase) load(ctx context.Context, step *metapb.Load) ([]byte, error) {
	l, err := d.office(ctx, opLoad)
	if err != nil {
		return nil, err
	}
	if err := d.elsewhere(); err != nil && step.GetBegin() != nil {
		a, qerr := d.db.Query(ctx, treeState)
		if qerr != nil {
			return nil, qerr
		}
		if a.Attr != nil {
			return nil, sys.E(opLoad, sys.NotEmpty, "the database holds an old state of this cluster's tree: name an empty one; nothing was changed")
		}
	}
	if end := step.GetEnd(); end != nil {
		if err := d.away(ctx, end); err != nil {
			return nil, err
		}
	}
	raw, err := runLoad(ctx, l, step)
	if err != nil || step.GetEnd() == nil {
		return raw, err
	}
	away, err := d.compare(ctx)
	d.mu.Lock()
	d.astray = away
	d.mu.Unlock()
	return raw, err
}

// away takes the tree out of the log before it appears in the database, so that
// there are never two. The rest of a load that ended is not run again.
func (d *inDatabase) away(ctx context.Context, end *metapb.LoadEnd) error {
	ours, err := logState(ctx, d.group)
	if err != nil {
		return err
	}
	theirs, err := d.db.Query(ctx, treeState)
	if err != nil {
		return err
	}
	end.Moves = ours.Moves
	if theirs.Attr != nil {
		return nil
	}
	end.Moves++
	return d.leave(ctx, end.Moves)
}

// elsewhere fails when the database does not have the cluster's tree.
func (d *inDatabase) elsewhere() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.astray
}

// Adopt makes a cluster whose log is new take over the tree that the database
// has of the cluster of this name.
func (s *Server) Adopt(ctx context.Context) error {
	d, ok := s.rows.(*inDatabase)
	if !ok {
		return nil
	}
	ours, err := logState(ctx, d.group)
	if err != nil {
		return err
	}
	theirs, err := d.db.Query(ctx, treeState)
	if err != nil || theirs.Moves == ours.Moves || ours.Attr != nil {
		return err
	}
	if err := d.leave(ctx, theirs.Moves); err != nil {
		return err
	}
	d.follow() // the next look at it begins anew
	return nil
}
