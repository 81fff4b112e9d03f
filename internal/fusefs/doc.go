//go:build linux

// Package fusefs shows a vfs.FS as a mounted file system: FUSE requests become
// vfs calls, errors become errnos (errno.go). Node IDs are the tree's own inode
// numbers, so nothing is kept per lookup and a forget has nothing to do.
//
// # What the kernel decides
//
// The mount has default_permissions: the kernel checks permission, groups and
// capabilities of the caller against attributes that it asks for. fusefs
// therefore acts as root, except where the caller's identity is part of the
// result: new inodes belong to the caller, and what a caller without privilege
// writes loses setuid and setgid. So nothing is refused that the kernel has
// allowed, whatever supplementary groups and capabilities made it do so.
//
// flock(2) and fcntl(2) locks are the kernel's own: they hold among the
// processes of one mount, not between mounts.
//
// The writeback cache is off: each write(2) is a request, and the tree is told
// at flush. Attributes and entries are kept by the kernel only as long as the
// hooks in Options say, by default not at all. Pages of a file survive its
// closing only when nobody else has changed the file by its next open.
//
// Files opened with O_APPEND bypass the page cache, because the end of the file
// may have been moved by another mount since the kernel last asked.
//
// # Not supported
//
// POSIX ACLs, file capabilities (security.capability) and labels: they answer
// EOPNOTSUPP, respectively that there are none. O_TMPFILE. copy_file_range(2)
// is left to the kernel, which copies through the page cache.
package fusefs
