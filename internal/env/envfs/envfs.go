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
