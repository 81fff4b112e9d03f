package mountinfo

import "testing"

// TestMayBeTree is about what is surely in no tree; the tests of whole clusters run
// commands in one.
func TestMayBeTree(t *testing.T) {
	for path, want := range map[string]bool{t.TempDir(): false, "/proc": false, t.TempDir() + "/none": true} {
		if got := MayBeTree(path); got != want {
			t.Errorf("%s: %v expected, found %v", path, want, got)
		}
	}
}
