package replica

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/sys"
)

// TestBrokenRuleIsNoted: who has found a broken rule does not start again; a mistake of another kind is none.
func TestBrokenRuleIsNoted(t *testing.T) {
	for _, why := range []string{"runtime error", "replica: the state failed: input/output error", "paxos: a chosen value never changes"} {
		h := &Host{cfg: Config{FS: vfs.NewMem(), Dir: "data", Logger: slog.New(slog.DiscardHandler)}}
		if err := h.cfg.FS.MkdirAll("data", 0o700); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if r := recover(); r != why {
					t.Errorf("the panic %q expected, found %v", why, r)
				}
			}()
			defer h.noteBroken()
			panic(why)
		}()
		err := h.checkBroken()
		if noted := strings.HasPrefix(why, "paxos: "); noted != (err != nil) {
			t.Fatalf("%q: found %v", why, err)
		} else if noted && (!sys.Is(err, sys.Corrupt) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "--rejoin")) {
			t.Fatalf("the reason and what to do expected, found %v", err)
		}
	}
}
