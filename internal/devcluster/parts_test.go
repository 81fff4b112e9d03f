//go:build linux

package devcluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/mountinfo"
)

func TestRealMountPoint(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{"link": "real", "link/new": "real/new", "none/new": "none/new"} {
		got, err := realMountPoint(filepath.Join(dir, in))
		if err != nil || got != filepath.Join(dir, want) {
			t.Errorf("%s is %s, %v, want %s", in, got, err, want)
		}
	}
}

func TestDefaultDir(t *testing.T) {
	t.Setenv("HOME", "/home/ada")
	for state, want := range map[string]string{"": "/home/ada/.local/state/koinon/dev", "/var/ada": "/var/ada/koinon/dev", "relative": "/home/ada/.local/state/koinon/dev"} {
		t.Setenv("XDG_STATE_HOME", state)
		if got, err := DefaultDir(); err != nil || got != want {
			t.Errorf("with %q: %s, %v, want %s", state, got, err, want)
		}
	}
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", "")
	if got, err := DefaultDir(); err == nil {
		t.Errorf("without a home: %s", got)
	}
}

func TestMountsOf(t *testing.T) {
	all := []mountinfo.Mount{{Path: "/a", Type: "fuse.koinon", Source: "koinon:dev-1"}, {Path: "/b", Type: "fuse.koinon", Source: "koinon:dev-12"},
		{Path: "/c", Type: "ext4", Source: "koinon:dev-1"}, {Path: "/a/d", Type: "fuse.koinon", Source: "koinon:dev-1"}}
	if got, want := mountsOf(all, "dev-1"), []string{"/a/d", "/a"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An Up that is refused leaves no directory that was not there, and one that was as it was.
func TestRefusedUpLeavesNothing(t *testing.T) {
	opts := options(t, "")
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ mount, want string }{
		{full, "not empty"}, {opts.Dir, "that is the cluster's own directory: choose another mount point with --mount, such as " + filepath.Join(opts.Dir, "mnt")},
		{filepath.Join(opts.Dir, "n1"), "the cluster keeps its own files in"},
	} {
		opts := opts
		opts.Mount = tc.mount
		if _, _, err := Up(t.Context(), t.Context(), opts); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; expected %q", tc.mount, err, tc.want)
		}
		if _, err := os.Stat(opts.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the directory is there: %v", tc.mount, err)
		}
	}
	if err := os.Mkdir(opts.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	opts.Mount = full
	if _, _, err := Up(t.Context(), t.Context(), opts); err == nil {
		t.Error("a mount point that is not empty was taken")
	}
	if _, err := os.Stat(opts.Dir); err != nil {
		t.Error(err)
	}
}
