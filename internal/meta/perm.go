package meta

import (
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// The bits of want: what a caller wants to do with an inode.
const (
	wantExec  = 1 // execute a file, search a directory
	wantWrite = 2
	wantRead  = 4
)

const (
	modeGroupExec = 0o010
)

// root reports whether the caller passes every check.
func (s *step) root() bool { return s.cred.GetUid() == 0 }

// owns reports whether the caller may do what only a file's owner may.
func (s *step) owns(a *metapb.Attr) bool { return s.root() || s.cred.GetUid() == a.Uid }

// inGroup reports whether the caller is a member of gid.
func (s *step) inGroup(gid uint32) bool {
	return s.cred.GetGid() == gid || slices.Contains(s.cred.GetGroups(), gid)
}

// allows reports whether the mode bits let the caller do all of want. The
// first class that fits counts, as in path_resolution(7).
func (s *step) allows(a *metapb.Attr, want uint32) bool {
	if s.root() {
		return true
	}
	bits := a.Mode
	switch {
	case s.cred.GetUid() == a.Uid:
		bits >>= 6
	case s.inGroup(a.Gid):
		bits >>= 3
	}
	return bits&want == want
}

// check refuses what the mode bits do not allow.
func (s *step) check(a *metapb.Attr, want uint32) error {
	if s.allows(a, want) {
		return nil
	}
	return refuse(sys.Access, sys.Ino(a.Ino), "")
}

// checkSticky refuses to take victim out of a sticky directory of others, as in
// unlink(2).
func (s *step) checkSticky(dir, victim *metapb.Attr) error {
	if dir.Mode&sys.ModeSticky == 0 || s.owns(dir) || s.owns(victim) {
		return nil
	}
	return refuse(sys.Permission, sys.Ino(victim.Ino), "it is another's, in a sticky directory")
}

// dropPrivileges clears setuid, and setgid where it is not a mark for mandatory
// locking, because the bytes or the owner changed.
func dropPrivileges(a *metapb.Attr) {
	a.Mode &^= sys.ModeSetuid
	if a.Mode&modeGroupExec != 0 {
		a.Mode &^= sys.ModeSetgid
	}
}

// wrote notes in a file's attributes that its bytes changed.
func (s *step) wrote(a *metapb.Attr) {
	a.MtimeNs, a.CtimeNs = s.now, s.now
	a.Version++
	if !s.root() {
		dropPrivileges(a)
	}
}
