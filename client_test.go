package koinon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// newClient returns a Client over a tree in memory, acting as root.
func newClient(t *testing.T) *Client {
	t.Helper()
	tree := vfs.New(meta.NewMemory(), block.NewMemory(), vfs.Options{})
	t.Cleanup(func() {
		if err := tree.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c := New(tree)
	c.cred = vfs.Root()
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8*13)
	}
	return p
}

func mustNoTemps(t *testing.T, c *Client, dir string) {
	t.Helper()
	infos, err := c.ReadDir(t.Context(), dir)
	must(t, err)
	for _, i := range infos {
		if strings.HasPrefix(i.Name(), TempPrefix) {
			t.Errorf("%s was left behind in %s", i.Name(), dir)
		}
	}
}

func TestFS(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.MkdirAll(ctx, "/a/b/c", 0o755))
	must(t, c.WriteFile(ctx, "a/one", []byte("1"), 0o644))
	must(t, c.WriteFile(ctx, "/a/b/large", pattern(3<<20+5), 0o600))
	must(t, c.WriteFile(ctx, "/a/b/empty", nil, 0o644))
	must(t, c.Symlink(ctx, "one", "/a/link"))
	if err := fstest.TestFS(c.FS(), "a/one", "a/b/large", "a/b/empty", "a/b/c", "a/link"); err != nil {
		t.Error(err)
	}
	var walked []string
	must(t, fs.WalkDir(c.FS(), ".", func(p string, _ fs.DirEntry, err error) error {
		walked = append(walked, p)
		return err
	}))
	if want := []string{".", "a", "a/b", "a/b/c", "a/b/empty", "a/b/large", "a/link", "a/one"}; !slices.Equal(walked, want) {
		t.Errorf("walked %v", walked)
	}
}

func TestWriteFileReplacesWhole(t *testing.T) {
	for _, first := range []int{0, 10, sys.InlineMax, sys.InlineMax + 1, 5 << 20} {
		for _, second := range []int{0, 9, sys.InlineMax, sys.InlineMax + 1} {
			t.Run(fmt.Sprintf("%d then %d", first, second), func(t *testing.T) {
				c, ctx := newClient(t), t.Context()
				must(t, c.WriteFile(ctx, "/f", pattern(first), 0o640))
				old, err := c.Open(ctx, "/f")
				must(t, err)
				must(t, c.Chown(ctx, "/f", 7, 8))
				must(t, c.WriteFile(ctx, "/f", pattern(second), 0o600))
				got, err := c.ReadFile(ctx, "/f")
				must(t, err)
				if !bytes.Equal(got, pattern(second)) {
					t.Errorf("expected %d bytes, found %d others", second, len(got))
				}
				info, err := c.Stat(ctx, "/f")
				must(t, err)
				if info.Mode() != 0o640 || info.UID() != 7 || info.GID() != 8 {
					t.Errorf("mode and owner were not passed on: %v %d %d", info.Mode(), info.UID(), info.GID())
				}
				was, err := io.ReadAll(old)
				must(t, err)
				if !bytes.Equal(was, pattern(first)) {
					t.Errorf("who had the old file open found %d other bytes", len(was))
				}
				must(t, old.Close())
				mustNoTemps(t, c, "/")
			})
		}
	}
}

func TestWriteFileThroughLink(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.Mkdir(ctx, "/d", 0o755))
	must(t, c.Symlink(ctx, "d/real", "/link"))
	must(t, c.WriteFile(ctx, "/link", []byte("x"), 0o644)) // dangling
	must(t, c.WriteFile(ctx, "/link", []byte("yz"), 0o644))
	if got, err := c.ReadFile(ctx, "/d/real"); err != nil || string(got) != "yz" {
		t.Errorf("%q, %v", got, err)
	}
	if target, err := c.ReadLink(ctx, "/link"); err != nil || target != "d/real" {
		t.Errorf("%q, %v", target, err)
	}
	must(t, c.Symlink(ctx, "loop", "/loop"))
	if err := c.WriteFile(ctx, "/loop", nil, 0o644); !errors.Is(err, syscall.ELOOP) {
		t.Error(err)
	}
}

