package sys

import "math"

// FileType is the type of an inode, numbered as d_type of readdir(3).
type FileType uint8

// The types of inodes.
const (
	TypeFIFO    FileType = 1
	TypeChar    FileType = 2
	TypeDir     FileType = 4
	TypeBlock   FileType = 6
	TypeRegular FileType = 8
	TypeSymlink FileType = 10
	TypeSocket  FileType = 12
)

// Valid reports whether t is one of the types above.
func (t FileType) Valid() bool {
	switch t {
	case TypeFIFO, TypeChar, TypeDir, TypeBlock, TypeRegular, TypeSymlink, TypeSocket:
		return true
	}
	return false
}

// StatMode returns the S_IFMT bits of inode(7) for t.
func (t FileType) StatMode() uint32 { return uint32(t) << 12 }

// TypeOfMode returns the type in the S_IFMT bits of a mode.
func TypeOfMode(mode uint32) FileType { return FileType(mode >> 12 & 0xf) }

// TimeNs returns a time as the tree keeps it: ns since the epoch. Times before
// 1677 and after 2262 do not fit and become the first or last that does.
func TimeNs(sec, nsec int64) int64 {
	const limit = math.MaxInt64/1_000_000_000 - 1
	switch {
	case sec > limit:
		return math.MaxInt64
	case sec < -limit:
		return math.MinInt64
	}
	return sec*1_000_000_000 + nsec
}

// The permission bits beyond rwx, as in inode(7).
const (
	ModeSetuid = 0o4000
	ModeSetgid = 0o2000
	ModeSticky = 0o1000
	ModePerm   = 0o7777
)
