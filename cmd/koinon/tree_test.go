//go:build linux && !client

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	client "github.com/koinon/koinon"
	"github.com/koinon/koinon/cmd/koinon/internal/transfer"
	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

// memTree is a tree in memory, and the command line over it.
type memTree struct {
	t    *testing.T
	c    *client.Client
	tree *vfs.FS
	out  io.Writer // where the results go; nil: to who calls
}

func newMemTree(t *testing.T) *memTree {
	t.Helper()
	tree := vfs.New(meta.NewMemory(), block.NewMemory(), vfs.Options{})
	t.Cleanup(func() {
		if err := tree.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	all := uint32(0o777)
	if _, err := tree.SetAttr(t.Context(), vfs.Root(), &metapb.SetAttr{Ino: uint64(sys.RootIno), Mode: &all}); err != nil {
		t.Fatal(err)
	}
	mask := syscall.Umask(0o022) // the expected modes are those of most users
	t.Cleanup(func() { syscall.Umask(mask) })
	return &memTree{t: t, c: client.New(tree), tree: tree}
}

// give makes a path belong to somebody else.
func (m *memTree) give(path string, uid, gid uint32) {
	m.t.Helper()
	info, err := m.c.Lstat(m.t.Context(), path)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.tree.SetAttr(m.t.Context(), vfs.Root(), &metapb.SetAttr{Ino: info.Ino(), Uid: &uid, Gid: &gid}); err != nil {
		m.t.Fatal(err)
	}
}

// runIn executes a command line as main does, over the tree in memory.
func (m *memTree) runIn(ctx context.Context, in io.Reader, args ...string) (out, errOut string, code int) {
	m.t.Helper()
	var o, e bytes.Buffer
	a := &app{in: in, out: &result{Writer: &o}, err: &e}
	if m.out != nil {
		a.out = &result{Writer: m.out}
	}
	root := newRootCommand(a)
	for _, c := range root.Commands() {
		if c.GroupID == groupTree {
			root.RemoveCommand(c)
		}
	}
	addTo(root, groupTree, treeCommands(a, func(context.Context) (*client.Client, error) { return m.c, nil }))
	checkArguments(root)
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(&e)
	code = a.exitCode(root.ExecuteContext(ctx))
	return o.String(), e.String(), code
}

// ok runs a command line that must succeed and say nothing on standard error.
func (m *memTree) ok(args ...string) string {
	m.t.Helper()
	out, errOut, code := m.runIn(m.t.Context(), strings.NewReader(""), args...)
	if code != 0 || errOut != "" {
		m.t.Fatalf("koinon %v: exit code %d, %s", args, code, errOut)
	}
	return out
}

// fails runs a command line that must fail and say want.
func (m *memTree) fails(code int, want string, args ...string) {
	m.t.Helper()
	_, errOut, got := m.runIn(m.t.Context(), strings.NewReader(""), args...)
	if got != code || !strings.Contains(errOut, want) {
		m.t.Errorf("koinon %v: expected exit code %d with %q, found %d with %q", args, code, want, got, errOut)
	}
}

func (m *memTree) put(path, data string) {
	m.t.Helper()
	if _, errOut, code := m.runIn(m.t.Context(), strings.NewReader(data), "put", path); code != 0 {
		m.t.Fatalf("put %s: %s", path, errOut)
	}
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: expected\n%s\nfound\n%s", what, want, got)
	}
}

func TestTreeCommands(t *testing.T) {
	m := newMemTree(t)
	m.ok("mkdir", "/a", "koinon:/b")
	m.ok("mkdir", "-p", "a/x/y", "/a")
	m.put("koinon:/a/one", "first\n")
	m.put("a/two", "second\n")
	m.put("/a/two", "second, again\n")
	equal(t, "cat", m.ok("cat", "a/one", "koinon:a/two"), "first\nsecond, again\n")
	equal(t, "ls", m.ok("ls"), "a\nb\n")
	m.put("/a/.hidden", "")
	equal(t, "ls /a", m.ok("ls", "koinon:/a"), "one\ntwo\nx\n")
	equal(t, "ls -a /a", m.ok("ls", "-a", "/a"), ".hidden\none\ntwo\nx\n")
	equal(t, "ls -R /a", m.ok("ls", "-R", "/a"), "/a:\none\ntwo\nx\n\n/a/x:\ny\n\n/a/x/y:\n")
	equal(t, "ls of both", m.ok("ls", "/a/one", "/b", "/a/x"), "/a/one\n\n/b:\n\n/a/x:\ny\n")
	equal(t, "ls -d", m.ok("ls", "-d", "/a", "/a/one"), "/a\n/a/one\n")
	m.ok("mv", "/a/one", "/a/1")
	m.ok("mv", "/a/1", "/a/two", "/b")
	equal(t, "ls /b", m.ok("ls", "b"), "1\ntwo\n")
	m.fails(1, "cannot move /b/1 to /b/two: file exists", "mv", "-n", "/b/1", "/b/two")
	m.ok("mv", "/b/1", "/b/two")
	equal(t, "cat", m.ok("cat", "/b/two"), "first\n")
	m.ok("rm", "/b/two", "/a/.hidden")
	m.ok("rm", "-r", "/b", "/a")
	m.ok("rm", "-rf", "/none", "/nor/this")
	m.ok("rm", "-f")
	equal(t, "ls", m.ok("ls"), "")
}

func TestTreeErrors(t *testing.T) {
	m := newMemTree(t)
	m.ok("mkdir", "-p", "/d/sub")
	m.put("/f", "x")
	for _, x := range []struct {
		code int
		want string
		args []string
	}{
		{1, "cannot list /none: no such file or directory", []string{"ls", "/none"}},
		{1, "cannot list /none: no such file or directory", []string{"ls", "/none", "/d"}},
		{1, "cannot read /none: no such file", []string{"cat", "/none"}},
		{1, "cannot read /d: is a directory: list it with `koinon ls /d`", []string{"cat", "/d"}},
		{1, "cannot read /f/x: not a directory", []string{"cat", "/f/x"}},
		{1, "cannot write /d: is a directory: name a file in it", []string{"put", "/d"}},
		{1, "cannot write /n/f: no such file or directory: make the directory with `koinon mkdir -p /n`", []string{"put", "/n/f"}},
		{1, "cannot remove /none: no such file", []string{"rm", "/none"}},
		{1, "cannot remove /d: is a directory: give -r", []string{"rm", "/d"}},
		{1, "the root of the tree stays", []string{"rm", "-r", "koinon:/"}},
		{1, "cannot make directory /d: file exists", []string{"mkdir", "/d"}},
		{1, "cannot make directory /n/m: no such file or directory: give -p", []string{"mkdir", "/n/m"}},
		{1, "cannot make directory /f/m: not a directory", []string{"mkdir", "-p", "/f/m"}},
		{1, "cannot move /none to /x: no such file", []string{"mv", "/none", "/x"}},
		{1, "cannot move /f to /n/x: no such file or directory: make the directory with `koinon mkdir -p /n`", []string{"mv", "/f", "/n/x"}},
		{1, "not a directory: make one with `koinon mkdir /x`", []string{"mv", "/d", "/f", "/x"}},
		{1, "a directory cannot be moved into itself", []string{"mv", "/d", "/d/sub"}},
		{1, "cannot stat /none", []string{"stat", "/none"}},
		{1, "cannot sum up /none", []string{"du", "/none"}},
		{1, "name too long", []string{"mkdir", "/" + strings.Repeat("n", 256)}},
		{2, "an argument is missing", []string{"cat"}},
		{2, "an argument is missing", []string{"cp", "koinon:/f"}},
		{2, "use cp(1)", []string{"cp", "a", "b"}},
		{2, "a path is empty", []string{"cp", "", "koinon:/"}},
		{1, "cannot copy /none-at-all: no such file or directory", []string{"cp", "/none-at-all", "koinon:/"}},
		{1, "cannot copy koinon:/none: no such file or directory", []string{"cp", "koinon:/none", t.TempDir()}},
		{1, "koinon:/d is a directory: give -r", []string{"cp", "koinon:/d", t.TempDir()}},
		{1, "several files can only be copied into a directory", []string{"cp", "koinon:/f", "koinon:/f", "koinon:/x"}},
		{1, "koinon:/n does not exist: make it with mkdir -p first", []string{"cp", "koinon:/f", "koinon:/n/x"}},
		{1, "are the same file", []string{"cp", "koinon:/f", "koinon:f"}},
		{1, "cannot be copied into itself", []string{"cp", "-r", "koinon:/d", "koinon:/d/sub/new"}},
		{1, "cannot be copied into itself", []string{"cp", "-r", "koinon:/d", "koinon:/d"}},
		{1, "is there and is not a directory", []string{"cp", "-r", "koinon:/d/.", "koinon:/f"}},
	} {
		m.fails(x.code, x.want, x.args...)
	}
}

func TestTreeJSON(t *testing.T) {
	m := newMemTree(t)
	m.ok("mkdir", "-p", "/d/e")
	m.put("/d/f", strings.Repeat("x", 1500))
	m.put("/d/e/g", "123")
	if err := m.c.Symlink(t.Context(), "f", "/d/l"); err != nil {
		t.Fatal(err)
	}
	if err := m.c.WriteFile(t.Context(), "/d/\xff\n", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var entries []struct {
		Path, Type, Mode, Target string
		Raw                      string `json:"path_base64"`
		Size                     int64
		Ino                      uint64
		Mtime                    time.Time
	}
	decode(t, m.ok("ls", "-R", "/d", "-o", "json"), &entries)
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%s %s %d %s", strings.TrimSpace(e.Path), e.Type, e.Size, e.Target))
		if e.Ino == 0 || time.Since(e.Mtime) > time.Hour {
			t.Errorf("%+v", e)
		}
	}
	want := []string{"/d/e directory 0 ", "/d/f file 1500 ", "/d/l symlink 1 f", "/d/\ufffd file 0 ", "/d/e/g file 3 "}
	if !slices.Equal(got, want) {
		t.Errorf("found %q", got)
	}
	if entries[3].Raw != "L2Qv/wo=" {
		t.Errorf("a name that is not UTF-8 must come in base64 as well: %+v", entries[3])
	}
	decode(t, m.ok("ls", "/d/e", "-o", "json"), &entries)
	decode(t, m.ok("stat", "/d/l", "/d/f", "-o", "json"), &entries)
	if len(entries) != 2 || entries[0].Type != "symlink" || entries[1].Mode != "0644" {
		t.Errorf("%+v", entries)
	}
	var sums []duEntry
	decode(t, m.ok("du", "/d", "-o", "json"), &sums)
	if want := []duEntry{{"/d/e", 3, 1, 1}, {"/d", 1504, 4, 2}}; !slices.Equal(sums, want) {
		t.Errorf("%+v", sums)
	}
	var df dfReport
	decode(t, m.ok("df", "-o", "json"), &df)
	if df.TreeBytes < 1503 || df.TreeFiles < 6 {
		t.Errorf("%+v", df)
	}
	out, _, code := m.runIn(t.Context(), strings.NewReader(""), "ls", "/none", "-o", "json")
	if code != 1 || strings.TrimSpace(out) != "[]" {
		t.Errorf("what fails prints an empty list: %d, %s", code, out)
	}
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

func TestLongListing(t *testing.T) {
	m := newMemTree(t)
	ctx := t.Context()
	m.ok("mkdir", "/d")
	m.put("/d/f", strings.Repeat("x", 12345))
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.Local)
	for _, err := range []error{
		m.c.Chmod(ctx, "/d/f", 0o4751|fs.ModeSetuid), m.c.Chtimes(ctx, "/d/f", old, old),
		m.c.Symlink(ctx, "f", "/d/l"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m.give("/d/l", 987654, 987655)
	lines := strings.Split(m.ok("ls", "-l", "/d"), "\n")
	for i, want := range []string{
		`^-rwsr-x--x 1 \S+ +\S+ +12345 Feb  3  2001 f$`,
		`^lrwxrwxrwx 1 987654 987655 +1 \w+ [ \d]\d \d\d:\d\d l -> f$`,
	} {
		if !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("expected %s, found %q", want, lines[i])
		}
	}
	if out := m.ok("ls", "-lh", "/d/f"); !strings.Contains(out, "12.1 KiB Feb  3  2001 /d/f") {
		t.Error(out)
	}
	out := m.ok("stat", "/d/f")
	for _, want := range []string{"File: /d/f", "Size: 12345", "Mode: 4751/-rwsr-x--x", "Links: 1", "Modify: 2001-02-03 04:05:06.0"} {
		if !strings.Contains(out, want) {
			t.Errorf("stat lacks %q:\n%s", want, out)
		}
	}
	equal(t, "du -sh", m.ok("du", "-sh", "/d"), "12.1 KiB\t/d\n")
	equal(t, "du -s", m.ok("du", "-s", "/d", "/d/f"), "13\t/d\n13\t/d/f\n")
	for _, args := range [][]string{{"df"}, {"df", "-h"}} {
		if out := m.ok(args...); !strings.Contains(out, "12.1 KiB") {
			t.Errorf("%q: %s", args, out)
		}
	}
	if out := m.ok("du", "--help"); !strings.Contains(out, "-h, --human") {
		t.Error(out)
	}
}

func TestWriteColumns(t *testing.T) {
	var b strings.Builder
	writeColumns(&b, []string{"a", "bb", "ccc", "d", "e"}, 12)
	equal(t, "columns", b.String(), "a   ccc  e\nbb  d\n")
	b.Reset()
	writeColumns(&b, []string{"too long for it", "b"}, 5)
	equal(t, "narrow", b.String(), "too long for it\nb\n")
	equal(t, "names", shown("a\x1bb")+shown("ok ü"), `"a\x1bb"ok ü`)
}

// snapshot describes a local tree: mode, times and bytes by path.
func snapshot(t *testing.T, root string, withTimes bool) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		desc := info.Mode().String()
		if withTimes {
			desc += info.ModTime().String()
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			desc += " -> " + target
		case info.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			desc += " " + string(data)
		}
		all[rel] = desc
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func localTree(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "src")
	for i, p := range []string{"a", "b/c", "b/d/e", "b/d/\xfe odd\nname", "z/.dot"} {
		full := filepath.Join(root, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, bytes.Repeat([]byte{byte(i), 'x'}, i*40_000), fs.FileMode(0o600+i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "b", "big"), bytes.Repeat([]byte("0123456789"), 600_001), 0o644); err != nil {
		t.Fatal(err)
	}
	for target, name := range map[string]string{"a": "link", "/nowhere": "b/dangling", "b": "dirlink"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2010, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, p := range []string{"a", "b/c", "empty", "b", "."} {
		if err := os.Chtimes(filepath.Join(root, p), old, old); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCopyRoundTrip(t *testing.T) {
	m := newMemTree(t)
	src, back := localTree(t), t.TempDir()
	m.ok("cp", "-rp", src, "koinon:/")
	m.ok("cp", "-rp", "koinon:/src", "koinon:/twin")
	m.ok("cp", "-rp", "koinon:twin", filepath.Join(back, "new"))
	want := snapshot(t, src, true)
	if got := snapshot(t, filepath.Join(back, "new"), true); !maps.Equal(got, want) {
		diffMaps(t, got, want)
	}
	// Once more over what is there, with contents of the root, and without -p.
	m.ok("cp", "-r", src+"/.", "koinon:/twin")
	m.ok("cp", "-r", "koinon:/", filepath.Join(back, "all"))
	m.ok("cp", "-r", "koinon:/twin/.", filepath.Join(back, "new"))
	for _, dir := range []string{"all/src", "all/twin", "new"} {
		got := snapshot(t, filepath.Join(back, dir), false)
		if want := snapshot(t, src, false); !maps.Equal(got, want) {
			diffMaps(t, got, want)
		}
	}
	var st struct{ Files, Dirs, Links, Bytes int64 }
	decode(t, m.ok("cp", "-r", src, "koinon:/third", "-o", "json"), &st)
	if st.Files != 6 || st.Dirs != 5 || st.Links != 3 || st.Bytes != 6000010+2*40_000*(1+2+3+4) {
		t.Errorf("%+v", st)
	}
	if left := m.ok("ls", "-aR", "/"); strings.Contains(left, client.TempPrefix) {
		t.Errorf("a temporary file was left behind:\n%s", left)
	}
}

func diffMaps(t *testing.T, got, want map[string]string) {
	t.Helper()
	for p := range want {
		if got[p] != want[p] {
			t.Errorf("%q: expected %.80q, found %.80q", p, want[p], got[p])
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q is too many", p)
		}
	}
}

func TestCopyFiles(t *testing.T) {
	m := newMemTree(t)
	dir := t.TempDir()
	local := func(name string) string { return filepath.Join(dir, name) }
	for name, data := range map[string]string{"a": "A", "b": "B"} {
		if err := os.WriteFile(local(name), []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", local("l")); err != nil {
		t.Fatal(err)
	}
	m.ok("cp", local("a"), "koinon:new")
	m.ok("mkdir", "/d")
	m.ok("cp", local("a"), local("b"), local("l"), "koinon:/new", "koinon:/d")
	equal(t, "ls", m.ok("ls", "-d", "/d/a", "/d/b", "/d/l", "/d/new"), "/d/a\n/d/b\n/d/l\n/d/new\n")
	equal(t, "cat", m.ok("cat", "/d/a", "/d/b", "/d/l", "/d/new"), "ABAA") // without -r a link is followed
	m.ok("cp", "koinon:/d/b", local("a"))
	if data, err := os.ReadFile(local("a")); err != nil || string(data) != "B" {
		t.Errorf("%q, %v", data, err)
	}
	info, err := os.Stat(local("a"))
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("a file that is replaced keeps its mode: %v, %v", info.Mode(), err)
	}
	m.ok("cp", "koinon:/d/a", local("l")) // a link is written through
	if data, err := os.ReadFile(local("a")); err != nil || string(data) != "A" {
		t.Errorf("%q, %v", data, err)
	}
	m.ok("cp", local("b"), "koinon:/target") // in the tree, too
	for link, to := range map[string]string{"/link": "target", "/d/link": "../link", "/away": "/nowhere"} {
		if err := m.c.Symlink(t.Context(), to, link); err != nil {
			t.Fatal(err)
		}
	}
	m.ok("cp", local("a"), "koinon:/d/link")
	equal(t, "cat", m.ok("cat", "/target"), "A")
	m.ok("cp", local("b"), "koinon:/away") // what is not there yet, is made
	equal(t, "ls", m.ok("ls", "-l", "/nowhere")[:10], "-rw-r-----")
	m.ok("mv", "/d/link", "/d/b")
	m.ok("cp", local("b"), "koinon:/d") // into a directory where the name is a link
	equal(t, "cat", m.ok("cat", "/target"), "B")
	if err := m.c.Symlink(t.Context(), "round", "/round"); err != nil {
		t.Fatal(err)
	}
	m.fails(1, "koinon:/round", "cp", local("b"), "koinon:/round")
	// What fails is left out, the rest is copied.
	m.fails(1, "1 file or directory was not copied", "cp", local("none"), local("b"), "koinon:/d")
	// A directory in the way of a file, and a file in the way of a directory.
	m.ok("mkdir", "/d/x")
	if err := os.Mkdir(local("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.fails(1, "/d/a", "cp", "-r", "koinon:/d/x", "koinon:/d/a")
	m.fails(1, "is a directory", "cp", "koinon:/d/a", local("x/y/.."), "koinon:/d/x")
}

func TestCopyStops(t *testing.T) {
	m := newMemTree(t)
	src := localTree(t)
	m.ok("mkdir", "/in")
	m.put("/in/big", "old")
	ctx, cancel := context.WithCancel(t.Context())
	// The source is a pipe-like reader in disguise: the copy is stopped when
	// its first bytes have moved.
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard}
	tree := &treeApp{app: a, open: func(context.Context) (*client.Client, error) { return m.c, nil }}
	from, to, err := cpArguments([]string{filepath.Join(src, "b", "big"), "koinon:/in"})
	if err != nil {
		t.Fatal(err)
	}
	var opt transfer.Options
	opt.Client, opt.Moved = m.c, func(int64) { cancel() }
	if err := tree.copy(ctx, from, to, opt); !errors.Is(err, context.Canceled) {
		t.Errorf("expected that it was stopped, found %v", err)
	}
	equal(t, "ls", m.ok("ls", "-a", "/in"), "big\n")
	equal(t, "cat", m.ok("cat", "/in/big"), "old")
	_, _, code := m.runIn(ctx, strings.NewReader(""), "cp", "-r", src, "koinon:/in")
	if code != 130 {
		t.Errorf("expected the exit code of an interrupt, found %d", code)
	}
	out := t.TempDir()
	ctx, cancel = context.WithCancel(t.Context())
	m.ok("cp", "-r", src, "koinon:/src")
	if from, to, err = cpArguments([]string{"koinon:/src", out}); err != nil {
		t.Fatal(err)
	}
	opt.Recursive, opt.Moved = true, func(int64) { cancel() }
	if err := tree.copy(ctx, from, to, opt); !errors.Is(err, context.Canceled) {
		t.Errorf("expected that it was stopped, found %v", err)
	}
	for p := range snapshot(t, out, false) {
		if strings.Contains(p, client.TempPrefix) {
			t.Errorf("%s was left behind", p)
		}
	}
}

// brokenReader gives some bytes and then fails.
type brokenReader struct{ n int }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, errors.New("the pipe broke")
	}
	n := min(len(p), b.n)
	b.n -= n
	return n, nil
}

func TestPutStopsWhileItWaits(t *testing.T) {
	m := newMemTree(t)
	m.put("/f", "old")
	ctx, cancel := context.WithCancel(t.Context())
	in, give := io.Pipe()
	defer give.Close()
	go func() { // ends when its bytes are taken or the pipe is closed
		_, _ = give.Write([]byte("some bytes, and then nothing for ever"))
		cancel()
	}()
	_, errOut, code := m.runIn(ctx, in, "put", "/f")
	if code != 130 {
		t.Errorf("expected the exit code of an interrupt, found %d, %s", code, errOut)
	}
	equal(t, "cat", m.ok("cat", "/f"), "old")
}

func TestPutIsWholeOrNot(t *testing.T) {
	m := newMemTree(t)
	m.put("/f", "old")
	for _, n := range []int{10, 3 << 20} {
		_, errOut, code := m.runIn(t.Context(), &brokenReader{n}, "put", "/f")
		if code != 1 || !strings.Contains(errOut, "cannot write /f: the pipe broke") {
			t.Errorf("%d, %s", code, errOut)
		}
		equal(t, "cat", m.ok("cat", "/f"), "old")
		equal(t, "ls", m.ok("ls", "-a"), "f\n")
	}
	large := strings.Repeat("0123456789", 1_000_000)
	m.put("/f", large)
	if m.ok("cat", "/f") != large {
		t.Error("other bytes")
	}
}

// fullDisk takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
}

// TestLostResult: no command has done its work whose result could not be
// written, and none blames anything else for it.
func TestLostResult(t *testing.T) {
	m := newMemTree(t)
	m.put("/a", "A")
	m.put("/b", "B")
	m.out = fullDisk{}
	for _, line := range []string{"ls", "ls -l /", "ls / /a", "ls -o json", "stat /a", "stat /a /b", "du", "du -o json /a", "df", "cat /a", "cat /a /b", "--help", "--version"} {
		_, errOut, code := m.runIn(t.Context(), strings.NewReader(""), strings.Fields(line)...)
		if want := "koinon: cannot write to standard output: no space left on device\n"; code != 1 || errOut != want {
			t.Errorf("koinon %s: expected exit code 1 and %q, found %d and %q", line, want, code, errOut)
		}
	}
}
