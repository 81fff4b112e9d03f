//go:build linux

package fusefs

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// isRefusedXattr reports whether an attribute is one of those that would have
// to have an effect which they do not have here: file capabilities, labels,
// ACLs. To answer without a look also saves what ls(1) would ask per file.
func isRefusedXattr(name string) bool {
	return strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "system.")
}

// GetXAttr is of fuse.RawFileSystem. An empty dest asks for the size.
func (r *rawFS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	ctx := r.begin(cancel)
	defer ctx.end()
	if isRefusedXattr(name) {
		if strings.HasPrefix(name, "system.") {
			return 0, fuse.Status(syscall.EOPNOTSUPP)
		}
		return 0, fuse.ENODATA
	}
	value, err := r.fs.GetXattr(ctx, r.root, sys.Ino(h.NodeId), []byte(name))
	if err != nil {
		return 0, r.status(err)
	}
	return answerXattr(dest, value)
}

// answerXattr copies value to dest, or tells its size when dest is too small.
func answerXattr(dest, value []byte) (uint32, fuse.Status) {
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// ListXAttr is of fuse.RawFileSystem: the names, each with a NUL after it.
func (r *rawFS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	ctx := r.begin(cancel)
	defer ctx.end()
	names, err := r.fs.ListXattr(ctx, r.root, sys.Ino(h.NodeId))
	if err != nil {
		return 0, r.status(err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return answerXattr(dest, list)
}

// SetXAttr is of fuse.RawFileSystem.
func (r *rawFS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	if isRefusedXattr(name) {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	const create, replace = 1, 2
	return r.status(r.fs.SetXattr(ctx, r.root, &metapb.SetXattr{
		Ino: in.NodeId, Name: []byte(name), Value: data,
		Create: in.Flags&create != 0, Replace: in.Flags&replace != 0}))
}

// RemoveXAttr is of fuse.RawFileSystem.
func (r *rawFS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx := r.begin(cancel)
	defer ctx.end()
	if isRefusedXattr(name) {
		return fuse.ENODATA
	}
	return r.status(r.fs.RemoveXattr(ctx, r.root, sys.Ino(h.NodeId), []byte(name)))
}
