package meta

import (
	"fmt"
	"math"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// An inode other than a directory that has lost its last link is in quarantine
// until its deadline: an entry of sys.QuarantineIno leads to it, its nlink is 0,
// and all else works as before through its number. That serves files that are
// open but unlinked, undelete (Restore), and mistakes.
//
// Cookies in the quarantine are in order of deadlines, so that Purge looks only
// at what has expired. An unlink gives out ascending even ones, near the
// deadline; KeepOpen, which is rare, takes the first free odd one from the
// deadline on.

// quarantineName is the name of an inode's entry in the quarantine.
func quarantineName(deadlineNs int64, ino sys.Ino) []byte {
	return fmt.Appendf(nil, "%016x-%016x", uint64(deadlineNs), uint64(ino))
}

// enterQuarantine files an inode that has no link any more. The caller writes
// its attributes.
func (s *step) enterQuarantine(a *metapb.Attr, parent sys.Ino, name []byte) error {
	retention, err := s.tx.Counter(CounterRetention, 0)
	if err != nil {
		return err
	}
	last, err := s.tx.Counter(CounterQuarantine, 0)
	if err != nil {
		return err
	}
	a.DeadlineNs = later(s.now, retention)
	cookie := max(last+2, a.DeadlineNs&^1, FirstCookie)
	if err := s.count(CounterQuarantine, cookie-last); err != nil {
		return err
	}
	return s.tx.SetDentry(sys.QuarantineIno, quarantineName(a.DeadlineNs, sys.Ino(a.Ino)), &metapb.Dentry{
		Ino: a.Ino, Type: a.Type, Cookie: uint64(cookie),
		Origin: &metapb.Origin{Parent: uint64(parent), Name: name, RemovedNs: s.now},
	})
}

// later adds a span of ns to a time, both not below zero, without overflow.
func later(ns, span int64) int64 {
	if span > math.MaxInt64-1-ns {
		return math.MaxInt64 - 1
	}
	return ns + span
}

// inQuarantine reports whether an inode can be kept or restored.
func inQuarantine(a *metapb.Attr) bool {
	return a != nil && a.Nlink == 0 && !isDir(a) && !a.Purging
}

// keepOpen extends deadlines. It never shortens one.
func (s *step) keepOpen(c *metapb.KeepOpen) (*metapb.Result, error) {
	res := &metapb.Result{}
	until := min(max(c.UntilNs, later(s.now, max(c.ForNs, 0))), math.MaxInt64-1)
	for _, ino := range c.Inos {
		a, err := s.tx.Inode(sys.Ino(ino))
		if err != nil {
			return nil, err
		}
		if !inQuarantine(a) {
			continue
		}
		res.Kept = append(res.Kept, ino)
		if until <= a.DeadlineNs {
			continue
		}
		if err := s.extend(a, until); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// extend files an inode of the quarantine under a later deadline.
func (s *step) extend(a *metapb.Attr, until int64) error {
	old := quarantineName(a.DeadlineNs, sys.Ino(a.Ino))
	d, err := s.quarantined(a)
	if err != nil {
		return err
	}
	if d.Cookie, err = s.oddCookie(uint64(until)); err != nil {
		return err
	}
	if err := s.tx.SetDentry(sys.QuarantineIno, old, nil); err != nil {
		return err
	}
	a.DeadlineNs = until
	if err := s.tx.SetDentry(sys.QuarantineIno, quarantineName(until, sys.Ino(a.Ino)), d); err != nil {
		return err
	}
	return s.tx.SetInode(sys.Ino(a.Ino), a)
}

// quarantined returns the entry of an inode of the quarantine.
func (s *step) quarantined(a *metapb.Attr) (*metapb.Dentry, error) {
	name := quarantineName(a.DeadlineNs, sys.Ino(a.Ino))
	d, err := s.tx.Dentry(sys.QuarantineIno, name)
	if err != nil {
		return nil, err
	}
	if d == nil { // fsck reports it; the inode gets an entry again
		d = &metapb.Dentry{Ino: a.Ino, Type: a.Type}
	}
	return d, nil
}

// oddCookie returns the first free odd cookie of the quarantine from ns on.
func (s *step) oddCookie(ns uint64) (uint64, error) {
	cookie := max(ns, FirstCookie) | 1
	err := s.tx.ScanDentries(sys.QuarantineIno, cookie-1, func(_ []byte, d *metapb.Dentry) bool {
		if d.Cookie > cookie {
			return false
		}
		if d.Cookie == cookie {
			cookie += 2
		}
		return true
	})
	return cookie, err
}

// purge frees what has expired, in steps of one inode or one chunk, or a few
// for a chunk of very many slices.
func (s *step) purge(c *metapb.Purge) (*metapb.Result, error) {
	limit := min(c.Limit, PurgeMax)
	if limit == 0 {
		return nil, refuse(sys.Invalid, sys.QuarantineIno, "a limit of no steps")
	}
	expired, err := s.expired(int(limit))
	if err != nil {
		return nil, err
	}
	steps := uint32(0)
	var dead []*metapb.Slice
	for _, e := range expired {
		if steps == limit {
			break
		}
		n, freed, err := s.purgeInode(e, limit-steps)
		if err != nil {
			return nil, err
		}
		steps += n
		dead = append(dead, freed...)
	}
	return &metapb.Result{Purged: steps}, s.free(dead, nil)
}

// expired returns the first entries of the quarantine whose deadline is over.
func (s *step) expired(limit int) ([]*metapb.Entry, error) {
	var list []*metapb.Entry
	var bad error
	err := s.tx.ScanDentries(sys.QuarantineIno, 0, func(name []byte, d *metapb.Dentry) bool {
		deadline, ino, ok := parseQuarantineName(name)
		if !ok || ino != sys.Ino(d.Ino) {
			bad = refuseName(sys.Corrupt, name, "an entry of the quarantine that is not named by deadline and inode")
			return false
		}
		if deadline >= s.now || len(list) == limit {
			return false
		}
		list = append(list, &metapb.Entry{Name: append([]byte(nil), name...), Ino: d.Ino})
		return true
	})
	if bad != nil {
		return nil, bad
	}
	return list, err
}

// parseQuarantineName is the way back from quarantineName.
func parseQuarantineName(name []byte) (deadlineNs int64, ino sys.Ino, ok bool) {
	if len(name) != 33 || name[16] != '-' {
		return 0, 0, false
	}
	d, ok1 := parseHex(name[:16])
	i, ok2 := parseHex(name[17:])
	return int64(d), sys.Ino(i), ok1 && ok2
}

// parseHex reads the digits that %016x writes.
func parseHex(digits []byte) (n uint64, ok bool) {
	for _, c := range digits {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

// purgeInode frees chunks of an inode, as many as limit allows, and then, when
// none is left, the inode. It returns how many steps it took, at most limit. An
// inode that is only partly freed is marked, so that nobody reads it as if it
// had holes.
func (s *step) purgeInode(e *metapb.Entry, limit uint32) (steps uint32, dead []*metapb.Slice, err error) {
	ino := sys.Ino(e.Ino)
	a, err := s.tx.Inode(ino)
	if err != nil {
		return 0, nil, err
	}
	if a == nil || a.Nlink > 0 { // fsck would have reported the entry
		return 1, nil, s.tx.SetDentry(sys.QuarantineIno, e.Name, nil)
	}
	var numbers []uint32
	err = s.tx.ScanChunks(ino, 0, func(n uint32, c *metapb.Chunk) bool {
		numbers = append(numbers, n)
		dead = append(dead, deadSlices(c.Slices, nil)...)
		steps += 1 + uint32(len(c.Slices)/freedRow)
		return steps < limit
	})
	if err != nil {
		return 0, nil, err
	}
	for _, n := range numbers {
		if err := s.tx.SetChunk(ino, n, nil); err != nil {
			return 0, nil, err
		}
	}
	if steps >= limit {
		a.Purging, a.Stored = true, 0 // nobody will ask
		return limit, dead, s.tx.SetInode(ino, a)
	}
	if err := s.tx.SetDentry(sys.QuarantineIno, e.Name, nil); err != nil {
		return 0, nil, err
	}
	return steps + 1, dead, s.erase(a)
}

// restore links an inode of the quarantine again.
func (s *step) restore(c *metapb.Restore) (*metapb.Result, error) {
	if !s.root() {
		return nil, refuse(sys.Permission, sys.Ino(c.Ino), "only root restores")
	}
	dir, existing, err := s.vacancy(sys.Ino(c.Parent), c.Name)
	if err != nil {
		return nil, err
	}
	if existing != nil {
		return nil, refuseName(sys.Exist, c.Name, "")
	}
	a, err := s.inode(sys.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	if !inQuarantine(a) {
		return nil, refuse(sys.Invalid, sys.Ino(c.Ino), "it is not in the quarantine")
	}

	if err := s.tx.SetDentry(sys.QuarantineIno, quarantineName(a.DeadlineNs, sys.Ino(a.Ino)), nil); err != nil {
		return nil, err
	}
	a.Nlink, a.DeadlineNs, a.CtimeNs = 1, 0, s.now
	if err := s.tx.SetInode(sys.Ino(a.Ino), a); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: a}, s.addEntry(dir, c.Name, a, nil)
}
