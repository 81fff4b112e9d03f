package spread

import (
	"bytes"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/sys"
)

func mustPut(t testing.TB, s block.Store, key sys.BlockKey, n int) {
	t.Helper()
	if err := s.Put(ctx, key, blocktest.Bytes(key, n)); err != nil {
		t.Fatalf("Put(%v): %v", key, err)
	}
}

func mustHave(t testing.TB, s block.Store, key sys.BlockKey, n int) {
	t.Helper()
	dst := make([]byte, n)
	if err := s.Get(ctx, key, 0, dst); err != nil || !bytes.Equal(dst, blocktest.Bytes(key, n)) {
		t.Fatalf("Get(%v, %d bytes): %v", key, n, err)
	}
}

func wantKind(t testing.TB, what string, err error, kind sys.Kind) {
	t.Helper()
	if !sys.Is(err, kind) {
		t.Fatalf("%s: error %v, want kind %q", what, err, kind)
	}
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name            string
		nodes, replicas int
		local           bool
	}{{"one node", 1, 3, false}, {"three nodes", 3, 3, false}, {"five nodes, two replicas", 5, 2, false}, {"three nodes, one here", 3, 3, true}} {
		t.Run(c.name, func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) block.Store {
				w := newWorld(t, worldOptions{nodes: c.nodes, replicas: c.replicas, pgs: 256, noHeal: true})
				return w.client(func(o *Options) {
					o.Prefer = 1
					if c.local {
						o.Local = w.nodes[0].server
					}
				})
			}, blocktest.Options{Tombstones: true})
		})
	}
}
