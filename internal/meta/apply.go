package meta

import (
	"errors"
	"fmt"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Apply runs a command. Its answer is the same wherever and whenever it runs
// on the same tree. A refusal is in the Result, and the tree is untouched; an
// error is trouble of the engine, after which the Tx must be thrown away.
// The caller gives up the command; the Result shares memory with it.
func Apply(tx Tx, cmd *metapb.Command) (*metapb.Result, error) {
	s := &step{tx: tx, now: cmd.GetTimeNs(), cred: cmd.GetCred()}
	op, res, err := s.apply(cmd)
	if err == nil {
		return res, nil
	}
	if no, ok := errors.AsType[*refusal](err); ok {
		return &metapb.Result{Failure: no.failure(op)}, nil
	}
	return nil, fmt.Errorf("%s: %w", op, err)
}

// step is one command or query while it runs.
type step struct {
	tx   Tx
	now  int64 // ns since the epoch
	cred *metapb.Cred
}

func (s *step) apply(cmd *metapb.Command) (op string, res *metapb.Result, err error) {
	switch c := cmd.GetOp().(type) {
	case *metapb.Command_Mknod:
		op, res, err = does("meta.Mknod", s.mknod, c.Mknod)
	case *metapb.Command_Unlink:
		op, res, err = does("meta.Unlink", s.unlink, c.Unlink)
	case *metapb.Command_Rmdir:
		op, res, err = does("meta.Rmdir", s.rmdir, c.Rmdir)
	case *metapb.Command_Rename:
		op, res, err = does("meta.Rename", s.rename, c.Rename)
	case *metapb.Command_Link:
		op, res, err = does("meta.Link", s.link, c.Link)
	case *metapb.Command_SetAttr:
		op, res, err = does("meta.SetAttr", s.setAttr, c.SetAttr)
	case *metapb.Command_SetXattr:
		op, res, err = does("meta.SetXattr", s.setXattr, c.SetXattr)
	case *metapb.Command_RemoveXattr:
		op, res, err = does("meta.RemoveXattr", s.removeXattr, c.RemoveXattr)
	case *metapb.Command_Commit:
		op, res, err = does("meta.Commit", s.commit, c.Commit)
	case *metapb.Command_Fallocate:
		op, res, err = does("meta.Fallocate", s.fallocate, c.Fallocate)
	case *metapb.Command_Merge:
		op, res, err = does("meta.Merge", s.merge, c.Merge)
	default:
		return s.applyKeeping(cmd)
	}
	return op, res, err
}

// applyKeeping runs the commands that look after the tree, which users do not
// send.
func (s *step) applyKeeping(cmd *metapb.Command) (op string, res *metapb.Result, err error) {
	switch c := cmd.GetOp().(type) {
	case *metapb.Command_AllocSlices:
		op, res, err = keeps("meta.AllocSlices", s, s.allocSlices, c.AllocSlices)
	case *metapb.Command_AllocInos:
		op, res, err = keeps("meta.AllocInos", s, s.allocInos, c.AllocInos)
	case *metapb.Command_KeepOpen:
		op, res, err = keeps("meta.KeepOpen", s, s.keepOpen, c.KeepOpen)
	case *metapb.Command_Purge:
		op, res, err = keeps("meta.Purge", s, s.purge, c.Purge)
	case *metapb.Command_DropFreed:
		op, res, err = keeps("meta.DropFreed", s, s.dropFreed, c.DropFreed)
	case *metapb.Command_Format:
		op, res, err = does("meta.Format", s.format, c.Format)
	case *metapb.Command_EndSession:
		op, res, err = keeps("meta.EndSession", s, s.endSession, c.EndSession)
	case *metapb.Command_GiveUp:
		op, res, err = keeps("meta.GiveUp", s, s.giveUp, c.GiveUp)
	case *metapb.Command_Restore:
		op, res, err = does("meta.Restore", s.restore, c.Restore)
	case *metapb.Command_Load:
		op, res, err = does("meta.Load", s.loadTree, c.Load)
	default:
		return "meta.Apply", nil, &refusal{kind: sys.NotSupported, cause: "a command that this version does not know"}
	}
	return op, res, err
}

// does runs one kind of command. A command whose oneof is set but empty is as
// one whose fields are all zero.
func does[C any](op string, run func(*C) (*metapb.Result, error), c *C) (string, *metapb.Result, error) {
	if c == nil {
		c = new(C)
	}
	res, err := run(c)
	return op, res, err
}

// keeps is does for a command that names no inode: it is refused while there is
// no tree.
func keeps[C any](op string, s *step, run func(*C) (*metapb.Result, error), c *C) (string, *metapb.Result, error) {
	if err := s.ready(); err != nil {
		return op, nil, err
	}
	return does(op, run, c)
}

// format makes the root and the hidden inodes, once.
func (s *step) format(c *metapb.Format) (*metapb.Result, error) {
	root, err := s.tx.Inode(sys.RootIno)
	if err != nil {
		return nil, err
	}
	if root != nil {
		return &metapb.Result{Attr: root}, nil
	}
	for _, c := range []Counter{CounterLoad, CounterMoves} {
		if n, err := s.tx.Counter(c, 0); err != nil || n != 0 {
			if err == nil {
				err = notLoaded()
			}
			return nil, err
		}
	}
	if c.RetentionNs < 0 {
		return nil, refuse(sys.Invalid, sys.QuarantineIno, "a retention below zero")
	}
	root = s.newInode(sys.RootIno, sys.TypeDir, 0o755)
	root.Parent = uint64(sys.RootIno)
	quarantine := s.newInode(sys.QuarantineIno, sys.TypeDir, 0o700)
	quarantine.Parent = uint64(sys.QuarantineIno)
	for _, a := range []*metapb.Attr{
		root, quarantine,
		s.newInode(sys.FreedIno, sys.TypeRegular, 0o600),
		s.newInode(sys.PendingIno, sys.TypeRegular, 0o600),
	} {
		a.Uid, a.Gid = 0, 0
		if err := s.tx.SetInode(sys.Ino(a.Ino), a); err != nil {
			return nil, err
		}
	}
	if err := s.count(CounterIno, int64(sys.FirstIno)-1); err != nil {
		return nil, err
	}
	if err := s.count(CounterRetention, c.RetentionNs); err != nil {
		return nil, err
	}
	if err := s.count(CounterInodes, 1); err != nil {
		return nil, err
	}
	return &metapb.Result{Attr: root}, nil
}

// newInode returns the attributes of an inode that is not yet stored. A
// directory has the two links of an empty one.
func (s *step) newInode(ino sys.Ino, typ sys.FileType, mode uint32) *metapb.Attr {
	a := &metapb.Attr{
		Ino: uint64(ino), Type: uint32(typ), Mode: mode, Uid: s.cred.GetUid(), Gid: s.cred.GetGid(), Nlink: 1,
		AtimeNs: s.now, MtimeNs: s.now, CtimeNs: s.now, Version: 1,
	}
	if typ == sys.TypeDir {
		a.Nlink, a.NextCookie = 2, FirstCookie
	}
	return a
}

// count adds to a counter.
func (s *step) count(name Counter, delta int64) error {
	if delta == 0 {
		return nil
	}
	_, err := s.tx.Counter(name, delta)
	return err
}

// hidden reports whether ino is one that no user may name.
func hidden(ino sys.Ino) bool { return ino < sys.FirstIno && ino != sys.RootIno }

// inode returns an inode that a command may change. It is Stale when it is
// gone or going.
func (s *step) inode(ino sys.Ino) (*metapb.Attr, error) {
	if hidden(ino) {
		return nil, refuse(sys.Permission, ino, "a hidden inode of the tree")
	}
	a, err := s.tx.Inode(ino)
	if err != nil {
		return nil, err
	}
	if a == nil || a.Purging {
		return nil, missing(ino, sys.Stale, "it was deleted")
	}
	return a, nil
}

// dir returns the directory in which a command names an entry. It is NotExist
// when it is gone, as for a process whose working directory was removed.
func (s *step) dir(ino sys.Ino) (*metapb.Attr, error) {
	if hidden(ino) {
		return nil, refuse(sys.Permission, ino, "a hidden inode of the tree")
	}
	a, err := s.tx.Inode(ino)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, missing(ino, sys.NotExist, "the directory was deleted")
	}
	if !isDir(a) {
		return nil, refuse(sys.NotDir, ino, "")
	}
	return a, nil
}

