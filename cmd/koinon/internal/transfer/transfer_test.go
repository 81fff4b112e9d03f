//go:build unix

package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

func newClient(t *testing.T) *koinon.Client {
	t.Helper()
	tree := vfs.New(meta.NewMemory(), block.NewMemory(), vfs.Options{})
	t.Cleanup(func() {
		if err := tree.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	all := uint32(0o777)
	_, err := tree.SetAttr(t.Context(), vfs.Root(), &metapb.SetAttr{Ino: uint64(sys.RootIno), Mode: &all})
	must(t, err)
	return koinon.New(tree)
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// failures collects what Copy tells.
type failures struct {
	mu   sync.Mutex
	text []string
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text = append(f.text, err.Error())
}

func TestParse(t *testing.T) {
	for arg, want := range map[string]Location{
		"koinon:/a/b": {"/a/b", true}, "koinon:a": {"/a", true}, "koinon:": {"/", true},
		"a": {"a", false}, "./koinon:x": {"./koinon:x", false}, "/koinon:": {"/koinon:", false},
	} {
		if got := Parse(arg); got != want {
			t.Errorf("%s: expected %v, found %v", arg, want, got)
		}
	}
}

// What cannot be copied is told and left out; all else is copied, and the
// callbacks add up.
func TestCopyGoesOn(t *testing.T) {
	c, src := newClient(t), t.TempDir()
	at := func(p string) string { return filepath.Join(src, p) }
	must(t,
		os.Mkdir(at("d"), 0o755), os.WriteFile(at("d/a"), make([]byte, 100), 0o644), os.WriteFile(at("d/b"), make([]byte, 200_000), 0o644),
		syscall.Mkfifo(at("d/fifo"), 0o644), os.WriteFile(at("d/way"), []byte("x"), 0o644), os.Mkdir(at("d/way2"), 0o755),
		os.Mkdir(at("closed"), 0o500), os.Symlink("a", at("d/l")),
		c.MkdirAll(t.Context(), "/to/d/way", 0o755), c.WriteFile(t.Context(), "/to/d/way2", nil, 0o644), c.WriteFile(t.Context(), "/to/d/l", nil, 0o644),
	)
	var told failures
	var moved, finished atomic.Int64
	opt := Options{
		Client: c, Recursive: true, Workers: 3, Failed: told.add,
		Moved: func(n int64) { moved.Add(n) }, Finished: func() { finished.Add(1) },
	}
	from := []Location{Parse(at("d")), Parse(at("closed"))}
	files, bytes := Measure(t.Context(), from, opt)
	if files != 5 || bytes != 200_101 {
		t.Errorf("Measure: %d files, %d bytes", files, bytes)
	}
	st, err := Copy(t.Context(), from, Parse("koinon:/to"), opt)
	if err == nil || !strings.Contains(err.Error(), "3 files or directories were not copied") {
		t.Error(err)
	}
	if want := (Stats{Files: 2, Dirs: 1, Links: 1, Bytes: 200_100, Failed: 3}); st != want {
		t.Errorf("%+v", st)
	}
	for _, want := range []string{"fifo is a device, pipe or socket", "/d/way: is a directory", "koinon:/to/d/way2 is there and is not a directory"} {
		if !strings.Contains(strings.Join(told.text, "\n"), want) {
			t.Errorf("nobody told %q: %q", want, told.text)
		}
	}
	if moved.Load() < 200_100 || finished.Load() != 3 {
		t.Errorf("moved %d bytes, finished %d", moved.Load(), finished.Load())
	}
	info, err := c.Stat(t.Context(), "/to/closed")
	must(t, err)
	if info.Mode() != fs.ModeDir|0o500 {
		t.Errorf("%v", info.Mode())
	}
	if target, err := c.ReadLink(t.Context(), "/to/d/l"); err != nil || target != "a" {
		t.Errorf("a link replaces a file: %q, %v", target, err)
	}
}

func TestCopyToDevice(t *testing.T) {
	c := newClient(t)
	must(t, c.WriteFile(t.Context(), "/f", []byte("x"), 0o644))
	if _, err := Copy(t.Context(), []Location{Parse("koinon:/f")}, Parse(os.DevNull), Options{Client: c}); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(os.DevNull)
	must(t, err)
	if info.Mode().IsRegular() {
		t.Error("the device was replaced by a file")
	}
}

func TestPreserve(t *testing.T) {
	c, out := newClient(t), t.TempDir()
	ctx := t.Context()
	when := time.Date(2003, 4, 5, 6, 7, 8, 9, time.UTC)
	must(t,
		c.MkdirAll(ctx, "/s/ro", 0o755), c.WriteFile(ctx, "/s/ro/f", make([]byte, 100_000), 0o400), c.Symlink(ctx, "f", "/s/ro/l"),
		c.Chmod(ctx, "/s/ro/f", 0o640|fs.ModeSetgid), c.Chtimes(ctx, "/s/ro/f", when, when), c.Lchtimes(ctx, "/s/ro/l", when, when),
		c.Chmod(ctx, "/s/ro", 0o555), c.Chtimes(ctx, "/s/ro", when, when),
	)
	opt := Options{Client: c, Recursive: true, Preserve: true}
	for _, to := range []string{"koinon:/t", filepath.Join(out, "t")} {
		_, err := Copy(ctx, []Location{Parse("koinon:/s")}, Parse(to), opt)
		must(t, err)
	}
	t.Cleanup(func() { must(t, os.Chmod(filepath.Join(out, "t", "ro"), 0o755)) })
	for _, p := range []string{"ro", "ro/f", "ro/l"} {
		want, err := c.Lstat(ctx, "/s/"+p)
		must(t, err)
		twin, err := c.Lstat(ctx, "/t/"+p)
		must(t, err)
		local, err := os.Lstat(filepath.Join(out, "t", p))
		must(t, err)
		for _, got := range []fs.FileInfo{twin, local} {
			if got.Mode() != want.Mode() || !got.ModTime().Equal(when) {
				t.Errorf("%s: expected %v %v, found %v %v", p, want.Mode(), when, got.Mode(), got.ModTime())
			}
		}
	}
}

// A file that fails while it is written leaves what was there before.
func TestAbortLeavesOldFile(t *testing.T) {
	c, dir := newClient(t), t.TempDir()
	old := filepath.Join(dir, "f")
	must(t, os.WriteFile(old, []byte("old"), 0o644), c.WriteFile(t.Context(), "/f", make([]byte, 5<<20), 0o644))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the power is going")
	_, err := Copy(ctx, []Location{Parse("koinon:/f")}, Parse(dir), Options{Client: c, Moved: func(int64) { cancel(why) }})
	if !errors.Is(err, why) {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	data, err := os.ReadFile(old)
	must(t, err)
	if len(entries) != 1 || string(data) != "old" {
		t.Errorf("%v, %d bytes", entries, len(data))
	}
}

// What would be copied to itself is refused, under whatever names, and stays what it was.
func TestCopyToItself(t *testing.T) {
	c := newClient(t)
	must(t, c.MkdirAll(t.Context(), "/d/sub", 0o755), c.WriteFile(t.Context(), "/d/f", []byte("x"), 0o644), c.Link(t.Context(), "/d/f", "/d/h"),
		c.WriteFile(t.Context(), "/d/sub/g", nil, 0o644), c.Symlink(t.Context(), "d", "/l"), c.MkdirAll(t.Context(), "/e/d", 0o755),
		c.Link(t.Context(), "/d/f", "/e/d/f"))
	before := tell(t, c, "/")
	for _, tc := range []struct{ from, to, want string }{
		{"/d", "/", "koinon:/d and koinon:/d are the same directory"},
		{"/d", "/l/..", "are the same directory"},
		{"/d/.", "/d", "koinon:/d/. and koinon:/d are the same directory"},
		{"/l/.", "/d", "are the same directory"},
		{"/l/", "/d", "cannot be copied into itself"},
		{"/d/sub", "/d/sub/..", "are the same directory"},
		{"/d", "/d", "koinon:/d/d would lie inside koinon:/d"},
		{"/d", "/l", "would lie inside koinon:/d"},
		{"/d", "/d/sub", "koinon:/d/sub lies inside koinon:/d"},
		{"/d/f", "/d/h", "koinon:/d/f and koinon:/d/h are the same file"},
		{"/d/f", "/d/f", "are the same file"},
		{"/d/f", "/d", "are the same file"},
		{"/l", "/", "koinon:/l and koinon:/l are the same file"},
	} {
		var told failures
		_, err := Copy(t.Context(), []Location{Parse("koinon:" + tc.from)}, Parse("koinon:"+tc.to), Options{Client: c, Recursive: true, Failed: told.add})
		if err == nil || len(told.text) != 1 || !strings.Contains(told.text[0], tc.want) {
			t.Errorf("%s to %s: %v, %q; expected %q", tc.from, tc.to, err, told.text, tc.want)
		}
		if after := tell(t, c, "/"); after != before {
			t.Fatalf("%s to %s has changed\n%s\ninto\n%s", tc.from, tc.to, before, after)
		}
	}
	// Of a directory that is copied over another, only what is the same file in both.
	var told failures
	st, err := Copy(t.Context(), []Location{Parse("koinon:/d")}, Parse("koinon:/e"), Options{Client: c, Recursive: true, Failed: told.add})
	if err == nil || st.Failed != 1 || st.Files != 2 || !strings.Contains(told.text[0], "koinon:/d/f and koinon:/e/d/f are the same file") {
		t.Errorf("%+v, %v, %q", st, err, told.text)
	}
}

// tell lists everything below a directory, with inodes.
func tell(t *testing.T, c *koinon.Client, dir string) string {
	t.Helper()
	infos, err := c.ReadDir(t.Context(), dir)
	must(t, err)
	var b strings.Builder
	for _, info := range infos {
		at := path.Join(dir, info.Name())
		fmt.Fprintln(&b, at, info.Ino(), info.Mode(), info.ModTime())
		if info.IsDir() {
			b.WriteString(tell(t, c, at))
		}
	}
	return b.String()
}

// TestCopyToItselfThroughAMount: a directory of a mount of the tree is the tree's.
func TestCopyToItselfThroughAMount(t *testing.T) {
	c, ctx, mnt := newClient(t), t.Context(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(mnt, "s", "x"), 0o700), c.MkdirAll(ctx, "/s/x", 0o700), c.Symlink(ctx, "s/x", "/link"), c.Mkdir(ctx, "/other", 0o700))
	opt := Options{Client: c, Recursive: true, InTree: func(p string) (string, bool) {
		rest, ok := strings.CutPrefix(p, mnt)
		return path.Join("/", rest), ok
	}}
	at := func(p string) Location { return Location{Path: filepath.Join(mnt, p)} }
	tree := func(p string) Location { return Location{Path: p, Tree: true} }
	for _, tc := range []struct{ from, to Location }{
		{at("s"), tree("/s/x")}, {at("s"), tree("/link")}, {at("s"), tree("/s/x/new")}, {at("s"), tree("/")}, {at("s"), tree("/s")},
		{Location{Path: at("s").Path + "/."}, tree("/s")}, {tree("/s"), at("s/x")}, {tree("/s"), at("")}, {at(""), tree("/other")},
	} {
		var told failures
		opt.Failed = told.add
		if _, err := Copy(ctx, []Location{tc.from}, tc.to, opt); err == nil || !strings.Contains(fmt.Sprint(told.text), "itself") && !strings.Contains(fmt.Sprint(told.text), "same directory") {
			t.Errorf("%v to %v: %v, %q", tc.from, tc.to, err, told.text)
		}
	}
	for _, tc := range []struct{ from, to Location }{{at("s"), tree("/other")}, {at("s"), tree("/new")}, {tree("/s"), Location{Path: t.TempDir()}}} {
		if _, err := Copy(ctx, []Location{tc.from}, tc.to, opt); err != nil {
			t.Errorf("%v to %v: %v", tc.from, tc.to, err)
		}
	}
}

// TestCopyToPipe: bytes go to who reads it; where nobody does, or ever comes to an end, the copy ends all the same.
func TestCopyToPipe(t *testing.T) {
	c, pipe := newClient(t), filepath.Join(t.TempDir(), "pipe")
	must(t, syscall.Mkfifo(pipe, 0o600), c.WriteFile(t.Context(), "/f", make([]byte, 1<<20), 0o600))
	from, to := []Location{{Path: "/f", Tree: true}}, Location{Path: pipe}
	var told failures
	if _, err := Copy(t.Context(), from, to, Options{Client: c, Failed: told.add}); err == nil || !strings.Contains(fmt.Sprint(told.text), "nobody reads") {
		t.Errorf("without a reader: %v, %q", err, told.text)
	}
	r, err := os.OpenFile(pipe, os.O_RDWR|syscall.O_NONBLOCK, 0) // to write too, so that it never ends
	must(t, err)
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() {
		_, err := Copy(ctx, from, to, Options{Client: c})
		stopped <- err
	}()
	must(t, second(io.ReadFull(r, make([]byte, 1)))) // it writes
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	got := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		got <- n
	}()
	if _, err := Copy(t.Context(), from, to, Options{Client: c}); err != nil {
		t.Error(err)
	}
	if n := <-got; n != 1<<20 {
		t.Errorf("%d bytes were read", n)
	}
}

func second[T any](_ T, err error) error { return err }

// TestTwoOfOneName: the second does not replace the first.
func TestTwoOfOneName(t *testing.T) {
	c, ctx := newClient(t), t.Context()
	must(t, c.MkdirAll(ctx, "/a", 0o700), c.MkdirAll(ctx, "/b", 0o700), c.MkdirAll(ctx, "/to", 0o700),
		c.WriteFile(ctx, "/a/f", []byte("first"), 0o600), c.WriteFile(ctx, "/b/f", []byte("second"), 0o600))
	var told failures
	_, err := Copy(ctx, []Location{{"/a/f", true}, {"/b/f", true}}, Location{"/to", true}, Options{Client: c, Failed: told.add})
	got, rerr := c.ReadFile(ctx, "/to/f")
	if err == nil || rerr != nil || string(got) != "first" || !strings.Contains(fmt.Sprint(told.text), "under that name") {
		t.Errorf("%v, %q, %q, %v", err, told.text, got, rerr)
	}
	must(t, c.MkdirAll(ctx, "/a/d", 0o700), c.MkdirAll(ctx, "/b/d/e", 0o700), c.WriteFile(ctx, "/a/d/g", nil, 0o600))
	if st, err := Copy(ctx, []Location{{"/none/f", true}, {"/a/d", true}, {"/b/d", true}, {"/a/f", true}}, Location{"/to", true}, Options{Client: c, Recursive: true}); st.Failed != 1 || st.Files != 2 || st.Dirs != 2 {
		t.Errorf("directories become one, and what was not there has no name: %+v, %v", st, err)
	}
}
