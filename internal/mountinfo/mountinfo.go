// Package mountinfo tells what is mounted where, as proc_pid_mountinfo(5) has
// it, and so where the tree of a cluster is on this machine.
package mountinfo

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Mount is something mounted.
type Mount struct {
	Path   string // where
	Root   string // the part of the file system that is seen there: / for all of it
	Type   string
	Source string
}

// treeType and treeSource are how the tree of a cluster is mounted.
const (
	treeType   = "fuse.koinon"
	treeSource = "koinon:"
)

// TreeSource is the source of mounts of a cluster's tree.
func TreeSource(cluster string) string { return treeSource + cluster }

// Tree says whether it is the tree of a cluster.
func (m Mount) Tree() bool { return m.Type == treeType }

// Cluster is whose tree it is.
func (m Mount) Cluster() string { return strings.TrimPrefix(m.Source, treeSource) }

// InTree is the path in the tree of a path at or below the mount.
func (m Mount) InTree(p string) string {
	return path.Join("/", m.Root, strings.TrimPrefix(p, m.Path))
}

// List lists what is mounted in this process's namespace, in order: of two
// mounts on one path, the later one is seen. On systems other than Linux it is
// empty.
func List() ([]Mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return Parse(string(text)), nil
}

// Parse reads proc_pid_mountinfo(5) and leaves out lines that it does not
// understand.
func Parse(text string) []Mount {
	var mounts []Mount
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 2 {
			continue
		}
		mounts = append(mounts, Mount{Path: unescape(l[4]), Root: unescape(l[3]), Type: r[0], Source: unescape(r[1])})
	}
	return mounts
}

// unescape undoes the \040 by which the kernel writes blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Of returns the mount that a path is in. The path is absolute, clean and free
// of symbolic links.
func Of(mounts []Mount, p string) (Mount, bool) {
	best, found := Mount{}, false
	for _, m := range mounts {
		below := m.Path == p || m.Path == "/" || strings.HasPrefix(p, m.Path+"/")
		if below && (!found || len(m.Path) >= len(best.Path)) {
			best, found = m, true
		}
	}
	return best, found
}
