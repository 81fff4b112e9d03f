package koinon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/sys"
)

// Located says where the bytes of a file are, or of the files below a
// directory.
type Located struct {
	// Bytes is how many bytes each node holds; every copy counts. The bytes of
	// small files live with the metadata, on all nodes: they are in Total only.
	Bytes   map[uint64]int64 `json:"bytes"`
	Total   int64            `json:"total"` // sum of the lengths
	Files   int              `json:"files"` // looked at
	Sampled bool             `json:"sampled,omitempty"`
}

// Looking at a directory ends at whichever comes first.
const (
	locateFiles = 2000
	locateTime  = 2 * time.Second
)

// locateWorkers is how many files are looked at at once.
const locateWorkers = 16

// Locate tells which nodes hold the bytes of what name leads to. Of a large
// directory it looks at some files, and says so by Sampled; of a very long file
// at the first 16 GiB.
func (c *Client) Locate(ctx context.Context, name string) (Located, error) {
	info, err := c.Stat(ctx, name)
	if err != nil {
		return Located{}, err
	}
	l := &locating{c: c, found: Located{Bytes: map[uint64]int64{}}, until: time.Now().Add(locateTime)}
	if !info.IsDir() {
		err = l.file(ctx, info)
	} else {
		var d *Dir
		if d, err = c.OpenDir(ctx, name); err == nil {
			err = l.dir(ctx, d)
		}
	}
	return l.found, pathError("locate", name, err)
}

// locating is one run of Locate.
type locating struct {
	c     *Client
	until time.Time

	mu    sync.Mutex
	found Located
}

// more claims one more file to look at.
func (l *locating) more() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.found.Files >= locateFiles || time.Now().After(l.until) {
		l.found.Sampled = true
		return false
	}
	l.found.Files++
	return true
}

func (l *locating) dir(ctx context.Context, d *Dir) error {
	infos, err := d.List(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(locateWorkers)
	for _, info := range infos {
		if info.Mode().IsRegular() {
			g.Go(func() error { return l.file(gctx, info) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, info := range infos {
		if info.IsDir() && !l.sampled() {
			if err := l.dir(ctx, d.Sub(info)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *locating) sampled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.found.Sampled
}

func (l *locating) file(ctx context.Context, info *Info) error {
	if !l.more() {
		return nil
	}
	at, err := l.c.located(ctx, info)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found.Total += info.Size()
	for node, n := range at {
		l.found.Bytes[node] += n
	}
	return nil
}

// located tells where the bytes of one file are; nil where that is not known.
func (c *Client) located(ctx context.Context, info *Info) (map[uint64]int64, error) {
	if c.locate == nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, nil
	}
	held, err := c.locate(ctx, sys.Ino(info.Ino()))
	if err != nil {
		return nil, err
	}
	at := make(map[uint64]int64, len(held))
	for node, n := range held {
		at[uint64(node)] = n
	}
	return at, nil
}

// Items expands a pattern (path.Match, element by element; an absolute path in
// the tree) to the items of a job: as paths from the working directory dir on,
// in name order, each with where its bytes are. Names that begin with a dot are
// matched by patterns that do. A pattern that ends in a slash matches
// directories, and links to them. That nothing matches is an error.
func (c *Client) Items(ctx context.Context, pattern, dir string) ([]Item, error) {
	paths, infos, err := c.glob(ctx, pattern)
	if err != nil {
		return nil, err
	}
	switch {
	case len(paths) == 0:
		return nil, pathError("expand", pattern, sys.E(sys.NotExist, "nothing in the tree matches"))
	case len(paths) > proc.ArrayMax:
		return nil, pathError("expand", pattern, sys.E(sys.Invalid, fmt.Sprintf("%d files match, more than the %d tasks that a job may have: use several jobs, or one task for a directory", len(paths), proc.ArrayMax)))
	}
	items := make([]Item, len(paths))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(locateWorkers)
	for i, p := range paths {
		g.Go(func() (err error) {
			items[i].Text, err = filepath.Rel(path.Join("/", dir), p)
			items[i].Text = filepath.ToSlash(items[i].Text)
			if err == nil {
				items[i].Bytes, err = c.located(gctx, infos[i])
			}
			return err
		})
	}
	return items, g.Wait()
}

// glob lists what matches a pattern; directories only where it ends in a slash.
func (c *Client) glob(ctx context.Context, pattern string) (paths []string, infos []*Info, err error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, nil, pathError("expand", pattern, sys.E(sys.Invalid, err))
	}
	elements := strings.Split(strings.Trim(path.Clean("/"+pattern), "/"), "/")
	found := []string{"/"}
	for n, element := range elements {
		var next []string
		infos = nil
		for _, p := range found {
			names, err := c.matches(ctx, p, element)
			if err != nil {
				return nil, nil, err
			}
			for _, info := range names {
				if n == len(elements)-1 || info.IsDir() || info.Target() != "" {
					next = append(next, path.Join(p, info.Name()))
					infos = append(infos, info)
				}
			}
		}
		found = next
	}
	if strings.HasSuffix(pattern, "/") {
		return c.directories(ctx, found, infos)
	}
	return found, infos, nil
}

// directories are those of paths that are directories, or links to them.
func (c *Client) directories(ctx context.Context, paths []string, infos []*Info) (dirs []string, of []*Info, err error) {
	for i, p := range paths {
		info := infos[i]
		if info.Target() != "" {
			at, err := c.Stat(ctx, p)
			switch {
			case ifThere(err) != nil:
				return nil, nil, err
			case err != nil:
				continue
			}
			info = at
		}
		if info.IsDir() {
			dirs, of = append(dirs, p), append(of, info)
		}
	}
	return dirs, of, nil
}

// matches are the entries of a directory whose names match; none where there
// is no directory.
func (c *Client) matches(ctx context.Context, dir, element string) ([]*Info, error) {
	d, err := c.OpenDir(ctx, dir)
	if err != nil {
		return nil, ifThere(err)
	}
	if !strings.ContainsAny(element, `*?[\`) {
		info, err := d.Lstat(ctx, element)
		if err != nil {
			return nil, ifThere(err)
		}
		return []*Info{info}, nil
	}
	all, err := d.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []*Info
	for _, info := range all {
		// The pattern has been checked.
		ok, _ := path.Match(element, info.Name())
		if ok && (info.Name()[0] != '.' || element[0] == '.') {
			out = append(out, info)
		}
	}
	return out, nil
}

// ifThere passes an error on unless it says that something is not there, or a
// link leads nowhere.
func ifThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil
	}
	return err
}
