package kv

import (
	"slices"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// lives is what a leader knows of the sessions that hold something: when each
// last gave a sign of life. A leadership begins with all of them fresh, because
// it does not know what its predecessor heard.
type lives struct {
	mu    sync.Mutex
	term  uint64 // leadership it belongs to, 0 for none
	ready bool   // holds every session that was opened before
	byID  map[sys.SessionID]*life
}

type life struct {
	ttl    time.Duration
	heard  time.Duration // Boot time
	ending bool          // its end was decided: nothing keeps it any more
}

// lead begins the table of a leadership. Sessions that are opened from now on
// are added by opened, those from before by begin.
func (l *lives) lead(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term, l.ready, l.byID = term, false, map[sys.SessionID]*life{}
}

// follow drops the table.
func (l *lives) follow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term, l.ready, l.byID = 0, false, nil
}

// leads says whether the table of a leadership is complete.
func (l *lives) leads(term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term == term && l.ready
}

// begin completes the table with the sessions found in the state.
func (l *lives) begin(term uint64, found map[sys.SessionID]time.Duration, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != term {
		return
	}
	for id, ttl := range found {
		if l.byID[id] == nil {
			l.byID[id] = &life{ttl: ttl, heard: now}
		}
	}
	l.ready = true
}

func (l *lives) opened(id sys.SessionID, ttl, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != 0 {
		l.byID[id] = &life{ttl: ttl, heard: now}
	}
}

// renew counts a sign of life. It fails for a session that does not exist or
// whose end was decided.
func (l *lives) renew(term uint64, id sys.SessionID, now time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.byID[id]
	if l.term != term || x == nil || x.ending {
		return false
	}
	x.heard = now
	return true
}

// expire decides the end of the sessions that were silent for too long, and
// returns all whose end is decided and not yet known to be done.
func (l *lives) expire(term uint64, now time.Duration) []sys.SessionID {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != term || !l.ready {
		return nil
	}
	var ids []sys.SessionID
	for id, x := range l.byID {
		x.ending = x.ending || now-x.heard > grace(x.ttl)
		if x.ending {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// ended forgets sessions that are gone from the state.
func (l *lives) ended(ids []sys.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		delete(l.byID, id)
	}
}
