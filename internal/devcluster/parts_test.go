//go:build linux

package devcluster

import (
	"os"
	"path/filepath"
	"slices"
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
