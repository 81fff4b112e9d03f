//go:build linux

package fusefs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's conformance tests against one mount. They leave out
// FcntlFlockLocksFile themselves, which expects a process to be refused a lock
// that it holds.
func TestPosix(t *testing.T) {
	dir := mounted(t)
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			sub := filepath.Join(dir, name)
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			fn(t, sub)
			if err := os.RemoveAll(sub); err != nil {
				t.Error(err)
			}
		})
	}
}
