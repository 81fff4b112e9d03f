package envfs

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestUnsynced: what is written is there for who reads it, and gone when the machine crashes.
func TestUnsynced(t *testing.T) {
	disk := vfs.NewCrashableMem()
	write := func(on FS, name string) {
		t.Helper()
		f, err := on.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("word")); err != nil {
			t.Fatal(err)
		}
		dir, err := on.OpenDir("/")
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{f.Sync(), f.SyncData(), f.Close(), dir.Sync(), dir.Close()} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	write(disk, "/synced")
	write(Unsynced(disk), "/unsynced")
	for _, c := range []struct {
		name          string
		before, after bool
	}{{"/synced", true, true}, {"/unsynced", true, false}} {
		for on, want := range map[FS]bool{Unsynced(disk): c.before, disk.CrashClone(vfs.CrashCloneCfg{}): c.after} {
			info, err := on.Stat(c.name)
			switch {
			case want && (err != nil || info.Size() != 4):
				t.Errorf("%s: 4 bytes expected, found %v, %v", c.name, info, err)
			case !want && !errors.Is(err, fs.ErrNotExist):
				t.Errorf("%s: it should be gone, found %v, %v", c.name, info, err)
			}
		}
	}
}