func TestRealPath(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.MkdirAll(ctx, "/d/e", 0o755))
	must(t, c.WriteFile(ctx, "/d/e/f", nil, 0o644))
	for target, name := range map[string]string{"d": "/link", "/link/e": "/d/absolute", "../../link/../d": "/d/e/up", "loop": "/loop", "none": "/dangling"} {
		must(t, c.Symlink(ctx, target, name))
	}
	for name, want := range map[string]string{"/": "/", "/..": "/", "d/./e/": "/d/e", "/link": "/d", "/link/absolute": "/d/e", "/link/absolute/f": "/d/e/f",
		"/link/e/up/e/../e": "/d/e", "/link/../link/..": "/"} {
		if got, err := c.RealPath(ctx, name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %s", name, got, err, want)
		}
	}
	for name, want := range map[string]error{"": fs.ErrNotExist, "/none": fs.ErrNotExist, "/none/x": fs.ErrNotExist, "/dangling": fs.ErrNotExist, "/loop": syscall.ELOOP,
		"/d/e/f/x": syscall.ENOTDIR, "/d/e/f/": syscall.ENOTDIR} {
		if got, err := c.RealPath(ctx, name); got != "" || !errors.Is(err, want) {
			t.Errorf("%s: %q, %v; want %v", name, got, err, want)
		}
	}
}

func TestReplacementAbort(t *testing.T) {
	for _, size := range []int{10, 2 << 20} {
		c := newClient(t)
		ctx, cancel := context.WithCancel(t.Context())
		must(t, c.WriteFile(ctx, "/f", []byte("old"), 0o644))
		r, err := c.Replace(ctx, "/f", 0o644)
		must(t, err)
		_, err = r.ReadFrom(bytes.NewReader(pattern(size)))
		must(t, err)
		cancel()
		must(t, r.Abort())
		must(t, r.Abort())
		if err := r.Commit(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Commit after Abort: %v", err)
		}
		got, err := c.ReadFile(t.Context(), "/f")
		must(t, err)
		if string(got) != "old" {
			t.Errorf("found %d bytes", len(got))
		}
		mustNoTemps(t, c, "/")
	}
}

// fullStore has no room for blocks.
type fullStore struct{ block.Store }

func (fullStore) Put(_ context.Context, key sys.BlockKey, _ []byte) error {
	return sys.E(sys.Op("spread.Put"), sys.NoSpace, block.Subject(key), sys.E(sys.NoSpace, "no space left on n1, n3: add a node"))
}

// TestNoSpaceIsToldOnce: the caller gets the reason, without blocks and
// operations in it; what he knows is not logged as well.
func TestNoSpaceIsToldOnce(t *testing.T) {
	var log bytes.Buffer
	tree := vfs.New(meta.NewMemory(), fullStore{block.NewMemory()}, vfs.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c := New(tree)
	c.cred = vfs.Root()
	for what, err := range map[string]error{
		"/file": c.WriteFile(t.Context(), "/file", pattern(20<<20), 0o644),
		"/close": func() error {
			f, err := c.Create(t.Context(), "/close")
			must(t, err)
			_, err = f.Write(pattern(1 << 20))
			must(t, err)
			return f.Close()
		}(),
	} {
		pe, ok := errors.AsType[*fs.PathError](err)
		if !ok || pe.Path != what || pe.Err.Error() != "no space left on n1, n3: add a node" || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: found %v", what, err)
		}
	}
	must(t, tree.Close(context.Background()))
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("nothing is lost without the caller's knowledge, and yet this is logged:\n%s", log.String())
	}
}

