package vfs

import (
	"context"
	"strconv"
	"strings"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// linksMax is how many symbolic links one path may lead through, as in Linux.
const linksMax = 40

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

// Resolve returns what a path leads to. Paths start at the root of the tree,
// with or without a slash. follow says whether a symbolic link at the end is
// followed. NotExist, NotDir, Access, Loop, NameTooLong.
func (fs *FS) Resolve(ctx context.Context, cred *metapb.Cred, path string, follow bool) (*metapb.Attr, error) {
	at, name, err := fs.walk(ctx, cred, path, follow)
	if err != nil || name == "" {
		return at.attr, err
	}
	return fs.step(ctx, cred, at.attr, name, path)
}

// RealPath returns the path of what a path leads to that goes through no
// symbolic link, as realpath(3) does. Errors as of Resolve.
func (fs *FS) RealPath(ctx context.Context, cred *metapb.Cred, path string) (string, error) {
	at, name, err := fs.walk(ctx, cred, path, true)
	if err == nil && name != "" { // nothing is there
		_, err = fs.step(ctx, cred, at.attr, name, path)
	}
	if err != nil {
		return "", err
	}
	return "/" + strings.Join(at.names, "/"), nil
}

// ResolveParent returns the directory that a path's last name is in, and that
// name, which need not exist. Invalid when the path has no last name: "/", or
// one that ends in "..".
func (fs *FS) ResolveParent(ctx context.Context, cred *metapb.Cred, path string) (*metapb.Attr, string, error) {
	at, name, err := fs.walk(ctx, cred, strings.TrimRight(path, "/"), false)
	if err != nil {
		return nil, "", err
	}
	if name == "" {
		return nil, "", sys.E(sys.Op("vfs.Resolve"), sys.Invalid, sys.Subject(path), "the path has no last name")
	}
	if sys.FileType(at.attr.GetType()) != sys.TypeDir {
		return nil, "", sys.E(sys.Op("vfs.Resolve"), sys.NotDir, sys.Subject(path))
	}
	return at.attr, name, nil
}

// position is where a walk has come to.
type position struct {
	attr  *metapb.Attr
	names []string // from the root to it, no symbolic link among them
}

// walk goes down a path up to its last name, which it returns. When it had to
// go through the last name as well, because that is "..", or a symbolic link
// that is followed, or a slash follows it, the name is empty.
func (fs *FS) walk(ctx context.Context, cred *metapb.Cred, path string, follow bool) (at position, last string, err error) {
	if len(path) >= sys.PathMax {
		return position{}, "", sys.E(sys.Op("vfs.Resolve"), sys.NameTooLong, sys.Subject(path[:64]+"..."))
	}
	if at.attr, err = fs.GetAttr(ctx, cred, sys.RootIno); err != nil {
		return position{}, "", err
	}
	mustDir := strings.HasSuffix(path, "/")
	rest := split(path)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if len(rest) == 0 && name != ".." && !follow && !mustDir {
			return at, name, nil
		}
		next, err := fs.step(ctx, cred, at.attr, name, path)
		if err != nil {
			if len(rest) == 0 && sys.Is(err, sys.NotExist) {
				return at, name, nil // ResolveParent of what is to be made
			}
			return position{}, "", err
		}
		if sys.FileType(next.GetType()) != sys.TypeSymlink {
			at.attr, at.names = next, append(at.names, name)
			if name == ".." {
				at.names = at.names[:max(0, len(at.names)-2)]
			}
			continue
		}
		if links++; links > linksMax {
			return position{}, "", sys.E(sys.Op("vfs.Resolve"), sys.Loop, sys.Subject(path))
		}
		target := string(next.GetTarget())
		if strings.HasPrefix(target, "/") {
			if at.attr, err = fs.GetAttr(ctx, cred, sys.RootIno); err != nil {
				return position{}, "", err
			}
			at.names = nil
		}
		rest = append(split(target), rest...)
	}
	if mustDir && sys.FileType(at.attr.GetType()) != sys.TypeDir {
		return position{}, "", sys.E(sys.Op("vfs.Resolve"), sys.NotDir, sys.Subject(path))
	}
	return at, "", nil
}

// step goes from a directory to one of its names.
func (fs *FS) step(ctx context.Context, cred *metapb.Cred, dir *metapb.Attr, name, path string) (*metapb.Attr, error) {
	if sys.FileType(dir.GetType()) != sys.TypeDir {
		return nil, sys.E(sys.Op("vfs.Resolve"), sys.NotDir, sys.Subject(path))
	}
	if name == ".." {
		if sys.Ino(dir.GetIno()) == sys.RootIno {
			return dir, nil
		}
		return fs.GetAttr(ctx, cred, sys.Ino(dir.GetParent()))
	}
	attr, err := fs.Lookup(ctx, cred, sys.Ino(dir.GetIno()), []byte(name))
	if err != nil {
		return nil, sys.E(sys.Op("vfs.Resolve"), sys.Subject(path), err)
	}
	return attr, nil
}

// split returns the names of a path; empty ones and "." are left out.
func split(path string) []string {
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}
