package mountinfo

import "golang.org/x/sys/unix"

// MayBeTree says whether List has to be looked at to know if a path is in a tree: a tree is a FUSE file
// system, of which statfs(2) tells. It is true when that cannot be told.
func MayBeTree(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) != nil || st.Type == unix.FUSE_SUPER_MAGIC
}