func TestFileReadsAndWrites(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	f, err := c.Create(ctx, "/f")
	must(t, err)
	if n, err := f.Write([]byte("hello world")); n != 11 || err != nil {
		t.Fatal(n, err)
	}
	_, err = f.WriteAt([]byte("W"), 6)
	must(t, err)
	if off, err := f.Seek(-5, io.SeekEnd); off != 6 || err != nil {
		t.Fatal(off, err)
	}
	buf := make([]byte, 10)
	if n, err := f.Read(buf); n != 5 || err != nil || string(buf[:n]) != "World" {
		t.Fatal(n, err, string(buf[:n]))
	}
	if n, err := f.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatal(n, err)
	}
	if n, err := f.ReadAt(buf[:4], 9); n != 2 || !errors.Is(err, io.EOF) {
		t.Fatal(n, err)
	}
	must(t, f.Truncate(5))
	info, err := f.Stat()
	must(t, err)
	if info.Size() != 5 || info.Name() != "f" || info.Mode() != 0o666 {
		t.Error(info.Size(), info.Name(), info.Mode())
	}
	must(t, f.Sync())
	must(t, f.Close())
	if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if _, err := f.Read(buf); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}

	a, err := c.OpenFile(ctx, "/f", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	if _, err := a.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteAt([]byte("?"), 0); err == nil {
		t.Error("WriteAt of a file opened for appending")
	}
	if _, err := a.Read(buf); !errors.Is(err, syscall.EBADF) {
		t.Error(err)
	}
	must(t, a.Close())
	if got, err := c.ReadFile(ctx, "/f"); err != nil || string(got) != "hello!" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFileCopiesWhole(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	data := pattern(9<<20 + 3)
	f, err := c.Create(ctx, "/f")
	must(t, err)
	if n, err := f.ReadFrom(bytes.NewReader(data)); n != int64(len(data)) || err != nil {
		t.Fatal(n, err)
	}
	must(t, f.Close())
	f, err = c.Open(ctx, "/f")
	must(t, err)
	var got bytes.Buffer
	if n, err := f.WriteTo(&got); n != int64(len(data)) || err != nil {
		t.Fatal(n, err)
	}
	must(t, f.Close())
	if !bytes.Equal(got.Bytes(), data) {
		t.Error("other bytes")
	}
}

func TestOpenFlags(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.WriteFile(ctx, "/f", []byte("x"), 0o644))
	must(t, c.Mkdir(ctx, "/d", 0o755))
	must(t, c.Symlink(ctx, "f", "/to-f"))
	must(t, c.Symlink(ctx, "/d/new", "/to-new"))
	for _, x := range []struct {
		name string
		flag int
		want error // nil for success
	}{
		{"/f", os.O_RDONLY, nil},
		{"/to-f", os.O_RDWR, nil},
		{"/f", os.O_RDWR | os.O_CREATE | os.O_EXCL, fs.ErrExist},
		{"/to-f", os.O_RDWR | os.O_CREATE | os.O_EXCL, fs.ErrExist},
		{"/none", os.O_RDONLY, fs.ErrNotExist},
		{"/none/x", os.O_RDWR | os.O_CREATE, fs.ErrNotExist},
		{"/f/x", os.O_RDWR | os.O_CREATE, syscall.ENOTDIR},
		{"/to-new", os.O_WRONLY | os.O_CREATE, nil},
		{"/d/new", os.O_RDONLY, nil},
		{"/d", os.O_WRONLY, syscall.EISDIR},
		{"/d", os.O_RDONLY, nil},
		{"/d/", os.O_RDONLY, nil},
		{"/", os.O_RDONLY, nil},
		{"/d/x/", os.O_WRONLY | os.O_CREATE, syscall.EISDIR},
		{"", os.O_RDONLY, fs.ErrNotExist},
		{"/a\x00b", os.O_RDONLY, fs.ErrInvalid},
		{"/" + strings.Repeat("n", 256), os.O_WRONLY | os.O_CREATE, syscall.ENAMETOOLONG},
	} {
		f, err := c.OpenFile(ctx, x.name, x.flag, 0o644)
		if err == nil {
			must(t, f.Close())
		}
		if !errors.Is(err, x.want) {
			t.Errorf("open %q with %#x: expected %v, found %v", x.name, x.flag, x.want, err)
		}
		if pe, ok := errors.AsType[*fs.PathError](err); err != nil && (!ok || pe.Path != x.name) {
			t.Errorf("open %q: expected a PathError of it, found %#v", x.name, err)
		}
	}
}

func TestAttributes(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.WriteFile(ctx, "/f", []byte("x"), 0o644))
	must(t, c.Symlink(ctx, "f", "/l"))
	must(t, c.Chmod(ctx, "/l", 0o751|fs.ModeSetuid))
	at, mt := time.Unix(1, 2), time.Unix(3, 4)
	must(t, c.Chtimes(ctx, "/l", at, mt))
	must(t, c.Lchown(ctx, "/l", 5, 6))
	must(t, c.Truncate(ctx, "/f", 100))
	must(t, c.Chtimes(ctx, "/f", time.Time{}, mt))
	f, err := c.Stat(ctx, "/l")
	must(t, err)
	if f.Mode() != 0o751|fs.ModeSetuid && f.Mode() != 0o751 || !f.AccessTime().Equal(at) || !f.ModTime().Equal(mt) || f.Size() != 100 || f.UID() != 0 || f.Links() != 1 {
		t.Errorf("%v %+v", f, f.attr)
	}
	l, err := c.Lstat(ctx, "/l")
	must(t, err)
	if l.Mode().Type() != fs.ModeSymlink || l.UID() != 5 || l.GID() != 6 || l.Target() != "f" || l.Size() != 1 {
		t.Errorf("%v %+v", l, l.attr)
	}
	must(t, c.Link(ctx, "/f", "/g"))
	if g, err := c.Stat(ctx, "/g"); err != nil || g.Links() != 2 || g.Ino() != f.Ino() {
		t.Error(g, err)
	}
	if sp, err := c.StatFS(ctx); err != nil || sp.Used < 100 || sp.Files < 3 {
		t.Errorf("%+v, %v", sp, err)
	}
}

