package koinon

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/koinon/koinon/internal/sys"
)

// removers is how many removals RemoveAll has under way at once.
const removers = 16

// RemoveAll removes name and everything below it. It succeeds when name is not
// there. Symbolic links are removed, not followed. It goes on after an error
// and returns the first.
func (c *Client) RemoveAll(ctx context.Context, name string) error {
	dir, last, err := c.parent(ctx, name)
	if err == nil {
		attr, lerr := c.fs.Lookup(ctx, c.cred, dir.ino, []byte(last))
		if err = lerr; err == nil {
			r := &remover{slots: make(chan struct{}, removers)}
			return r.remove(ctx, dir, last, attr.GetIno(), sys.FileType(attr.GetType()))
		}
	}
	if sys.Is(err, sys.NotExist) {
		return nil
	}
	return pathError("remove", name, err)
}

type remover struct {
	slots chan struct{} // a token for each goroutine
}

// remove removes one entry of a directory, and first everything below it.
func (r *remover) remove(ctx context.Context, dir *Dir, name string, ino uint64, typ sys.FileType) error {
	if ctx.Err() != nil {
		return pathError("remove", dir.join(name), context.Cause(ctx))
	}
	var err error
	if typ == sys.TypeDir {
		if err := r.empty(ctx, &Dir{c: dir.c, ino: sys.Ino(ino), path: dir.join(name)}); err != nil {
			return err
		}
		err = dir.c.fs.Rmdir(ctx, dir.c.cred, dir.ino, []byte(name))
	} else {
		err = dir.c.fs.Unlink(ctx, dir.c.cred, dir.ino, []byte(name))
	}
	if sys.Is(err, sys.NotExist) {
		return nil // somebody else was faster
	}
	return pathError("remove", dir.join(name), err)
}

// empty removes the entries of a directory, in as many goroutines as there are
// free slots, else in its own.
func (r *remover) empty(ctx context.Context, dir *Dir) error {
	var g errgroup.Group
	var first error
	for after, end := uint64(0), false; !end; {
		entries, last, err := dir.c.fs.ReadDir(ctx, dir.c.cred, dir.ino, after, listMax, false)
		if err != nil {
			first = pathError("readdir", dir.path, err)
			break
		}
		for _, e := range entries {
			after = e.GetCookie()
			one := func() error {
				return r.remove(ctx, dir, string(e.GetName()), e.GetIno(), sys.FileType(e.GetType()))
			}
			select {
			case r.slots <- struct{}{}:
				g.Go(func() error {
					defer func() { <-r.slots }()
					return one()
				})
			default:
				if err := one(); err != nil && first == nil {
					first = err
				}
			}
		}
		end = last || len(entries) == 0
	}
	if err := g.Wait(); first == nil {
		first = err
	}
	return first
}
