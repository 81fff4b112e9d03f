package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// Members returns who votes as far as this replica knows, a paxos.History,
// encoded; empty where it does not know.
func (g *Group) Members() []byte { return g.configs.Load().Encode() }

// Alone reports whether this replica takes itself for the only voter.
func (g *Group) Alone() bool { return g.host.alone(*g.configs.Load()) }

// Forgot reports whether this replica must have known what it does not know: by
// what it knows nobody else votes, and members, of another replica (Group.Members),
// have a later configuration in force. That cannot have been chosen without this
// one, so its directory is an old copy.
//
// It says nothing of a replica that one of several voters has: others may have
// chosen without it.
func (g *Group) Forgot(ctx context.Context, members []byte) (bool, error) {
	const op = sys.Op("replica.Forgot")
	if len(members) == 0 {
		return false, nil
	}
	told, err := paxos.DecodeHistory(members)
	if err != nil {
		return false, sys.E(op, sys.Invalid, err)
	}
	known := newAnswer[paxos.History]()
	g.call(func(paxos.Time) {
		if g.d.node == nil { // it asks the others as it is
			known.give(nil)
			return
		}
		known.give(append(g.d.node.Configs(), g.d.node.ConfigsAccepted()...))
	})
	switch g.host.cfg.Sched.Wait(nil, known.done, ctx.Done(), g.host.stop) {
	case env.GotA:
		own := known.v
		return len(own) == 1 && len(told) > 0 && g.host.alone(own) && told[0].From > own[0].From, nil
	case env.GotB:
		return false, sys.E(op, sys.Interrupted, ctx.Err())
	}
	return false, g.host.stopped(op)
}

// Disown notes that the directory is an old copy and stops the host, whose Err is
// then ErrOld. Nothing is acknowledged after that. The caller sees to it that the
// next Open has Config.Others. To a host that has failed it does nothing.
func (h *Host) Disown(why string) {
	h.disownMu.Lock()
	defer h.disownMu.Unlock()
	if h.Err() != nil {
		return
	}
	if err := writeFile(h.cfg.FS, h.cfg.FS.PathJoin(h.cfg.Dir, oldFile), []byte(why+"\n")); err != nil {
		h.cfg.Logger.Error("that the directory is an old copy could not be noted: "+h.wipeAdvice(), "dir", h.cfg.Dir, "err", err)
	}
	h.fail(sys.E(sys.Op("replica.Disown"), sys.Corrupt, sys.Subject(h.cfg.Dir), fmt.Errorf("%w: %s", ErrOld, why)))
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
	if len(h.cfg.Voters) == 1 && !h.cfg.Others {
		return false, sys.E(op, sys.Corrupt, sys.Subject(dir), fmt.Errorf("it is an old copy (%s): %s", strings.TrimSpace(string(why)), onlyAdvice))
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
		"dir", to, "why", strings.TrimSpace(string(why)))
	h.lock, err = lockDir(fs, dir)
	return err == nil, err
}
