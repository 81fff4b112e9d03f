// Package envfs is the part of the seam between Koinon and the machine (package
// env) that is the disk: Pebble's vfs.FS, which has a real implementation and a
// crashable, fault-injecting one. It is apart because clients have no disk, and
// should not be linked with what Pebble's imports bring.
package envfs

import "github.com/cockroachdb/pebble/v2/vfs"

// FS is the disk.
type FS = vfs.FS

// Disk is the machine's own file system.
var Disk FS = vfs.Default

// Unsynced is a disk on which nothing is synced: what is written to it outlives the process that wrote it, and not the machine.
func Unsynced(fs FS) FS { return unsynced{fs} }

type unsynced struct{ FS }

// Create implements FS.
func (u unsynced) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return unsyncedFile(u.FS.Create(name, c))
}

// OpenReadWrite implements FS.
func (u unsynced) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return unsyncedFile(u.FS.OpenReadWrite(name, c, opts...))
}

// OpenDir implements FS.
func (u unsynced) OpenDir(name string) (vfs.File, error) { return unsyncedFile(u.FS.OpenDir(name)) }

// ReuseForWrite implements FS.
func (u unsynced) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return unsyncedFile(u.FS.ReuseForWrite(oldname, newname, c))
}

func unsyncedFile(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return file{f}, nil
}

// file is an open file without syncs.
type file struct{ vfs.File }

// Sync implements vfs.File.
func (file) Sync() error { return nil }

// SyncData implements vfs.File.
func (file) SyncData() error { return nil }

// SyncTo implements vfs.File.
func (file) SyncTo(int64) (fullSync bool, err error) { return false, nil }
