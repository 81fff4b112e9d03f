package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// oldFile is the name of the file that says that this directory is an old copy, in
// which things may have been decided since that the others know nothing of.
const oldFile = "OLD"

// ErrOld is why a host has stopped that was told that its directory is an old copy
// (Host.Disown). The next Open puts the directory aside and begins with an empty
// one, as with Config.Rejoin.
var ErrOld = errors.New("the directory of this replica is an old copy: its group has gone on without it")

// How old a directory is, is told by its parts (matchLog), by the mark outside of
// it (matchMark), and by others (Forgot). Where it names this node alone, no part
// of it that is whole says who could know more (doubtMembers).

// matchLog compares how far the state and the log are: either may be older than
// the other.
func (g *Group) matchLog(r *replayed, damaged error) {
	h, rec, from := g.host, &g.d.recovered, r.state.truncated
	if placed := g.applier.members.placed; placed == r.state.placing {
		from = max(from, placed) // a snapshot was put in place, and the log was perhaps not told
	}
	applied := uint64(rec.Applied)
	switch {
	case rec.Truncated > rec.Applied:
		h.cfg.Logger.Error("the state is older than the log allows: it is fetched from the others", "group", g.id,
			"applied", applied, "truncated", r.state.truncated)
		rec.Truncated, rec.Damaged = rec.Applied, true
	case !h.log.Holds(uint64(g.id), from+1, applied):
		if rec.Truncated, rec.Damaged = rec.Applied, true; damaged == nil {
			h.cfg.Logger.Error("the log has lost what the state was made of", "group", g.id, "applied", applied)
			r.unsure = true
		}
	case rec.Damaged: // what is left of a slot may be older than what was chosen there: nobody is told of it (View)
		rec.Truncated = rec.Applied
	default:
		rec.Truncated = paxos.Slot(from)
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

// doubtMembers forgets who votes when something has been lost and the state names
// this node alone: it may be an old one. It is an error where there are no others
// to ask.
func (g *Group) doubtMembers(damaged error) error {
	h, rec := g.host, &g.d.recovered
	switch {
	case !rec.Damaged || !h.alone(rec.Configs):
		return nil
	case !h.cfg.Others:
		return sys.E(sys.Op("replica.Open"), sys.Corrupt, sys.Subject(h.cfg.Dir),
			fmt.Errorf("%w; %s", cmp.Or(damaged, errors.New("what was durable is lost")), h.wipeAdvice()))
	}
	rec.Configs, g.applier.members.history = nil, nil
	g.setConfigs(nil)
	return nil
}

// View is what a replica tells another of what has been chosen.
type View struct {
	Members []byte // who votes, a paxos.History, encoded; empty where that is not known
	Chosen  uint64 // all slots up to here
	// Slot is the last of these with a command, of which Sum is the FNV-1a; 0 where
	// none is near.
	Slot, Sum uint64
}

// Beside reports whether others than one node vote.
func (v View) Beside(id sys.NodeID) bool {
	members, err := v.members()
	return err == nil && slices.ContainsFunc(electorate(members), func(o sys.NodeID) bool { return o != id })
}

func (v View) members() (paxos.History, error) {
	if len(v.Members) == 0 {
		return nil, nil
	}
	h, err := paxos.DecodeHistory(v.Members)
	if err != nil {
		return nil, sys.E(sys.Op("replica.View"), sys.Invalid, err)
	}
	return h, nil
}

// Members returns who votes as far as this replica knows, as View has it.
func (g *Group) Members() []byte { return g.configs.Load().Encode() }

// View returns what is known here.
func (g *Group) View() View {
	v := View{Members: g.Members(), Chosen: g.Status().Chosen}
	for slot := v.Chosen; slot > 0 && v.Chosen-slot < 2*alpha; slot-- {
		if sum, ok := g.commandAt(slot); ok {
			v.Slot, v.Sum = slot, sum
			break
		}
	}
	return v
}

// commandAt returns the FNV-1a of the command in a slot of the log. Two commands
// are never the same: each has its origin.
func (g *Group) commandAt(slot uint64) (sum uint64, ok bool) {
	entries, err := groupLog{g.host.log, uint64(g.id)}.Entries(paxos.Slot(slot), paxos.Slot(slot)+1, 1)
	if err != nil || len(entries) == 0 || entries[0].Kind != paxos.Command {
		return 0, false
	}
	h := fnv.New64a()
	_, _ = h.Write(entries[0].Data) // it has no errors
	return h.Sum64(), true
}

// Alone reports whether this replica takes itself for the only voter.
func (g *Group) Alone() bool { return g.host.alone(*g.configs.Load()) }

// Forgot reports whether this replica must have known what it does not know: by
// what it knows nobody else votes, and another one knows of a later configuration
// in force, or of chosen slots of which there is nothing here, or another command.
// That cannot have been chosen without this one, so its directory is an old copy.
//
// It says nothing of one of several voters: the others may have chosen without it.
func (g *Group) Forgot(ctx context.Context, told View) (bool, error) {
	const op = sys.Op("replica.Forgot")
	members, err := told.members()
	if err != nil || len(members) == 0 {
		return false, err
	}
	return g.judge(ctx, op, func(st *paxos.Status) bool {
		own := append(st.Configs, g.d.node.ConfigsAccepted()...)
		if len(own) != 1 || !g.host.alone(own) || st.Damaged {
			return false
		}
		sum, known := g.commandAt(told.Slot)
		return members[0].From > own[0].From || told.Chosen > uint64(st.Last) ||
			// What is logged above chosen may never have been chosen where others decided.
			known && sum != told.Sum && (paxos.Slot(told.Slot) <= st.Chosen || paxos.Slot(told.Slot) >= own[0].From)
	})
}

// Differs reports whether another command is known here to be chosen in the slot of
// which another replica tells one: the two are of histories that have gone on apart
// from each other. A slot that is not known yet, or no more, tells nothing.
func (g *Group) Differs(ctx context.Context, told View) (bool, error) {
	return g.judge(ctx, "replica.Differs", func(st *paxos.Status) bool {
		if st.Damaged || told.Slot == 0 || paxos.Slot(told.Slot) > st.Chosen {
			return false
		}
		sum, known := g.commandAt(told.Slot)
		return known && sum != told.Sum
	})
}

// judge asks the driver something of what it knows.
func (g *Group) judge(ctx context.Context, op sys.Op, what func(*paxos.Status) bool) (bool, error) {
	is := newAnswer[bool]()
	g.call(func(paxos.Time) {
		if g.d.node == nil { // it asks the others as it is
			is.give(false)
			return
		}
		st := g.d.node.Status()
		is.give(what(&st))
	})
	switch g.host.cfg.Sched.Wait(nil, is.done, ctx.Done(), g.host.stop) {
	case env.GotA:
		return is.v, nil
	case env.GotB:
		return false, sys.E(op, sys.Interrupted, ctx.Err())
	}
	return false, g.host.stopped(op)
}

// Disown stops the host of a directory that is an old copy, as why tells. Where it
// can return from others, which mend says, that is noted, Err is then ErrOld, and the
// next Open, which has to have Config.Others, begins with an empty directory. Else
// all stays as it is. Nothing is acknowledged after that. To a host that has failed
// it does nothing.
func (h *Host) Disown(why string, mend bool) {
	h.disownMu.Lock()
	defer h.disownMu.Unlock()
	if h.Err() != nil {
		return
	}
	op, subject := sys.Op("replica.Disown"), sys.Subject(h.cfg.Dir)
	if !mend {
		h.fail(sys.E(op, sys.Invalid, subject, why))
		return
	}
	err := writeFile(h.cfg.FS, h.cfg.FS.PathJoin(h.cfg.Dir, oldFile), []byte(why+"\n"))
	if err != nil {
		h.fail(sys.E(op, sys.Invalid, subject, fmt.Errorf("it is an old copy (%s), which could not be noted in it: move it away, and start the node with --rejoin: %w", why, err)))
		return
	}
	h.fail(sys.E(op, sys.Invalid, subject, fmt.Errorf("%w: %s", ErrOld, why)))
}

// setAside puts a directory away that was found to be an old copy. It is kept:
// what was acknowledged in it alone is nowhere else. done says that there is an
// empty one in its place, locked.
func (h *Host) setAside() (done bool, err error) {
	fs, dir := h.cfg.FS, h.cfg.Dir
	why, err := readFile(fs, fs.PathJoin(dir, oldFile))
	if err != nil || why == nil {
		return false, err
	}
	const op = sys.Op("replica.Open")
	reason := strings.ToValidUTF8(strings.TrimSpace(string(why[:min(len(why), 500)])), "?")
	if len(h.cfg.Voters) == 1 && !h.cfg.Others {
		return false, sys.E(op, sys.Corrupt, sys.Subject(dir), fmt.Errorf("it is an old copy (%q): %s", reason, onlyAdvice))
	}
	to := ""
	for n := 1; ; n++ {
		to = fmt.Sprintf("%s.old-%d", dir, n)
		if _, err := fs.Stat(to); isNotExist(err) {
			break
		} else if err != nil {
			return false, sys.E(op, sys.Subject(to), err)
		}
	}
	err = h.lock.Close()
	h.lock = nil
	if err == nil {
		err = fs.Rename(dir, to)
	}
	if err == nil {
		err = syncDir(fs, fs.PathDir(dir))
	}
	if err != nil {
		return false, sys.E(op, sys.Subject(dir), fmt.Errorf("the old copy cannot be put aside as %s, move its files away by hand: %w", to, err))
	}
	h.cfg.Logger.Warn("the directory was an old copy and is kept; what was written through this node while it did not hear of the others is there alone, else remove it",
		"dir", to, "why", reason)
	h.lock, err = lockDir(fs, dir)
	return err == nil, err
}
