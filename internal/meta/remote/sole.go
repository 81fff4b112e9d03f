package remote

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// soleMax bounds the directories that one session has to itself.
	soleMax = 4096
	// soleIdle is how long ago a session made something in a directory that it
	// is asked for together with another one, so that a walk by somebody else
	// does not wait for each directory in turn.
	soleIdle = 100 * time.Millisecond
	// soleRest is how long a directory that two sessions want is nobody's.
	soleRest = time.Second
)

// sole is a directory that one session has to itself: no other finds, lists,
// makes or removes names in it before the session has given it up, and by then
// has made what it had promised to make.
type sole struct {
	holder *holder
	used   time.Duration // Boot time of the last file that the leader saw made in it
	recall *revocation   // asked back; nil while nobody else wants it
}

// use counts the requests under way on a directory: those of one session, and
// those of all others.
type use struct {
	session sys.SessionID
	own     int
	others  int
}

// enter waits until none of dirs is another session's alone, and keeps them
// from becoming so until leave. It fails as barrier does.
func (l *leases) enter(ctx context.Context, term uint64, session sys.SessionID, dirs []sys.Ino) (leave func(), err error) {
	for {
		l.mu.Lock()
		if l.term != term {
			l.mu.Unlock()
			return nil, errNotLeading
		}
		waits := l.recall(session, dirs)
		if len(waits) == 0 {
			l.count(session, dirs, 1)
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.count(session, dirs, -1)
			}, nil
		}
		l.mu.Unlock()
		for _, r := range waits {
			if err := l.await(ctx, r); err != nil {
				return nil, err
			}
		}
	}
}

// othersAlone says whether one of dirs is the sole use of another session.
func (l *leases) othersAlone(session sys.SessionID, dirs []sys.Ino) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, dir := range dirs {
		if s := l.soles[dir]; s != nil && s.holder.session != session {
			return true
		}
	}
	return false
}

// anyAlone says whether any directory is the sole use of another session.
func (l *leases) anyAlone(session sys.SessionID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.soles {
		return s.holder.session != session || len(l.soles) > len(s.holder.soles)
	}
	return false
}

// count notes that delta more requests of a session use dirs.
func (l *leases) count(session sys.SessionID, dirs []sys.Ino, delta int) {
	for _, dir := range dirs {
		u, known := l.uses[dir]
		if !known {
			u.session = session
		}
		if u.session == session {
			u.own += delta
		} else {
			u.others += delta
		}
		if u.own == 0 && u.others == 0 {
			delete(l.uses, dir)
		} else {
			l.uses[dir] = u
		}
	}
}

// recall asks for those of dirs that are another session's, and for what else
// that session seems to be done with, and returns what to wait for.
func (l *leases) recall(session sys.SessionID, dirs []sys.Ino) (waits []*revocation) {
	for _, dir := range dirs {
		s := l.soles[dir]
		if s == nil || s.holder.session == session {
			continue
		}
		if s.recall == nil {
			l.askBack(dir, s)
			for idle := range s.holder.soles {
				if o := l.soles[idle]; o.recall == nil && l.clock.Boot()-o.used >= soleIdle {
					l.askBack(idle, o)
				}
			}
		}
		waits = append(waits, s.recall)
	}
	return waits
}

func (l *leases) askBack(dir sys.Ino, s *sole) {
	s.recall = &revocation{ino: dir, open: map[*holder]int{}, closed: make(chan struct{})}
	l.enqueue(s.holder, s.recall)
}

// grantSole gives session those of dirs to itself that it has a lease on,
// nobody else has one on, and nobody else is about to use.
func (l *leases) grantSole(term uint64, session sys.SessionID, dirs []uint64) (granted []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[session]
	if h == nil || h.reset || l.term != term {
		return nil
	}
	now := l.clock.Boot()
	for _, d := range dirs {
		dir := sys.Ino(d)
		s := l.soles[dir]
		switch {
		case s != nil && (s.holder != h || s.recall != nil):
			continue
		case s != nil:
			s.used = now
		case len(h.soles) >= soleMax:
			for idle := range h.soles { // makes room for the next
				if o := l.soles[idle]; o.recall == nil && now-o.used >= soleIdle {
					l.askBack(idle, o)
				}
			}
			continue
		case !l.alone(h, dir) || now < l.rest[touchSlot(dir)]:
			continue
		default:
			l.soles[dir] = &sole{holder: h, used: now}
			h.soles[dir] = struct{}{}
		}
		granted = append(granted, d)
	}
	return granted
}

