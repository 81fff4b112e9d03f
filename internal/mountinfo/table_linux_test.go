package mountinfo

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A table that was read once tells of a mount as soon as it is there, and does
// not read again while there is no news.
func TestTableFollowsMounts(t *testing.T) {
	var table Table
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	seen := func() bool {
		t.Helper()
		mounts, err := table.List()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(mounts, func(m Mount) bool { return m.Path == dir && m.Type == "tmpfs" })
	}
	if seen() {
		t.Fatal("mounted before it was")
	}
	for range 3 {
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		mounted := seen()
		again := seen()
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		if !mounted || !again {
			t.Fatalf("mounted: %v, and looked at again: %v", mounted, again)
		}
		if seen() {
			t.Fatal("mounted after it was unmounted")
		}
	}
	whole, err := List()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := table.List(); err != nil || !slices.Equal(got, whole) {
		t.Errorf("%v, %v, want %v", got, err, whole)
	}
}
