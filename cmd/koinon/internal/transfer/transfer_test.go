//go:build unix

package transfer

import (
	"context"
	"errors"
	"io/fs"
	"os"
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