// target returns the inode that a dentry names, which must exist.
func (s *step) target(parent sys.Ino, name []byte, d *metapb.Dentry) (*metapb.Attr, error) {
	a, err := s.tx.Inode(sys.Ino(d.Ino))
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, refuseName(sys.Corrupt, name,
			fmt.Sprintf("an entry of inode %d leads to inode %d, which does not exist: koinon fsck tells more", parent, d.Ino))
	}
	return a, nil
}

func isDir(a *metapb.Attr) bool { return a.Type == uint32(sys.TypeDir) }

func isRegular(a *metapb.Attr) bool { return a.Type == uint32(sys.TypeRegular) }

// touchDir notes in a directory's attributes that its entries changed.
func (s *step) touchDir(dir *metapb.Attr) {
	dir.MtimeNs, dir.CtimeNs = s.now, s.now
	dir.Version++
}

// checkName refuses what cannot be a name in a directory.
func checkName(name []byte) error {
	if len(name) > sys.NameMax {
		return refuseName(sys.NameTooLong, name, "a name has at most 255 bytes")
	}
	if len(name) == 0 || string(name) == "." || string(name) == ".." {
		return refuseName(sys.Invalid, name, "not the name of an entry")
	}
	for _, b := range name {
		if b == '/' || b == 0 {
			return refuseName(sys.Invalid, name, "a name has neither '/' nor NUL")
		}
	}
	return nil
}
