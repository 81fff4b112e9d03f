package replica

import (
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestEmptyValueIsThere reads a row whose value is empty before any other: it
// is there on a replica that has just started as on all others.
func TestEmptyValueIsThere(t *testing.T) {
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := db.Set([]byte("k"), nil, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	v, err := newOverlay(db).get([]byte("k"))
	if err != nil || v == nil || len(v) != 0 {
		t.Errorf("%#v, %v; expected an empty slice that is not nil", v, err)
	}
}