// alone says whether h is the only session that caches dir or is about to.
func (l *leases) alone(h *holder, dir sys.Ino) bool {
	u := l.uses[dir]
	holders := l.byIno[dir]
	return len(holders) == 1 && holders[0] == h && l.pending[dir] == nil &&
		u.others == 0 && (u.own == 0 || u.session == h.session)
}

// giveBack ends a sole use.
func (l *leases) giveBack(dir sys.Ino, s *sole) {
	delete(l.soles, dir)
	delete(s.holder.soles, dir)
	l.rest[touchSlot(dir)] = l.clock.Boot() + soleRest
}

// clear waits until no session can have promised, under an earlier leader, to
// make a file that it has not made yet. It fails as settle does.
func (l *leases) clear(ctx context.Context, term uint64) error {
	return l.waitFor(ctx, term, func() chan struct{} { return l.promises.done })
}

// sessionSet is sessions that something is awaited of.
type sessionSet struct {
	left map[sys.SessionID]bool
	done chan struct{} // closed when none is left
}

func awaitAll(sessions []sys.SessionID) sessionSet {
	s := sessionSet{left: make(map[sys.SessionID]bool, len(sessions)), done: make(chan struct{})}
	for _, id := range sessions {
		s.left[id] = true
	}
	if len(s.left) == 0 {
		close(s.done)
	}
	return s
}

func (s *sessionSet) arrived(session sys.SessionID) {
	if !s.left[session] {
		return
	}
	delete(s.left, session)
	if len(s.left) == 0 {
		close(s.done)
	}
}

// namesOf lists the directories in which a command finds or changes names, and
// the inodes that it changes by number.
func namesOf(cmd *metapb.Command) []sys.Ino {
	var inos []uint64
	switch op := cmd.Op.(type) {
	case *metapb.Command_Mknod:
		inos = []uint64{op.Mknod.GetParent()}
	case *metapb.Command_Unlink:
		inos = []uint64{op.Unlink.GetParent()}
	case *metapb.Command_Rmdir:
		inos = []uint64{op.Rmdir.GetParent()}
	case *metapb.Command_Rename:
		inos = []uint64{op.Rename.GetParent(), op.Rename.GetNewParent()}
	case *metapb.Command_Link:
		inos = []uint64{op.Link.GetParent()}
	case *metapb.Command_Restore:
		inos = []uint64{op.Restore.GetParent()}
	case *metapb.Command_SetAttr:
		inos = []uint64{op.SetAttr.GetIno()}
	case *metapb.Command_SetXattr:
		inos = []uint64{op.SetXattr.GetIno()}
	case *metapb.Command_RemoveXattr:
		inos = []uint64{op.RemoveXattr.GetIno()}
	}
	out := make([]sys.Ino, len(inos), len(inos)+1)
	for n, ino := range inos {
		out[n] = sys.Ino(ino)
	}
	return out
}

// removes returns the name whose inode a command may take away although it is
// a directory; nil when there is none.
func removes(cmd *metapb.Command) *metapb.Lookup {
	switch op := cmd.Op.(type) {
	case *metapb.Command_Rmdir:
		return &metapb.Lookup{Parent: op.Rmdir.GetParent(), Name: op.Rmdir.GetName()}
	case *metapb.Command_Rename:
		return &metapb.Lookup{Parent: op.Rename.GetNewParent(), Name: op.Rename.GetNewName()}
	}
	return nil
}

// asksOf lists the directories that a query asks about by number.
func asksOf(q *metapb.Query) []sys.Ino {
	switch op := q.Op.(type) {
	case *metapb.Query_Lookup:
		return []sys.Ino{sys.Ino(op.Lookup.GetParent())}
	case *metapb.Query_ReadDir:
		return []sys.Ino{sys.Ino(op.ReadDir.GetIno())}
	case *metapb.Query_GetAttr:
		return []sys.Ino{sys.Ino(op.GetAttr.GetIno())}
	case *metapb.Query_Access:
		return []sys.Ino{sys.Ino(op.Access.GetIno())}
	}
	return nil
}
