package koinon

import (
	"io/fs"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Info describes a file, as of one moment. It implements fs.FileInfo and
// fs.DirEntry.
type Info struct {
	name string
	attr *metapb.Attr
}

var (
	_ fs.FileInfo = (*Info)(nil)
	_ fs.DirEntry = (*Info)(nil)
)

// Name returns the last name of the path, "/" for the root of the tree and "."
// for it in an FS.
func (i *Info) Name() string { return i.name }

// Size returns the length in bytes, of a symbolic link that of its target.
func (i *Info) Size() int64 {
	if n := len(i.attr.GetTarget()); n > 0 {
		return int64(n)
	}
	return int64(i.attr.GetSize())
}

// Mode returns the type and permissions.
func (i *Info) Mode() fs.FileMode { return modeOf(i.attr) }

// Type returns the type bits of Mode.
func (i *Info) Type() fs.FileMode { return i.Mode().Type() }

// Info returns i itself.
func (i *Info) Info() (fs.FileInfo, error) { return i, nil }

// IsDir reports whether this is a directory.
func (i *Info) IsDir() bool { return sys.FileType(i.attr.GetType()) == sys.TypeDir }

// ModTime returns when the bytes or entries were last changed.
func (i *Info) ModTime() time.Time { return time.Unix(0, i.attr.GetMtimeNs()) }

// AccessTime returns when the file was last read, as far as that is kept.
func (i *Info) AccessTime() time.Time { return time.Unix(0, i.attr.GetAtimeNs()) }

// ChangeTime returns when the attributes were last changed.
func (i *Info) ChangeTime() time.Time { return time.Unix(0, i.attr.GetCtimeNs()) }

// Ino returns the inode number.
func (i *Info) Ino() uint64 { return i.attr.GetIno() }

// UID returns the owner.
func (i *Info) UID() uint32 { return i.attr.GetUid() }

// GID returns the group.
func (i *Info) GID() uint32 { return i.attr.GetGid() }

// Links returns the number of names that the file has.
func (i *Info) Links() uint32 { return i.attr.GetNlink() }

// Device returns the device number of a device file, as mknod(2) takes it.
func (i *Info) Device() uint32 { return i.attr.GetRdev() }

// Version returns a number that every change of the bytes or entries raises.
func (i *Info) Version() uint64 { return i.attr.GetVersion() }

// Target returns the target of a symbolic link, "" of anything else.
func (i *Info) Target() string { return string(i.attr.GetTarget()) }

// Sys returns nil: everything there is has a method.
func (i *Info) Sys() any { return nil }

// String writes the entry as fs.FormatDirEntry does.
func (i *Info) String() string { return fs.FormatDirEntry(i) }

var typeModes = map[sys.FileType]fs.FileMode{
	sys.TypeFIFO:    fs.ModeNamedPipe,
	sys.TypeChar:    fs.ModeDevice | fs.ModeCharDevice,
	sys.TypeDir:     fs.ModeDir,
	sys.TypeBlock:   fs.ModeDevice,
	sys.TypeSymlink: fs.ModeSymlink,
	sys.TypeSocket:  fs.ModeSocket,
}

func modeOf(a *metapb.Attr) fs.FileMode {
	m := fs.FileMode(a.GetMode() & 0o777)
	for _, b := range specialBits {
		if a.GetMode()&b.bit != 0 {
			m |= b.mode
		}
	}
	return m | typeModes[sys.FileType(a.GetType())]
}

// modeBits is the inverse of modeOf for the permissions.
func modeBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for _, b := range specialBits {
		if m&b.mode != 0 {
			bits |= b.bit
		}
	}
	return bits
}

var specialBits = []struct {
	bit  uint32
	mode fs.FileMode
}{
	{sys.ModeSetuid, fs.ModeSetuid}, {sys.ModeSetgid, fs.ModeSetgid}, {sys.ModeSticky, fs.ModeSticky},
}
