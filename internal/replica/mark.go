package replica

import (
	"fmt"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// checkMark reads the mark of an earlier start. It refuses an empty directory of a node that has voted before
// and knows of nobody to learn from.
func (h *Host) checkMark(exists bool) error {
	const op = sys.Op("replica.Open")
	cfg := &h.cfg
	if cfg.Mark != "" {
		b, err := readFile(cfg.FS, cfg.Mark)
		if err != nil {
			return sys.E(op, sys.Subject(cfg.Mark), err)
		}
		if id, err := decodeIdentity(b); err == nil && id.cluster == cfg.Cluster && id.node == cfg.Self {
			h.marked = &id
		}
	}
	served := h.marked != nil
	if !exists && (served || cfg.Rejoin) {
		anew := ""
		if cfg.Mark != "" && len(cfg.Voters) > 0 { // who has joined a cluster begins none
			anew = "; to begin a new cluster with nothing remove what every voter has noted beside its key, here " + cfg.Mark + " and " +
				strings.TrimSuffix(cfg.Mark, ".served") + ".peers"
		}
		if len(cfg.Voters) == 1 && !cfg.Others {
			return sys.E(op, sys.Invalid, sys.Subject(cfg.Dir), "it is empty, although this node has served before: see that its disk is mounted; "+onlyAdvice+anew)
		}
		cfg.Logger.Warn("this node has served before, and its directory is empty: it learns from the others before it votes"+anew, "dir", cfg.Dir)
		cfg.Rejoin = true
	}
	return nil
}

// writeMark says durably, outside of the directory, that this node has served,
// and which configurations it knew. Open calls it, once the directory is this
// node's and before it can vote, and maintain.
func (h *Host) writeMark() {
	id := identity{format: format, cluster: h.cfg.Cluster, node: h.cfg.Self, members: map[sys.GroupID]uint64{}}
	for _, g := range h.groups {
		if from := g.inForceFrom.Load(); from > 0 {
			id.members[g.id] = from
		}
	}
	if err := writeFile(h.cfg.FS, h.cfg.Mark, id.encode()); err != nil {
		h.cfg.Logger.Warn("the loss of this node's directory could not be told from a first start: never start it on an empty one without rejoin", "err", err)
	}
}

// noteInForce has the mark say that a configuration is in force, which is durable
// in the log.
func (g *Group) noteInForce(from uint64) {
	if h := g.host; h.cfg.Mark != "" && from > g.inForceFrom.Load() {
		g.inForceFrom.Store(from)
		h.wantMark.Store(true)
		signal(h.upkeep)
	}
}

// matchMark compares the configuration that a whole directory knows with that of
// the mark. An older one tells that the directory is old, however whole it seems,
// and the promise in it counts for nothing: then it returns what is wrong.
func (g *Group) matchMark(r *replayed) error {
	h, rec := g.host, &g.d.recovered
	if h.marked != nil {
		g.inForceFrom.Store(h.marked.members[g.id])
	}
	if rec.Damaged {
		return nil
	}
	history, next := rec.Configs, rec.Applied+1
	for i := range rec.Entries {
		if e := &rec.Entries[i]; e.Slot == next && e.Slot <= rec.Chosen && len(history) > 0 {
			history = history.Apply(e)
			next++
		}
	}
	from := uint64(0)
	if len(history) > 0 {
		from = uint64(history[0].From)
	}
	if known := g.inForceFrom.Load(); from < known {
		r.unsure, rec.Damaged = true, true
		err := fmt.Errorf("it ends before a change of members that this node has known (slot %d, by %s): it is an old copy, or its disk has lost the rest; "+
			"where an old copy is meant, and no other node is left, remove that file", known, h.cfg.Mark)
		h.cfg.Logger.Error("the directory is old", "group", g.id, "dir", h.cfg.Dir, "err", err)
		return err
	}
	g.noteInForce(from)
	return nil
}
