package sys

import (
	"fmt"
	"strconv"
)

// NodeID names one machine of a cluster. IDs start at 1 and are never reused;
// 0 means "no node".
type NodeID uint64

// String returns "n1" for node 1.
func (n NodeID) String() string { return "n" + strconv.FormatUint(uint64(n), 10) }

// GroupID names a set of Paxos replicas that keep one log. Group 0 is the root
// group, which holds the cluster's own state.
type GroupID uint64

// SessionID names a client as the cluster knows it; 0 means "no session".
type SessionID uint64

// Ino is an inode number. Numbers below FirstIno are reserved.
type Ino uint64

// The reserved inodes. They exist in every tree from its first command on.
const (
	// RootIno is the directory that mounts show as "/". FUSE wants it to be 1.
	RootIno Ino = 1
	// QuarantineIno is the hidden directory that holds unlinked inodes until
	// their retention is over.
	QuarantineIno Ino = 2
	// FreedIno is the hidden file whose chunks queue the slices whose blocks
	// may be deleted.
	FreedIno Ino = 3
	// PendingIno is the hidden file whose chunks record which session holds
	// which range of slice IDs that it has not yet committed.
	PendingIno Ino = 4
	// FirstIno is the first number given to a user's inode.
	FirstIno Ino = 16
)

// SliceID names one immutable run of bytes. Its low PGBits bits are the
// placement group that holds its blocks; 0 means "a hole: all zeroes".
type SliceID uint64

// PGBits is how many low bits of a SliceID carry its placement group.
const PGBits = 16

// PG is the number of a placement group.
type PG uint32

// NewSliceID joins a sequence number, unique in the cluster and at least 1,
// with a placement group below 1<<PGBits.
func NewSliceID(seq uint64, pg PG) SliceID {
	return SliceID(seq<<PGBits | uint64(pg)&(1<<PGBits-1))
}

// PlaceSlice returns the slice with a sequence number in a cluster of pgs
// placement groups: they are taken in turn, so that the number alone tells
// where a slice's blocks are.
func PlaceSlice(seq uint64, pgs int) SliceID { return NewSliceID(seq, PG(seq%uint64(pgs))) }

// PG returns the placement group that holds the slice's blocks.
func (s SliceID) PG() PG { return PG(s & (1<<PGBits - 1)) }

// Seq returns the sequence number of the slice.
func (s SliceID) Seq() uint64 { return uint64(s) >> PGBits }

// String returns "s<seq>.<pg>".
func (s SliceID) String() string { return fmt.Sprintf("s%d.%d", s.Seq(), s.PG()) }

// BlockKey names one block: the Index-th run of BlockSize bytes of a slice.
type BlockKey struct {
	Slice SliceID
	Index uint32
}

// String returns "s<seq>.<pg>/<index>".
func (k BlockKey) String() string { return fmt.Sprintf("%v/%d", k.Slice, k.Index) }

// Less orders keys by slice, then index.
func (k BlockKey) Less(o BlockKey) bool {
	if k.Slice != o.Slice {
		return k.Slice < o.Slice
	}
	return k.Index < o.Index
}

// The sizes of the tree, in bytes. They are part of the on-disk format.
const (
	// ChunkSize is the run of a file's address space that one chunk row covers.
	ChunkSize = 64 << 20
	// BlockSize is the most one block holds.
	BlockSize = 4 << 20
	// PageSize is the unit of checksums within a block.
	PageSize = 64 << 10
	// InlineMax is the largest file whose bytes live in its metadata.
	InlineMax = 64 << 10
)

// Limits of names and paths, in bytes, as in POSIX and Linux.
const (
	NameMax    = 255
	PathMax    = 4096
	SymlinkMax = 4095
	XattrName  = 255
	XattrValue = 64 << 10
	LinkMax    = 1 << 20
)
