package replica

import (
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// checkMark reads the mark of an earlier start, which is one also when it is damaged. It refuses an empty directory of a node that has voted before
// and knows of nobody to learn from.
func (h *Host) checkMark(exists bool) error {
	const op = sys.Op("replica.Open")
	cfg := &h.cfg
	if cfg.Mark != "" {
		b, err := readFile(cfg.FS, cfg.Mark)
		if err != nil {
			return sys.E(op, sys.Subject(cfg.Mark), err)
		}
		switch id, err := decodeIdentity(b); {
		case b == nil:
		case err != nil: // that it is there tells enough
			h.marked = &identity{}
			h.wantMark.Store(true)
			cfg.Logger.Warn("the mark that this node has served is damaged, and is written anew", "mark", cfg.Mark, "err", err)
		case id.cluster == cfg.Cluster && id.node == cfg.Self:
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
	err := writeFile(h.cfg.FS, h.cfg.Mark, id.encode())
	if err != nil && !h.markFails {
		h.cfg.Logger.Warn("the loss of this node's directory could not be told from a first start: never start it on an empty one without rejoin", "err", err)
	}
	if h.markFails = err != nil; h.markFails {
		h.wantMark.Store(true) // maintain tries again
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
