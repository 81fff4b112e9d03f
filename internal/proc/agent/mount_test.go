//go:build linux

package agent

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountThatAnswers: of the mounts of the tree the first one that answers is
// used; with none there is trouble, and what was unmounted is forgotten.
func TestMountThatAnswers(t *testing.T) {
	w := newWorld(t)
	a := w.up()
	w.down() // what is noted from here on is this test's alone
	paths := []string{"/one", "/two"}
	a.opts.Mounts = func() ([]string, error) { return paths, nil }
	for _, step := range []struct {
		what    string
		do      func()
		path    string
		trouble string
	}{
		{"as they are", func() {}, "/one", ""},
		{"the second dies", func() { a.noteMount("/two", unix.ENOTCONN) }, "/one", ""},
		{"the second answers, the first hangs", func() { a.noteMount("/two", nil); a.noteMount("/one", unix.ETIMEDOUT) }, "/two", ""},
		{"both are gone", func() { a.noteMount("/two", unix.ECONNABORTED) }, "/one", "/one (connection timed out) and /two (software caused connection abort)"},
		{"the first has an error of a living one", func() { a.noteMount("/one", unix.EACCES) }, "/one", ""},
		{"the second alone is left", func() { paths = paths[1:]; a.forgetMounts(paths) }, "/two", "/two"},
		{"none is left", func() { paths = nil; a.forgetMounts(paths) }, "", ""},
		{"the second comes back", func() { paths = []string{"/two"} }, "/two", ""},
	} {
		step.do()
		path, trouble := a.mount()
		if path != step.path || (trouble == "") != (step.trouble == "") || !strings.Contains(trouble, step.trouble) {
			t.Errorf("%s: %q %q expected, found %q %q", step.what, step.path, step.trouble, path, trouble)
		}
	}
}