func TestRenameAndRemove(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.MkdirAll(ctx, "/a/b", 0o755))
	must(t, c.MkdirAll(ctx, "/a/b", 0o755))
	must(t, c.MkdirAll(ctx, "/", 0o755))
	must(t, c.WriteFile(ctx, "/a/f", []byte("f"), 0o644))
	must(t, c.WriteFile(ctx, "/a/g", []byte("g"), 0o644))
	if err := c.RenameNew(ctx, "/a/f", "/a/g"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	must(t, c.Rename(ctx, "/a/f", "/a/g"))
	if err := c.MkdirAll(ctx, "/a/g/h", 0o755); !errors.Is(err, syscall.ENOTDIR) {
		t.Error(err)
	}
	if err := c.Mkdir(ctx, "/", 0o755); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if err := c.Remove(ctx, "/a"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Error(err)
	}
	must(t, c.Remove(ctx, "/a/b"))
	must(t, c.Remove(ctx, "/a/g"))
	must(t, c.Remove(ctx, "/a"))
	if err := c.Remove(ctx, "/a"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/a: no such file or directory") {
		t.Error(err)
	}
}

func TestRemoveAll(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.WriteFile(ctx, "/keep", []byte("k"), 0o644))
	for i := range 5 {
		d := fmt.Sprintf("/t/d%d/e/f", i)
		must(t, c.MkdirAll(ctx, d, 0o755))
		for j := range 30 {
			must(t, c.WriteFile(ctx, fmt.Sprintf("%s/%d", path.Dir(d), j), nil, 0o644))
		}
		must(t, c.Symlink(ctx, "/keep", d+"/l"))
	}
	must(t, c.RemoveAll(ctx, "/t"))
	must(t, c.RemoveAll(ctx, "/t"))
	must(t, c.RemoveAll(ctx, "/t/x/y"))
	infos, err := c.ReadDir(ctx, "/")
	must(t, err)
	if len(infos) != 1 || infos[0].Name() != "keep" {
		t.Error(infos)
	}
	if err := c.RemoveAll(ctx, "/"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("the root cannot be removed: %v", err)
	}
}

func TestLargeDirectory(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	const n = 2500
	d, err := c.OpenDir(ctx, "/")
	must(t, err)
	for i := range n {
		r, err := d.Replace(ctx, fmt.Sprintf("f%04d", i), 0o644)
		must(t, err)
		must(t, r.Commit())
	}
	infos, err := c.ReadDir(ctx, "/")
	must(t, err)
	if len(infos) != n || infos[n-1].Name() != fmt.Sprintf("f%04d", n-1) {
		t.Error(len(infos))
	}
	f, err := c.Open(ctx, "/")
	must(t, err)
	seen := 0
	for {
		part, err := f.ReadDir(700)
		seen += len(part)
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
	}
	if seen != n {
		t.Error(seen)
	}
	must(t, f.Close())
}

func TestRights(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.Mkdir(ctx, "/d", 0o755))
	must(t, c.WriteFile(ctx, "/d/f", []byte("x"), 0o600))
	other := New(c.fs)
	other.cred = &metapb.Cred{Uid: 1000, Gid: 1000}
	if _, err := other.ReadFile(ctx, "/d/f"); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
	if err := other.WriteFile(ctx, "/d/g", []byte("x"), 0o600); !errors.Is(err, syscall.EACCES) {
		t.Error(err)
	}
	must(t, c.Chmod(ctx, "/d", 0o777))
	must(t, c.Chmod(ctx, "/d/f", 0o644))
	must(t, other.WriteFile(ctx, "/d/f", []byte("mine now"), 0o600))
	if info, err := c.Stat(ctx, "/d/f"); err != nil || info.UID() != 1000 || info.Mode() != 0o644 {
		t.Error(info, err)
	}
}

func TestDir(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	root, err := c.OpenDir(ctx, "/")
	must(t, err)
	d, err := root.Mkdir(ctx, "d", 0o755)
	must(t, err)
	must(t, d.Symlink(ctx, "x", "l"))
	must(t, c.Rename(ctx, "/d", "/e"))
	must(t, d.Symlink(ctx, "y", "m")) // it is the directory, not its name
	e, err := root.Dir(ctx, "e")
	must(t, err)
	infos, err := e.List(ctx)
	must(t, err)
	if len(infos) != 2 || infos[0].Target() != "x" || infos[1].Target() != "y" {
		t.Error(infos)
	}
	mode := fs.FileMode(0o700)
	must(t, d.SetAttrs(ctx, Attrs{Mode: &mode}))
	must(t, d.SetEntryAttrs(ctx, "l", Attrs{Mtime: time.Unix(9, 0)}))
	must(t, d.Rename(ctx, "l", root, "l2"))
	must(t, d.Remove(ctx, "m"))
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00"} {
		_, err := root.Mkdir(ctx, bad, 0o755)
		_, err2 := root.Replace(ctx, bad, 0o644)
		if err := errors.Join(err, err2, root.Remove(ctx, bad), root.Symlink(ctx, "t", bad)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := c.OpenDir(ctx, "/l2"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
