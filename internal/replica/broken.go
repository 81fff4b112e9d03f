package replica

import (
	"fmt"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// brokenFile is the name of the file that says which rule this replica has found
// broken: it holds something that was never agreed, or somebody else does.
const brokenFile = "BROKEN"

// diverged is part of what a replica panics with whose digest is not the leader's.
const diverged = "has diverged"

// noteBroken, deferred, notes that a rule does not hold before the process ends
// of it, so that the next start does not go on as if nothing had been.
func (h *Host) noteBroken() {
	r := recover()
	if r == nil {
		return
	}
	if why, ok := r.(string); ok && (strings.HasPrefix(why, "paxos: ") || strings.Contains(why, diverged)) {
		if err := writeFile(h.cfg.FS, h.cfg.FS.PathJoin(h.cfg.Dir, brokenFile), []byte(why+"\n")); err != nil {
			h.cfg.Logger.Error("that this replica is broken could not be noted: do not start it again", "why", why, "err", err)
		}
	}
	panic(r)
}

// checkBroken refuses a directory whose replica has found a rule broken.
func (h *Host) checkBroken() error {
	name := h.cfg.FS.PathJoin(h.cfg.Dir, brokenFile)
	why, err := readFile(h.cfg.FS, name)
	if err != nil || why == nil {
		return err
	}
	return sys.E(sys.Op("replica.Open"), sys.Corrupt, sys.Subject(name), fmt.Errorf(
		"this replica has found that not all hold the same, and must not go on (%s): see what the others say; where a majority of them runs, %s",
		strings.TrimSpace(string(why)), h.wipeAdvice()))
}
